"""Figures of the final scores of an Atari study: aggregates, performance profiles, momentum and reset interval."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from ht_ray.report.atari.reference import paper_scores
from ht_ray.report.atari.scores import METRICS, interval_names, performance_profile
from ht_ray.report.atari.study import Variant, comparable, finished_variants, variants_of
from ht_ray.report.continual.maps import Cell, Measure, draw_grid, grid_of, grid_size, reference_name
from ht_ray.report.data.paper import PAPER
from ht_ray.report.data.study import MissingDataError, StudyData
from ht_ray.report.style.curve_lines import line_styles
from ht_ray.report.style.figures import Figure, PathLike, add_grid, add_legend, add_title, mark_paper, write_figure
from ht_ray.report.style.formats import best_as_shown, humanize

__all__ = [
    "aggregates_figure",
    "atari_heat_map",
    "extent_caption",
    "grid_methods",
    "intervals_caption",
    "profile_figure",
    "variant_styles",
]

PANELS = {
    "iqm": "Interquartile mean ↑",
    "median": "Median ↑",
    "mean": "Mean ↑",
    "optimality_gap": "Optimality gap ↓",
}
#: The share of the scores that a profile's axis holds: the few beyond it would press the others together.
HELD = 0.95
THRESHOLDS = 401


def aggregates_figure(study: StudyData, *paths: PathLike) -> None:
    """Draw the human-normalised aggregates, a panel for each and a row for each variant, in the order planned.

    Bars reach over the 95% interval, ticks are our values, diamonds those of the paper's variant of that
    name. The caption says over which games, runs and steps ours are.
    """
    variants = finished_variants(study, "aggregates_figure")
    styles = variant_styles(variants)
    names = [textwrap.fill(variant.name, 26) for variant in variants]
    paper = [paper_scores().get(variant.name) for variant in variants]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(METRICS), sharey=True)
        for panel, metric in zip(panels, METRICS, strict=True):
            for row, (variant, style, published) in enumerate(zip(variants, styles, paper, strict=True)):
                found = getattr(variant.aggregates, metric)
                if math.isfinite(found.low):
                    width = found.high - found.low
                    panel.barh(row, width, left=found.low, height=0.6, color=style["color"], alpha=0.45)
                panel.plot([found.value] * 2, [row - 0.3, row + 0.3], color=style["color"], linewidth=2.4)
                if published is not None:
                    mark_paper(panel, getattr(published, metric), row, markeredgewidth=0.7)
            panel.set_title(PANELS[metric], fontsize=9)
            add_grid(panel, "x")
            panel.tick_params(axis="y", length=0)
            # Bars would otherwise hold the axis to their foot.
            panel.use_sticky_edges = False
            panel.margins(x=0.08)
            panel.xaxis.get_major_locator().set_params(nbins=5)
        panels[0].set_yticks(range(len(variants)), names, fontsize=8)
        panels[0].set_ylim(len(variants) - 0.4, -0.6)
        caption = f"Ticks: our values. {extent_caption(variants)}"
        caption += intervals_caption("Bars:", variants)
        if any(own is not None for own in paper):
            caption += f" Diamonds: {PAPER}, table 1 (26 games, 100 000 steps)."
        caption += " The axes need not start at 0."
        add_title(figure, "Human-normalised scores: 0 is random play, 1 the human tester", study, caption)

    height = sum(0.17 * name.count("\n") + 0.3 for name in names)
    write_figure(draw, (10.0, height + 1.9), paths)


def profile_figure(study: StudyData, *paths: PathLike) -> None:
    """Draw performance profiles: which share of the runs, averaged over the games, scores above each threshold.

    Bands are pointwise 95% intervals. The axis holds at least 95% of the scores, and the caption says how far
    they reach.
    """
    variants = finished_variants(study, "profile_figure")
    every = np.concatenate([scores for variant in variants for scores in variant.scores.values()])
    largest = float(every.max())
    end = 1.1 * max(float(np.quantile(every, HELD)), 1.0)
    thresholds = np.linspace(0.0, end, THRESHOLDS)
    profiles = [performance_profile(variant.scores, thresholds) for variant in variants]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for mark in (0.5, 1.0):
            (axis.axhline if mark == 0.5 else axis.axvline)(mark, color="0.8", linewidth=0.8, zorder=0)
        for variant, style, own in zip(variants, variant_styles(variants), profiles, strict=True):
            # Shares change in steps; a marker on them would look like a measurement.
            look = {**style, "marker": "", "linewidth": 1.5}
            axis.plot(own.thresholds, own.share, drawstyle="steps-post", label=textwrap.fill(variant.name, 30), **look)
            if np.isfinite(own.low).all():
                band = {"step": "post", "color": style["color"], "alpha": 0.15, "linewidth": 0}
                axis.fill_between(own.thresholds, own.low, own.high, **band)
        axis.set_xlim(0, end)
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("Human-normalised score τ")
        axis.set_ylabel("Share of runs with a score above τ")
        add_grid(axis, colour="0.94")
        add_legend(figure, handlelength=3)
        caption = f"{extent_caption(variants)} Grey: half of the runs, and the human tester's score."
        caption += intervals_caption("Bands: pointwise", variants)
        if largest > end:
            caption += f" Scores reach {largest:.3g}, beyond the axis."
        add_title(figure, "Performance profiles", study, caption)

    write_figure(draw, (9.5, 4.6), paths)


def variant_styles(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    return line_styles([variant.method for variant in variants])


def intervals_caption(marks: str, variants: Sequence[Variant]) -> str:
    """Return a caption's sentence on the intervals that a figure shows as `marks`; ``""`` where there are none."""
    kinds = dict.fromkeys(interval_names(variant.runs[0]) for variant in variants if variant.runs[0] > 1)
    return f" {marks} {' or '.join(kinds)}." if kinds else ""


def extent_caption(variants: Sequence[Variant]) -> str:
    """Return which games, runs and steps the variants' values are over, and whether they may be compared."""
    by_text: dict[str, list[str]] = {}
    for variant in variants:
        by_text.setdefault("; ".join([f"{variant.extent} per game", *variant.differs]), []).append(variant.name)
    if len(by_text) == 1:
        return f"Ours: {next(iter(by_text))}."
    caption = " ".join(f"{', '.join(names)}: {text}." for text, names in by_text.items())
    return caption + ("" if comparable(variants) else " These are not over the same, and no comparison.")


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

    In brackets stand the 95% intervals. Every other variant stands next to the grid, coloured on the same scale, which
    spans the grid. The best cell is framed where all cells are over the same games, steps and evaluations.

    Parameters
    ----------
    method : str, default "hare_tortoise"
        The setting ``method`` of the variants that form the grid; see `grid_methods`.
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
    grid = grid_of({cell: _measure(variant) for cell, variant in inside.items()}, "atari_heat_map")
    references = {
        reference_name(variant.name): _measure(variant) for variant in variants if variant not in inside.values()
    }
    finished = [variant for variant in variants if variant.finished]
    framed = _best(inside) if comparable([own for own in inside.values() if own.finished]) else ()
    headings = {variant.name.partition(" m=")[0] for variant in inside.values()}
    heading = headings.pop() if len(headings) == 1 else humanize(method)

    def draw(figure: Figure) -> None:
        scale = draw_grid(figure, grid, references, framed, name="human-normalised IQM", heading=heading)
        caption = f"Cells: interquartile mean over all runs of all games. {extent_caption(finished)}"
        caption += intervals_caption("In brackets:", finished)
        add_title(figure, "Human-normalised scores over momentum and reset interval", study, caption + scale)

    write_figure(draw, grid_size(grid, references), paths)


def _cell_of(variant: Variant) -> Cell | None:
    trial = next(trial for trials in variant.planned.values() for trial in trials)
    momentum, interval = trial.number("momentum"), trial.number("reset_interval")
    return None if momentum is None or interval is None else (momentum, (interval, "gradient steps"))


def _measure(variant: Variant) -> Measure:
    done, planned = (sum(map(len, runs.values())) for runs in (variant.finished, variant.planned))
    if not done:
        return Measure(math.nan, ())
    iqm = variant.aggregates.iqm
    texts = [f"{iqm.value:.3f}"]
    if math.isfinite(iqm.low):
        texts.append(f"[{iqm.low:.3f}, {iqm.high:.3f}]")
    return Measure(iqm.value, tuple(texts), f"({done} of {planned} runs)" if done < planned else "")


def _best(inside: dict[Cell, Variant]) -> Sequence[Cell]:
    """Return the cells that have all their runs and the highest value in the digits shown."""
    whole = {cell: variant.aggregates.iqm.value for cell, variant in inside.items() if variant.whole}
    return best_as_shown(whole, "max", "{:.3f}".format)
