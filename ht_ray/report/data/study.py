"""Study data: planned trials, their results, what is missing, and how trials are grouped."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ht_ray._checks import check_choice
from ht_ray.errors import SettingError
from ht_ray.report.data.journal import Journal

__all__ = [
    "Curve",
    "MissingDataError",
    "Scalar",
    "StudyData",
    "TrialData",
    "group",
    "seed_values",
    "split_by_access",
]

#: From how many labels on, those of which the same seeds are missing for the same cause share a sentence.
MANY_ALIKE = 5
#: How many labels with stopped trials are named.
MOST_STOPPED = 20

Scalar: TypeAlias = str | int | float | bool | None
"""A value of a trial's settings."""

Curve: TypeAlias = dict[str, NDArray[np.float64]]
"""The columns of one curve, each of shape ``(rows,)``; NaN where a row has no value."""


class MissingDataError(SettingError):
    """The study has no data for a table or a figure."""


# A number of a run's summary, of which the last part is what it is measured by.
_MEASURED = re.compile(r"(?:average|final|online|first|stream)_(?:val_)?(\w+)")


@dataclasses.dataclass(frozen=True, eq=False)
class TrialData:
    """One planned trial and its results.

    Attributes
    ----------
    id
        The trial's name, and that of its folder.
    label
        The name in legends; the same for all seeds.
    settings
        Flat settings: ``method``, ``momentum``, ``reset_interval``, ``seed``, ...
    status
        ``"finished"``, ``"failed"``, ``"diverged"``, ``"stopped"`` (by the scheduler of a search), ``"running"``
        (begun, and not ended), ``"missing"`` (not begun) or ``"damaged"`` (its result file cannot be relied on). Only
        finished trials enter tables and figures.
    error
        The last line of the error, or ``""``.
    curves
        ``{"epoch": {"step": ..., "test_accuracy": ...}, ...}``: arrays of shape ``(rows,)``, all reports in a row.
    summary
        The numbers of the last report. Accuracies are fractions; NaN where a number was not finite.
    progress
        Between 0 and 1.
    seconds
        Time spent, over all reports.
    damage
        Sentences on files of the trial that were torn or damaged.
    config
        The trial's configuration, as in ``trials.json``; empty where that has none.
    restarts
        How often it was restarted after a fault.
    packed
        Whether it was trained in a pack of trials, as one program.
    """

    id: str
    label: str
    settings: Mapping[str, Scalar]
    status: str
    error: str
    curves: Mapping[str, Curve]
    summary: Mapping[str, float]
    progress: float
    seconds: float
    damage: tuple[str, ...]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    restarts: int = 0
    packed: bool = False

    @property
    def seed(self) -> Scalar:
        """The setting ``seed``; ``None`` where there is none."""
        return self.settings.get("seed")

    @property
    def method(self) -> str:
        """The setting ``method``; ``""`` where there is none."""
        return str(self.settings.get("method") or "")

    def number(self, name: str) -> float | None:
        """Return one of the settings if it is a number."""
        value = self.settings.get(name)
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def finished(self) -> bool:
        """Whether the trial ran to its end and its results are whole."""
        return self.status == "finished"


@dataclasses.dataclass(frozen=True, eq=False)
class StudyData:
    """A study directory, read.

    Attributes
    ----------
    directory
        Where it was read from; for a study at a URI, a temporary directory that is gone.
    config
        The content of ``config.json``.
    trials
        All planned trials, in the order planned.
    orphans
        Sentences on folders that hold results of no planned trial, and are left out.
    journal
        The events while it ran; ``None`` where there is no ``journal.jsonl``.
    source
        The URI of a study that is not on this machine, without credentials.
    """

    directory: Path
    config: Mapping[str, Any]
    trials: tuple[TrialData, ...]
    orphans: tuple[str, ...] = ()
    journal: Journal | None = None
    source: str | None = None

    @property
    def location(self) -> str:
        """Where the study is: its directory, or its URI."""
        return self.source or os.fspath(self.directory)

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.config["study"])

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings with which the study was made."""
        settings: Mapping[str, Any] = self.config["settings"]
        return settings

    @property
    def metric(self) -> str:
        """The summary number by which the study ranks its trials."""
        return str(self.config["metric"])

    @property
    def mode(self) -> str:
        """``"max"`` or ``"min"``: which end of the metric is the better one."""
        return str(self.config["mode"])

    @property
    def problems(self) -> tuple[str, ...]:
        """Plain sentences: which trials were stopped or are missing, failed, diverged or unfinished; damaged files."""
        damage = [text for trial in self.trials for text in trial.damage]
        if damage:
            damage.append("What is damaged of a trial is repaired, or run again, when the study is resumed (--resume).")
        return (*_stopped_sentences(self.trials), *_missing_sentences(self.trials), *damage, *self.orphans)

    @property
    def warm_start(self) -> bool:
        """Whether all trials are of the warm-start stream: a first phase on a part of the data, then one on all."""
        return {trial.settings.get("stream") for trial in self.trials} == {"warm_start"}

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order planned."""
        return tuple(dict.fromkeys(trial.label for trial in self.trials))

    @property
    def seeds(self) -> tuple[Scalar, ...]:
        """All seeds planned for any label, in the order planned."""
        return tuple(dict.fromkeys(trial.seed for trial in self.trials))

    @property
    def summary_names(self) -> tuple[str, ...]:
        """The names of all summary numbers that any trial reported."""
        return tuple(dict.fromkeys(name for trial in self.trials for name in trial.summary))

    @property
    def indicator_names(self) -> tuple[str, ...]:
        """The names of all plasticity indicators that any trial measured: the columns that are no usual one."""
        return tuple(
            dict.fromkeys(
                column
                for trial in self.trials
                for curve in ("epoch", "phase")
                for column in trial.curves.get(curve, ())
                if column not in ("step", "phase", "epoch") and not column.startswith(("train_", "test_", "val_"))
            )
        )

    @property
    def by_label(self) -> dict[str, tuple[TrialData, ...]]:
        """The trials by label, finished or not, in the order planned."""
        return {str(label): trials for (label,), trials in group(self).items()}

    @property
    def measure(self) -> str:
        """What its trials are measured by, as it stands in the names of columns: ``"accuracy"``, ``"r2"``, or another.

        Where no curve has it, studies count as measured by accuracy.
        """
        found = _MEASURED.fullmatch(self.metric)
        name = found[1] if found else "accuracy"
        curves = (trial.curves.get(curve, {}) for trial in self.trials for curve in ("epoch", "phase"))
        return name if any(f"test_{name}" in columns for columns in curves) else "accuracy"

    def check_metric(self, where: str, metric: str) -> None:
        """Raise a `SettingError` that names `where` if this is none of the summary numbers that the trials reported."""
        if self.summary_names:
            check_choice(where, metric, self.summary_names)

    def better(self, metric: str) -> str | None:
        """Return which end of `metric` is the better one, ``"max"`` or ``"min"``; ``None`` where nothing says so."""
        if metric == self.metric:
            return self.mode
        if metric.endswith("loss"):
            return "min"
        return "max" if metric.endswith(("accuracy", f"_{self.measure}")) else None


def group(study: StudyData, by: str | Sequence[str] = "label") -> dict[tuple[Scalar, ...], tuple[TrialData, ...]]:
    """Return the trials by ``"label"``, ``"status"`` or any settings, in the order planned.

    Parameters
    ----------
    by : str or sequence of str, default "label"
        The names. Trials without a setting are grouped under ``None``.

    Returns
    -------
    dict
        For the values of `by`, always a tuple, all trials that have them, finished or not.

    Raises
    ------
    SettingError
        If no trial has a setting of that name.
    """
    names = (by,) if isinstance(by, str) else tuple(by)
    known = {"label", "status", *(name for trial in study.trials for name in trial.settings)}
    for name in names:
        check_choice("group: by", name, sorted(known))
    groups: dict[tuple[Scalar, ...], list[TrialData]] = {}
    for trial in study.trials:
        own: dict[str, Scalar] = {**trial.settings, "label": trial.label, "status": trial.status}
        groups.setdefault(tuple(own.get(name) for name in names), []).append(trial)
    return {key: tuple(trials) for key, trials in groups.items()}


def split_by_access(study: StudyData) -> dict[str | None, StudyData]:
    """Return one study per access mode (``settings["access"]``); the study itself, under ``None``, if it has but one.

    Methods are compared under the same access to past data only.
    """
    modes = group(study, "access") if any("access" in trial.settings for trial in study.trials) else {}
    if len(modes) < 2:
        return {None: study}
    return {str(key[0]): dataclasses.replace(study, trials=trials) for key, trials in modes.items()}


def seed_values(trials: Iterable[TrialData], metric: str) -> dict[Scalar, float]:
    """Return `metric` by seed, of the finished trials whose value is finite.

    Raises
    ------
    SettingError
        If two of the trials have the same seed: then they are not one method's repetitions, and must not be averaged.
    """
    values: dict[Scalar, float] = {}
    by_seed: dict[Scalar, TrialData] = {}
    for trial in trials:
        other = by_seed.setdefault(trial.seed, trial)
        if other is not trial:
            raise SettingError(
                f"Trials {other.id} and {trial.id} both have seed {trial.seed}, and would be averaged as repetitions "
                f"of {trial.label!r}: label, access mode and seed must name one trial."
            )
        value = trial.summary.get(metric, math.nan)
        if trial.finished and math.isfinite(value):
            values[trial.seed] = value
    return values


def _stopped_sentences(trials: Sequence[TrialData]) -> list[str]:
    """Return a sentence that counts the trials that were stopped early and names them, if there are any."""
    by_label: dict[str, list[str]] = {}
    for trial in trials:
        if trial.status == "stopped":
            by_label.setdefault(trial.label, []).append(str(trial.seed))
    if not by_label:
        return []
    names = [f"{label} (seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})" for label, seeds in by_label.items()]
    more = f"; and {len(names) - MOST_STOPPED} more" if len(names) > MOST_STOPPED else ""
    count = sum(map(len, by_label.values()))
    return [
        f"Stopped early because they fell behind, as the search does, and in no mean: {count} of {len(trials)} trials: "
        f"{'; '.join(names[:MOST_STOPPED])}{more}. Means over the seeds that are left of a label are too good."
    ]


def _missing_sentences(trials: Sequence[TrialData]) -> list[str]:
    """Return a sentence per label and cause, naming the seeds; one for many labels that want the same."""
    causes: dict[tuple[str, Scalar, str], list[TrialData]] = {}
    several_modes = len({trial.settings.get("access") for trial in trials}) > 1
    for trial in trials:
        if trial.status not in ("finished", "stopped"):
            cause = {
                "missing": "not started",
                "running": f"not finished ({trial.progress:.0%} done)",
                "damaged": "its results are damaged",
            }.get(trial.status, trial.status)
            if trial.error:
                cause += f": {trial.error}"
            access = trial.settings.get("access") if several_modes else None
            causes.setdefault((trial.label, access, cause), []).append(trial)
    alike: dict[tuple[Scalar, str, str], list[str]] = {}
    for (label, access, cause), members in causes.items():
        seeds = f"seed{'s' if len(members) > 1 else ''} {', '.join(str(trial.seed) for trial in members)}"
        alike.setdefault((access, seeds, cause), []).append(label)
    sentences = []
    for (access, seeds, cause), labels in alike.items():
        where = f" ({access} access)" if access is not None else ""
        subjects = labels if len(labels) < MANY_ALIKE else [f"{len(labels)} labels ({'; '.join(labels)})"]
        sentences += [f"{subject}{where}, {seeds}: {cause.removesuffix('.')}." for subject in subjects]
    return sentences
