"""Workers and nodes that are told to leave, on a real Ray of several nodes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from sweep_trials import spec, study

from ht_ray.sweep import Study, StudyResult, SweepConfig, run_study
from ht_ray.sweep.driver.local_ray import start_ray
from ht_ray.sweep.records.progress import Console
from ht_ray.sweep.worker.drain_node import Raylet, main, raylets, trial_workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def slow_study() -> Study:
    """Two trials of three parts, four seconds each."""
    trials = (spec(f"slow-{seed}", seed=seed, parts=3, step_sleep=0.4) for seed in (1, 2))
    return study(*trials, factory="sweep_trials:Interruptible")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = start_ray(lambda: Cluster(initialize_head=True, head_node_args=head))
    for _ in range(2):
        start_ray(lambda: cluster.add_node(num_cpus=1))
    yield cluster
    cluster.shutdown()


@pytest.fixture
def connected(nodes: Cluster) -> Iterator[Cluster]:
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()


class Running:
    """A study that runs in a thread."""

    def __init__(self, directory: Path, **config: Any) -> None:
        self.directory = directory
        self.said = io.StringIO()
        self._config = SweepConfig(results_dir=str(directory), **config)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self._result = run_study(slow_study(), self._config, console=Console(self.said))

    def result(self) -> StudyResult:
        self._thread.join(timeout=300)
        assert not self._thread.is_alive()
        return self._result

    @property
    def journal(self) -> list[dict[str, Any]]:
        path = self.directory / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def reports(self, trial: str) -> list[dict[str, Any]]:
        path = self.directory / "trials" / trial / "results.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [{**json.loads(line), "seconds": None, "sum": None} for line in lines]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [entry for entry in self.journal if kind in (entry["event"], entry.get("kind"))]


@pytest.fixture(scope="module")
def undisturbed(nodes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    ray.init(address=nodes.address, log_to_driver=False)
    running = Running(tmp_path_factory.mktemp("undisturbed") / "study")
    assert running.result().finished == 2
    ray.shutdown()
    yield running


def own_raylets(cluster: Cluster) -> list[Raylet]:
    own = {node.all_processes["raylet"][0].process.pid for node in cluster.worker_nodes}
    return [raylet for raylet in raylets() if raylet.pid in own]


def workers(cluster: Cluster) -> list[int]:
    return [pid for raylet in own_raylets(cluster) for pid in trial_workers(raylet)]


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.05)


def assert_same(running: Running, undisturbed: Running) -> None:
    for trial in ("slow-1", "slow-2"):
        assert running.reports(trial) == undisturbed.reports(trial)


def test_worker_that_is_told_to_leave_is_saved_inside_its_part(
    connected: Cluster, undisturbed: Running, tmp_path: Path
) -> None:
    running = Running(tmp_path / "study", max_failures=0)  # a notice is no failure
    wait_for(lambda: running.reports("slow-1"))
    time.sleep(1.5)
    os.kill(workers(connected)[0], signal.SIGTERM)
    assert running.result().finished == 2
    assert_same(running, undisturbed)
    (fault,) = running.events("fault")
    assert (fault["kind"], fault["detail"]) == ("pre-empted", "told to leave; saved inside a part")
    assert running.events("resumed")
    assert not list(running.directory.rglob("*.tmp"))


def test_long_parts_are_saved_inside(connected: Cluster, undisturbed: Running, tmp_path: Path) -> None:
    running = Running(tmp_path / "study", checkpoint_minutes=1.0 / 60)
    saved = lambda: [path.name for path in running.directory.glob("checkpoints/*/000000-00000[1-9]-*")]  # noqa: E731
    wait_for(saved)
    os.kill(workers(connected)[0], signal.SIGKILL)
    assert running.result().finished == 2
    assert_same(running, undisturbed)
    assert [entry["kind"] for entry in running.events("fault")] == ["worker died"]


def test_node_that_is_told_to_leave_loses_its_trial_to_the_other(
    connected: Cluster, undisturbed: Running, tmp_path: Path
) -> None:
    running = Running(tmp_path / "study")
    wait_for(lambda: running.reports("slow-1") and running.reports("slow-2"))
    leaving = own_raylets(connected)[0]
    command = [sys.executable, "-m", "ht_ray.sweep.leave", "--grace", "60", "--raylet", str(leaving.pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 trials were told to leave, 0 are still there" in done.stdout
    assert not trial_workers(leaving)
    assert running.result().finished == 2
    assert_same(running, undisturbed)
    (fault,) = running.events("pre-empted")
    assert leaving.node_id[:8] in fault["node"]
    assert all(leaving.node_id[:8] not in entry["node"] for entry in running.events("resumed"))


def test_leave_says_where_no_node_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--raylet", "1"])
    assert ended.value.code == 2
    assert "no Ray node runs on this machine as process 1" in capsys.readouterr().err
