"""What a search over momentum and reset interval found, what it cost, and what the whole grid costs and finds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ht_ray.report.data.combine import differing
from ht_ray.report.data.study import MissingDataError, Scalar, StudyData, TrialData, group
from ht_ray.report.style.names import NOTHING, describe, seeds_text, shown_number, shown_unit, worded
from ht_ray.report.style.tables import Cell, Column, Table, context_of

__all__ = [
    "Found",
    "found_in",
    "grid_beside",
    "grid_best",
    "has_metric",
    "is_population",
    "is_search",
    "same_seeds",
    "search_name",
    "search_table",
    "searched",
    "source_of",
    "trainings",
]


@dataclass(frozen=True)
class Found:
    """The best setting of a study.

    Attributes
    ----------
    name
        Its label; for populations, what the best of each did.
    value
        The mean of the study's metric over `seeds`.
    trials
        The trials it is the mean of.
    """

    name: str
    value: float
    trials: tuple[TrialData, ...]

    @property
    def seeds(self) -> tuple[Scalar, ...]:
        """The seeds of the trials."""
        return tuple(trial.seed for trial in self.trials)


def _settings(study: StudyData) -> Mapping[str, Any]:
    settings = study.config.get("settings")
    return settings if isinstance(settings, Mapping) else {}


def is_search(study: StudyData) -> bool:
    """Return whether the study is more, or less, than a grid."""
    settings = _settings(study)
    return settings.get("search", "grid") != "grid" or settings.get("scheduler", "none") != "none"


def source_of(study: StudyData) -> str:
    """Return where settings come from: ``"grid"``, ``"random"``, ``"optuna"``, or ``"pbt"``."""
    return "pbt" if is_population(study) else str(_settings(study).get("search", "grid"))


def is_population(study: StudyData) -> bool:
    """Return whether the study's trials took over each other's state."""
    return _settings(study).get("scheduler") == "pbt"


def search_name(study: StudyData) -> str:
    """Return how a study was searched: ``"grid, ASHA"``."""
    settings = _settings(study)
    if is_population(study):
        return f"PBT, population of {settings.get('population')}"
    source = source_of(study)
    named = {"random": "random search", "optuna": "Optuna"}.get(source, source)
    return named + (", ASHA" if settings.get("scheduler") == "asha" else "")


def searched(study: StudyData) -> StudyData:
    """Return the study with the trials of Hare & Tortoise only, without what they are compared with."""
    return replace(study, trials=tuple(trial for trial in study.trials if trial.method == "hare_tortoise"))


def same_seeds(study: StudyData, seeds: Sequence[Scalar]) -> StudyData:
    """Return the study with the trials of these seeds only."""
    return replace(study, trials=tuple(trial for trial in study.trials if trial.seed in seeds))


def grid_beside(studies: Sequence[StudyData]) -> StudyData | None:
    """Return the first study that ran a whole grid of Hare & Tortoise, if one did."""
    grids = (study for study in studies if not is_search(study) and len(group(searched(study))) > 1)
    return next(grids, None)


def found_in(study: StudyData) -> Found | None:
    """Return the best setting of a study by its metric; None where no trial of Hare & Tortoise finished.

    Where some were stopped, it is the best of those that finished on the most seeds: elsewhere those that were ahead
    would stand for all. Of populations it is the best member of each.
    """
    own = [trial for trial in searched(study).trials if has_metric(trial, study.metric)]
    if not own:
        return None
    sign = 1 if study.mode == "max" else -1

    def rank(trials: Sequence[TrialData]) -> float:
        return sign * _mean(trials, study.metric)

    if is_population(study):
        best = tuple(
            max((trial for trial in own if trial.seed == seed), key=lambda trial: rank([trial]))
            for seed in dict.fromkeys(trial.seed for trial in own)
        )
        name = f"{best[0].label}, ending with {_last_settings(best[0])}"
        if len(best) > 1:
            name = (
                f"of each population the best member: {', '.join(str(trial.settings.get('member')) for trial in best)}"
            )
        return Found(name, _mean(best, study.metric), best)
    by_label: dict[str, list[TrialData]] = {}
    for trial in own:
        by_label.setdefault(trial.label, []).append(trial)
    most = max(map(len, by_label.values()))
    label = max(
        (label for label, trials in by_label.items() if len(trials) == most), key=lambda name: rank(by_label[name])
    )
    return Found(label, _mean(by_label[label], study.metric), tuple(by_label[label]))


def grid_best(grid: StudyData | None, study: StudyData, found: Found | None) -> Found | None:
    """Return the grid's best on the seeds of what another study found; None where that would compare unlike things."""
    if grid is None or found is None or differing(grid, study):
        return None
    return found_in(same_seeds(grid, found.seeds))


def search_table(studies: Sequence[StudyData]) -> Table:
    """Tabulate what each study trained and the best it found; beside a whole grid, what was saved and what was missed.

    Only trials of Hare & Tortoise count, those that were stopped or failed with what they trained. A study is compared
    with the grid on the seeds that both have, if both trained alike.

    Raises
    ------
    MissingDataError
        If none of the studies is a search.
    """
    if not any(map(is_search, studies)):
        raise MissingDataError("search_table: the study is a plain grid: nothing was searched.")
    first = studies[0]
    grid = grid_beside(studies)
    _, unit = shown_unit(first.metric)
    columns = [
        Column("study", ("study",)),
        Column("search", ("search",)),
        Column("trials", ("trials", "finished", "stopped")),
        Column("whole trainings", ("whole_trainings",)),
        Column("epochs", ("epochs",)),
        Column("worker seconds", ("worker_seconds",)),
        Column("best setting", ("best",)),
        Column(f"its {worded(first.metric)}{unit}", ("best_value", "best_seeds")),
    ]
    if grid is not None:
        columns += [
            Column("training, share of the grid's", ("share_of_grid",)),
            Column("the grid's best", ("grid_value",)),
            Column("minus the grid's best", ("minus_grid",)),
        ]
    rows, notes = [], []
    for study in studies:
        own, found = searched(study), found_in(study)
        row = [Cell(name := study.directory.resolve().name, (name,)), Cell(search_name(study), (search_name(study),))]
        row += _costs(own)
        row.append(Cell(found.name if found else NOTHING, (found.name if found else "",)))
        value = found.value if found else math.nan
        over = f" ({seeds_text(found.seeds)})" if found else ""
        row.append(Cell(shown_number(study.metric, value) + over, (value, len(found.seeds) if found else 0)))
        if grid is not None:
            share = beside = math.nan
            differs = differing(grid, study)
            if differs:
                notes.append(f"{name} is not compared with the grid: they differ in {'; '.join(differs)}.")
            else:
                share = trainings(own) / max(trainings(searched(same_seeds(grid, own.seeds))), 1e-9)
                best = grid_best(grid, study, found)
                beside = best.value if best else math.nan
            row.append(Cell(f"{share:.0%}" if math.isfinite(share) else NOTHING, (share,)))
            row.append(Cell(shown_number(study.metric, beside), (beside,)))
            row.append(Cell(shown_number(study.metric, value - beside, sign=True), (value - beside,)))
        rows.append(tuple(row))
    notes += _notes(studies, grid)
    context = context_of(first) if len(studies) == 1 else ()
    return Table(
        f"What the search cost and found: {describe(first)}", tuple(columns), tuple(rows), tuple(notes), context
    )


def _notes(studies: Sequence[StudyData], grid: StudyData | None) -> list[str]:
    notes = [
        "Trials of Hare & Tortoise only. Whole trainings: what was trained, in trials from beginning to end; stopped "
        "and failed trials count with what they trained."
    ]
    if any(_settings(study).get("scheduler") == "asha" for study in studies):
        notes.append(
            "Where trials were stopped, the best is taken from the settings that finished on the most seeds; its mean "
            "is over those seeds, and its luck on them is part of why they finished."
        )
    if any(map(is_population, studies)):
        notes.append(
            "PBT's best is the best member of each population; its metric is that of the whole history of its weights, "
            "those of the members it copied included."
        )
    if grid is not None:
        notes.append(
            "The grid's share and its best are those on the seeds of the study beside it; the grid's own row is all "
            "of it."
        )
    return notes


def _costs(own: StudyData) -> list[Cell]:
    trials = own.trials
    finished, stopped = (sum(trial.status == status for trial in trials) for status in ("finished", "stopped"))
    parts = [f"{finished} finished"] * bool(finished) + [f"{stopped} stopped"] * bool(stopped)
    told = f"{len(trials)} ({', '.join(parts)})" if stopped or finished != len(trials) else str(len(trials))
    epochs = math.fsum(_epochs(trial) for trial in trials)
    seconds = math.fsum(trial.seconds for trial in trials)
    return [
        Cell(told, (len(trials), finished, stopped)),
        Cell(f"{trainings(own):.1f}", (trainings(own),)),
        Cell(f"{epochs:.0f}" if epochs else NOTHING, (epochs or math.nan,)),
        Cell(f"{seconds:.0f}", (seconds,)),
    ]


def trainings(study: StudyData) -> float:
    """Return what a study trained, in trials from beginning to end."""
    return math.fsum(trial.progress for trial in study.trials)


def _epochs(trial: TrialData) -> float:
    steps = trial.curves.get("epoch", {}).get("step", np.empty(0))
    return float(steps[-1]) if steps.size else 0.0


def has_metric(trial: TrialData, metric: str) -> bool:
    """Return whether a trial finished with a finite value of a metric."""
    return trial.finished and math.isfinite(trial.summary.get(metric, math.nan))


def _mean(trials: Sequence[TrialData], metric: str) -> float:
    return float(np.mean([trial.summary[metric] for trial in trials]))


def _last_settings(trial: TrialData) -> str:
    schedule = trial.curves.get("schedule", {})
    names = [name for name in schedule if name not in ("step", "copied_from")]
    return ", ".join(f"{worded(name)} {schedule[name][-1]:.12g}" for name in names) or "the settings it began with"
