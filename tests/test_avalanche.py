"""`ht_ray.avalanche` gives the plugins of this checkout or installation, whatever else is named `strategies`."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ht_ray.avalanche
import strategies

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import pickle, sys
from ht_ray.avalanche import HareTortoisePlugin, ReDoPlugin
print(sys.modules[HareTortoisePlugin.__module__].__file__)
import strategies
print(getattr(strategies, "MINE", None))
sys.stdout.flush()
sys.stdout.buffer.write(pickle.dumps(HareTortoisePlugin))
"""


def run(code: str, folder: Path, *path: Path, data: bytes = b"") -> bytes:
    """Return what `code` prints with `folder` as the working directory, which comes first on ``sys.path``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def installed(folder: Path) -> Path:
    """Lay the packages out as an installed wheel does."""
    for package in ("ht_ray", "strategies", "tune_configs"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_importing_it_imports_neither_avalanche_nor_torch(project: Path) -> None:
    code = "import sys, ht_ray.avalanche; print([m for m in ('avalanche', 'torch', 'strategies') if m in sys.modules])"
    assert run(code, project, ROOT) == b"[]\n"


@pytest.mark.parametrize(
    ("kind", "layout"),
    [("folder", "checkout"), ("package", "checkout"), ("module", "installed")],
)
def test_it_is_found_beside_a_users_own(kind: str, layout: str, project: Path, tmp_path: Path) -> None:
    if kind == "module":
        (project / "strategies.py").write_text("MINE = 1\n")
    else:
        (project / "strategies").mkdir()
    if kind == "package":
        (project / "strategies" / "__init__.py").write_text("MINE = 1\n")
    home = ROOT if layout == "checkout" else installed(tmp_path / "site-packages")
    file, mine, pickled = run(SCRIPT, project, home).split(b"\n", 2)
    assert Path(file.decode()) == home / "strategies" / "plugins" / "named.py"
    # An empty folder gives way to a package that comes later on the path.
    assert mine == (b"None" if kind == "folder" else b"1")
    # Other processes read it: this one, where nothing is in the way, and one where something is.
    assert pickle.loads(pickled) is strategies.HareTortoisePlugin
    if kind == "package":
        read = "import pickle, sys; print(pickle.load(sys.stdin.buffer).__name__)"
        assert run(read, project, home, data=pickled) == b"HareTortoisePlugin\n"


def test_where_nothing_is_in_the_way_the_objects_are_the_same() -> None:
    assert ht_ray.avalanche.__all__ is strategies.__all__
    for name in strategies.__all__:
        assert getattr(ht_ray.avalanche, name) is getattr(strategies, name)
    assert set(strategies.__all__) <= set(dir(ht_ray.avalanche))


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'HareTortoisPlugin'\. Did you mean 'HareTortoisePlugin'"):
        _ = ht_ray.avalanche.HareTortoisPlugin
    with pytest.raises(ImportError, match="cannot import name 'loading'"):
        exec("from ht_ray.avalanche import loading")
