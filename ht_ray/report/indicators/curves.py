"""Plasticity indicators as a figure: a panel for each, a line for each label."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ht_ray._checks import did_you_mean
from ht_ray.errors import SettingError
from ht_ray.report.continual.curves import integer_ticks, lines_caption
from ht_ray.report.data.study import MissingDataError, StudyData
from ht_ray.report.style.curve_lines import MANY, Line, draw_line, line_styles, lines_of, of_warm_start
from ht_ray.report.style.drawing import Figure, PathLike, title, write_figure
from ht_ray.report.style.names import indicator_title, shown_indicators

__all__ = ["indicator_curves"]

#: Panels beside each other, at most.
ACROSS = 4
#: Values that are positive and span more decades than this are shown on a logarithmic axis.
DECADES = 2
#: Width and height of a panel in inches.
PANEL = (2.65, 1.85)


def indicator_curves(study: StudyData, *paths: PathLike, names: Sequence[str] | None = None) -> None:
    """Draw plasticity indicators at the end of each phase, a panel for each, one line per label.

    In a study of one phase they are drawn over its epochs. Lines are means over the finished trials that have the
    value, bands reach one standard deviation (divisor n - 1) up and down; labels are chosen as in `epoch_curves`. An
    axis is logarithmic where the means are positive and span more than two decades.

    Parameters
    ----------
    study
        A study of one access mode (see `split_by_access`).
    *paths
        Where to write the figure, each in the format of its suffix.
    names
        The indicators to draw, in this order: columns of the trials' curves. Default: all that were
        measured, but the second to last eigenvalues and what the probe's gap is the difference of.

    Raises
    ------
    MissingDataError
        If no finished trial measured one of them.
    SettingError
        If no trial has an indicator of a name, two trials share label and seed, or a path cannot be written.
    """
    known = study.indicator_names
    for name in names or ():
        if known and name not in known:
            raise SettingError(
                f"indicator_curves: names: {name!r}: the trials measured {', '.join(map(repr, known))}."
                f"{did_you_mean(name, known)}"
            )
    phases = max((len(trial.curves.get("phase", {}).get("step", ())) for trial in study.trials), default=0)
    curve = "phase" if phases > 1 else "epoch"
    panels: dict[str, list[Line]] = {}
    drawn: dict[str, list[Line]] = {}
    empty: set[str] = set()
    for name in shown_indicators(study) if names is None else names:
        lines, without = lines_of(study, curve, name, None, sparse=True)
        empty.update(without)
        if study.warm_start and curve == "phase":
            lines = [of_warm_start(line, curve) for line in lines]
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
    logarithmic = {name for name, lines in panels.items() if _spans_decades(lines)}
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
        # A row of its own keeps the legend clear of the caption.
        grid = figure.add_gridspec(down + 1, across, height_ratios=[*[PANEL[1]] * down, height])
        handles: dict[str, Any] = {}
        for place, (name, lines) in enumerate(panels.items()):
            axis = figure.add_subplot(grid[divmod(place, across)])
            for index, line in enumerate(lines):
                handles[line.label] = draw_line(axis, line, styles[line.label], place=index / len(lines), band=band)
            if name in logarithmic:
                axis.set_yscale("log")
                # Not from the bands: a lower end near zero would take the axis with it.
                axis.set_ylim(0.7 * min(line.mean.min() for line in lines))
            means = np.concatenate([line.mean for line in lines])
            if np.ptp(means) == 0:
                axis.set_yticks([means[0]])  # no scale around a number that is the same for all
            integer_ticks(axis, *axis.get_xlim(), each=False)
            heading = indicator_title(name)
            axis.set_title(textwrap.fill(heading[0].upper() + heading[1:], 38), fontsize=8, loc="left")
            axis.tick_params(labelsize=7.5)
            axis.grid(axis="y", color="0.92", linewidth=0.6)
            axis.set_axisbelow(True)
        below = figure.add_subplot(grid[down, :])
        below.set_axis_off()
        below.legend(
            [handles[key.label] for key in keys],
            texts,
            loc="upper left",
            ncols=columns,
            frameon=False,
            fontsize=8,
            handlelength=3,
            borderaxespad=0,
        )
        where = "at the end of each phase" if curve == "phase" else "over the epochs"
        title(figure, f"Plasticity indicators {where}", study, caption)

    write_figure(draw, (PANEL[0] * columns, PANEL[1] * down + height + 1.0), paths)


def _key_line(lines: Sequence[Line]) -> Line:
    """Return a label's line for the legend, with the notes of all its panels."""
    return replace(lines[0], notes=tuple(dict.fromkeys(note for line in lines for note in line.notes)))


def _spans_decades(lines: Sequence[Line]) -> bool:
    means = np.concatenate([line.mean for line in lines])
    return bool(means.min() > 0 and means.max() > 10.0**DECADES * means.min())
