"""Where trials run on a real Ray, and how they share data there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from disturbed_runs import reports, run
from node_deaths import MOMENTS
from placement_trials import placed

from ht_ray.errors import SettingError


def test_the_data_is_on_a_node_once(cluster: str, tmp_path: Path) -> None:
    data = np.arange(1 << 20)
    study = placed(tmp_path / "seen", 3, together=2, shared=data)
    result, said = run(study, results_dir=str(tmp_path / "study"))
    assert result.exit_code == 0, said
    summaries = [reports(tmp_path / "study", spec.id)[0]["summary"] for spec in study.trials]
    assert len({summary["process"] for summary in summaries}) == 2
    assert {summary["sum"] for summary in summaries} == {int(data.sum())}
    # The same bytes of the same file, which nobody may change.
    assert len({(summary["inode"], summary["offset"]) for summary in summaries}) == 1
    assert {summary["writeable"] for summary in summaries} == {0}


def test_a_resource_that_the_cluster_has_not_is_refused(cluster: str, tmp_path: Path) -> None:
    study = placed(tmp_path / "seen", 1)
    with pytest.raises(SettingError, match=r"needs \(CPU 1, tpu 1\).*1 node with 2 CPUs and 0 GPUs, tpu 0\."):
        run(study, results_dir=str(tmp_path / "study"), resources=("tpu=1",))
    with pytest.raises(SettingError, match=r"needs \(CPU 1, label kind=a100\).*, label kind=None\."):
        run(study, results_dir=str(tmp_path / "study"), node_labels=("kind=a100",))
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trials_run_only_where_they_may(tmp_path: Path) -> None:
    done = in_a_process_of_its_own("placement_trials.py", tmp_path)
    found = [line for line in done.splitlines() if line.startswith(("labels", "resources", "both"))]
    assert found == ["labels 2 ['slow']", "resources 2 ['fast']", "both 2 ['fast']"]
    assert json.loads((tmp_path / "both/trials/trial-0/status.json").read_text())["status"] == "finished"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_node_may_die_at_any_moment_of_a_drivers_start(tmp_path: Path) -> None:
    done = in_a_process_of_its_own("node_deaths.py", tmp_path)
    assert [line for line in done.splitlines() if line.startswith(("ht_ray", "ray"))] == [
        f"{moment} 2 0" for moment in MOMENTS
    ]


def in_a_process_of_its_own(name: str, directory: Path) -> str:
    """Run a script that has a cluster of several nodes, and return what it printed."""
    script = Path(__file__).with_name(name)
    path = os.pathsep.join([str(script.parent), *filter(None, sys.path)])
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, str(script), str(directory)],
        env={**kept, "PYTHONPATH": path, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
