"""Warm-starting over subset ratio and label noise as a figure: the paper's figure 2, and 7 for other networks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ht_ray.report.continual.grid_tables import Grid, grid_of
from ht_ray.report.data.paper import PAPER, SPLIT_OF
from ht_ray.report.data.statistics import interval_name
from ht_ray.report.data.study import StudyData
from ht_ray.report.style.curve_lines import MARKERS
from ht_ray.report.style.drawing import ColourScale, Figure, PathLike, fill_cell, title, write_figure
from ht_ray.report.style.names import seeds_text, shown_number

__all__ = ["grid_figure"]


def grid_figure(study: StudyData, *paths: PathLike, metric: str = "final_accuracy") -> None:
    """Draw an accuracy after warm-starting: a line over subset ratio for each label noise, and all cells as a map.

    Points are means over the finished trials, whiskers the 95% interval where there are two seeds or more.
    Where the paper has the number and the protocol is its own, its line is dashed, and its mean stands in parentheses.

    Parameters
    ----------
    study
        A study over subset ratio and label noise (see `grid_of`).
    *paths
        Where to write the figure, each in the format of its suffix.
    metric
        ``"final_accuracy"`` or ``"final_train_accuracy"``.

    Raises
    ------
    MissingDataError
        If the trials form no grid, or none of them reported the metric.
    SettingError
        If a path cannot be written.
    """
    grid = grid_of(study, metric)
    paper = any(math.isfinite(own.paper) for own in grid.cells.values())
    planned = max(own.planned for own in grid.cells.values())
    caption = f"Means over {seeds_text(study.seeds)}" if planned > 1 else f"One seed ({seeds_text(study.seeds)})"
    if planned > min(own.planned for own in grid.cells.values()):
        caption += ", not all of them in every cell"
    caption += f"; whiskers: {interval_name(planned)}." if planned > 1 else "."
    if paper:
        tables = dict.fromkeys(own.beside.value.table for own in grid.cells.values() if own.beside.value is not None)
        caption += f" Dashed, open, and in parentheses: {PAPER}, {' and '.join(tables)} (rounded there)."
        budgets = dict.fromkeys("; ".join(own.beside.budget) for own in grid.cells.values() if own.beside.budget)
        caption += "".join(f" Our budget is another: {budget}." for budget in budgets)

    def draw(figure: Figure) -> None:
        lines, cells = figure.subplots(1, 2, width_ratios=[1.0, 0.42 + 0.15 * len(grid.noises)])
        _draw_lines(lines, grid)
        _draw_cells(figure, cells, grid)
        title(figure, f"{_quantity(grid)} after warm-starting, by subset ratio and label noise", study, caption)

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
        axis.plot(
            known,
            [100 * cell.paper for cell in cells],
            color=colours[index],
            marker=marker,
            markersize=6.5,
            markerfacecolor="none",
            linestyle="--",
            linewidth=0.9,
        )
    margin = 0.04 * (grid.ratios[-1] - grid.ratios[0]) or 0.1
    axis.set_xlim(grid.ratios[0] - margin, grid.ratios[-1] + margin)
    axis.set_xticks(grid.ratios, [f"{ratio:g}" for ratio in grid.ratios])
    axis.set_xlabel("Subset ratio of the first phase")
    axis.set_ylabel(_quantity(grid))
    axis.grid(axis="y", color="0.92", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _draw_cells(figure: Figure, axis: Any, grid: Grid) -> None:
    means = [100 * own.estimate.mean for own in grid.cells.values() if own.estimate.n]
    colours = ColourScale(min(means), max(means))
    for (ratio, noise), own in grid.cells.items():
        known = own.estimate.n > 0
        text = shown_number(grid.metric, own.estimate.mean) if known else "none\nfinished"
        if known and math.isfinite(own.paper):
            text += f"\n({100 * own.paper:g})"
        place = (grid.noises.index(noise), grid.ratios.index(ratio))
        fill_cell(axis, *place, text, colours(100 * own.estimate.mean) if known else None, fontsize=7.5)
    axis.set(xlim=(0, len(grid.noises)), ylim=(0, len(grid.ratios)))
    axis.set_xticks(np.arange(len(grid.noises)) + 0.5, [f"{noise:g}" for noise in grid.noises])
    axis.set_yticks(np.arange(len(grid.ratios)) + 0.5, [f"{ratio:g}" for ratio in grid.ratios])
    axis.set_xlabel("Label noise of the first phase")
    axis.set_ylabel("Subset ratio")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(colours.mappable, ax=axis, fraction=0.05, pad=0.02)
    bar.set_label(_quantity(grid))
    bar.outline.set_visible(False)


def _quantity(grid: Grid) -> str:
    return f"{'Test' if SPLIT_OF[grid.metric] == 'test' else 'Training'} accuracy (%)"
