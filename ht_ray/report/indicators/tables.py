"""Tables of plasticity indicators: their last values by label, and their correlation with the final test accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ht_ray.report.data.statistics import correlation, estimate
from ht_ray.report.data.study import MissingDataError, StudyData, TrialData, seed_values
from ht_ray.report.style.formats import (
    NOTHING,
    describe,
    display_unit,
    format_significant,
    humanize,
    indicator_title,
    reported_indicators,
)
from ht_ray.report.style.tables import Cell, Column, Table, format_n, label_columns, study_table

__all__ = ["FEWEST_RUNS", "Runs", "correlation_table", "indicator_table", "runs_of"]

#: Of two runs, any two numbers correlate perfectly.
FEWEST_RUNS = 3


@dataclass(frozen=True, eq=False)
class Runs:
    """The finished trials over which indicators are compared with the final test accuracy.

    Attributes
    ----------
    warm_start
        Whether indicators are those at the end of the first phase; otherwise of the last.
    final
        Shape ``(runs,)``: the final test accuracy, NaN where there is none.
    """

    trials: tuple[TrialData, ...]
    warm_start: bool
    final: NDArray[np.float64]

    def values(self, name: str) -> NDArray[np.float64]:
        """Return an indicator's value of each run; NaN where there is none."""
        return np.array([_at_phase_end(trial, name, 0 if self.warm_start else -1) for trial in self.trials])


def runs_of(study: StudyData) -> Runs:
    """Return the runs of `correlation_table`; on a warm-start stream those of a single phase are left out."""
    fewest = 2 if study.warm_start else 1
    trials = [trial for trial in study.trials if trial.finished and _phases(trial) >= fewest]
    final = np.array([_at_phase_end(trial, f"test_{study.measure}", -1) for trial in trials])
    return Runs(tuple(trials), study.warm_start, final)


def indicator_table(study: StudyData) -> Table:
    """Tabulate each plasticity indicator at the end of the last phase, by label.

    Mean and standard deviation (divisor n - 1) over the finished trials whose value is finite. Nothing is marked as the
    best: no indicator has an end that is better for every network.
    """
    groups = study.by_label
    columns, cells = label_columns(study)
    for name in reported_indicators(study):
        factor, _ = display_unit(name)
        found = {}
        for label, trials in groups.items():
            seed_values(trials, "")  # refuses trials that are not one method's repetitions
            values = [_at_phase_end(trial, name, -1) for trial in trials if trial.finished]
            found[label] = estimate(value for value in values if math.isfinite(value))
        if not any(own.n for own in found.values()):
            continue
        columns.append(Column(indicator_title(name), tuple(f"{name}_{part}" for part in ("n", "mean", "sd"))))
        for label, own in found.items():
            finished = sum(trial.finished for trial in groups[label])
            text = format_significant(factor * own.mean, factor * own.sd) + format_n(own.n, finished)
            cells[label].append(Cell(text, (own.n, own.mean, own.sd)))
    if len(columns) == 2:
        raise MissingDataError("indicator_table: no finished trial measured a plasticity indicator at its end.")
    notes = ("Values at the end of the last phase: mean ± standard deviation (n − 1) over seeds.",)
    return study_table(study, f"Plasticity indicators of {describe(study)}", columns, cells.values(), notes)


def correlation_table(study: StudyData) -> Table:
    """Tabulate Pearson's correlation of each plasticity indicator with the final test accuracy, over runs.

    A run is a finished trial: one label, one seed. In a warm-start study (the trials' setting ``stream`` is
    ``"warm_start"``) the indicator is the one at the end of the first phase, the warm start, as in figure 8 of
    arXiv 2406.02596, and runs of a single phase are left out; otherwise it is the one at the end of the last phase.
    The final test accuracy is that at the end of the last phase.
    """
    runs, measure = runs_of(study), humanize(study.measure)
    rows: list[list[Cell]] = []
    for name in reported_indicators(study):
        values = runs.values(name)
        both = np.isfinite(values) & np.isfinite(runs.final)
        n = int(both.sum())
        if not n:
            continue
        r = correlation(values[both], runs.final[both]) if n >= FEWEST_RUNS else math.nan
        text = f"{r:+.2f}" if math.isfinite(r) else NOTHING
        cell = Cell(indicator_title(name), (name, "first" if runs.warm_start else "last"))
        rows.append([cell, Cell(text, (r,)), Cell(str(n), (n,))])
    if not rows:
        raise MissingDataError(
            f"correlation_table: no finished trial has both a plasticity indicator and a final test {measure}."
        )
    where = "first phase (the warm start)" if runs.warm_start else "last phase"
    notes = (
        f"Pearson's correlation, over runs (label and seed), of the indicator at the end of the {where} and the final "
        f"test {measure}; {NOTHING}: undefined, as one of the two is constant or there are fewer than {FEWEST_RUNS} "
        "runs. Runs of one label are no independent evidence, and a correlation no cause.",
    )
    columns = [
        Column("indicator", ("indicator", "phase")),
        Column(f"correlation with final {measure}", ("correlation",)),
        Column("runs", ("runs",)),
    ]
    title = f"Plasticity indicators and final {measure} of {describe(study)}"
    return study_table(study, title, columns, rows, notes, problems=False)


def _phases(trial: TrialData) -> int:
    return len(trial.curves.get("phase", {}).get("step", ()))


def _at_phase_end(trial: TrialData, name: str, row: int) -> float:
    """Return the value at the end of the first (0) or the last (-1) phase; NaN where there is none."""
    values = trial.curves.get("phase", {}).get(name)
    return math.nan if values is None or not values.size else float(values[row])
