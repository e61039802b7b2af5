"""Selection without peeking: by what settings are compared, on which data, and what is reported of the chosen one.

Whatever is chosen (the best momentum, the best interval, the best of a search) is chosen by its accuracy on validation
data, which neither training nor testing saw, and reported on test data. A study that held no validation data out
chooses on test data, and says so: the best of many is then too good.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ht_ray._checks import check_choice
from ht_ray.report.data.study import MissingDataError, StudyData, TrialData, seed_values, split_by_access

__all__ = [
    "Choice",
    "best_label",
    "choose",
    "chosen_on",
    "labels_by_method",
    "selecting_metric",
    "selection_sentence",
    "test_metric",
    "validation_metric",
]

_REPORTED = ("average", "final")
_MEASURE = re.compile(r"(average|final|online|first)_(val_)?(?!return)(?=\w)")


def validation_metric(metric: str) -> str:
    """Return the name of a test metric's counterpart on validation data; any other name as it is.

    Examples
    --------
    >>> validation_metric("average_accuracy"), validation_metric("final_val_accuracy"), validation_metric("score")
    ('average_val_accuracy', 'final_val_accuracy', 'score')
    """
    return _MEASURE.sub(r"\1_val_", metric, count=1)


def test_metric(metric: str) -> str:
    """Return the name of a validation metric's counterpart on test data; any other name as it is.

    Examples
    --------
    >>> test_metric("average_val_accuracy"), test_metric("final_accuracy")
    ('average_accuracy', 'final_accuracy')
    """
    return _MEASURE.sub(r"\1_", metric, count=1)


test_metric.__test__ = False  # type: ignore[attr-defined]  # pytest collects what is called so


def selecting_metric(study: StudyData, metric: str) -> str:
    """Return by what settings are chosen whose `metric` is reported: its value on validation data, if there is one."""
    found = validation_metric(metric)
    return found if found in study.summary_names else metric


def chosen_on(study: StudyData) -> str:
    """Return the data that the study's choices are made on: ``"validation"`` or ``"test"``."""
    metric = study.metric
    return "validation" if selecting_metric(study, metric) != test_metric(metric) else "test"


def selection_sentence(study: StudyData) -> str:
    """Return the sentence that says on which data the best was chosen."""
    if chosen_on(study) == "validation":
        return "Chosen on validation data, which training never saw; reported on test data, which chose nothing."
    if not _MEASURE.match(study.metric):
        return f"Chosen by {study.metric}, which is also what is reported: the best of several reads better than it is."
    return (
        "Chosen on test data, as no validation data was held out (--validation): the best of several settings reads "
        "better than it is."
    )


@dataclass(frozen=True)
class Choice:
    """The best setting of several, and what it is worth.

    Attributes
    ----------
    label
        The method with its settings.
    settings
        What the trials of the label have in common.
    of
        How many settings it was chosen from.
    chosen_on
        ``"validation"`` or ``"test"``: the data on which it was chosen.
    metric
        The number by which it was chosen.
    value
        The mean of that over the seeds.
    test
        The means of the test metrics over the seeds, by their names.
    seeds
        The number of seeds.
    access
        The access mode in which the settings were compared; None where the study has no such thing.
    """

    label: str
    settings: Mapping[str, object]
    of: int
    chosen_on: str
    metric: str
    value: float
    test: Mapping[str, float]
    seeds: int
    access: str | None = None

    def __str__(self) -> str:
        factor, unit = (100, " %") if self.metric.endswith("accuracy") else (1, "")
        where = f", {self.access} access" if self.access is not None else ""
        test = ", ".join(f"{name.replace('_', ' ')} {factor * value:.4g}{unit}" for name, value in self.test.items())
        return f"{self.label}{where}: best of {self.of} on {self.chosen_on} data; on test data: {test}"


def best_label(study: StudyData, labels: Sequence[str], metric: str, *, by: str | None = None) -> str | None:
    """Return which of `labels` has the best mean of what `metric` is chosen by, or of `by`; None if none has finished.

    A label that finished on more seeds goes first: a mean over the lucky ones is no contest. Of equals it is the first.
    """
    by, groups = by or selecting_metric(study, metric), study.by_label
    sign = -1 if study.better(by) == "min" else 1

    def rank(label: str) -> tuple[int, float]:
        values = list(seed_values(groups[label], by).values())
        return len(values), sign * float(np.mean(values)) if values else -math.inf

    best = max(labels, key=rank, default=None)
    return best if best is not None and rank(best)[0] else None


def labels_by_method(study: StudyData) -> dict[str, list[str]]:
    """Return the labels of each method, in the order planned."""
    methods: dict[str, list[str]] = {}
    for label, trials in study.by_label.items():
        methods.setdefault(trials[0].method, []).append(label)
    return methods


def choose(study: StudyData, *, method: str | None = None, access: str | None = None) -> Choice:
    """Return the best setting of a study, chosen without peeking at test data where it has validation data.

    Parameters
    ----------
    method : str, optional
        Choose among the settings of this method only.
    access : str, optional
        The access mode in which to compare; by default the study's first.

    Raises
    ------
    MissingDataError
        If no trial has finished.
    SettingError
        If the study has no such method, or no such access mode.
    """
    parts = split_by_access(study)
    part = next(iter(parts.values()))
    if access is not None:
        modes = [mode for mode in parts if mode is not None] or _modes(study.trials)
        check_choice("best: access", access, modes)
        part = parts.get(access, part)
    groups = part.by_label
    if method is not None:
        check_choice("best: method", method, list(dict.fromkeys(trial.method for trial in part.trials)))
        groups = {label: trials for label, trials in groups.items() if trials[0].method == method}
    metric = test_metric(part.metric)
    label = best_label(part, list(groups), metric)
    if label is None:
        raise MissingDataError("best: no trial has finished.")
    trials, by = groups[label], selecting_metric(part, metric)
    own = _modes(trials)
    names = dict.fromkeys([*(f"{name}_{part.measure}" for name in _REPORTED), metric])
    means = {name: list(seed_values(trials, name).values()) for name in names}
    return Choice(
        label,
        _common(trials),
        len(groups),
        chosen_on(part),
        by,
        float(np.mean(list(seed_values(trials, by).values()))),
        {name: float(np.mean(values)) for name, values in means.items() if values},
        len(seed_values(trials, by)),
        own[0] if own else None,
    )


def _modes(trials: Sequence[TrialData]) -> list[str]:
    """Return the access modes of trials."""
    return list(dict.fromkeys(str(mode) for t in trials if (mode := t.settings.get("access")) is not None))


def _common(trials: Sequence[TrialData]) -> dict[str, object]:
    first, *others = trials
    return {
        name: value
        for name, value in first.settings.items()
        if name != "seed" and value is not None and all(other.settings.get(name) == value for other in others)
    }
