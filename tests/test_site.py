"""The documentation builds as a site: links lead somewhere, public names are there, nothing comes from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["ht_ray", *(f"ht_ray.{name}" for name in (
    "methods", "mechanisms", "diagnostics", "vision", "avalanche", "agents", "rllib", "sweep", "report", "errors",
))]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it, where a link or an anchor that leads nowhere is an error."""
    made = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(made)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_every_public_name(site: Path, package: str) -> None:
    page = (site / "reference" / f"{package}.html").read_text(encoding="utf-8")
    headings = {name.rpartition(".")[2] for name in re.findall(r'<h[23] id="([\w.]+)" class="doc', page)}
    assert set(import_module(package).__all__) - {"__version__"} <= headings
    assert "docstring_section" not in page and "Parameters\n----" not in page, "docstrings are read as NumPy's"


def test_links_of_pages_lead_to_files(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert {"index.html", "methods.html", "leaderboard.html", "changelog.html"} <= {page.name for page in pages}
    for page in pages:
        for link in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding="utf-8")):
            if "://" not in link and not link.startswith(("mailto:", "/", "data:")):
                assert (page.parent / unquote(link)).exists(), f"{page.relative_to(site)}: {link}"
    # A link of docs/packs.md that leaves the folder.
    assert (site / "benchmarks/results/gpu-h200-packs.json").is_file()


def test_a_reader_without_a_network_misses_nothing(site: Path) -> None:
    loaded = re.compile(r'<(?:script|img|iframe)[^>]* src="https?:|<link[^>]*stylesheet[^>]* href="https?:')
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*['\"]?https?:", sheet.read_text(encoding="utf-8")), sheet
    assert "momentum_of_half_life" in (site / "search" / "search_index.json").read_text(encoding="utf-8")
