"""Warm-starting over subset ratio and label noise: tables and a figure, next to the paper's tables 4 and 5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ht_ray._checks import check_choice
from ht_ray.report.continual.maps import estimate_cells
from ht_ray.report.data.paper import SPLIT_OF, PaperComparison, compare_with_paper, paper_caption, paper_notes
from ht_ray.report.data.statistics import Estimate, interval_name, mean_interval
from ht_ray.report.data.study import MissingDataError, StudyData, TrialData, seed_values
from ht_ray.report.style.curve_lines import BASELINE, MARKERS
from ht_ray.report.style.figures import (
    ColourScale,
    Figure,
    PathLike,
    add_colour_bar,
    add_grid,
    add_title,
    fill_cell,
    label_cells,
    write_figure,
)
from ht_ray.report.style.formats import NOTHING, describe, format_interval, format_mean_sd, format_seeds, format_value
from ht_ray.report.style.tables import INTERVAL_NOTE, TRAIN_NOTE, Cell, Column, Table, format_n, study_table

__all__ = ["Grid", "GridCell", "grid_cells_table", "grid_figure", "grid_metrics", "grid_of", "grid_table", "is_grid"]

#: The difference to the paper above which a cell is counted in a note (a fraction).
NOTABLE = 0.01


@dataclass(frozen=True)
class GridCell:
    """Measurements of the trials of one subset ratio and label noise, and the paper's value."""

    planned: int
    estimate: Estimate
    interval: tuple[float, float]
    comparison: PaperComparison

    @property
    def paper(self) -> float:
        """The paper's mean, a fraction; NaN where it has none."""
        return self.comparison.mean

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
    cells = {
        key: GridCell(
            len(trials),
            own,
            mean_interval(seed_values(trials, metric).values()),
            compare_with_paper(study, trials[0], metric, grid=True),
        )
        for key, (own, trials) in estimate_cells(study, metric, _key, f"grid of {metric}").items()
    }
    if len(cells) < 2 or not any(own.estimate.n for own in cells.values()):
        raise MissingDataError(f"grid of {metric}: no finished trial over subset ratio and label noise has it.")
    ratios, noises = (tuple(sorted({key[axis] for key in cells})) for axis in (0, 1))
    return Grid(metric, ratios, noises, cells)


def grid_table(study: StudyData, metric: str = "final_accuracy") -> Table:
    """Tabulate an accuracy after warm-starting over subset ratio (rows) and label noise (columns).

    Each cell shows mean and standard deviation (divisor n - 1) over the finished trials and, in parentheses, the
    paper's mean and ours minus it. A note names the largest difference, and how many are above one percentage point.

    Parameters
    ----------
    metric : {"final_accuracy", "final_train_accuracy"}
        The accuracy of the paper's table 5 or 4.
    """
    grid = grid_of(study, metric)
    rows = [
        [Cell(f"{ratio:g}", (ratio,)), *(_matrix_cell(metric, grid.cells.get((ratio, noise))) for noise in grid.noises)]
        for ratio in grid.ratios
    ]
    columns = [Column("subset ratio", ("subset_ratio",))]
    columns += [
        Column(f"noise {noise:g}", tuple(f"noise_{noise:g}_{part}" for part in ("n", "mean", "sd", "paper")))
        for noise in grid.noises
    ]
    planned = {own.planned for own in grid.cells.values()}
    split = "Test" if SPLIT_OF[metric] == "test" else "Training"
    notes = [
        "Mean ± standard deviation (n − 1) over seeds, in per cent"
        + ("; in parentheses the paper's mean and ours minus it." if _gaps(grid) else "."),
        *(["Not every cell has all seeds: without ± it is a single one."] * (len(planned) > 1)),
        *([TRAIN_NOTE.format(measure="accuracy")] * (SPLIT_OF[metric] == "train")),
        *_gap_notes(grid),
        *paper_notes(own.comparison for own in grid.cells.values()),
    ]
    title = f"{split} accuracy (%) after warm-starting{_method(study)}, {describe(study)}"
    return study_table(study, title, columns, rows, notes)


def grid_cells_table(study: StudyData, metrics: Sequence[str], *, repeated: bool = False) -> Table:
    """Tabulate the same with a row for each cell of each metric, and with the intervals.

    Parameters
    ----------
    metrics : sequence of str
        Some of those that `grid_metrics` returns.
    repeated : bool, default False
        Whether only cells with more than one finished seed are listed.
    """
    rows: list[list[Cell]] = []
    for metric in metrics:
        for (ratio, noise), own in sorted(grid_of(study, metric).cells.items()):
            if repeated and own.estimate.n < 2:
                continue
            mean, sd = own.estimate.mean, own.estimate.sd
            paper_sd = math.nan if own.comparison.value is None else own.comparison.value.sd
            rows.append(
                [
                    Cell(f"{SPLIT_OF[metric]}, ratio {ratio:g}, noise {noise:g}", (SPLIT_OF[metric], ratio, noise)),
                    Cell(f"{own.estimate.n} of {own.planned}", (own.estimate.n, own.planned)),
                    Cell(format_mean_sd(metric, mean, sd), (mean, sd)),
                    Cell(format_interval(metric, *own.interval), own.interval),
                    Cell(format_mean_sd(metric, own.paper, paper_sd), (own.paper, paper_sd)),
                    Cell(format_value(metric, own.gap, sign=True), (own.gap,)),
                ]
            )
    if not rows:
        raise MissingDataError("grid: no cell has more than one finished seed.")
    columns = [
        Column("accuracy", ("split", "subset_ratio", "label_noise")),
        Column("seeds", ("seeds_finished", "seeds_planned")),
        Column("mean (%)", ("accuracy_mean", "accuracy_sd")),
        Column("95% interval", ("accuracy_low", "accuracy_high")),
        Column("paper (%)", ("paper_mean", "paper_sd")),
        Column("minus paper", ("accuracy_minus_paper",)),
    ]
    if repeated and all(math.isnan(float(row[-1].values[0])) for row in rows):
        columns, rows = columns[:-2], [row[:-2] for row in rows]
    title = f"{'Cells with more than one seed' if repeated else 'All cells'}{_method(study)}, {describe(study)}"
    return study_table(study, title, columns, rows, [INTERVAL_NOTE], problems=False)


def _method(study: StudyData) -> str:
    methods = {trial.method for trial in study.trials} - {BASELINE, ""}
    return f" with {', '.join(sorted(methods))}" if methods else ""


def _key(trial: TrialData) -> tuple[float, float] | None:
    ratio, noise = trial.number("subset_ratio"), trial.number("label_noise")
    return None if ratio is None or noise is None else (ratio, noise)


def _matrix_cell(metric: str, own: GridCell | None) -> Cell:
    if own is None:
        return Cell("", (math.nan,) * 4)
    text = format_mean_sd(metric, own.estimate.mean, own.estimate.sd) + format_n(own.estimate.n, own.planned)
    if own.estimate.n and math.isfinite(own.paper):
        text += f" ({100 * own.paper:g}, {format_value(metric, own.gap, sign=True)})"
    return Cell(text if own.estimate.n else NOTHING, (own.estimate.n, own.estimate.mean, own.estimate.sd, own.paper))


def _gaps(grid: Grid) -> dict[tuple[float, float], float]:
    return {key: own.gap for key, own in grid.cells.items() if math.isfinite(own.gap)}


def _gap_notes(grid: Grid) -> list[str]:
    gaps = _gaps(grid)
    if not gaps:
        return []
    largest = max(gaps, key=lambda key: abs(gaps[key]))
    above = [key for key, gap in gaps.items() if abs(gap) > NOTABLE]
    many = f"{len(above)} of {len(gaps)} differ by more than {100 * NOTABLE:g} point"
    return [
        f"Largest difference to the paper: {format_value(grid.metric, gaps[largest], sign=True)} points at ratio "
        f"{largest[0]:g}, noise {largest[1]:g}; {many}. The paper's means are whole per cents: up to half a point is "
        "rounding."
    ]


def grid_figure(study: StudyData, *paths: PathLike, metric: str = "final_accuracy") -> None:
    """Draw an accuracy after warm-starting: a line over subset ratio for each label noise, and all cells as a map.

    Points are means over the finished trials, whiskers the 95% interval where there are two seeds or more.
    Where the paper has the number and the protocol is its own, its line is dashed, and its mean stands in parentheses.

    Parameters
    ----------
    metric : {"final_accuracy", "final_train_accuracy"}, default "final_accuracy"
        The test or the training accuracy; see `grid_of`.
    """
    grid = grid_of(study, metric)
    planned = max(own.planned for own in grid.cells.values())
    caption = f"Means over {format_seeds(study.seeds)}" if planned > 1 else f"One seed ({format_seeds(study.seeds)})"
    if planned > min(own.planned for own in grid.cells.values()):
        caption += ", not all of them in every cell"
    caption += f"; whiskers: {interval_name(planned)}." if planned > 1 else "."
    comparisons = (own.comparison for own in grid.cells.values())
    caption += paper_caption("Dashed, open, and in parentheses", comparisons, " (rounded there)")

    def draw(figure: Figure) -> None:
        lines, cells = figure.subplots(1, 2, width_ratios=[1.0, 0.42 + 0.15 * len(grid.noises)])
        _draw_lines(lines, grid)
        _draw_cells(figure, cells, grid)
        add_title(figure, f"{_quantity(grid)} after warm-starting, by subset ratio and label noise", study, caption)

    write_figure(draw, (6.6 + 0.75 * len(grid.noises), 1.6 + max(0.45 * len(grid.ratios), 2.6)), paths)


def _draw_lines(axis: Any, grid: Grid) -> None:
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0, 0.85, len(grid.noises)))
    for index, noise in enumerate(grid.noises):
        known = [ratio for ratio in grid.ratios if (own := grid.cells.get((ratio, noise))) and own.estimate.n]
        if not known:
            continue
        cells = [grid.cells[ratio, noise] for ratio in known]
        means = np.array([100 * cell.estimate.mean for cell in cells])
        ends = np.array([[100 * end for end in cell.interval] for cell in cells]).reshape(-1, 2).T
        marker = MARKERS[index % len(MARKERS)]
        style = {"color": colours[index], "marker": marker, "markersize": 4.5, "linewidth": 1.4, "capsize": 2.5}
        whiskers = np.nan_to_num(np.abs(ends - means))
        axis.errorbar(known, means, yerr=whiskers, label=f"noise {noise:g}", zorder=3, **style)
        style = {"color": colours[index], "marker": marker, "markersize": 6.5, "linewidth": 0.9}
        axis.plot(known, [100 * cell.paper for cell in cells], markerfacecolor="none", linestyle="--", **style)
    margin = 0.04 * (grid.ratios[-1] - grid.ratios[0]) or 0.1
    axis.set_xlim(grid.ratios[0] - margin, grid.ratios[-1] + margin)
    axis.set_xticks(grid.ratios, [f"{ratio:g}" for ratio in grid.ratios])
    axis.set_xlabel("Subset ratio of the first phase")
    axis.set_ylabel(_quantity(grid))
    add_grid(axis, "y")
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_cells(figure: Figure, axis: Any, grid: Grid) -> None:
    means = [100 * own.estimate.mean for own in grid.cells.values() if own.estimate.n]
    colours = ColourScale(min(means), max(means))
    for (ratio, noise), own in grid.cells.items():
        known = own.estimate.n > 0
        text = format_value(grid.metric, own.estimate.mean) if known else "none\nfinished"
        if known and math.isfinite(own.paper):
            text += f"\n({100 * own.paper:g})"
        column, row = grid.noises.index(noise), grid.ratios.index(ratio)
        fill_cell(axis, column, row, text, colours(100 * own.estimate.mean) if known else None, fontsize=7.5)
    label_cells(axis, [f"{noise:g}" for noise in grid.noises], [f"{ratio:g}" for ratio in grid.ratios])
    axis.set_xlabel("Label noise of the first phase")
    axis.set_ylabel("Subset ratio")
    add_colour_bar(figure, colours, axis, _quantity(grid), 0.05)


def _quantity(grid: Grid) -> str:
    return f"{'Test' if SPLIT_OF[grid.metric] == 'test' else 'Training'} accuracy (%)"
