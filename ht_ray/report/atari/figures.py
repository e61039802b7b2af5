"""Final scores of an Atari study as figures: aggregates with intervals and the paper's, performance profiles."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from ht_ray.report.atari.reference import paper_scores
from ht_ray.report.atari.scores import METRICS, interval_names, performance_profile
from ht_ray.report.atari.study import Variant, comparable, variants_of
from ht_ray.report.data.paper import PAPER
from ht_ray.report.data.study import MissingDataError, StudyData
from ht_ray.report.style.curve_lines import line_styles
from ht_ray.report.style.drawing import COLOURS, Figure, PathLike, title, write_figure

__all__ = [
    "aggregates_figure",
    "extent_caption",
    "finished_variants",
    "intervals_of",
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

    Parameters
    ----------
    *paths
        Where to write the figure, each in the format of its suffix.

    Raises
    ------
    MissingDataError
        If no run has finished.
    SettingError
        If the trials are not as described in `ht_ray.report.atari.study`, or a path cannot be written.
    """
    variants = finished_variants(study, "aggregates_figure")
    styles = variant_styles(variants)
    names = [textwrap.fill(variant.name, 26) for variant in variants]
    paper = [paper_scores().get(variant.name) for variant in variants]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(METRICS), sharey=True)
        for panel, metric in zip(panels, METRICS, strict=True):
            for place, (variant, style, published) in enumerate(zip(variants, styles, paper, strict=True)):
                found = getattr(variant.aggregates, metric)
                if math.isfinite(found.low):
                    width = found.high - found.low
                    panel.barh(place, width, left=found.low, height=0.6, color=style["color"], alpha=0.45)
                panel.plot([found.value] * 2, [place - 0.3, place + 0.3], color=style["color"], linewidth=2.4)
                if published is not None:
                    panel.plot(
                        [getattr(published, metric)],
                        [place],
                        linestyle="",
                        marker="D",
                        markersize=5.5,
                        color=COLOURS[-1],
                        markeredgecolor="black",
                        markeredgewidth=0.7,
                    )
            panel.set_title(PANELS[metric], fontsize=9)
            panel.grid(axis="x", color="0.92", linewidth=0.6)
            panel.set_axisbelow(True)
            panel.tick_params(axis="y", length=0)
            # Bars would otherwise hold the axis to their foot.
            panel.use_sticky_edges = False
            panel.margins(x=0.08)
            panel.xaxis.get_major_locator().set_params(nbins=5)
        panels[0].set_yticks(range(len(variants)), names, fontsize=8)
        panels[0].set_ylim(len(variants) - 0.4, -0.6)
        caption = f"Ticks: our values. {extent_caption(variants)}"
        if any(variant.runs[0] > 1 for variant in variants):
            caption += f" Bars: {intervals_of(variants)}."
        if any(own is not None for own in paper):
            caption += f" Diamonds: {PAPER}, table 1 (26 games, 100 000 steps)."
        caption += " The axes need not start at 0."
        title(figure, "Human-normalised scores: 0 is random play, 1 the human tester", study, caption)

    height = sum(0.17 * name.count("\n") + 0.3 for name in names)
    write_figure(draw, (10.0, height + 1.9), paths)


def profile_figure(study: StudyData, *paths: PathLike) -> None:
    """Draw performance profiles: which share of the runs, averaged over the games, scores above each threshold.

    Bands are pointwise 95% intervals. The axis holds at least 95% of the scores, and the caption says how far
    they reach.

    Parameters
    ----------
    *paths
        Where to write the figure, each in the format of its suffix.

    Raises
    ------
    MissingDataError
        If no run has finished.
    SettingError
        If the trials are not as described in `ht_ray.report.atari.study`, or a path cannot be written.
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
                axis.fill_between(
                    own.thresholds, own.low, own.high, step="post", color=style["color"], alpha=0.15, linewidth=0
                )
        axis.set_xlim(0, end)
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("Human-normalised score τ")
        axis.set_ylabel("Share of runs with a score above τ")
        axis.grid(color="0.94", linewidth=0.6)
        axis.set_axisbelow(True)
        figure.legend(loc="outside right center", frameon=False, fontsize=8, labelspacing=0.8, handlelength=3)
        caption = f"{extent_caption(variants)} Grey: half of the runs, and the human tester's score."
        if any(variant.runs[0] > 1 for variant in variants):
            caption += f" Bands: pointwise {intervals_of(variants)}."
        if largest > end:
            caption += f" Scores reach {largest:.3g}, beyond the axis."
        title(figure, "Performance profiles", study, caption)

    write_figure(draw, (9.5, 4.6), paths)


def finished_variants(study: StudyData, where: str) -> list[Variant]:
    """Return the variants that have a finished run.

    Raises
    ------
    MissingDataError
        If none has.
    """
    variants = [variant for variant in variants_of(study) if variant.finished]
    if not variants:
        raise MissingDataError(f"{where}: no run has finished.")
    return variants


def variant_styles(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    return line_styles([variant.method for variant in variants])


def intervals_of(variants: Sequence[Variant]) -> str:
    """Return which intervals stand in a figure of these variants."""
    kinds = dict.fromkeys(interval_names(variant.runs[0]) for variant in variants if variant.runs[0] > 1)
    return " or ".join(kinds)


def extent_caption(variants: Sequence[Variant]) -> str:
    """Return which games, runs and steps the variants' values are over, and whether they may be compared."""
    by_text: dict[str, list[str]] = {}
    for variant in variants:
        by_text.setdefault("; ".join([f"{variant.extent} per game", *variant.differs]), []).append(variant.name)
    if len(by_text) == 1:
        return f"Ours: {next(iter(by_text))}."
    told = " ".join(f"{', '.join(names)}: {text}." for text, names in by_text.items())
    return told + ("" if comparable(variants) else " These are not over the same, and no comparison.")
