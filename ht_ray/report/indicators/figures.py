"""Figures of plasticity indicators: over phases or epochs, and against the final test accuracy."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ht_ray._checks import check_choice
from ht_ray.report.continual.curves import integer_ticks, lines_caption
from ht_ray.report.data.statistics import correlation
from ht_ray.report.data.study import MissingDataError, StudyData
from ht_ray.report.indicators.tables import FEWEST_RUNS, runs_of
from ht_ray.report.style.curve_lines import (
    DECADES,
    MANY,
    MARKERS,
    Line,
    align_warm_start,
    curve_lines,
    draw_line,
    line_styles,
    spans_decades,
)
from ht_ray.report.style.figures import (
    COLOURS,
    Figure,
    PathLike,
    add_grid,
    add_legend,
    add_legend_below,
    add_panels,
    add_title,
    escape_math,
    write_figure,
)
from ht_ray.report.style.formats import (
    capitalize,
    format_seeds,
    humanize,
    indicator_title,
    metric_title,
    reported_indicators,
)

__all__ = ["indicator_curves", "indicator_scatter"]

#: Panels in a row, at most.
ACROSS = 4
#: Width and height of a panel in inches.
PANEL = (2.65, 1.85)
SCATTER_PANEL = (2.5, 2.1)


def indicator_curves(study: StudyData, *paths: PathLike, names: Sequence[str] | None = None) -> None:
    """Draw plasticity indicators at the end of each phase, a panel for each, one line per label.

    In a study of one phase they are drawn over its epochs. Lines are means over the finished trials that have the
    value, bands reach one standard deviation (divisor n - 1) up and down; labels are chosen as in `epoch_curves`. An
    axis is logarithmic where the means are positive and span more than two decades.

    Parameters
    ----------
    names : sequence of str, optional
        The indicators to draw, in this order: columns of the trials' curves. By default all that were measured, but
        the second to last eigenvalues and the two losses whose difference is the probe's gap.
    """
    for name in (names or ()) if study.indicator_names else ():
        check_choice("indicator_curves: names", name, study.indicator_names)
    phases = max((len(trial.curves.get("phase", {}).get("step", ())) for trial in study.trials), default=0)
    curve = "phase" if phases > 1 else "epoch"
    panels: dict[str, list[Line]] = {}
    drawn: dict[str, list[Line]] = {}
    empty: set[str] = set()
    for name in reported_indicators(study) if names is None else names:
        lines, without = curve_lines(study, curve, name, None, sparse=True)
        empty.update(without)
        if study.warm_start and curve == "phase":
            lines = [align_warm_start(line, curve) for line in lines]
        if lines:
            panels[name] = lines
        for line in lines:
            drawn.setdefault(line.label, []).append(line)
    if not panels:
        raise MissingDataError("indicator_curves: no finished trial measured a plasticity indicator.")
    # In the order planned, whichever panel has them first.
    keys = [_key_line(drawn[label]) for label in study.labels if label in drawn]
    styles = dict(zip([key.label for key in keys], line_styles([key.method for key in keys]), strict=True))
    band = 0.18 if len(keys) <= MANY else 0.07
    logarithmic = {name for name, lines in panels.items() if spans_decades(np.concatenate([own.mean for own in lines]))}
    caption = lines_caption(study, ())
    if logarithmic:
        caption += f" Logarithmic axes where values span more than {DECADES} decades."
    if empty - drawn.keys():
        caption += f" Without values: {', '.join(label for label in study.labels if label in empty - drawn.keys())}."
    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    columns = max(across, 2)
    texts = [key.name() for key in keys]
    height = 0.13 * max(sum(text.count("\n") + 1.5 for text in column) for column in np.array_split(texts, columns))

    def draw(figure: Figure) -> None:
        axes, below = add_panels(figure, len(panels), across, PANEL[1], height)
        handles: dict[str, Any] = {}
        for axis, (name, lines) in zip(axes, panels.items(), strict=True):
            for index, line in enumerate(lines):
                style = styles[line.label]
                handles[line.label] = draw_line(axis, line, style, stagger=index / len(lines), band=band)
            if name in logarithmic:
                axis.set_yscale("log")
                # Not from the bands: a lower end near zero would take the axis with it.
                axis.set_ylim(0.7 * min(line.mean.min() for line in lines))
            means = np.concatenate([line.mean for line in lines])
            if np.ptp(means) == 0:
                axis.set_yticks([means[0]])  # no scale around a number that is the same for all
            integer_ticks(axis, *axis.get_xlim(), each=False)
            axis.set_title(textwrap.fill(capitalize(indicator_title(name)), 38), fontsize=8, loc="left")
            axis.tick_params(labelsize=7.5)
            add_grid(axis, "y")
        add_legend_below(below, [handles[key.label] for key in keys], texts, columns)
        where = "at the end of each phase" if curve == "phase" else "over the epochs"
        add_title(figure, f"Plasticity indicators {where}", study, caption)

    write_figure(draw, (PANEL[0] * columns, PANEL[1] * down + height + 1.0), paths)


def _key_line(lines: Sequence[Line]) -> Line:
    """Return a label's line for the legend, with the notes of all its panels."""
    return replace(lines[0], notes=tuple(dict.fromkeys(note for line in lines for note in line.notes)))


def indicator_scatter(study: StudyData, *paths: PathLike) -> None:
    """Draw a panel for each indicator: a point per run, Pearson's correlation in its heading (the paper's figure 8).

    Runs, and when the indicator was measured, are those of `correlation_table`: on a warm-start stream the indicator is
    the one at the end of the first phase. Up to seven labels have a colour each. An axis is logarithmic where the
    values are positive and span more than two decades; the correlation is that of the values, not of their logarithms.
    """
    runs = runs_of(study)
    panels = {}
    for name in reported_indicators(study):
        values = np.array(runs.values(name))
        both = np.isfinite(values) & np.isfinite(runs.final)
        if both.any():
            panels[name] = (values, both)
    if not panels:
        raise MissingDataError(
            "indicator_scatter: no finished trial has both a plasticity indicator and a final test "
            f"{humanize(study.measure)}."
        )
    labels = [label for label in study.labels if any(trial.label == label for trial in runs.trials)]
    apart = len(labels) <= len(COLOURS)
    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    logarithmic = []

    def draw(figure: Figure) -> None:
        axes = figure.subplots(down, across, sharey=True, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        handles: dict[str, Any] = {}
        for axis, (name, (values, both)) in zip(axes.flat, panels.items(), strict=False):
            for index, label in enumerate(labels if apart else [None]):
                own = both & np.array([label in (None, trial.label) for trial in runs.trials])
                (handle,) = axis.plot(
                    values[own],
                    100 * runs.final[own],
                    linestyle="",
                    marker=MARKERS[index % len(MARKERS)],
                    color=COLOURS[index] if apart else COLOURS[5],
                    alpha=0.85 if apart else 0.6,
                    markersize=4.0,
                )
                if label is not None:
                    handles[label] = handle
            known = values[both]
            if spans_decades(known):
                axis.set_xscale("log")
                logarithmic.append(name)
            elif np.ptp(known) == 0:
                axis.set_xticks([known[0]])  # no scale around a number that is the same for all
            else:
                axis.xaxis.get_major_locator().set_params(nbins=4)  # more would run into each other
            r = correlation(known, runs.final[both]) if both.sum() >= FEWEST_RUNS else math.nan
            text = f"r = {r:+.2f}" if math.isfinite(r) else "r undefined"
            heading = textwrap.fill(capitalize(indicator_title(name)), 36)
            axis.set_title(f"{heading}\n{text}, {both.sum()} runs", fontsize=8, loc="left")
            axis.tick_params(labelsize=7.5)
            axis.xaxis.get_offset_text().set_fontsize(7.5)
            add_grid(axis)
        figure.supylabel(f"Final test {metric_title(study.measure)}", fontsize=9)
        if apart and len(labels) > 1:
            names = [escape_math("\n".join(textwrap.wrap(label, 28))) for label in handles]
            add_legend(figure, list(handles.values()), names)
        caption = f"Points: runs (label and seed) of {format_seeds(study.seeds)}; r: Pearson's correlation."
        caption += " Horizontal axes are logarithmic where values span more than two decades." if logarithmic else ""
        when = "warm-starting" if runs.warm_start else "the last phase"
        title = f"Plasticity indicators at the end of {when} and final test {humanize(study.measure)}"
        add_title(figure, title, study, caption)

    legend = 2.2 if apart and len(labels) > 1 else 0.0
    write_figure(draw, (max(SCATTER_PANEL[0] * across + legend + 0.4, 6.0), SCATTER_PANEL[1] * down + 1.1), paths)
