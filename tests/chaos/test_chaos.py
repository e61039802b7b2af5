"""A real study on a cluster of three nodes that lose a node, workers, memory and the driver."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from same_results import differences, journal
from simulated_cluster import SimulatedCluster, memory, memory_taken_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

CHECKOUT = Path(__file__).parents[2]
# Forty trials, eight configurations with five seeds, in ten packs: the faults hit some of them and not others.
STUDY = shlex.split(
    "--momenta 0.5 0.9 --reset-intervals 1 2 --baselines plain ema shrink_perturb --seeds 5 --phases 5 --epochs 10"
    " --pack 4"
)
GIB = 1 << 30


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "study"
    with driver(directory, None) as process:
        _, err = process.communicate()
    assert process.returncode == 0, err
    return directory


def driver(directory: Path, cluster: str | None) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    where = ["--address", cluster] if cluster else []
    return subprocess.Popen(
        [
            *(sys.executable, str(CHECKOUT / "tune_configs" / "ablation.py"), *STUDY),
            *("--resume-or-start", str(directory), *where),
        ],
        env={**kept, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.05)


def count(directory: Path, pattern: str) -> int:
    return len(list(directory.glob(pattern)))


def is_noted(directory: Path, what: str) -> bool:
    return what in (directory / "journal.jsonl").read_text()


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedCluster]:
    """Three nodes that kill workers when the machine uses 3 GiB more than now."""
    used, whole = memory()
    if whole - used < 8 * GIB:
        pytest.skip("needs 8 GiB of memory free, to take three of them for a moment")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{(used + 3 * GIB) / whole:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    cluster = SimulatedCluster(3)
    yield cluster
    cluster.close()


def test_a_study_survives_node_worker_memory_and_driver(
    crowded: SimulatedCluster, undisturbed: Path, tmp_path: Path
) -> None:
    directory, draw = tmp_path / "study", random.Random(1)
    process = driver(directory, crowded.address)
    try:
        # Each fault is on record before the next: the driver notices a dead node some seconds later.
        wait_for(lambda: count(directory, "trials/*/results.jsonl") >= 4, process)
        wait_for(lambda: crowded.kill_worker(draw), process)
        wait_for(lambda: is_noted(directory, "worker died"), process)

        crowded.kill_node(draw)
        wait_for(lambda: is_noted(directory, "node lost"), process)

        wait_for(lambda: len(crowded.workers) >= 2, process)
        there = set(crowded.workers)
        with memory_taken_until(lambda: not there <= set(crowded.workers), most=5 * GIB, seconds=60):
            pass
        wait_for(lambda: is_noted(directory, "out of memory"), process)

        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        process = driver(directory, crowded.address)
        out, err = process.communicate()
        assert process.returncode == 0, err
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    assert "40 finished" in out
    assert differences(directory, undisturbed) == []
    events = journal(directory)
    kinds = Counter(entry.get("kind") for entry in events if entry["event"] == "fault")
    assert kinds["worker died"] >= 1
    assert kinds["out of memory"] >= 1
    assert [entry["event"] for entry in events].count("node lost") >= 1
    assert [entry["event"] for entry in events].count("run started") == 2
    assert [entry["event"] for entry in events].count("run ended") == 1
    table = (directory / "table.md").read_text()
    for text in ("worker died", "out of memory", "node lost"):
        assert text in table, table
