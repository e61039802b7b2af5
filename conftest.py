"""What pytest collects with ``-m gpu``: the files with tests of that mark, and nothing that others need.

So ``pytest -m gpu`` runs on a machine that has torch alone, where tests and modules of Ray and Avalanche cannot be
imported.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.option.markexpr != "gpu":
        return None
    files = [collection_path] if collection_path.is_file() else collection_path.rglob("test_*.py")
    return None if any("pytest.mark.gpu" in file.read_text(encoding="utf-8") for file in files) else True
