"""Studies whose driver is killed or told to stop, and that are resumed from the command line."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from study_files import all_reports, status, table

from tune_configs import ablation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHECKOUT = Path(__file__).parents[2]
STUDY = shlex.split("--momenta 0.5 --reset-intervals 1 --baselines plain --seeds 2 --phases 4 --epochs 40")


@pytest.fixture(scope="module")
def undisturbed(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "study"
    assert ablation.main([*STUDY, "--results-dir", str(directory)]) == 0
    return directory


@contextmanager
def driver(*arguments: str, cwd: Path, checkout: Path = CHECKOUT) -> Iterator[subprocess.Popen[str]]:
    """The script as a process of its own, in a process group of its own, which is gone afterwards."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HT_RAY_"))}
    process = subprocess.Popen(
        [sys.executable, str(checkout / "tune_configs" / "ablation.py"), *arguments],
        cwd=cwd,
        env={**kept, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_a_report(directory: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not list(directory.glob("trials/*/results.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no trial has reported"
        time.sleep(0.02)


def assert_same(directory: Path, undisturbed: Path) -> None:
    assert all_reports(directory) == all_reports(undisturbed)
    assert table(directory) == table(undisturbed)
    for name in ("table.csv", "drops.csv"):
        assert (directory / name).read_bytes() == (undisturbed / name).read_bytes()
    pages = []
    for study in (directory, undisturbed):
        before, _, after = (study / "table.md").read_text().partition("## What happened")
        pages.append((before, after[after.index("\n\nSkipped:") :]))  # the runs between are two and one
    assert pages[0] == pages[1]


def test_killed_driver_resumes_to_the_same_table(undisturbed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "study"
    with driver(*STUDY, "--results-dir", str(directory), cwd=tmp_path) as process:
        wait_for_a_report(directory, process)
        os.killpg(process.pid, signal.SIGKILL)
    assert "running" in {
        status(directory, path.parent.name)["status"] for path in directory.glob("trials/*/status.json")
    }
    assert not (directory / "table.md").exists()
    with driver("--resume", "study", cwd=tmp_path) as process:
        out, err = process.communicate()
        assert process.returncode == 0, err
    assert "4 finished" in out
    assert_same(directory, undisturbed)


def test_ctrl_c_says_how_to_resume(undisturbed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "study"
    with driver(*STUDY, "--results-dir", str(directory), cwd=tmp_path) as process:
        wait_for_a_report(directory, process)
        # A terminal tells all processes of the group.
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
        assert process.returncode == 130, err
    assert "Interrupted" in out
    assert f"--resume {directory}" in out
    assert "Traceback" not in err
    # The same flags again say what is known already.
    assert ablation.main([*STUDY, "--resume", str(directory)]) == 0
    assert_same(directory, undisturbed)


def test_copy_of_the_source_runs_from_anywhere(tmp_path: Path) -> None:
    """As `ray job submit --working-dir` ships it, with another version installed: driver and workers take the copy."""
    for package in ("ht_ray", "strategies", "tune_configs"):
        shutil.copytree(CHECKOUT / package, tmp_path / "copy" / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "copy" / "tune_configs" / "vision_trial.py").open("a") as file:
        file.write('\n_STATE = "state-of-the-copy.pt"\n')
    (tmp_path / "elsewhere").mkdir()
    directory = tmp_path / "study"
    arguments = "--momenta 0.5 --reset-intervals 1 --baselines --seeds 1 --phases 2 --epochs 1 --train-limit 200"
    where = {"cwd": tmp_path / "elsewhere", "checkout": tmp_path / "copy"}
    with driver(*shlex.split(arguments), "--results-dir", str(directory), **where) as process:
        out, err = process.communicate()
        assert process.returncode == 0, err
    assert "1 finished" in out
    assert list(directory.glob("checkpoints/*/*/trial/state-of-the-copy.pt"))
    assert not list((tmp_path / "elsewhere").iterdir())
