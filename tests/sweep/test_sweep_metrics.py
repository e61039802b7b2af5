"""What Prometheus reads of a study, from the port of a real Ray's node."""

from __future__ import annotations

import io
import re
import time
import urllib.request
from pathlib import Path

import pytest
from sweep_trials import spec, study

from ht_ray.records import TrialStatus
from ht_ray.sweep import SweepConfig, run_study
from ht_ray.sweep.records.progress import Console
from ht_ray.sweep.records.prometheus import StudyMetrics


def scrape() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Our numbers, by name and tags, of the node that this driver is on."""
    import ray

    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as page:
        text = page.read().decode()
    found = {}
    for name, tags, value in re.findall(r"^(ray_ht_ray_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        ours = re.findall(r'\b(study|status|label|kind|metric)="([^"]*)"', tags)
        found[name, frozenset(ours)] = float(value)
    return found


@pytest.mark.slow
def test_numbers_of_a_study_reach_the_metrics_port(cluster: str, tmp_path: Path) -> None:
    trials = (
        spec("one", label="Hare & Tortoise m=0.9"),
        spec("dies", label="Other", die_at=2, died=str(tmp_path / "died")),
        spec("fails", label="Other", fail_at=1),
    )
    what = study(*trials, name="watched")
    run_study(what, SweepConfig(results_dir=str(tmp_path / "study")), console=Console(io.StringIO()))
    of_study = ("study", "watched")

    def value(name: str, **tags: str) -> float | None:
        return found.get((f"ray_ht_ray_{name}", frozenset([of_study, *tags.items()])))

    end = time.monotonic() + 60
    while True:
        found = scrape()
        if value("trials", status="finished") == 2 or time.monotonic() > end:
            break
        time.sleep(1)
    assert {status: value("trials", status=status) for status in ("finished", "failed", "running")} == {
        "finished": 2,
        "failed": 1,
        "running": 0,
    }
    assert value("samples_total", label="Hare & Tortoise m=0.9") == 30
    assert value("samples_total", label="Other") == 30
    assert value("faults_total", kind="worker died") == 1
    assert value("study_seconds_left") == 0
    best = value("best_metric", metric="average")
    assert best is not None
    assert 0 < best < 1


def test_labels_of_any_letters_are_measured() -> None:
    metrics = StudyMetrics("études", "accuracy")
    metrics.samples("Adam ε=0.0001 β=(0.9, 0.9)", 3)
    metrics.status({TrialStatus.FINISHED: 1}, 1.0, 2.0)
