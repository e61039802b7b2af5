"""Hooks of the site: pages from outside this folder, the API reference, and links into the repository.

A link is written as GitHub follows it. Where it leaves this folder, the site gets the file that it leads to.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import TYPE_CHECKING, Any

from griffe import Extension
from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from griffe import Object
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Pages of the site by their file in the repository.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "findings/README.md": "findings.md",
}
# Pages of the reference: a package's name, and the module whose names it has.
REFERENCE = {
    name: name
    for name in (
        "ht_ray",
        "ht_ray.methods",
        "ht_ray.mechanisms",
        "ht_ray.diagnostics",
        "ht_ray.vision",
        "ht_ray.avalanche",
        "ht_ray.agents",
        "ht_ray.rllib",
        "ht_ray.sweep",
        "ht_ray.report",
        "ht_ray.errors",
    )
} | {"ht_ray.avalanche": "strategies"}
# Packages that load their names when asked for, and where those names are imported for type checkers.
LAZY = {"ht_ray": "ht_ray/__init__.pyi", "ht_ray.agents": "ht_ray/agents/__init__.py"}


def directives(paths: list[str], options: str) -> str:
    """Return what has mkdocstrings show the objects at `paths`."""
    return "".join(f"\n::: {path}\n    options: {{{options}}}\n" for path in paths)


def imported_names(source: str) -> list[str]:
    """Return the paths of the public names that a file imports from the repository's packages."""
    statements = ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8")))
    return sorted(
        (
            f"{statement.module}.{name.name}"
            for statement in statements
            if isinstance(statement, ast.ImportFrom) and str(statement.module).startswith(("ht_ray.", "tune_configs."))
            for name in statement.names
        ),
        key=lambda path: path.rpartition(".")[2],
    )


class EachParameter(Extension):
    """Describe ``a, b`` of a docstring one after the other: griffe would give `b` the type and the default of `a`."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^((?:\*{0,2}\w+, )+\*{0,2}\w+)\n((?: +\S.*(?:\n|\Z))+)",
                lambda found: "".join(f"{name}\n{found[2].rstrip()}\n" for name in found[1].split(", ")),
                obj.docstring.value,
                flags=re.MULTILINE,
            )


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of this folder."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    for name, module in REFERENCE.items():
        content = f"# `{name}`\n\n::: {module}\n"
        if name in LAZY:
            content += "    options: {members: false}\n"
            content += directives(imported_names(LAZY[name]), "show_root_heading: true, show_root_toc_entry: true")
        if module == "strategies":  # plugins of single methods, which are made without a text
            content += directives(["strategies.plugins.named"], "show_if_no_docstring: true")
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links from or to what is outside this folder into links of the site."""
    here = page.file.src_uri
    source = {target: path for path, target in PAGES.items()}.get(here, f"docs/{here}")

    def site_link(match: re.Match[str]) -> str:
        path, anchor = normpath(f"{dirname(source)}/{match[1]}").lstrip("/"), match[2]
        if not (ROOT / path).is_file():
            return match[0]  # not a link, or one that the site's own check refuses
        target = PAGES.get(path) or path.removeprefix("docs/")
        if files.get_file_from_path(target) is None:
            # A browser shows a file without an ending if it is called text.
            target += "" if Path(target).suffix else ".txt"
            files.append(File.generated(config, target, abs_src_path=str(ROOT / path)))
        return f"]({relpath(target, dirname(here) or '.')}{anchor})"

    return re.sub(r"\]\((?![a-z]+:)([^)#\s]+)((?:#[^)\s]+)?)\)", site_link, markdown)
