"""Figures of learning on Atari: the aggregate over the agent's steps, and each game's scores."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from typing import Any

import numpy as np

from ht_ray.report.atari.figures import extent_caption, intervals_caption, variant_styles
from ht_ray.report.atari.reference import atari_games, reference_scores
from ht_ray.report.atari.scores import aggregate_scores, interquartile_mean
from ht_ray.report.atari.study import finished_variants, variants_of
from ht_ray.report.continual.curves import lines_caption
from ht_ray.report.data.study import MissingDataError, StudyData
from ht_ray.report.style.curve_lines import Line, curve_lines, draw_line
from ht_ray.report.style.figures import (
    Figure,
    PathLike,
    add_grid,
    add_legend,
    add_legend_below,
    add_panels,
    add_title,
    write_figure,
)

__all__ = ["efficiency_figure", "efficiency_lines", "game_curves_figure", "game_lines"]

RESAMPLES = 2_000
ONCE = "a curve takes evaluations at two steps at least, and the runs have them at one."
#: Panels in a row, at most.
ACROSS = 5


def efficiency_figure(study: StudyData, *paths: PathLike) -> None:
    """Draw the interquartile mean of the human-normalised scores over the agent's steps, one line per variant.

    It is over all runs of all games at each step at which all of them were evaluated; bands are pointwise 95%
    intervals.
    """
    variants = finished_variants(study, "efficiency_figure")
    series = []
    several = False
    for variant in variants:
        steps, scores = variant.curves()
        several = several or len(steps) > 1
        found = [
            aggregate_scores({game: own[:, step] for game, own in scores.items()}, resamples=RESAMPLES).iqm
            for step in range(len(steps))
        ]
        series.append((steps, *np.array([(own.value, own.low, own.high) for own in found]).T))

    if not several:
        raise MissingDataError(f"efficiency_figure: {ONCE}")

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        for variant, style, (steps, value, low, high) in zip(variants, variant_styles(variants), series, strict=True):
            axis.plot(steps, value, label=textwrap.fill(variant.name, 30), markevery=max(len(steps) // 10, 1), **style)
            if np.isfinite(low).all():
                axis.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
        _thousands(axis)
        axis.set_xlabel("Agent steps")
        axis.set_ylabel("Human-normalised IQM")
        add_grid(axis, colour="0.94")
        add_legend(figure, handlelength=3)
        caption = f"Evaluations during training. {extent_caption(variants)}"
        caption += intervals_caption("Bands: pointwise", variants)
        add_title(figure, "Sample efficiency: interquartile mean over the agent's steps", study, caption)

    write_figure(draw, (9.5, 4.6), paths)


def game_curves_figure(study: StudyData, *paths: PathLike) -> None:
    """Draw the evaluation scores over the agent's steps, a panel for each game, one line per variant.

    Lines are means over the finished runs, bands reach one standard deviation (divisor n - 1) up and down. Random and
    human score are dotted and dashed lines, the human one where it is within twice the height of the rest.
    """
    variants = finished_variants(study, "game_curves_figure")
    styles = dict(zip([variant.name for variant in variants], variant_styles(variants), strict=True))
    panels = game_lines(study)
    if not panels:
        raise MissingDataError("game_curves_figure: no finished run has evaluations.")
    if all(len(line.x) < 2 for lines in panels.values() for line in lines):
        raise MissingDataError(f"game_curves_figure: {ONCE}")
    shown = {line.label for lines in panels.values() for line in lines}
    fewer = [
        f"{game}, {line.label} ({'; '.join(line.notes)})"
        for game, lines in panels.items()
        for line in lines
        if line.notes
    ]
    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    width = max(2.15 * across, 6.0)
    # Inches of an entry: its handle, and its letters at the size of the legend.
    columns = min(max(int(width / (0.75 + 0.07 * max(map(len, shown)))), 1), 3)
    legend = 0.22 * math.ceil(len(shown) / columns)

    def draw(figure: Figure) -> None:
        axes, below = add_panels(figure, len(panels), across, 1.75, legend)
        handles: dict[str, Any] = {}
        beyond = False
        for axis, (game, lines) in zip(axes, panels.items(), strict=True):
            for index, line in enumerate(lines):
                style = {**styles[line.label], "markersize": 3.0}
                handles[line.label] = draw_line(axis, line, style, stagger=index / len(lines), band=0.12)
            beyond |= not _references(axis, game)
            _thousands(axis)
            axis.set_title(game, fontsize=8.5, loc="left")
            axis.tick_params(labelsize=7)
            add_grid(axis, "y", "0.94")
            axis.xaxis.get_major_locator().set_params(nbins=4)
        names = [variant.name for variant in variants if variant.name in handles]
        add_legend_below(below, [handles[name] for name in names], names, columns)
        caption = f"Horizontal: agent steps. Vertical: mean score of whole games. {lines_caption(study, ())}"
        caption += " Dotted: random play; dashed: the human tester"
        caption += ", where not far above the panel." if beyond else "."
        caption += f" Not all runs: {'; '.join(fewer)}." if fewer else ""
        add_title(figure, "Scores by game", study, caption)

    write_figure(draw, (width, 1.75 * down + legend + 1.3), paths)


def efficiency_lines(study: StudyData) -> list[Line]:
    """Return the interquartile mean of each variant's human-normalised scores over the agent's steps, without spread.

    What has no evaluations in common is left out.
    """
    found = []
    for variant in variants_of(study):
        if not variant.finished:
            continue
        try:
            steps, scores = variant.curves()
        except MissingDataError:
            # The figure of it says why.
            continue
        values = np.array([float(interquartile_mean(own)) for own in np.concatenate([*scores.values()]).T])
        unknown = np.full(len(steps), np.nan)
        found.append(Line(variant.name, variant.method, (), steps, values, unknown, np.empty(0), 1))
    return found


def game_lines(study: StudyData) -> dict[str, list[Line]]:
    """Return by game the mean scores of each variant's finished runs over the agent's steps.

    A line's label is the variant's name; what has no evaluation is left out.
    """
    panels: dict[str, list[Line]] = {}
    for game in atari_games():
        for variant in variants_of(study):
            part = dataclasses.replace(study, trials=variant.planned.get(game, ()))
            for line in curve_lines(part, "evaluation", "score", part.labels, sparse=True)[0]:
                panels.setdefault(game, []).append(dataclasses.replace(line, label=variant.name))
    return panels


def _references(axis: Any, game: str) -> bool:
    """Draw random and human score; return whether the panel shows the human one."""
    random, human = reference_scores()[game]
    axis.axhline(random, color="0.45", linewidth=0.9, linestyle=":", zorder=1)
    low, high = axis.get_ylim()
    if human > low + 2 * (high - low):
        return False
    axis.axhline(human, color="0.45", linewidth=0.9, linestyle="--", zorder=1)
    return True


def _thousands(axis: Any) -> None:
    """Label the steps as ``50k``."""
    axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}")
