"""What pytest collects: modules of optional libraries where these are installed, and less with ``-m gpu``.

With that, only the files with tests of that mark, and nothing that others need: so ``pytest -m gpu`` runs on a machine
that has torch alone, where tests and modules of Ray and Avalanche cannot be imported.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

# oneDNN of torch 2.15 ends the process in channels_last convolutions of few channels, in its kernels for AVX2, which it
# takes where there is no AVX-512. It reads this when it first computes; workers and command lines inherit it.
_CPU = Path("/proc/cpuinfo")
if _CPU.exists() and "avx512f" not in _CPU.read_text():
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")

_INTEGRATIONS = Path(__file__).parent / "ht_ray" / "integrations"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.parent == _INTEGRATIONS and not collection_path.name.startswith("_"):
        # Each is called as the library that it is for.
        return None if importlib.util.find_spec(collection_path.stem) else True
    if config.option.markexpr != "gpu":
        return None
    files = [collection_path] if collection_path.is_file() else collection_path.rglob("test_*.py")
    return None if any("pytest.mark.gpu" in file.read_text(encoding="utf-8") for file in files) else True
