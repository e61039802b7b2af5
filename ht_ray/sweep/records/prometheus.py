"""Metrics of a study for Prometheus, through Ray's own. Importing this module imports Ray.

Each node of a cluster exports what the processes on it measure; the driver's numbers are on its node. Ray puts
``ray_`` before each name, and sends what has changed every ten seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ray.util.metrics import Counter, Gauge

from ht_ray.records import FaultKind, TrialStatus

__all__ = ["StudyMetrics"]

_Metric = TypeVar("_Metric", Gauge, Counter)


def _tag(text: str) -> str:
    # Ray 2.60 ends the study with a UnicodeEncodeError at any other text, as "Adam ε=0.0001".
    return text.encode("ascii", "backslashreplace").decode("ascii")


class StudyMetrics:
    """The numbers of one study.

    ==================================  =======  ===========================================================
    name, as Prometheus sees it         kind     tags; what
    ==================================  =======  ===========================================================
    ``ray_ht_ray_trials``               gauge    study, status: how many trials are so
    ``ray_ht_ray_samples_total``        counter  study, label: samples trained on in this run of the study
    ``ray_ht_ray_faults_total``         counter  study, kind: workers, nodes and checkpoints lost in this run
    ``ray_ht_ray_study_seconds_left``   gauge    study: as in the progress lines, once anything is known
    ``ray_ht_ray_best_metric``          gauge    study, metric: the best of the trials that have finished
    ==================================  =======  ===========================================================

    Where nobody collects them (Ray without its agent) nothing happens.

    Parameters
    ----------
    study
        Its name.
    metric
        The name of the metric by which the best trial is found.
    """

    def __init__(self, study: str, metric: str) -> None:
        def named(kind: type[_Metric], name: str, description: str, *tags: str) -> _Metric:
            made: _Metric = kind(f"ht_ray_{name}", description=description, tag_keys=("study", *tags))
            made.set_default_tags({"study": _tag(study), **({"metric": _tag(metric)} if "metric" in tags else {})})
            return made

        self._trials = named(Gauge, "trials", "Trials of a study, by status.", "status")
        self._samples = named(Counter, "samples_total", "Samples that trials were trained on, by label.", "label")
        self._faults = named(Counter, "faults_total", "Faults that interrupted trials of a study, by kind.", "kind")
        self._left = named(Gauge, "study_seconds_left", "Estimate of the seconds until a study has ended.")
        self._best = named(Gauge, "best_metric", "The best value of the trials that have finished.", "metric")

    def samples(self, label: str, samples: int) -> None:
        """Count what a part of a trial was trained on; nothing where its number of samples means nothing."""
        if samples:
            self._samples.inc(samples, tags={"label": _tag(label)})

    def fault(self, kind: FaultKind) -> None:
        """Count a fault."""
        self._faults.inc(1, tags={"kind": kind})

    def status(self, trials: Mapping[TrialStatus, int], seconds_left: float | None, best: float | None) -> None:
        """Show how far the study is: trials by status, the time left and the best value, None where unknown."""
        for status, number in trials.items():
            self._trials.set(number, tags={"status": status})
        for gauge, value in ((self._left, seconds_left), (self._best, best)):
            if value is not None:
                gauge.set(value)
