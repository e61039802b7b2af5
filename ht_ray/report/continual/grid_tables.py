"""Warm-starting over subset ratio and label noise as tables: the paper's tables 4 and 5, ours beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ht_ray._checks import check_choice
from ht_ray.errors import SettingError
from ht_ray.report.data.paper import SPLIT_OF, Beside, beside_paper, paper_notes
from ht_ray.report.data.statistics import Estimate, estimate, mean_interval
from ht_ray.report.data.study import MissingDataError, StudyData, TrialData, seed_values
from ht_ray.report.style.curve_lines import BASELINE
from ht_ray.report.style.names import NOTHING, describe, shown_interval, shown_number, shown_pair
from ht_ray.report.style.tables import INTERVAL_NOTE, TRAIN_NOTE, Cell, Column, Table, context_of, own_n, problem_notes

__all__ = ["Grid", "GridCell", "grid_cells_table", "grid_metrics", "grid_of", "grid_table", "is_grid"]

#: What a difference to the paper is worth an explanation (a fraction).
WORTH = 0.01


@dataclass(frozen=True)
class GridCell:
    """What the trials of one subset ratio and label noise measured."""

    planned: int
    finished: int
    estimate: Estimate
    interval: tuple[float, float]
    beside: Beside

    @property
    def paper(self) -> float:
        """The paper's mean, a fraction; NaN where it has none."""
        return math.nan if self.beside.value is None else self.beside.value.mean

    @property
    def gap(self) -> float:
        """Ours minus the paper's; NaN where either is unknown."""
        return self.estimate.mean - self.paper


@dataclass(frozen=True)
class Grid:
    """A metric over subset ratio and label noise; `cells` is keyed by both, and may have holes."""

    metric: str
    ratios: tuple[float, ...]
    noises: tuple[float, ...]
    cells: dict[tuple[float, float], GridCell]


def is_grid(study: StudyData) -> bool:
    """Return whether the trials differ in subset ratio or label noise."""
    return len({key for trial in study.trials if (key := _key(trial)) is not None}) > 1


def grid_metrics(study: StudyData) -> tuple[str, ...]:
    """Return which accuracies the grid can be made of: test, and training where the trials reported it."""
    return tuple(metric for metric in SPLIT_OF if metric in study.summary_names)


def grid_of(study: StudyData, metric: str) -> Grid:
    """Return `metric` by subset ratio and label noise, the paper's value with it.

    Raises
    ------
    MissingDataError
        If the trials form no grid, as one subset ratio and label noise has two trials with the same seed, or none of
        them reported the metric.
    SettingError
        If the metric is no accuracy of tables 4 and 5.
    """
    check_choice("grid: metric", metric, SPLIT_OF)
    members: dict[tuple[float, float], list[TrialData]] = {}
    for trial in study.trials:
        key = _key(trial)
        if key is not None:
            members.setdefault(key, []).append(trial)
    cells = {}
    for key, trials in members.items():
        try:
            values = seed_values(trials, metric).values()
        except SettingError as error:
            raise MissingDataError(f"grid of {metric}: the trials form no grid: {error}") from error
        finished = sum(trial.finished for trial in trials)
        beside = beside_paper(study, trials[0], metric, grid=True)
        cells[key] = GridCell(len(trials), finished, estimate(values), mean_interval(values), beside)
    if len(cells) < 2 or not any(own.estimate.n for own in cells.values()):
        raise MissingDataError(f"grid of {metric}: no finished trial over subset ratio and label noise has it.")
    ratios, noises = (tuple(sorted({key[axis] for key in cells})) for axis in (0, 1))
    return Grid(metric, ratios, noises, cells)


def grid_table(study: StudyData, metric: str = "final_accuracy") -> Table:
    """Tabulate an accuracy after warm-starting over subset ratio (rows) and label noise (columns).

    Each cell tells mean and standard deviation (divisor n - 1) over the finished trials and, in parentheses, the
    paper's mean and ours minus it. A note names the largest difference, and how many are above one percentage point.

    Parameters
    ----------
    metric
        ``"final_accuracy"`` (table 5) or ``"final_train_accuracy"`` (table 4).

    Raises
    ------
    MissingDataError
        If the trials form no grid, or none of them reported the metric.
    """
    grid = grid_of(study, metric)
    rows = []
    for ratio in grid.ratios:
        row = (_matrix_cell(metric, grid.cells.get((ratio, noise))) for noise in grid.noises)
        rows.append((Cell(f"{ratio:g}", (ratio,)), *row))
    columns = [Column("subset ratio", ("subset_ratio",))]
    columns += [
        Column(f"noise {noise:g}", tuple(f"noise_{noise:g}_{part}" for part in ("n", "mean", "sd", "paper")))
        for noise in grid.noises
    ]
    split = "Test" if SPLIT_OF[metric] == "test" else "Training"
    notes = [
        "Mean ± standard deviation (n − 1) over seeds, in per cent"
        + ("; in parentheses the paper's mean and ours minus it." if _gaps(grid) else "."),
        *(["Not every cell has all seeds: without ± it is a single one."] * (len(_planned(grid)) > 1)),
        *([TRAIN_NOTE] * (SPLIT_OF[metric] == "train")),
        *_gap_notes(grid),
        *paper_notes(own.beside for own in grid.cells.values()),
    ]
    title = f"{split} accuracy (%) after warm-starting{_method(study)}, {describe(study)}"
    return Table(title, tuple(columns), tuple(rows), (*notes, *problem_notes(study)), context_of(study))


def grid_cells_table(study: StudyData, metrics: Sequence[str], *, repeated: bool = False) -> Table:
    """Tabulate the same with a row for each cell of each metric, and with the intervals.

    Parameters
    ----------
    metrics
        Of those that `grid_metrics` names.
    repeated
        Whether only cells with more than one finished seed are listed.

    Raises
    ------
    MissingDataError
        If there is no such cell.
    """
    rows: list[tuple[Cell, ...]] = []
    for metric in metrics:
        for (ratio, noise), own in sorted(grid_of(study, metric).cells.items()):
            if repeated and own.estimate.n < 2:
                continue
            value = own.beside.value
            rows.append(
                (
                    Cell(f"{SPLIT_OF[metric]}, ratio {ratio:g}, noise {noise:g}", (SPLIT_OF[metric], ratio, noise)),
                    Cell(f"{own.estimate.n} of {own.planned}", (own.estimate.n, own.planned)),
                    Cell(shown_pair(metric, own.estimate.mean, own.estimate.sd), (own.estimate.mean, own.estimate.sd)),
                    Cell(shown_interval(metric, *own.interval), own.interval),
                    Cell(
                        shown_pair(metric, own.paper, math.nan if value is None else value.sd),
                        (own.paper, math.nan if value is None else value.sd),
                    ),
                    Cell(shown_number(metric, own.gap, sign=True), (own.gap,)),
                )
            )
    if not rows:
        raise MissingDataError("grid: no cell has more than one finished seed.")
    columns: tuple[Column, ...] = (
        Column("accuracy", ("split", "subset_ratio", "label_noise")),
        Column("seeds", ("seeds_finished", "seeds_planned")),
        Column("mean (%)", ("accuracy_mean", "accuracy_sd")),
        Column("95% interval", ("accuracy_low", "accuracy_high")),
        Column("paper (%)", ("paper_mean", "paper_sd")),
        Column("minus paper", ("accuracy_minus_paper",)),
    )
    if repeated and all(math.isnan(float(row[-1].values[0])) for row in rows):
        columns, rows = columns[:-2], [row[:-2] for row in rows]
    which = "Cells with more than one seed" if repeated else "All cells"
    return Table(
        f"{which}{_method(study)}, {describe(study)}", columns, tuple(rows), (INTERVAL_NOTE,), context_of(study)
    )


def _method(study: StudyData) -> str:
    methods = {trial.method for trial in study.trials} - {BASELINE, ""}
    return f" with {', '.join(sorted(methods))}" if methods else ""


def _key(trial: TrialData) -> tuple[float, float] | None:
    ratio, noise = trial.settings.get("subset_ratio"), trial.settings.get("label_noise")
    if isinstance(ratio, (int, float)) and isinstance(noise, (int, float)):
        return float(ratio), float(noise)
    return None


def _matrix_cell(metric: str, own: GridCell | None) -> Cell:
    if own is None:
        return Cell("", (math.nan,) * 4)
    text = shown_pair(metric, own.estimate.mean, own.estimate.sd) + own_n(own.estimate.n, own.planned)
    if own.estimate.n and math.isfinite(own.paper):
        text += f" ({100 * own.paper:g}, {shown_number(metric, own.gap, sign=True)})"
    return Cell(text if own.estimate.n else NOTHING, (own.estimate.n, own.estimate.mean, own.estimate.sd, own.paper))


def _planned(grid: Grid) -> set[int]:
    return {own.planned for own in grid.cells.values()}


def _gaps(grid: Grid) -> dict[tuple[float, float], float]:
    return {key: own.gap for key, own in grid.cells.items() if math.isfinite(own.gap)}


def _gap_notes(grid: Grid) -> list[str]:
    gaps = _gaps(grid)
    if not gaps:
        return []
    largest = max(gaps, key=lambda key: abs(gaps[key]))
    above = [key for key, gap in gaps.items() if abs(gap) > WORTH]
    told = f"{len(above)} of {len(gaps)} differ by more than {100 * WORTH:g} point"
    return [
        f"Largest difference to the paper: {shown_number(grid.metric, gaps[largest], sign=True)} points at ratio "
        f"{largest[0]:g}, noise {largest[1]:g}; {told}. The paper's means are whole per cents: up to half a point is "
        "rounding."
    ]
