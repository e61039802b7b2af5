"""Search over momentum and reset interval: the best setting found, the cost, and both compared with a whole grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ht_ray.report.data.combine import differing
from ht_ray.report.data.selection import selection_sentence, test_metric
from ht_ray.report.data.study import MissingDataError, Scalar, StudyData, TrialData
from ht_ray.report.style.formats import NOTHING, describe, format_seeds, format_value, humanize, metric_title
from ht_ray.report.style.tables import Cell, Column, Table, study_table

__all__ = [
    "SearchOutcome",
    "grid_outcome",
    "has_metric",
    "is_population",
    "is_search",
    "only_hare_tortoise",
    "reference_grid",
    "search_name",
    "search_outcome",
    "search_source",
    "search_table",
    "whole_trainings",
    "with_seeds",
]


@dataclass(frozen=True)
class SearchOutcome:
    """The best setting of a study.

    Attributes
    ----------
    name
        Its label; for populations, the best member of each.
    value
        The mean over `seeds` of the study's metric, on test data where it was chosen on validation data.
    trials
        The trials whose mean it is.
    """

    name: str
    value: float
    trials: tuple[TrialData, ...]

    @property
    def seeds(self) -> tuple[Scalar, ...]:
        """The seeds of the trials."""
        return tuple(trial.seed for trial in self.trials)


def is_search(study: StudyData) -> bool:
    """Return whether the study is not simply a grid: its settings were drawn, or trials stopped or copied."""
    settings = study.settings
    return settings.get("search", "grid") != "grid" or settings.get("scheduler", "none") != "none"


def search_source(study: StudyData) -> str:
    """Return where settings come from: ``"grid"``, ``"random"``, ``"optuna"``, or ``"pbt"``."""
    return "pbt" if is_population(study) else str(study.settings.get("search", "grid"))


def is_population(study: StudyData) -> bool:
    """Return whether the study's trials took over each other's state."""
    return study.settings.get("scheduler") == "pbt"


def search_name(study: StudyData) -> str:
    """Return how a study was searched: ``"grid, ASHA"``."""
    settings = study.settings
    if is_population(study):
        return f"PBT, population of {settings.get('population')}"
    source = search_source(study)
    named = {"random": "random search", "optuna": "Optuna"}.get(source, source)
    return named + (", ASHA" if settings.get("scheduler") == "asha" else "")


def only_hare_tortoise(study: StudyData) -> StudyData:
    """Return the study with the trials of Hare & Tortoise only, without the methods they are compared with."""
    return replace(study, trials=tuple(trial for trial in study.trials if trial.method == "hare_tortoise"))


def with_seeds(study: StudyData, seeds: Sequence[Scalar]) -> StudyData:
    """Return the study with the trials of these seeds only."""
    return replace(study, trials=tuple(trial for trial in study.trials if trial.seed in seeds))


def reference_grid(studies: Sequence[StudyData]) -> StudyData | None:
    """Return the first study that ran a whole grid of Hare & Tortoise, if one did."""
    grids = (study for study in studies if not is_search(study) and len(only_hare_tortoise(study).labels) > 1)
    return next(grids, None)


def search_outcome(study: StudyData) -> SearchOutcome | None:
    """Return the best setting of a study by its metric; None where no trial of Hare & Tortoise finished.

    Where some were stopped, it is the best of those that finished on the most seeds: the others' means are over the
    seeds on which they were ahead. Of populations it is the best member of each.
    """
    own = [trial for trial in only_hare_tortoise(study).trials if has_metric(trial, study.metric)]
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
        return SearchOutcome(name, _mean(best, test_metric(study.metric)), best)
    groups = replace(study, trials=tuple(own)).by_label
    most = max(map(len, groups.values()))
    label = max((label for label, trials in groups.items() if len(trials) == most), key=lambda name: rank(groups[name]))
    return SearchOutcome(label, _mean(groups[label], test_metric(study.metric)), groups[label])


def grid_outcome(grid: StudyData | None, study: StudyData, found: SearchOutcome | None) -> SearchOutcome | None:
    """Return the grid's best on the seeds of what another study found; None where the two trained differently."""
    if grid is None or found is None or differing(grid, study):
        return None
    return search_outcome(with_seeds(grid, found.seeds))


def search_table(studies: Sequence[StudyData]) -> Table:
    """Tabulate what each study trained and the best it found, compared with a whole grid if one of the studies is one.

    Only trials of Hare & Tortoise count, those that were stopped or failed with what they trained. A study is compared
    with the grid on the seeds that both have, if both trained alike.
    """
    if not any(map(is_search, studies)):
        raise MissingDataError("search_table: the study is a plain grid: nothing was searched.")
    first = studies[0]
    grid = reference_grid(studies)
    reported = test_metric(first.metric)
    columns = [
        Column("study", ("study",)),
        Column("search", ("search",)),
        Column("trials", ("trials", "finished", "stopped")),
        Column("whole trainings", ("whole_trainings",)),
        Column("epochs", ("epochs",)),
        Column("worker seconds", ("worker_seconds",)),
        Column("best setting", ("best",)),
        Column(f"its {metric_title(reported)}", ("best_value", "best_seeds")),
    ]
    if grid is not None:
        columns += [
            Column("training, share of the grid's", ("share_of_grid",)),
            Column("the grid's best", ("grid_value",)),
            Column("minus the grid's best", ("minus_grid",)),
        ]
    rows, notes = [], []
    for study in studies:
        own, found = only_hare_tortoise(study), search_outcome(study)
        row = [Cell(name := study.directory.resolve().name, (name,)), Cell(search_name(study), (search_name(study),))]
        row += _costs(own)
        row.append(Cell(found.name if found else NOTHING, (found.name if found else "",)))
        value = found.value if found else math.nan
        over = f" ({format_seeds(found.seeds)})" if found else ""
        row.append(Cell(format_value(reported, value) + over, (value, len(found.seeds) if found else 0)))
        if grid is not None:
            share = reference = math.nan
            differs = differing(grid, study)
            if differs:
                notes.append(f"{name} is not compared with the grid: they differ in {'; '.join(differs)}.")
            else:
                share = whole_trainings(own) / max(
                    whole_trainings(only_hare_tortoise(with_seeds(grid, own.seeds))), 1e-9
                )
                best = grid_outcome(grid, study, found)
                reference = best.value if best else math.nan
            row.append(Cell(f"{share:.0%}" if math.isfinite(share) else NOTHING, (share,)))
            row.append(Cell(format_value(reported, reference), (reference,)))
            row.append(Cell(format_value(reported, value - reference, sign=True), (value - reference,)))
        rows.append(tuple(row))
    notes += _notes(studies, grid)
    table = study_table(
        first, f"What the search cost and found: {describe(first)}", columns, rows, notes, problems=False
    )
    return table if len(studies) == 1 else replace(table, context=())


def _notes(studies: Sequence[StudyData], grid: StudyData | None) -> list[str]:
    notes = [
        "Trials of Hare & Tortoise only. Whole trainings: what was trained, in trials from beginning to end; stopped "
        "and failed trials count with what they trained.",
        *dict.fromkeys(map(selection_sentence, studies)),
    ]
    if any(study.settings.get("scheduler") == "asha" for study in studies):
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
            "The grid's share and its best are those on the seeds of the study compared with it; the grid's own row "
            "is all of it."
        )
    return notes


def _costs(own: StudyData) -> list[Cell]:
    trials = own.trials
    finished, stopped = (sum(trial.status == status for trial in trials) for status in ("finished", "stopped"))
    parts = [f"{finished} finished"] * bool(finished) + [f"{stopped} stopped"] * bool(stopped)
    text = f"{len(trials)} ({', '.join(parts)})" if stopped or finished != len(trials) else str(len(trials))
    epochs = math.fsum(_epochs(trial) for trial in trials)
    seconds = math.fsum(trial.seconds for trial in trials)
    return [
        Cell(text, (len(trials), finished, stopped)),
        Cell(f"{whole_trainings(own):.1f}", (whole_trainings(own),)),
        Cell(f"{epochs:.0f}" if epochs else NOTHING, (epochs or math.nan,)),
        Cell(f"{seconds:.0f}", (seconds,)),
    ]


def whole_trainings(study: StudyData) -> float:
    """Return how much a study trained, in trials from beginning to end."""
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
    return ", ".join(f"{humanize(name)} {schedule[name][-1]:.12g}" for name in names) or "the settings it began with"
