"""Maps of a metric: over momentum and reset interval of Hare & Tortoise, and over Adam's settings."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

from ht_ray.errors import SettingError
from ht_ray.report.data.selection import chosen_on, selecting_metric
from ht_ray.report.data.statistics import Estimate, estimate
from ht_ray.report.data.study import MissingDataError, StudyData, TrialData, seed_values
from ht_ray.report.style.figures import (
    ColourScale,
    Figure,
    PathLike,
    add_colour_bar,
    add_title,
    fill_cell,
    frame_cell,
    label_cells,
    write_figure,
)
from ht_ray.report.style.formats import (
    best_as_shown,
    capitalize,
    display_unit,
    format_mean_sd,
    format_seeds,
    format_value,
    metric_title,
)

__all__ = [
    "Cell",
    "Measure",
    "adam_map",
    "draw_grid",
    "estimate_cells",
    "grid_of",
    "grid_size",
    "has_adam_grid",
    "heat_map",
    "reference_name",
]

K = TypeVar("K")

#: Other methods under each other; more stand in columns.
DOWN = 10
#: The settings of a trial that make its cell: columns, rows and panels.
ADAM = ("beta1", "beta2", "epsilon")

Key: TypeAlias = tuple[float, str]
"""A reset interval and its unit; infinity, without a unit, for never."""

Cell: TypeAlias = tuple[float, Key]
"""Momentum and reset interval."""


@dataclass(frozen=True)
class Measure:
    """The content of a cell.

    Attributes
    ----------
    value
        The mean, in the unit shown; NaN where no trial finished.
    texts
        The value and its spread.
    short
        How many of the planned trials it is the mean of, where not all finished: ``"(2 of 3)"``.
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


def estimate_cells(
    study: StudyData, metric: str, key: Callable[[TrialData], K | None], where: str
) -> dict[K, tuple[Estimate, list[TrialData]]]:
    """Return, for each cell, the estimate of a metric and the trials planned.

    Parameters
    ----------
    key : callable
        Returns a trial's cell, or None for a trial outside the grid.
    where : str
        The figure or table, for the message of an error.

    Raises
    ------
    MissingDataError
        If two trials share a cell and a seed.
    """
    members: dict[K, list[TrialData]] = {}
    for trial in study.trials:
        cell = key(trial)
        if cell is not None:
            members.setdefault(cell, []).append(trial)
    try:
        return {cell: (estimate(seed_values(trials, metric).values()), trials) for cell, trials in members.items()}
    except SettingError as error:
        raise MissingDataError(f"{where}: the trials form no grid: {error}") from error


def heat_map(study: StudyData, metric: str, *paths: PathLike) -> None:
    """Draw `metric` over momentum (rows) and reset interval (columns) of Hare & Tortoise.

    Each cell shows mean and standard deviation over the finished trials, and how many of the planned seeds those are
    where it is not all. The average that never resets (``method = "ema"``) is the column "never", and every other label
    of the study stands next to the grid, coloured on the same scale, which spans the grid.
    """
    study.check_metric("heat_map: metric", metric)
    where = f"heat_map of {metric}"
    estimates = estimate_cells(study, metric, _cell_of, where)
    grid = grid_of({cell: _measure(own, len(trials), metric) for cell, (own, trials) in estimates.items()}, where)
    references = {
        reference_name(label): _measure(estimate(seed_values(trials, metric).values()), len(trials), metric)
        for label, trials in study.by_label.items()
        if not any(map(_cell_of, trials))
    }
    planned = len(study.seeds)
    by = selecting_metric(study, metric)
    chosen = estimates if by == metric else estimate_cells(study, by, _cell_of, where)
    complete = {cell: own.mean for cell, (own, _) in chosen.items() if own.n == planned}
    framed = best_as_shown(complete, study.better(by), partial(format_value, by))
    name = metric_title(metric)

    def draw(figure: Figure) -> None:
        data = f" on {chosen_on(study)} data"
        scale = draw_grid(figure, grid, references, framed, name=name, heading="Hare & Tortoise", data=data)
        what = "mean ± standard deviation (n − 1) over " if planned > 1 else ""
        add_title(figure, capitalize(name), study, f"Cells: {what}{format_seeds(study.seeds)}.{scale}")

    write_figure(draw, grid_size(grid, references), paths)


def grid_of(cells: Mapping[Cell, Measure], where: str) -> Grid:
    """Return the grid of these cells, its rows and columns in order; `where` names the figure in an error.

    Raises
    ------
    MissingDataError
        If fewer than two cells with a reset interval have a value.
    """
    filled = [cell for cell, own in cells.items() if math.isfinite(own.value) and math.isfinite(cell[1][0])]
    if len(filled) < 2:
        raise MissingDataError(
            f"{where}: a grid needs two finished cells of Hare & Tortoise (momentum and reset interval), and the study "
            f"has {len(filled)}."
        )
    rows = tuple(sorted({row for row, _ in cells}))
    columns = tuple(sorted({column for _, column in cells}, key=lambda key: (math.isinf(key[0]), key[1], key[0])))
    return Grid(rows, columns, cells)


def reference_name(label: str) -> str:
    """Return the name of a cell next to the grid, in lines."""
    return "\n".join(textwrap.wrap(label, 28))


def grid_size(grid: Grid, references: Mapping[str, Measure]) -> tuple[float, float]:
    """Return width and height, in inches, of a figure that `draw_grid` fills."""
    lines = max((name.count("\n") + 2 for name in references), default=0)
    height = max(0.62 * len(grid.rows), (0.18 * lines + 0.12) * min(len(references), DOWN), 1.6) + 1.7
    strip = 2.3 * math.ceil(len(references) / DOWN)
    return 1.12 * len(grid.columns) + strip + 2.7, height


def _cell_of(trial: TrialData) -> Cell | None:
    momentum, interval = trial.number("momentum"), trial.number("reset_interval")
    if momentum is None:
        return None
    if trial.method == "ema":
        return momentum, (math.inf, "")
    if trial.method == "hare_tortoise" and interval is not None:
        return momentum, (interval, str(trial.settings.get("reset_unit") or ""))
    return None


def _measure(own: Estimate, planned: int, metric: str) -> Measure:
    if not own.n:
        return Measure(math.nan, ())
    value, _, spread = format_mean_sd(metric, own.mean, own.sd).partition(" ± ")
    texts = (value, f"± {spread}") if spread else (value,)
    return Measure(display_unit(metric)[0] * own.mean, texts, f"({own.n} of {planned})" if own.n < planned else "")


def draw_grid(
    figure: Figure,
    grid: Grid,
    references: Mapping[str, Measure],
    framed: Sequence[Cell],
    *,
    name: str,
    heading: str,
    data: str = "",
) -> str:
    """Draw a grid, the cells next to it, and the colour bar; return the caption's sentences on frames and colours.

    Parameters
    ----------
    references : mapping
        The cells next to the grid, by `reference_name`.
    framed : sequence
        The best cells of the grid.
    name : str
        The measure, for the colour bar.
    heading : str
        The text above the grid.
    data : str, default ""
        What the best were chosen on, for the caption.
    """
    values = [own.value for own in grid.cells.values() if math.isfinite(own.value)]
    colours = ColourScale(min(values), max(values))
    across = math.ceil(len(references) / DOWN)
    widths = [1.12 * len(grid.columns), *([2.1 * across] if references else []), 0.16]
    axes = figure.subplots(1, len(widths), width_ratios=widths)
    axis, bar = axes[0], axes[-1]

    def fill(target: Any, left: float, bottom: float, own: Measure, label: str = "") -> None:
        # In the grid the two numbers stand under each other, so that they can be large.
        parts = filter(None, [*(own.texts or ("none finished",)), own.short])
        text = f"{label}\n{' '.join(parts)}" if label else "\n".join(parts)
        fill_cell(target, left, bottom, text, colours(own.value) if own.texts else None)

    for (row, column), own in grid.cells.items():
        fill(axis, grid.columns.index(column), grid.rows.index(row), own)
    for row, column in framed:
        frame_cell(axis, grid.columns.index(column), grid.rows.index(row))

    units = {key[1] for key in grid.columns if math.isfinite(key[0])}
    one_unit = units.pop() if len(units) == 1 else ""
    label_cells(axis, [_interval_name(key, one_unit) for key in grid.columns], [f"{row:g}" for row in grid.rows])
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
        strip.spines[:].set_visible(False)

    outside = [own.value for own in references.values()]
    below, above = any(value < colours.low for value in outside), any(value > colours.high for value in outside)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[below, above]
    figure.colorbar(colours.mappable, cax=bar, extend=extend, extendfrac=0.04).set_label(capitalize(name))
    bar.spines[:].set_visible(False)

    caption = ""
    if framed:
        caption += f" Framed: the best in the grid{data}" + (
            " (equal in the digits shown)." if len(framed) > 1 else "."
        )
    if below or above:
        caption += " The colour scale spans the grid; other methods beyond it take the colour of its end."
    return caption


def _interval_name(key: Key, one_unit: str) -> str:
    interval, unit = key
    if math.isinf(interval):
        return "never (EMA)"
    return f"{interval:g}" if one_unit or not unit else f"{interval:g}\n{unit}"


def has_adam_grid(study: StudyData) -> bool:
    """Return whether the trials differ in Adam's settings."""
    return len({tuple(trial.settings.get(name) for name in ADAM) for trial in study.trials}) > 1


def adam_map(study: StudyData, metric: str, *paths: PathLike) -> None:
    """Draw `metric` over Adam's beta1 (columns), beta2 (rows) and epsilon (a panel each), on one colour scale.

    This is the paper's figure 3. Cells show mean and standard deviation (divisor n - 1) over the finished trials, and
    how many of the planned seeds those are where it is not all; the best of the complete ones is framed.
    """
    study.check_metric("adam_map: metric", metric)
    where = f"adam_map of {metric}"
    cells = estimate_cells(study, metric, _key, where)
    if sum(own.n > 0 for own, _ in cells.values()) < 2:
        raise MissingDataError(f"{where}: fewer than two settings of Adam have a finished trial.")
    axes = [sorted({key[axis] for key in cells}) for axis in range(3)]
    names = [[f"{value:g}" for value in axis] for axis in axes]
    measures = {key: _measure(own, len(trials), metric) for key, (own, trials) in cells.items()}
    known = [own.value for own in measures.values() if math.isfinite(own.value)]
    # A mean over the lucky seeds is no contest.
    by = selecting_metric(study, metric)
    chosen = cells if by == metric else estimate_cells(study, by, _key, where)
    complete = {key: own.mean for key, (own, planned) in chosen.items() if own.n == len(planned)}
    best = best_as_shown(complete, study.better(by), partial(format_value, by))
    caption = f"Cells: mean over {format_seeds(study.seeds)}"
    caption += " ± standard deviation (n − 1)." if len(study.seeds) > 1 else "."
    if best:
        among = " of those finished on all seeds" * (len(complete) < len(cells))
        caption += f" Framed: the best{among}, on {chosen_on(study)} data."

    def draw(figure: Figure) -> None:
        colours = ColourScale(min(known), max(known))
        panels = figure.subplots(1, len(axes[2]), sharey=True, squeeze=False)[0]
        for key, own in measures.items():
            column, row, panel = (axis.index(value) for axis, value in zip(axes, key, strict=True))
            text = "\n".join(filter(None, [*(own.texts or ("none\nfinished",)), own.short]))
            fill_cell(panels[panel], column, row, text, colours(own.value) if own.texts else None, fontsize=7.5)
            if key in best:
                frame_cell(panels[panel], column, row)
        for panel, epsilon in zip(panels, names[2], strict=True):
            label_cells(panel, names[0], names[1])
            panel.set_xlabel("β1")
            panel.set_title(f"ε = {epsilon}", fontsize=9)
        panels[0].set_ylabel("β2")
        add_colour_bar(figure, colours, list(panels), metric_title(metric), 0.04)
        add_title(figure, f"{capitalize(metric_title(metric))} over Adam's settings", study, caption)

    width = 0.85 * len(axes[0]) + 0.35
    write_figure(draw, (max(width * len(axes[2]) + 1.6, 5.0), 0.6 * len(axes[1]) + 1.9), paths)


def _key(trial: TrialData) -> tuple[float, ...] | None:
    known = tuple(value for name in ADAM if (value := trial.number(name)) is not None)
    return known if len(known) == len(ADAM) else None
