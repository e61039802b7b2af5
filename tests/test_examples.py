"""Each file of examples/ runs, and shows what it is to show; studies run without Ray here, in this process."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        patch.syspath_prepend(EXAMPLES)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def needs(extra: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(extra) is None, reason=f"needs ht-ray[{extra}]")


def test_each_example_is_short_and_has_its_test() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    names = [file.name for file in EXAMPLES.iterdir() if file.suffix == ".py"]
    assert len(names) == 6
    for name in names:
        assert f'"{name}"' in tests
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 60, name


@pytest.mark.parametrize("name", ["own_network.py", "own_table.py"])
def test_studies(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent / "sweep")
    from fake_tune import fake_tune

    monkeypatch.setenv("HT_RAY_RESULTS", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with fake_tune():
        run(name)
    said = capsys.readouterr().out
    assert "4 finished" in said and "nothing is missing" in said
    head, plain, tortoise = said.splitlines()[-3:]
    assert "average_accuracy_mean" in head and "Plain" in plain and "Hare & Tortoise" in tortoise


@pytest.mark.usefixtures("cluster")
def test_cartpole(capsys: pytest.CaptureFixture[str]) -> None:
    run("cartpole.py", "4")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("iteration 4: mean return ") and last.endswith(" 1 resets")


@pytest.mark.data
def test_split_mnist(capsys: pytest.CaptureFixture[str]) -> None:
    run("split_mnist.py")
    words = capsys.readouterr().out.splitlines()[-1].split()
    assert float(words[-3].rstrip(";")) > 0.7 and words[-2:] == ["resets:", "5"]


@needs("lightning")
def test_lightning(capsys: pytest.CaptureFixture[str]) -> None:
    run("lightning_digits.py", "6")
    assert float(capsys.readouterr().out.split()[-1]) > 0.85


@needs("transformers")
@pytest.mark.filterwarnings("ignore")
def test_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    run("transformers_digits.py", "4")
    assert float(capsys.readouterr().out.split()[-1]) > 0.7
