"""Lines of figures: which labels are drawn, their means over seeds, and their styles."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ht_ray._checks import check_choice
from ht_ray.errors import SettingError
from ht_ray.report.data.selection import best_label, labels_by_method
from ht_ray.report.data.study import StudyData, TrialData, seed_values
from ht_ray.report.style.figures import COLOURS, EMPHASIS, escape_math
from ht_ray.report.style.formats import display_unit, humanize

__all__ = [
    "BASELINE",
    "DECADES",
    "MANY",
    "MARKERS",
    "Line",
    "align_warm_start",
    "axis_limits",
    "curve_lines",
    "draw_line",
    "line_styles",
    "method_colour",
    "spans_decades",
]

#: The method that others are compared with.
BASELINE = "plain"
#: Colour and dash alone distinguish at most this many lines in one picture.
MANY = 8

#: Values that are positive and span more decades than this are shown on a logarithmic axis.
DECADES = 2
METHOD_COLOUR = {"plain": 0, "ema": 1, "hare_tortoise": 2, "shrink_perturb": 3, "head_reset": 4}
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")


@dataclass(frozen=True)
class Line:
    """The mean of one label's trials over the steps that all of them have.

    Attributes
    ----------
    notes
        Remarks for the legend: best of how many, on how many seeds.
    x, mean, sd
        Shape ``(steps,)``; accuracies in per cent; `sd` (divisor n - 1) is NaN for a single trial.
    starts
        The steps with which a new phase begins.
    phases
        How many phases the trials had.
    """

    label: str
    method: str
    notes: tuple[str, ...]
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    starts: NDArray[np.float64]
    phases: int

    def name(self, width: int = 30) -> str:
        """Return label and notes, wrapped, for a figure."""
        notes = textwrap.wrap(f"({'; '.join(self.notes)})", width + 6) if self.notes else []
        return escape_math("\n".join(textwrap.wrap(self.label, width) + notes))


def curve_lines(
    study: StudyData, curve: str, column: str, labels: Sequence[str] | None, *, sparse: bool = False
) -> tuple[list[Line], list[str]]:
    """Return a line per label, and the labels that have no finished trial with this column.

    Parameters
    ----------
    curve, column : str
        ``"epoch"`` or ``"phase"``, and the key of its rows.
    labels : sequence of str, optional
        The labels to draw; None for all, or the best of each method where all are more than seven.
    sparse : bool, default False
        Whether rows without a value are passed over, instead of leaving a gap.
    """
    if labels is None:
        chosen = _best_of_each_method(study)
    else:
        chosen = {check_choice("labels", label, study.labels): "" for label in labels}
    groups = study.by_label
    lines: list[Line] = []
    empty: list[str] = []
    for label, remark in chosen.items():
        line = _line(label, remark, groups[label], curve, column, sparse)
        if line is None:
            empty.append(label)
        else:
            lines.append(line)
    return lines, empty


def _best_of_each_method(study: StudyData) -> dict[str, str]:
    """Return the labels to draw, each with a remark for the legend."""
    if len(study.labels) <= len(COLOURS):
        return dict.fromkeys(study.labels, "")
    chosen = {}
    for labels in labels_by_method(study).values():
        best = best_label(study, labels, study.metric, by=study.metric) or labels[0]
        chosen[best] = f"best of {len(labels)} by {humanize(study.metric)}" if len(labels) > 1 else ""
    return chosen


def _line(label: str, remark: str, trials: Sequence[TrialData], curve: str, column: str, sparse: bool) -> Line | None:
    known = []
    for trial in trials:
        rows = trial.curves.get(curve, {})
        if not trial.finished or not {"step", column} <= rows.keys():
            continue
        kept = np.isfinite(rows[column]) if sparse else np.full(len(rows["step"]), True)
        if kept.any():
            known.append({name: values[kept] for name, values in rows.items()})
    if not known:
        return None
    seed_values(trials, "")  # refuses trials that are not one method's repetitions
    if any((np.diff(own["step"]) <= 0).any() for own in known):
        raise SettingError(f"{curve}_curves: the steps of {label!r} do not increase: its results are damaged.")
    x = reduce(np.intersect1d, [own["step"] for own in known])
    if not x.size:
        if sparse:
            return None
        raise SettingError(f"{curve}_curves: the trials of {label!r} have no common steps.")
    factor, _ = display_unit(column)
    values = factor * np.stack([own[column][np.searchsorted(own["step"], x)] for own in known])
    notes = [remark] if remark else []
    if len(known) < len(trials):
        notes.append(f"{len(known)} of {len(trials)} seeds")
    if any(len(own["step"]) != len(x) for own in known):
        notes.append("where all seeds have values")
    sd = values.std(axis=0, ddof=1) if len(known) > 1 else np.full(len(x), np.nan)
    phase = known[0].get("phase", np.empty(0))
    # A phase's last epoch is always tested, its first need not be.
    starts = known[0]["step"][:-1][np.diff(phase) != 0] + 1 if phase.size else np.empty(0)
    ends = next((own["phase"][-1] for trial in trials if "phase" in (own := trial.curves.get(curve, {}))), 1)
    return Line(label, trials[0].method, tuple(notes), x, values.mean(axis=0), sd, starts, int(ends))


def align_warm_start(line: Line, curve: str) -> Line:
    """Return a warm start's line with both phases of equal length: the first ends at 1, the second at 2.

    A line of one phase is that of a fresh network, whose only phase is trained as the others' second.
    """
    if curve == "phase":
        return replace(line, x=line.x + (line.phases == 1))
    if line.phases == 1:
        return replace(line, x=1 + line.x / line.x[-1], starts=np.empty(0))
    first = line.starts[0] - 1 if line.starts.size else line.x[-1]
    second = 1 + (line.x - first) / max(line.x[-1] - first, 1.0)
    # The second phase begins after the first has ended.
    starts = np.full(line.starts.size, np.nextafter(1.0, 2.0))
    return replace(line, x=np.where(line.x <= first, line.x / first, second), starts=starts)


def line_styles(methods: Sequence[str]) -> list[dict[str, Any]]:
    """Return a style per line, as keywords of matplotlib's ``plot``.

    Up to `MANY` lines have a colour each (nearly), with dashes and markers. Of more, the baseline alone is black and
    Hare & Tortoise alone vermilion, both solid and heavier; the others differ in colour, dash and marker.
    """
    if len(methods) <= MANY:
        return [
            _style(colour, index, index, linewidth=1.3, markersize=4.0)
            for index, colour in enumerate(_colours(methods))
        ]
    heavy = {
        methods.index(method): {**_style(colour, 0, 0, linewidth=width, markersize=0.0), "zorder": 3}
        for method, colour, width in ((BASELINE, COLOURS[0], 1.8), ("hare_tortoise", EMPHASIS, 2.4))
        if method in methods
    }
    light = [colour for colour in COLOURS if colour not in (COLOURS[0], EMPHASIS)]
    others = [index for index in range(len(methods)) if index not in heavy]
    styles = heavy | {
        index: _style(light[order % len(light)], order // len(light), order, linewidth=1.0, markersize=3.0)
        for order, index in enumerate(others)
    }
    return [styles[index] for index in range(len(methods))]


def _style(colour: str, dash: int, marker: int, **more: float) -> dict[str, Any]:
    return {
        "color": colour,
        "linestyle": DASHES[dash % len(DASHES)],
        "marker": MARKERS[marker % len(MARKERS)],
        **more,
    }


def _colours(methods: Sequence[str]) -> list[str]:
    """Return a colour per line: a known method's first line keeps its own in every figure."""
    taken: dict[int, int] = {}
    for index, method in enumerate(methods):
        own = METHOD_COLOUR.get(method)
        if own is not None and own not in taken.values():
            taken[index] = own
    rest = [number for number in range(len(COLOURS)) if number not in taken.values()] or list(range(len(COLOURS)))
    others = [index for index in range(len(methods)) if index not in taken]
    taken |= {index: rest[order % len(rest)] for order, index in enumerate(others)}
    return [COLOURS[taken[index]] for index in range(len(methods))]


def method_colour(method: str) -> str:
    """Return the colour of a method that is drawn over grey ones."""
    return COLOURS[METHOD_COLOUR.get(method, 5)]


def draw_line(axis: Any, line: Line, style: dict[str, Any], *, stagger: float = 0.0, band: float = 0.18) -> Any:
    """Draw mean and band; return the line, for a legend.

    Parameters
    ----------
    stagger : float, default 0
        A shift of the markers in [0, 1), another for each line, so that those of lines that run together do not cover
        each other.
    band : float, default 0.18
        The opacity of the band, which reaches one standard deviation up and down.
    """
    every = max(len(line.x) // 10, 1)
    (handle,) = axis.plot(line.x, line.mean, label=line.name(), markevery=(int(every * stagger), every), **style)
    if np.isfinite(line.sd).any():
        colour = style["color"]
        axis.fill_between(line.x, line.mean - line.sd, line.mean + line.sd, color=colour, alpha=band, linewidth=0)
    return handle


def axis_limits(lines: Sequence[Line], settled: float) -> tuple[float, float]:
    """Return the ends of a vertical axis that shows all bands, of the lower ends those from `settled` on."""
    spread = [np.nan_to_num(line.sd) for line in lines]
    low = min(_lowest((line.mean - sd)[line.x >= settled]) for line, sd in zip(lines, spread, strict=True))
    high = -min(_lowest(-(line.mean + sd)) for line, sd in zip(lines, spread, strict=True))
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def spans_decades(values: NDArray[np.float64]) -> bool:
    """Return whether values are positive and span more than two decades, so that their axis is to be logarithmic."""
    return bool(values.min() > 0 and values.max() > 10.0**DECADES * values.min())


def _lowest(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.min()) if known.size else math.inf
