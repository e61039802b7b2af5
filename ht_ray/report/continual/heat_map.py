"""The momentum and reset interval grid of Hare & Tortoise as a figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ht_ray._checks import check_choice
from ht_ray.errors import SettingError
from ht_ray.report.data.statistics import Estimate, estimate
from ht_ray.report.data.study import MissingDataError, StudyData, TrialData, group, seed_values
from ht_ray.report.style.drawing import ColourScale, Figure, PathLike, fill_cell, frame_cell, title, write_figure
from ht_ray.report.style.names import seeds_text, shown_number, shown_pair, shown_unit, worded

__all__ = ["Cell", "Grid", "Measure", "draw_grid", "grid_of", "grid_size", "heat_map", "reference_name"]

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
    name = f"{worded(metric)}{shown_unit(metric)[1]}"
    members: dict[Cell, list[TrialData]] = {}
    for trial in study.trials:
        if cell := _cell_of(trial):
            members.setdefault(cell, []).append(trial)
    try:
        estimates = {cell: estimate(seed_values(trials, metric).values()) for cell, trials in members.items()}
        grid = grid_of({cell: _measure(own, len(members[cell]), metric) for cell, own in estimates.items()})
    except MissingDataError as reason:
        raise MissingDataError(f"heat_map of {metric}: {reason}") from reason
    except SettingError as error:
        raise MissingDataError(f"heat_map of {metric}: the trials form no grid: {error}") from error
    references = {
        reference_name(str(label)): _measure(estimate(seed_values(trials, metric).values()), len(trials), metric)
        for (label,), trials in group(study).items()
        if not any(_cell_of(trial) for trial in trials)
    }
    planned = len(study.seeds)
    complete = {cell: own.mean for cell, own in estimates.items() if own.n == planned}
    framed = _shown_best(complete, metric, study.better(metric))

    def draw(figure: Figure) -> None:
        scale = draw_grid(figure, grid, references, framed, name=name, heading="Hare & Tortoise")
        caption = f"Cells: {'mean ± standard deviation (n − 1) over ' * (planned > 1)}{seeds_text(study.seeds)}.{scale}"
        title(figure, f"{name[0].upper()}{name[1:]}", study, caption)

    write_figure(draw, grid_size(grid, references), paths)


Key: TypeAlias = tuple[float, str]
"""A reset interval and its unit; infinity, without a unit, for never."""

Cell: TypeAlias = tuple[float, Key]
"""Momentum and reset interval."""


@dataclass(frozen=True)
class Measure:
    """What a cell tells.

    Attributes
    ----------
    value
        In the unit shown; NaN where no trial finished.
    texts
        The value and its spread.
    short
        How many of the planned trials it is of, where not all finished: ``"(2 of 3)"``.
    """

    value: float
    texts: tuple[str, ...]
    short: str = ""


@dataclass(frozen=True)
class Grid:
    """A map's momenta, reset intervals, and cells."""

    rows: tuple[float, ...]
    columns: tuple[Key, ...]
    cells: Mapping[Cell, Measure]


def grid_of(cells: Mapping[Cell, Measure]) -> Grid:
    """Return the grid of these cells, its rows and columns in order.

    Raises
    ------
    MissingDataError
        If fewer than two cells with a reset interval have a value.
    """
    filled = [cell for cell, own in cells.items() if math.isfinite(own.value) and math.isfinite(cell[1][0])]
    if len(filled) < 2:
        raise MissingDataError(
            "a grid needs two finished cells of Hare & Tortoise (momentum and reset interval), and the study has "
            f"{len(filled)}."
        )
    rows = tuple(sorted({row for row, _ in cells}))
    columns = tuple(sorted({column for _, column in cells}, key=lambda key: (math.isinf(key[0]), key[1], key[0])))
    return Grid(rows, columns, cells)


def reference_name(label: str) -> str:
    """Return the name of a cell beside the grid, in lines."""
    return "\n".join(textwrap.wrap(label, 28))


def grid_size(grid: Grid, references: Mapping[str, Measure]) -> tuple[float, float]:
    """Return width and height, in inches, of a figure that `draw_grid` fills."""
    lines = max((name.count("\n") + 2 for name in references), default=0)
    height = max(0.62 * len(grid.rows), (0.18 * lines + 0.12) * min(len(references), DOWN), 1.6) + 1.7
    beside = 2.3 * math.ceil(len(references) / DOWN)
    return 1.12 * len(grid.columns) + beside + 2.7, height


def _cell_of(trial: TrialData) -> Cell | None:
    momentum, interval = trial.settings.get("momentum"), trial.settings.get("reset_interval")
    if not isinstance(momentum, (int, float)):
        return None
    if trial.method == "ema":
        return float(momentum), (math.inf, "")
    if trial.method == "hare_tortoise" and isinstance(interval, (int, float)):
        return float(momentum), (float(interval), str(trial.settings.get("reset_unit") or ""))
    return None


def _measure(own: Estimate, planned: int, metric: str) -> Measure:
    if not own.n:
        return Measure(math.nan, ())
    value, _, spread = shown_pair(metric, own.mean, own.sd).partition(" ± ")
    texts = (value, f"± {spread}") if spread else (value,)
    return Measure(shown_unit(metric)[0] * own.mean, texts, f"({own.n} of {planned})" if own.n < planned else "")


def draw_grid(
    figure: Figure,
    grid: Grid,
    references: Mapping[str, Measure],
    framed: Sequence[Cell],
    *,
    name: str,
    heading: str,
) -> str:
    """Draw a grid, what stands beside it, and the colour bar; return the caption's sentences on frames and colours.

    Parameters
    ----------
    references
        By `reference_name`.
    framed
        The best cells.
    name
        Of the measure.
    heading
        Over the grid.
    """
    values = [own.value for own in grid.cells.values() if math.isfinite(own.value)]
    colours = ColourScale(min(values), max(values))
    across = math.ceil(len(references) / DOWN)
    widths = [1.12 * len(grid.columns), *([2.1 * across] if references else []), 0.16]
    axes = figure.subplots(1, len(widths), width_ratios=widths)
    axis, bar = axes[0], axes[-1]

    def fill(target: Any, left: float, bottom: float, own: Measure, label: str = "") -> None:
        known = math.isfinite(own.value)
        # In the grid the two numbers stand under each other, so that they can be large.
        parts = [*(own.texts if known else ["none finished"]), *filter(None, [own.short])]
        text = f"{label}\n{' '.join(parts)}" if label else "\n".join(parts)
        fill_cell(target, left, bottom, text, colours(own.value) if known else None)

    for (row, column), own in grid.cells.items():
        fill(axis, grid.columns.index(column), grid.rows.index(row), own)
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
    axis.set_title(heading, fontsize=9, x=finite / len(grid.columns) / 2)
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

    outside = [own.value for own in references.values()]
    below, above = any(value < colours.low for value in outside), any(value > colours.high for value in outside)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[below, above]
    figure.colorbar(colours.mappable, cax=bar, extend=extend, extendfrac=0.04).set_label(name[0].upper() + name[1:])
    bar.spines[:].set_visible(False)

    told = ""
    if framed:
        told += " Framed: the best in the grid" + (" (equal in the digits shown)." if len(framed) > 1 else ".")
    if below or above:
        told += " The colour scale spans the grid; other methods beyond it take the colour of its end."
    return told


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
