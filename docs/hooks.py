"""Hooks of the site: pages from outside this folder, the API reference, and links into the repository.

A link is written as GitHub follows it. Where it leaves this folder, the site gets the file that it leads to.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
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
# Pages of the reference: a package's name, and where its names are read.
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


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of this folder."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    for name, module in REFERENCE.items():
        files.append(File.generated(config, f"reference/{name}.md", content=f"# {name}\n\n::: {module}\n"))
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

    return re.sub(r"\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]+)?\)", site_link, markdown)
