"""Momentum and reset interval of Hare & Tortoise on Atari as a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ht_ray.report.atari.figures import extent_caption, intervals_of
from ht_ray.report.atari.study import Variant, comparable, variants_of
from ht_ray.report.continual.heat_map import Cell, Measure, draw_grid, grid_of, grid_size, reference_name
from ht_ray.report.data.study import MissingDataError, StudyData
from ht_ray.report.style.drawing import Figure, PathLike, title, write_figure
from ht_ray.report.style.names import worded

__all__ = ["atari_heat_map", "grid_methods"]


def grid_methods(study: StudyData) -> tuple[str, ...]:
    """Return the methods of which variants differ in momentum or reset interval: each has a map."""
    cells = [(variant.method, cell) for variant in variants_of(study) if (cell := _cell_of(variant))]
    return tuple(
        method
        for method in dict.fromkeys(method for method, _ in cells)
        if len({cell for own, cell in cells if own == method}) > 1
    )


def atari_heat_map(study: StudyData, *paths: PathLike, method: str = "hare_tortoise") -> None:
    """Draw the interquartile mean of the human-normalised scores over momentum (rows) and reset interval (columns).

    In brackets stand the 95% intervals. Every other variant stands beside the grid, coloured on the same
    scale, which spans the grid. The best cell is framed where all cells are over the same games, steps and evaluations.

    Parameters
    ----------
    *paths
        Where to write the figure, each in the format of its suffix.
    method
        The setting ``method`` of the variants that form the grid; see `grid_methods`.

    Raises
    ------
    MissingDataError
        If fewer than two cells have a finished run, or two variants of the method share a cell.
    SettingError
        If the trials are not as described in `ht_ray.report.atari.study`, or a path cannot be written.
    """
    variants = variants_of(study)
    inside: dict[Cell, Variant] = {}
    for variant in variants:
        cell = _cell_of(variant) if variant.method == method else None
        if cell is not None:
            other = inside.setdefault(cell, variant)
            if other is not variant:
                raise MissingDataError(
                    f"atari_heat_map: {other.name!r} and {variant.name!r} have the same momentum and reset interval."
                )
    try:
        grid = grid_of({cell: _measure(variant) for cell, variant in inside.items()})
    except MissingDataError as reason:
        raise MissingDataError(f"atari_heat_map: {reason}") from reason
    references = {
        reference_name(variant.name): _measure(variant) for variant in variants if variant not in inside.values()
    }
    finished = [variant for variant in variants if variant.finished]
    framed = _best(inside) if comparable([own for own in inside.values() if own.finished]) else ()
    headings = {variant.name.partition(" m=")[0] for variant in inside.values()}
    heading = headings.pop() if len(headings) == 1 else worded(method)

    def draw(figure: Figure) -> None:
        scale = draw_grid(figure, grid, references, framed, name="human-normalised IQM", heading=heading)
        caption = f"Cells: interquartile mean over all runs of all games. {extent_caption(finished)}"
        if any(variant.runs[0] > 1 for variant in finished):
            caption += f" In brackets: {intervals_of(finished)}."
        title(figure, "Human-normalised scores over momentum and reset interval", study, caption + scale)

    write_figure(draw, grid_size(grid, references), paths)


def _cell_of(variant: Variant) -> Cell | None:
    trial = next(trial for trials in variant.planned.values() for trial in trials)
    momentum, interval = trial.settings.get("momentum"), trial.settings.get("reset_interval")
    if not isinstance(momentum, (int, float)) or not isinstance(interval, (int, float)):
        return None
    return float(momentum), (float(interval), "gradient steps")


def _runs(variant: Variant) -> tuple[int, int]:
    """Return how many runs have a score, and how many were planned."""
    return sum(map(len, variant.finished.values())), sum(map(len, variant.planned.values()))


def _measure(variant: Variant) -> Measure:
    done, planned = _runs(variant)
    if not done:
        return Measure(math.nan, ())
    iqm = variant.aggregates.iqm
    texts = [f"{iqm.value:.3f}"]
    if math.isfinite(iqm.low):
        texts.append(f"[{iqm.low:.3f}, {iqm.high:.3f}]")
    return Measure(iqm.value, tuple(texts), f"({done} of {planned} runs)" if done < planned else "")


def _best(inside: dict[Cell, Variant]) -> Sequence[Cell]:
    """Return the cells that have all their runs and the highest value in the digits shown."""
    shown = {cell: f"{variant.aggregates.iqm.value:.3f}" for cell, variant in inside.items() if variant.whole}
    top = max(shown.values(), key=float, default="")
    return [cell for cell, text in shown.items() if text == top]
