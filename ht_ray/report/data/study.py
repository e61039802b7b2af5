"""Read a study directory: what was planned, what came of it, and what is missing."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ht_ray._checks import did_you_mean
from ht_ray._storage import is_uri
from ht_ray.errors import SettingError
from ht_ray.records.checked_json import Damaged, parse, sum_of
from ht_ray.records.study_files import CONFIG, FORMAT, PLAN, REPORT, SETTLED, STATUS
from ht_ray.report.data.fetch import fetched, without_secrets
from ht_ray.report.data.journal import Journal, load_journal

__all__ = [
    "Curve",
    "MissingDataError",
    "Scalar",
    "StudyData",
    "TrialData",
    "group",
    "load_study",
    "seed_values",
    "split_by_access",
]

ADVICE = (
    "Restore it from a copy; if it was edited on purpose, delete the check sum ('sum' there, 'plan' in config.json)."
)
#: So many labels, of which the same seeds are wanting for the same cause, share a sentence.
MANY_ALIKE = 5
#: So many labels with stopped trials are named.
MOST_STOPPED = 20
#: Larger numbers are no count of steps, but damage; up to here a float holds every whole number.
MOST_STEPS = 2**53

Scalar: TypeAlias = str | int | float | bool | None
"""What a trial's settings hold."""

Curve: TypeAlias = dict[str, NDArray[np.float64]]
"""The columns of one curve, each of shape ``(rows,)``; NaN where a row has no value."""


class MissingDataError(SettingError):
    """The study has no data for a table or a figure."""


@dataclasses.dataclass(frozen=True, eq=False)
class TrialData:
    """One planned trial and what is known of it.

    Attributes
    ----------
    id
        The trial's name, and that of its folder.
    label
        What a legend calls it; the same for all seeds.
    settings
        Flat settings: ``method``, ``momentum``, ``reset_interval``, ``seed``, ...
    status
        ``"finished"``, ``"failed"``, ``"diverged"``, ``"stopped"`` (by the scheduler of a search), ``"running"``
        (begun, and not ended), ``"missing"`` (not begun) or ``"damaged"`` (its result file cannot be relied on). Only
        finished trials enter tables and figures.
    error
        The last line of what went wrong, or ``""``.
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
        What the trial was made from, as ``trials.json`` has it; empty where that holds none.
    restarts
        How often it was begun again after a fault.
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

    @property
    def seed(self) -> Scalar:
        """The setting ``seed``; ``None`` where there is none."""
        return self.settings.get("seed")

    @property
    def method(self) -> str:
        """The setting ``method``; ``""`` where there is none."""
        return str(self.settings.get("method") or "")

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
        Where it was read from; of a study at a URI, a directory of its name that is gone.
    config
        ``config.json`` as it stands.
    trials
        All planned trials, in the order planned.
    strays
        Sentences on folders that hold results of no planned trial, and are left out.
    journal
        What happened while it ran; ``None`` where that was not written down.
    source
        The URI of a study that is not on this machine, without credentials.
    """

    directory: Path
    config: Mapping[str, Any]
    trials: tuple[TrialData, ...]
    strays: tuple[str, ...] = ()
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
        return (*_stopped_sentences(self.trials), *_missing_sentences(self.trials), *damage, *self.strays)

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
                if column not in ("step", "phase", "epoch") and not column.startswith(("train_", "test_"))
            )
        )

    def better(self, metric: str) -> str | None:
        """Return which end of `metric` is the better one, ``"max"`` or ``"min"``; ``None`` where nothing says so."""
        if metric == self.metric:
            return self.mode
        if metric.endswith("accuracy"):
            return "max"
        return "min" if metric.endswith("loss") else None


def load_study(directory: str | os.PathLike[str]) -> StudyData:
    """Read a study directory written by ``ht_ray.sweep``, finished or not.

    Parameters
    ----------
    directory
        The folder that holds ``config.json`` and ``trials.json``, or its URI (``s3://bucket/studies/first``).

    Raises
    ------
    SettingError
        If `directory` is no study, or a study of another format.
    StorageError
        If a URI's storage does not answer.
    """
    if not is_uri(os.fspath(directory)):
        return _load_study(Path(directory))
    uri = os.fspath(directory)
    source = without_secrets(uri)
    with fetched(uri) as root:
        try:
            study = _load_study(root)
        except SettingError as error:
            raise SettingError(str(error).replace(str(root), source)) from error
    trials = tuple(
        dataclasses.replace(trial, damage=tuple(text.replace(str(root), source) for text in trial.damage))
        for trial in study.trials
    )
    return dataclasses.replace(study, trials=trials, source=source)


def _load_study(root: Path) -> StudyData:
    if not root.is_dir():
        raise SettingError(f"{root}: there is no such directory.")
    missing = [name for name in ("config.json", "trials.json") if not (root / name).is_file()]
    if missing:
        studies = sorted(path.parent.name for path in root.glob("*/trials.json"))
        inside = f" It holds the studies {', '.join(studies[:4])}: name one of them." if studies else ""
        raise SettingError(f"{root} is no study directory: it has no {' and no '.join(missing)}.{inside}")
    config, _ = _read(root / "config.json", {"format": int})
    if config["format"] != FORMAT:
        raise SettingError(
            f"{root / 'config.json'}: format = {config['format']!r}: this version of ht_ray reads format {FORMAT}."
        )
    _read(root / "config.json", CONFIG)
    planned, content = _read(root / "trials.json", PLAN)
    if config.get("plan", sum_of(content)) != sum_of(content):
        raise SettingError(f"{root / 'trials.json'}: the check sum in config.json says that it was changed. {ADVICE}")
    trials = tuple(_load_trial(plan, root / "trials" / plan["id"]) for plan in planned)
    ids = {trial.id for trial in trials}
    strays = sorted(
        path.parent.name for path in (root / "trials").glob("*/results.jsonl") if path.parent.name not in ids
    )
    return StudyData(
        root,
        config,
        trials,
        tuple(f"trials/{name} is no trial of this study: it is left out." for name in strays),
        load_journal(root),
    )


def group(study: StudyData, by: str | Sequence[str] = "label") -> dict[tuple[Scalar, ...], tuple[TrialData, ...]]:
    """Return the trials by ``"label"``, ``"status"`` or any settings, in the order planned.

    Parameters
    ----------
    by
        One name or several. Trials without a setting are grouped under ``None``.

    Returns
    -------
    dict
        From the values of `by`, always a tuple, to all trials that have them, finished or not.

    Raises
    ------
    SettingError
        If no trial has a setting of that name.
    """
    names = (by,) if isinstance(by, str) else tuple(by)
    known = {"label", "status", *(name for trial in study.trials for name in trial.settings)}
    for name in names:
        if name not in known:
            raise SettingError(
                f"group: by = {name!r}: accepted are {', '.join(map(repr, sorted(known)))}.{did_you_mean(name, known)}"
            )
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


def _read(path: Path, form: Any) -> tuple[Any, bytes]:
    """Return the JSON of a file, and its bytes."""
    try:
        content = path.read_bytes()
        return parse(content, form), content
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except Damaged as damage:
        raise SettingError(f"{path}: {damage}. {ADVICE}") from damage


def _load_trial(plan: Mapping[str, Any], folder: Path) -> TrialData:
    name = f"Trial {plan['id']}"
    sentences: list[str] = []
    settled = folder / "settled.json"
    if settled.is_file():
        # What a search chose while the study ran.
        try:
            plan = {**plan, **_read(settled, SETTLED)[0]}
        except SettingError as damage:
            sentences.append(f"{name}: {damage}")
    status, error = "missing", ""
    status_file = folder / "status.json"
    restarts = expected = 0
    if os.path.lexists(status_file):
        try:
            state, _ = _read(status_file, STATUS)
        except SettingError as damage:
            status = "damaged"
            sentences.append(f"{name}: {damage}")
        else:
            status = str(state["status"])
            error = (str(state.get("error") or "").strip().splitlines() or [""])[-1].strip()
            restarts, expected = state.get("restarts", 0), state.get("reports", 0)
    reports, damage_found = _read_reports(folder / "results.jsonl")
    sentences += [f"{name}: {text}" for text in damage_found]
    progress = reports[-1].progress if reports else 0.0
    if status == "missing" and reports:
        status = "running"
    # A finished trial whose last report is lost would otherwise enter the averages with an earlier phase's summary.
    if status == "finished" and (not reports or progress < 1 - 1e-9):
        status = "damaged"
        sentences.append(f"{name}: it says finished, and its results end at {progress:.0%}.")
    elif status == "finished" and any("skipped" in text for text in damage_found):
        status = "damaged"
    elif len(reports) < expected and status in ("finished", "diverged", "stopped"):
        sentences.append(f"{name}: results.jsonl has {len(reports)} reports, and should have {expected}.")
        status = "damaged"
    return TrialData(
        id=plan["id"],
        label=plan["label"],
        settings=dict(plan["settings"]),
        status=status,
        error=error,
        curves=_join_curves(reports),
        summary=reports[-1].summary if reports else {},
        progress=progress,
        seconds=sum(report.seconds for report in reports),
        damage=tuple(sentences),
        config=dict(plan["config"]) if isinstance(plan.get("config"), dict) else {},
        restarts=restarts,
    )


@dataclasses.dataclass(frozen=True)
class _Report:
    curves: dict[str, list[dict[str, float]]]
    summary: dict[str, float]
    progress: float
    seconds: float


def _read_reports(path: Path) -> tuple[list[_Report], list[str]]:
    """Return the reports up to the first that is missing or unreadable, and sentences on what was found."""
    try:
        content = path.read_bytes().rstrip(b"\n")
    except FileNotFoundError:
        content = b""
    except OSError as error:
        return [], [f"results.jsonl cannot be read ({error.strerror or error}); all of it is skipped."]
    lines = content.split(b"\n") if content else []
    reports: list[_Report] = []
    reached: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = parse(line, REPORT)
            report = _Report(
                curves={name: [_numbers(point) for point in points] for name, points in row["curves"].items()},
                summary=_numbers(row["summary"]),
                progress=_number(row["progress"]),
                seconds=_number(row["seconds"]),
            )
            index = row["index"]
            if index == len(reports):
                reached |= {name: _last_step(name, points, reached) for name, points in report.curves.items()}
        except ValueError as error:
            if number == len(lines) and isinstance(error.__cause__, json.JSONDecodeError):
                return reports, [
                    f"the last line of results.jsonl is torn; what stood in it is lost ({number - 1} are whole)."
                ]
            return reports, [f"line {number} of results.jsonl is damaged ({error}); it and what follows are skipped."]
        if index != len(reports):
            found = f"line {number} of results.jsonl has index {index!r} instead of {len(reports)}"
            return reports, [f"{found}; it and what follows are skipped."]
        reports.append(report)
    return reports, []


def _last_step(curve: str, points: Sequence[Mapping[str, float]], before: Mapping[str, float]) -> float:
    """Return the last step of a report's rows; raise if they do not count on from the report before."""
    last = before.get(curve, -1.0)
    for point in points:
        step = point["step"]
        if not (last < step <= MOST_STEPS and step.is_integer()):
            raise ValueError(f"{curve}: steps are whole numbers that increase, and {step:g} is not")
        last = step
    return last


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _number(value) for name, value in values.items()}


def _join_curves(reports: Sequence[_Report]) -> dict[str, Curve]:
    rows: dict[str, list[dict[str, float]]] = {}
    for report in reports:
        for name, points in report.curves.items():
            rows.setdefault(name, []).extend(points)
    return {
        name: {
            column: np.array([point.get(column, math.nan) for point in points], dtype=np.float64)
            for column in dict.fromkeys(key for point in points for key in point)
        }
        for name, points in rows.items()
    }


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
