"""Own network, data, stream and benchmark on a cluster of two nodes, as jobs whose working directory is the user's.

The package is installed on the nodes from its wheel; what the user brings is in the folder that is submitted, and in no
other place. Ray unpacks it on the nodes.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from study_files import all_reports, status, table
from token_cluster import Head, started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

CHECKOUT = Path(__file__).parents[2]
PARTS = """
import torch
from torch import nn


def make_network(shape, num_classes):
    features = torch.Size(shape).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, num_classes))


def make_benchmark(dataset_root=None):
    from avalanche.benchmarks import ni_benchmark
    from torch.utils.data import TensorDataset

    draw = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 3
    x = (torch.randint(0, 100, (120, 1, 8, 8), generator=draw) + 70 * y.view(-1, 1, 1, 1)) / 255
    train, test = TensorDataset(x[:90], y[:90]), TensorDataset(x[90:], y[90:])
    for part, labels in ((train, y[:90]), (test, y[90:])):
        part.targets = labels.tolist()
    return ni_benchmark(train, test, n_experiences=3, task_labels=False, seed=1, shuffle=True)
"""
STUDY = """
from ht_ray import Study

if __name__ == "__main__":
    results = Study(
        model="own_parts:make_network",
        data="table.parquet",
        methods=["plain", "hare_tortoise"],
        seeds=2,
        access="full",
        phases=2,
        epochs=2,
        address="auto",
        pack="off",
        results_dir={directory!r},
    ).run()
    print("best:", results.best().label)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: a module, a table, and a folder of images."""
    import pandas as pd
    from PIL import Image

    made = tmp_path_factory.mktemp("user")
    (made / "own_parts.py").write_text(PARTS)
    draw = np.random.default_rng(0)
    label = np.arange(150) % 3
    table = pd.DataFrame({f"x{i}": draw.normal(size=150) + label for i in range(5)} | {"label": label})
    table.to_parquet(made / "table.parquet")
    for part, count in (("train", 30), ("test", 10)):
        for name in ("cat", "dog"):
            images = made / "images" / part / name
            images.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 128, (8, 8, 3)) + (127 if name == "dog" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(images / f"{i}.png")
    return made


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Two nodes of one CPU each, on which the package's wheel is installed."""
    wheels, installed = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv, which builds the wheel")
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", str(wheels), str(CHECKOUT)], check=True)
    (wheel,) = wheels.glob("*.whl")
    unpack = ["-m", "zipfile", "-e", str(wheel), str(installed)]
    subprocess.run([sys.executable, *unpack], check=True)
    with started(tmp_path_factory.mktemp("home"), cpus=(1, 1), PYTHONPATH=str(installed)) as found:
        yield found


def submit(head: Head, folder: Path, *command: str, job: str | None = None, wait: bool = True) -> tuple[int, str]:
    """Submit a command with that folder as its working directory."""
    more = ([] if job is None else ["--submission-id", job]) + ([] if wait else ["--no-wait"])
    return head.job("submit", *more, "--working-dir", str(folder), "--", *command)


def continual(directory: Path, *more: str) -> list[str]:
    """The command of a study of four trials, each of which needs a node's CPU."""
    study = "-m tune_configs.continual --methods plain hare_tortoise --seeds 2 --pack off --address auto"
    return ["python", *shlex.split(study), "--results-dir", str(directory), *more]


@pytest.mark.parametrize(
    "parts",
    [
        "--model own_parts:make_network --data table.parquet --access full --phases 2 --epochs 2",
        "--model own_parts:make_network --data images --access full --phases 2 --epochs 2",
        "--model own_parts:make_network --stream avalanche:own_parts:make_benchmark",
        pytest.param(
            "--model timm:test_resnet --data images --access full --phases 1 --epochs 1",
            marks=pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an extra"),
        ),
    ],
    ids=["table", "images", "benchmark", "timm"],
)
def test_own_parts_travel_with_the_job_to_both_nodes(head: Head, folder: Path, tmp_path: Path, parts: str) -> None:
    directory = tmp_path / "study"
    code, out = submit(head, folder, *continual(directory, *shlex.split(parts)))
    assert code == 0, out
    assert "4 finished" in out
    nodes = {status(directory, trial.name)["node"] for trial in (directory / "trials").iterdir()}
    assert len(nodes) == 2, nodes


def test_a_study_object_is_submitted_as_a_script(head: Head, folder: Path, tmp_path: Path) -> None:
    directory = tmp_path / "study"
    (folder / "my_study.py").write_text(STUDY.format(directory=str(directory)))
    code, out = submit(head, folder, "python", "my_study.py")
    assert code == 0, out
    assert "best: " in out
    assert len(table(directory)) == 4


def test_what_was_killed_goes_on_with_the_same_parts_and_no_others(head: Head, folder: Path, tmp_path: Path) -> None:
    parts = [
        "--model",
        "own_parts:make_network",
        "--data",
        "table.parquet",
        "--access",
        "full",
        "--phases",
        "6",
        "--epochs",
        "40",
    ]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    code, out = submit(head, folder, *continual(whole, *parts))
    assert code == 0, out
    code, out = submit(head, folder, *continual(cut, *parts), job="cut", wait=False)
    assert code == 0, out
    end = time.monotonic() + 900
    while not list(cut.glob("trials/*/results.jsonl")):
        assert time.monotonic() < end, head.job("logs", "cut")
        time.sleep(0.1)
    assert head.job("stop", "cut")[0] == 0
    assert head.wait_for("cut") == "STOPPED"
    reported = sum(len(path.read_text().splitlines()) for path in cut.glob("trials/*/results.jsonl"))
    assert 0 < reported < sum(map(len, all_reports(whole).values()))

    source = (folder / "own_parts.py").read_text()
    (folder / "own_parts.py").write_text(source.replace("16", "17"))
    code, out = submit(head, folder, "python", "-m", "tune_configs.continual", "--resume", str(cut))
    (folder / "own_parts.py").write_text(source)
    assert code != 0
    assert "own_parts:make_network" in out and "it is not what it was when the study began" in out

    # A file more makes it another package, with a folder of its own on the nodes: the table is found there, too.
    (folder / "notes.txt").write_text("of the second job")
    code, out = submit(head, folder, "python", "-m", "tune_configs.continual", "--resume", str(cut))
    assert code == 0, out
    assert "4 finished" in out
    assert all_reports(cut) == all_reports(whole)
