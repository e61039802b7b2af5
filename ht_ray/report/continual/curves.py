"""Figures of the test accuracy per epoch and per phase: all labels in one, or, of many, a panel for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ht_ray.report.continual.transfer import has_own_tests
from ht_ray.report.data.statistics import drop_and_recovery
from ht_ray.report.data.study import MissingDataError, StudyData
from ht_ray.report.style.curve_lines import (
    BASELINE,
    MANY,
    Line,
    align_warm_start,
    axis_limits,
    curve_lines,
    draw_line,
    line_styles,
    method_colour,
)
from ht_ray.report.style.figures import Figure, PathLike, add_grid, add_legend, add_title, write_figure
from ht_ray.report.style.formats import format_seeds, humanize, metric_title

__all__ = ["epoch_curves", "integer_ticks", "lines_caption", "phase_curves"]

#: Panels in a row.
ACROSS = 4
OTHERS = "0.8"
#: Marks of the drops of more lines than this would cover each other.
MARKED = 4


def epoch_curves(study: StudyData, *paths: PathLike, labels: Sequence[str] | None = None) -> None:
    """Draw the test accuracy after each epoch, one line per label, with the phase changes.

    Lines are means over the finished trials, bands reach one standard deviation (divisor n - 1) up and down. The
    vertical axis spans everything from the middle of the first phase on; the climb before it may leave the
    picture, and the caption says when it does. Where no more than four labels drop at phase changes, the drops of the
    mean are marked: how deep they are, and how long it takes to come back (see `drop_and_recovery`).

    On the warm-start stream the horizontal axis is the share of each phase, as an epoch of the first is a short one.

    More than eight labels have a panel each: the label in colour, the plain method in black, all others in grey, on
    the same axes.

    Parameters
    ----------
    labels : sequence of str, optional
        The labels to draw. By default all, and where those are more than seven, the best label of each method by the
        study's metric, which the legend then says.
    """
    _draw_curves(study, "epoch", paths, labels)


def phase_curves(study: StudyData, *paths: PathLike, labels: Sequence[str] | None = None) -> None:
    """Draw the test accuracy at the end of each phase, one line per label; everything else as in `epoch_curves`."""
    _draw_curves(study, "phase", paths, labels)


def lines_caption(study: StudyData, empty: Sequence[str]) -> str:
    """Return what lines and bands are, and which labels have none."""
    caption = f"Lines: {format_seeds(study.seeds)}."
    if len(study.seeds) > 1:
        caption = f"Lines: mean over {format_seeds(study.seeds)}; bands: ± 1 standard deviation (n − 1)."
    return caption + (f" Without a finished trial: {', '.join(empty)}." if empty else "")


def integer_ticks(axis: Any, first: float, last: float, *, each: bool) -> None:
    """Put the horizontal ticks on whole numbers, on `each` of them where those are wanted and have room."""
    if each and last - first < 20:
        axis.set_xticks(np.arange(first, last + 1))
    else:
        axis.xaxis.get_major_locator().set_params(integer=True)


def _draw_curves(study: StudyData, curve: str, paths: Sequence[PathLike], labels: Sequence[str] | None) -> None:
    # Epochs after which nothing was tested are passed over.
    lines, empty = curve_lines(study, curve, f"test_{study.measure}", labels, sparse=curve == "epoch")
    if not lines:
        raise MissingDataError(f"{curve}_curves: no finished trial has a test {humanize(study.measure)} by {curve}.")
    warm = study.warm_start
    lines = [align_warm_start(line, curve) for line in lines] if warm else lines
    caption, own_tests = lines_caption(study, empty), has_own_tests(study)
    caption += " Each phase is a task, tested on its own test samples." * own_tests
    starts = np.unique(np.concatenate([line.starts for line in lines])) if curve == "epoch" else np.empty(0)
    if curve == "epoch":
        caption += " Vertical lines: a new phase begins."
        if warm:
            caption += " Both phases are drawn equally long."
            caption += " A fresh network has the second alone." * any(line.phases == 1 for line in lines)
    # The climb from chance in the first phase would flatten everything that is worth seeing.
    low, high = axis_limits(lines, starts[0] / 2 if starts.size else 0.0)
    if any((line.mean < low).any() for line in lines):
        caption += " The first epochs lie below the axis."
    first, last = min(line.x[0] for line in lines), max(line.x[-1] for line in lines)
    ends = (0, 2) if warm and curve == "epoch" else (first, last)
    pad = (0.01 * (last - first) if curve == "epoch" else 0.3) or 0.5
    abscissa = "Phase"
    if curve == "epoch":
        abscissa = "Phases passed" if warm else "Epoch (counted over all phases)"
    what = f"Test {humanize(study.measure)} {'after each epoch' if curve == 'epoch' else 'at the end of each phase'}"
    baseline = next((line for line in lines if line.method == BASELINE), None)
    panels = [line for line in lines if line is not baseline]

    def prepare(axis: Any, grey: str = "0.8") -> None:
        for start in starts:
            axis.axvline(start - (0.0 if warm else 0.5), color=grey, linewidth=0.7, zorder=0)
        axis.set_ylim(low, high)
        axis.set_xlim(first - pad, last + pad)
        add_grid(axis, "y")

    def draw_one(figure: Figure) -> None:
        axis = figure.subplots()
        prepare(axis)
        integer_ticks(axis, *ends, each=curve == "phase" or warm)
        styles = line_styles([line.method for line in lines])
        handles = [
            draw_line(axis, line, style, stagger=index / len(lines))
            for index, (line, style) in enumerate(zip(lines, styles, strict=True))
        ]
        text = caption
        drops = [_drops(line, (high - low) / 100) for line in lines] if curve == "epoch" and not own_tests else []
        if 0 < sum(map(bool, drops)) <= MARKED:
            text += " Arrows: how far a mean drops at a phase change; dotted: until when it stays below."
            for line, style, own in zip(lines, styles, drops, strict=True):
                _mark_drops(axis, line, style["color"], own)
        axis.set_xlabel(abscissa)
        axis.set_ylabel(f"Test {metric_title(study.measure)}")
        add_legend(figure, handles=handles, handlelength=3)
        add_title(figure, what, study, text)

    def draw_many(figure: Figure) -> None:
        axes = figure.subplots(math.ceil(len(panels) / ACROSS), ACROSS, sharex=True, sharey=True, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for index, (axis, line) in enumerate(zip(axes.flat, panels, strict=False)):
            prepare(axis, "0.9")
            for other in panels:
                if other is not line:
                    axis.plot(other.x, other.mean, color=OTHERS, linewidth=0.6, zorder=1)
            if baseline is not None:
                axis.plot(baseline.x, baseline.mean, color="black", linewidth=0.9, zorder=2)
            draw_line(axis, line, {"color": method_colour(line.method), "linewidth": 1.5, "zorder": 3}, band=0.3)
            axis.set_title(line.name(width=34), fontsize=7.5, loc="left")
            axis.tick_params(labelsize=7.5, labelbottom=index + ACROSS >= len(panels))
        integer_ticks(axes[0, 0], *ends, each=warm)
        figure.supylabel(f"Test {metric_title(study.measure)}", fontsize=9)
        against = f", {baseline.label} in black" if baseline is not None else ""
        heading = f"{what}: each method in colour{against}, the others in grey"
        add_title(figure, heading, study, f"Horizontal: {abscissa[0].lower()}{abscissa[1:]}. {caption}")

    if len(lines) <= MANY:
        write_figure(draw_one, (9.5, 4.6), paths)
    else:
        write_figure(draw_many, (10.0, 1.75 * math.ceil(len(panels) / ACROSS) + 1.2), paths)


def _drops(line: Line, visible: float) -> list[tuple[int, int, float]]:
    """Return each visible drop of the mean: first row, row in which the mean is back or the phase over, depth."""
    found = np.unique(np.searchsorted(line.x, line.starts))
    starts = [int(start) for start in found if 0 < start < len(line.x)]
    drops = drop_and_recovery(line.mean, starts)
    return [
        (start, start + int(epochs) if math.isfinite(epochs) else end, float(depth))
        for start, end, depth, epochs in zip(
            starts, [*starts[1:], len(line.x)], drops.depth, drops.epochs, strict=False
        )
        if depth > visible
    ]


def _mark_drops(axis: Any, line: Line, colour: str, drops: Sequence[tuple[int, int, float]]) -> None:
    """Draw each drop: down from the level before, and along it until the mean is back."""
    for start, last, depth in drops:
        level = line.mean[start - 1]
        low = line.x[start + np.argmin(line.mean[start:last])]
        reach = [line.x[start - 1], line.x[min(last, len(line.x) - 1)]]
        axis.plot(reach, [level, level], color=colour, linewidth=0.8, linestyle=":", zorder=4)
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", (low, level - depth), (low, level), arrowprops=arrow, zorder=4)
