"""The momentum and reset interval grid of Hare & Tortoise as a figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ht_ray._checks import SettingError, check_choice
from ht_ray.report.drawing import ColourScale, Figure, PathLike, fill_cell, frame_cell, title, write_figure
from ht_ray.report.names import seeds_text, shown_number, shown_pair, shown_unit, worded
from ht_ray.report.statistics import Estimate, estimate
from ht_ray.report.study import MissingDataError, StudyData, TrialData, group, seed_values

__all__ = ["heat_map"]

#: Other methods under each other; more stand in columns.
DOWN = 10


def heat_map(study: StudyData, metric: str, *paths: PathLike) -> None:
    """Draw `metric` over momentum (rows) and reset interval (columns) of Hare & Tortoise.

    Each cell tells mean and standard deviation over the finished trials, and how many of the planned seeds those are
    where it is not all. The average that never resets (``method = "ema"``) is the column "never", and every other label
    of the study stands beside the grid, coloured on the same scale, which spans the grid.

    Parameters
    ----------
    study
        A study of one access mode (see `split_by_access`).
    metric
        A summary number; accuracies are shown in per cent.
    *paths
        Where to write the figure, each in the format of its suffix.

    Raises
    ------
    MissingDataError
        If fewer than two cells of Hare & Tortoise have a finished trial, or two trials share a cell and a seed.
    SettingError
        If no trial reported `metric`, or a path cannot be written.
    """
    if study.summary_names and metric not in study.summary_names:
        check_choice("heat_map: metric", metric, study.summary_names)
    grid = _grid(study, metric)
    references = {
        "\n".join(textwrap.wrap(str(label), 28)): _measure(trials, metric)
        for (label,), trials in group(study).items()
        if not any(_cell_of(trial) for trial in trials)
    }

    def draw(figure: Figure) -> None:
        _draw_heat_map(figure, study, metric, grid, references)

    lines = max((name.count("\n") + 2 for name in references), default=0)
    height = max(0.62 * len(grid.rows), (0.18 * lines + 0.12) * min(len(references), DOWN), 1.6) + 1.7
    beside = 2.3 * math.ceil(len(references) / DOWN)
    write_figure(draw, (1.12 * len(grid.columns) + beside + 2.7, height), paths)


@dataclass(frozen=True)
class _Measure:
    """An estimate, and how many seeds were planned for it."""

    estimate: Estimate
    planned: int


Key: TypeAlias = tuple[float, str]
"""A reset interval and its unit; infinity, without a unit, for never."""


@dataclass(frozen=True)
class _Grid:
    rows: tuple[float, ...]
    columns: tuple[Key, ...]
    cells: dict[tuple[float, Key], _Measure]


def _cell_of(trial: TrialData) -> tuple[float, Key] | None:
    momentum, interval = trial.settings.get("momentum"), trial.settings.get("reset_interval")
    if not isinstance(momentum, (int, float)):
        return None
    if trial.method == "ema":
        return float(momentum), (math.inf, "")
    if trial.method == "hare_tortoise" and isinstance(interval, (int, float)):
        return float(momentum), (float(interval), str(trial.settings.get("reset_unit") or ""))
    return None


def _measure(trials: Sequence[TrialData], metric: str) -> _Measure:
    return _Measure(estimate(seed_values(trials, metric).values()), len(trials))


def _grid(study: StudyData, metric: str) -> _Grid:
    members: dict[tuple[float, Key], list[TrialData]] = {}
    for trial in study.trials:
        cell = _cell_of(trial)
        if cell is not None:
            members.setdefault(cell, []).append(trial)
    try:
        cells = {cell: _measure(trials, metric) for cell, trials in members.items()}
    except SettingError as error:
        raise MissingDataError(f"heat_map of {metric}: the trials form no grid: {error}") from error
    filled = [cell for cell, own in cells.items() if own.estimate.n and math.isfinite(cell[1][0])]
    if len(filled) < 2:
        raise MissingDataError(
            f"heat_map of {metric}: a grid needs two finished cells of Hare & Tortoise (momentum and reset interval), "
            f"and the study has {len(filled)}."
        )
    rows = tuple(sorted({row for row, _ in cells}))
    columns = tuple(sorted({column for _, column in cells}, key=lambda key: (math.isinf(key[0]), key[1], key[0])))
    return _Grid(rows, columns, cells)


def _draw_heat_map(figure: Figure, study: StudyData, metric: str, grid: _Grid, references: dict[str, _Measure]) -> None:
    factor, unit = shown_unit(metric)
    means = {cell: own.estimate.mean for cell, own in grid.cells.items() if own.estimate.n}
    colours = ColourScale(factor * min(means.values()), factor * max(means.values()))
    name = f"{worded(metric)}{unit}"

    across = math.ceil(len(references) / DOWN)
    widths = [1.12 * len(grid.columns), *([2.1 * across] if references else []), 0.16]
    axes = figure.subplots(1, len(widths), width_ratios=widths)
    axis, bar = axes[0], axes[-1]

    def fill(target: Any, left: float, bottom: float, own: _Measure, heading: str = "") -> None:
        known = own.estimate.n > 0
        text = shown_pair(metric, own.estimate.mean, own.estimate.sd) if known else "none finished"
        # In the grid the two numbers stand under each other, so that they can be large.
        text = f"{heading}\n{text}" if heading else text.replace(" ± ", "\n± ")
        if 0 < own.estimate.n < own.planned:
            text += f" ({own.estimate.n} of {own.planned})" if heading else f"\n({own.estimate.n} of {own.planned})"
        fill_cell(target, left, bottom, text, colours(factor * own.estimate.mean) if known else None)

    for (row, column), own in grid.cells.items():
        fill(axis, grid.columns.index(column), grid.rows.index(row), own)
    planned = len(study.seeds)
    complete = {cell: mean for cell, mean in means.items() if grid.cells[cell].estimate.n == planned}
    framed = _shown_best(complete, metric, study.better(metric))
    for row, column in framed:
        frame_cell(axis, grid.columns.index(column), grid.rows.index(row))

    axis.set(xlim=(0, len(grid.columns)), ylim=(0, len(grid.rows)))
    units = {key[1] for key in grid.columns if math.isfinite(key[0])}
    one_unit = units.pop() if len(units) == 1 else ""
    axis.set_xticks(np.arange(len(grid.columns)) + 0.5, [_interval_name(key, one_unit) for key in grid.columns])
    axis.set_yticks(np.arange(len(grid.rows)) + 0.5, [f"{row:g}" for row in grid.rows])
    axis.set_xlabel(f"Reset interval{f' ({one_unit})' if one_unit else ''}")
    axis.set_ylabel("Momentum")
    finite = sum(math.isfinite(key[0]) for key in grid.columns)
    axis.set_title("Hare & Tortoise", fontsize=9, x=finite / len(grid.columns) / 2)
    if finite < len(grid.columns):
        axis.axvline(finite, color="white", linewidth=6)

    if references:
        strip = axes[1]
        down = math.ceil(len(references) / across)
        for index, (label, own) in enumerate(references.items()):
            fill(strip, index // down, down - 1 - index % down, own, label)
        strip.set(xlim=(0, across), ylim=(0, down), xticks=[], yticks=[])
        strip.set_title("Other methods", fontsize=9)
    for each in axes[:-1]:
        each.tick_params(length=0)
        each.spines[:].set_visible(False)

    outside = [factor * own.estimate.mean for own in references.values() if own.estimate.n]
    below, above = any(mean < colours.low for mean in outside), any(mean > colours.high for mean in outside)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[below, above]
    figure.colorbar(colours.mappable, cax=bar, extend=extend, extendfrac=0.04).set_label(name[0].upper() + name[1:])
    bar.spines[:].set_visible(False)

    caption = f"Cells: {'mean ± standard deviation (n − 1) over ' * (planned > 1)}{seeds_text(study.seeds)}."
    if framed:
        caption += " Framed: the best in the grid" + (" (equal in the digits shown)." if len(framed) > 1 else ".")
    if below or above:
        caption += " The colour scale spans the grid; other methods beyond it take the colour of its end."
    title(figure, f"{name[0].upper()}{name[1:]}", study, caption)


def _interval_name(key: Key, one_unit: str) -> str:
    interval, unit = key
    if math.isinf(interval):
        return "never (EMA)"
    return f"{interval:g}" if one_unit or not unit else f"{interval:g}\n{unit}"


def _shown_best(means: dict[Any, float], metric: str, better: str | None) -> list[Any]:
    if not means or better is None:
        return []
    top = shown_number(metric, (max if better == "max" else min)(means.values()))
    return [cell for cell, mean in means.items() if shown_number(metric, mean) == top]
