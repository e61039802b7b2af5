"""The figures of a study: the momentum and interval grid, and test accuracy per epoch and per phase.

Each function draws one figure and writes it to every path given, in the format of its suffix (``.png``, ``.pdf``,
``.svg``). Matplotlib is imported when the first figure is drawn, and only its classes are used: neither a window system
nor the user's settings and open figures are touched.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ht_ray._checks import SettingError, check_choice, did_you_mean
from ht_ray.report._files import write_bytes
from ht_ray.report.names import describe, seeds_text, shown_number, shown_pair, shown_unit, worded
from ht_ray.report.statistics import Estimate, estimate
from ht_ray.report.study import MissingDataError, StudyData, TrialData, group, seed_values

__all__ = ["epoch_curves", "heat_map", "phase_curves"]

PathLike: TypeAlias = str | os.PathLike[str]
Figure: TypeAlias = Any

FORMATS = ("png", "pdf", "svg")
DPI = 150
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "ht_ray",
}
CAPTION = {"fontsize": 7.5, "color": "0.3"}

# Okabe and Ito, Color Universal Design (2008), without the yellow, which is lost on white paper.
COLOURS = ("#000000", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#0072B2", "#E69F00")
METHOD_COLOUR = {"plain": 0, "ema": 1, "hare_tortoise": 2, "shrink_perturb": 3, "head_reset": 4}
UNKNOWN = (0.93, 0.93, 0.93, 1.0)
# The relative luminance on which black and white have the same contrast (WCAG 2.1).
MIDDLE_GREY = 0.179
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")


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
    grid = _grid(study, metric)
    references = {
        "\n".join(textwrap.wrap(str(label), 28)): _measure(trials, metric)
        for (label,), trials in group(study).items()
        if not any(_cell_of(trial) for trial in trials)
    }

    def draw(figure: Figure) -> None:
        _draw_heat_map(figure, study, metric, grid, references)

    lines = max((name.count("\n") + 2 for name in references), default=0)
    height = max(0.62 * len(grid.rows), (0.18 * lines + 0.12) * len(references), 1.6) + 1.7
    _write(draw, (1.12 * len(grid.columns) + (5.0 if references else 2.7), height), paths)


def epoch_curves(study: StudyData, *paths: PathLike, labels: Sequence[str] | None = None) -> None:
    """Draw the test accuracy after each epoch, one line per label, with the phase changes.

    Lines are means over the finished trials, bands reach one standard deviation (divisor n - 1) up and down. The
    vertical axis spans everything from the middle of the first phase on; the climb before it may leave the
    picture, and the caption says when it does.

    Parameters
    ----------
    study
        A study of one access mode (see `split_by_access`).
    *paths
        Where to write the figure, each in the format of its suffix.
    labels
        The labels to draw. By default all, and where those are more than seven, the best label of each method by the
        study's metric, which the legend then says.

    Raises
    ------
    MissingDataError
        If no finished trial of these labels has a test accuracy by epoch.
    SettingError
        If a label is unknown, two trials share label and seed, or a path cannot be written.
    """
    _draw_curves(study, "epoch", paths, labels)


def phase_curves(study: StudyData, *paths: PathLike, labels: Sequence[str] | None = None) -> None:
    """Draw the test accuracy at the end of each phase, one line per label; everything else as in `epoch_curves`."""
    _draw_curves(study, "phase", paths, labels)


# ------------------------------------------------------------------------------------------------ heat map


@dataclass(frozen=True)
class _Measure:
    """An estimate, and how many seeds were planned for it."""

    estimate: Estimate
    planned: int


Key: TypeAlias = tuple[float, str]
"""A reset interval and its unit; infinity, without a unit, for never."""


@dataclass(frozen=True)
class _Grid:
    rows: tuple[float, ...]
    columns: tuple[Key, ...]
    cells: dict[tuple[float, Key], _Measure]


def _cell_of(trial: TrialData) -> tuple[float, Key] | None:
    momentum, interval = trial.settings.get("momentum"), trial.settings.get("reset_interval")
    if not isinstance(momentum, (int, float)):
        return None
    if trial.method == "ema":
        return float(momentum), (math.inf, "")
    if trial.method == "hare_tortoise" and isinstance(interval, (int, float)):
        return float(momentum), (float(interval), str(trial.settings.get("reset_unit") or ""))
    return None


def _measure(trials: Sequence[TrialData], metric: str) -> _Measure:
    return _Measure(estimate(seed_values(trials, metric).values()), len(trials))


def _grid(study: StudyData, metric: str) -> _Grid:
    members: dict[tuple[float, Key], list[TrialData]] = {}
    for trial in study.trials:
        cell = _cell_of(trial)
        if cell is not None:
            members.setdefault(cell, []).append(trial)
    try:
        cells = {cell: _measure(trials, metric) for cell, trials in members.items()}
    except SettingError as error:
        raise MissingDataError(f"heat_map of {metric}: the trials form no grid: {error}") from error
    filled = [cell for cell, own in cells.items() if own.estimate.n and math.isfinite(cell[1][0])]
    if len(filled) < 2:
        raise MissingDataError(
            f"heat_map of {metric}: a grid needs two finished cells of Hare & Tortoise (momentum and reset interval), "
            f"and the study has {len(filled)}."
        )
    rows = tuple(sorted({row for row, _ in cells}))
    columns = tuple(sorted({column for _, column in cells}, key=lambda key: (math.isinf(key[0]), key[1], key[0])))
    return _Grid(rows, columns, cells)


def _draw_heat_map(figure: Figure, study: StudyData, metric: str, grid: _Grid, references: dict[str, _Measure]) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    factor, unit = shown_unit(metric)
    means = {cell: own.estimate.mean for cell, own in grid.cells.items() if own.estimate.n}
    low, high = min(means.values()), max(means.values())
    margin = 0.02 * (high - low) or 0.005 * abs(high) or 0.005
    colours = ScalarMappable(Normalize(factor * (low - margin), factor * (high + margin)), colormaps["viridis"])
    name = f"{worded(metric)}{unit}"

    def colour_of(mean: float) -> tuple[float, ...]:
        return tuple(colours.to_rgba(np.array([factor * mean]))[0])

    widths = [1.12 * len(grid.columns), *([2.1] if references else []), 0.16]
    axes = figure.subplots(1, len(widths), width_ratios=widths)
    axis, bar = axes[0], axes[-1]

    def fill(target: Any, left: float, bottom: float, own: _Measure, heading: str = "") -> None:
        known = own.estimate.n > 0
        colour = colour_of(own.estimate.mean) if known else UNKNOWN
        target.add_patch(
            Rectangle(
                (left, bottom), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5, hatch=None if known else "///"
            )
        )
        text = shown_pair(metric, own.estimate.mean, own.estimate.sd) if known else "none finished"
        # In the grid the two numbers stand under each other, so that they can be large.
        text = f"{heading}\n{text}" if heading else text.replace(" ± ", "\n± ")
        if 0 < own.estimate.n < own.planned:
            text += f" ({own.estimate.n} of {own.planned})" if heading else f"\n({own.estimate.n} of {own.planned})"
        ink = "white" if _luminance(colour) < MIDDLE_GREY else "black"
        target.text(left + 0.5, bottom + 0.5, text, ha="center", va="center", fontsize=8, color=ink, linespacing=1.25)

    for (row, column), own in grid.cells.items():
        fill(axis, grid.columns.index(column), grid.rows.index(row), own)
    planned = len(study.seeds)
    complete = {cell: mean for cell, mean in means.items() if grid.cells[cell].estimate.n == planned}
    framed = _shown_best(complete, metric, study.better(metric))
    for row, column in framed:
        corner = (grid.columns.index(column) + 0.02, grid.rows.index(row) + 0.02)
        axis.add_patch(Rectangle(corner, 0.96, 0.96, facecolor="none", edgecolor=COLOURS[2], linewidth=2.2, zorder=3))

    axis.set(xlim=(0, len(grid.columns)), ylim=(0, len(grid.rows)))
    units = {key[1] for key in grid.columns if math.isfinite(key[0])}
    one_unit = units.pop() if len(units) == 1 else ""
    axis.set_xticks(np.arange(len(grid.columns)) + 0.5, [_interval_name(key, one_unit) for key in grid.columns])
    axis.set_yticks(np.arange(len(grid.rows)) + 0.5, [f"{row:g}" for row in grid.rows])
    axis.set_xlabel(f"Reset interval{f' ({one_unit})' if one_unit else ''}")
    axis.set_ylabel("Momentum")
    finite = sum(math.isfinite(key[0]) for key in grid.columns)
    axis.set_title("Hare & Tortoise", fontsize=9, x=finite / len(grid.columns) / 2)
    if finite < len(grid.columns):
        axis.axvline(finite, color="white", linewidth=6)

    if references:
        strip = axes[1]
        for index, (label, own) in enumerate(reversed(references.items())):
            fill(strip, 0, index, own, label)
        strip.set(xlim=(0, 1), ylim=(0, len(references)), xticks=[], yticks=[])
        strip.set_title("Other methods", fontsize=9)
    for each in axes[:-1]:
        each.tick_params(length=0)
        each.spines[:].set_visible(False)

    outside = [own.estimate.mean for own in references.values() if own.estimate.n]
    below, above = any(mean < low - margin for mean in outside), any(mean > high + margin for mean in outside)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}[below, above]
    figure.colorbar(colours, cax=bar, extend=extend, extendfrac=0.04).set_label(name[0].upper() + name[1:])
    bar.spines[:].set_visible(False)

    caption = f"Cells: {'mean ± standard deviation (n − 1) over ' * (planned > 1)}{seeds_text(study.seeds)}."
    if framed:
        caption += " Framed: the best in the grid" + (" (equal in the digits shown)." if len(framed) > 1 else ".")
    if below or above:
        caption += " The colour scale spans the grid; other methods beyond it take the colour of its end."
    _title(figure, f"{name[0].upper()}{name[1:]}", study, caption)


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


def _luminance(colour: Sequence[float]) -> float:
    """Return the relative luminance of an sRGB colour (WCAG 2.1), in [0, 1]."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# ------------------------------------------------------------------------------------------------ curves


@dataclass(frozen=True)
class _Line:
    legend: str
    method: str
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    starts: NDArray[np.float64]


def _draw_curves(study: StudyData, curve: str, paths: Sequence[PathLike], labels: Sequence[str] | None) -> None:
    chosen = _representatives(study) if labels is None else {_known_label(study, label): "" for label in labels}
    groups = group(study)
    lines: list[_Line] = []
    empty: list[str] = []
    for label, remark in chosen.items():
        line = _line(label, remark, groups[(label,)], curve)
        if line is None:
            empty.append(label)
        else:
            lines.append(line)
    if not lines:
        raise MissingDataError(f"{curve}_curves: no finished trial has a test accuracy by {curve}.")
    caption = f"Lines: {seeds_text(study.seeds)}."
    if len(study.seeds) > 1:
        caption = f"Lines: mean over {seeds_text(study.seeds)}; bands: ± 1 standard deviation (n − 1)."
    if curve == "epoch":
        caption += " Vertical lines: a new phase begins."
    if empty:
        caption += f" Without a finished trial: {', '.join(empty)}."

    def draw(figure: Figure) -> None:
        _draw_lines(figure, study, curve, lines, caption)

    _write(draw, (9.5, 4.6), paths)


def _known_label(study: StudyData, label: str) -> str:
    if label not in study.labels:
        raise SettingError(
            f"labels: {label!r}: the study has {', '.join(map(repr, study.labels))}.{did_you_mean(label, study.labels)}"
        )
    return label


def _representatives(study: StudyData) -> dict[str, str]:
    """Return the labels to draw, each with a remark for the legend."""
    if len(study.labels) <= len(COLOURS):
        return dict.fromkeys(study.labels, "")
    sign = 1 if study.mode == "max" else -1
    methods: dict[str, dict[str, tuple[int, float]]] = {}
    for (label,), trials in group(study).items():
        own = estimate(seed_values(trials, study.metric).values())
        # A label that finished on more seeds goes first: a mean over the lucky ones is no contest.
        rank = (own.n, sign * own.mean if own.n else -math.inf)
        methods.setdefault(trials[0].method, {})[str(label)] = rank
    chosen = {}
    for ranks in methods.values():
        best = max(ranks, key=ranks.__getitem__)
        chosen[best] = f"best of {len(ranks)} by {worded(study.metric)}" if len(ranks) > 1 else ""
    return chosen


def _line(label: str, remark: str, trials: Sequence[TrialData], curve: str) -> _Line | None:
    known = [
        own
        for trial in trials
        if trial.finished and {"step", "test_accuracy"} <= (own := trial.curves.get(curve, {})).keys()
    ]
    if not known:
        return None
    seed_values(trials, "")  # refuses trials that are not one method's repetitions
    if any((np.diff(own["step"]) <= 0).any() for own in known):
        raise SettingError(f"{curve}_curves: the steps of {label!r} do not increase: its results are damaged.")
    x = reduce(np.intersect1d, [own["step"] for own in known])
    if not x.size:
        raise SettingError(f"{curve}_curves: the trials of {label!r} have no common steps.")
    values = np.stack([own["test_accuracy"][np.searchsorted(own["step"], x)] for own in known])
    notes = [remark] if remark else []
    if len(known) < len(trials):
        notes.append(f"{len(known)} of {len(trials)} seeds")
    if any(len(own["step"]) != len(x) for own in known):
        notes.append("where all seeds have values")
    legend = "\n".join(textwrap.wrap(label, 30) + textwrap.wrap(f"({'; '.join(notes)})", 36) * bool(notes))
    sd = values.std(axis=0, ddof=1) if len(known) > 1 else np.full(len(x), np.nan)
    phase = known[0].get("phase", np.empty(0))
    starts = known[0]["step"][1:][np.diff(phase) != 0] if phase.size else np.empty(0)
    return _Line(legend, trials[0].method, x, 100 * values.mean(axis=0), 100 * sd, starts)


def _draw_lines(figure: Figure, study: StudyData, curve: str, lines: Sequence[_Line], caption: str) -> None:
    axis = figure.subplots()
    starts = np.unique(np.concatenate([line.starts for line in lines])) if curve == "epoch" else np.empty(0)
    for start in starts:
        axis.axvline(start - 0.5, color="0.8", linewidth=0.7, zorder=0)
    handles = []
    for index, (line, colour) in enumerate(zip(lines, _colours([line.method for line in lines]), strict=True)):
        every = max(len(line.x) // 10, 1)
        (handle,) = axis.plot(
            line.x,
            line.mean,
            label=line.legend,
            color=colour,
            linestyle=DASHES[index % len(DASHES)],
            linewidth=1.3,
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            # Staggered, so that markers of lines that run together do not cover each other.
            markevery=(every * index // len(lines), every),
        )
        handles.append(handle)
        if np.isfinite(line.sd).any():
            axis.fill_between(line.x, line.mean - line.sd, line.mean + line.sd, color=colour, alpha=0.18, linewidth=0)
    # The climb from chance in the first phase would flatten everything that is worth seeing.
    settled = starts[0] / 2 if starts.size else 0.0
    spread = [np.nan_to_num(line.sd) for line in lines]
    low = min(_lowest((line.mean - sd)[line.x >= settled]) for line, sd in zip(lines, spread, strict=True))
    high = -min(_lowest(-(line.mean + sd)) for line, sd in zip(lines, spread, strict=True))
    margin = 0.04 * (high - low) or 0.5
    axis.set_ylim(low - margin, high + margin)
    if any(_lowest(line.mean) < low - margin for line in lines):
        caption += " The first epochs lie below the axis."
    first, last = min(line.x[0] for line in lines), max(line.x[-1] for line in lines)
    pad = 0.01 * (last - first) if curve == "epoch" else 0.3
    axis.set_xlim(first - (pad or 0.5), last + (pad or 0.5))
    if curve == "phase" and last - first < 20:
        axis.set_xticks(np.arange(first, last + 1))
    else:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(axis="y", color="0.92", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel("Epoch (counted over all phases)" if curve == "epoch" else "Phase")
    axis.set_ylabel("Test accuracy (%)")
    figure.legend(
        handles=handles, loc="outside right center", frameon=False, fontsize=8, labelspacing=0.8, handlelength=3
    )
    _title(
        figure,
        f"Test accuracy {'after each epoch' if curve == 'epoch' else 'at the end of each phase'}",
        study,
        caption,
    )


def _lowest(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.min()) if known.size else math.inf


def _colours(methods: Sequence[str]) -> list[str]:
    """Return a colour per line: a known method's first line keeps its own in every figure."""
    taken: dict[int, int] = {}
    for index, method in enumerate(methods):
        own = METHOD_COLOUR.get(method)
        if own is not None and own not in taken.values():
            taken[index] = own
    rest = [number for number in range(len(COLOURS)) if number not in taken.values()] or list(range(len(COLOURS)))
    others = [index for index in range(len(methods)) if index not in taken]
    taken |= {index: rest[place % len(rest)] for place, index in enumerate(others)}
    return [COLOURS[taken[index]] for index in range(len(methods))]


# ------------------------------------------------------------------------------------------------ writing


def _title(figure: Figure, what: str, study: StudyData, caption: str) -> None:
    columns = int(figure.get_figwidth() * 16)
    heading = "\n".join(textwrap.wrap(describe(study), int(columns * 0.75)))
    figure.suptitle(f"{what}\n{heading}", x=0.01, ha="left", fontsize=10)
    figure.supxlabel("\n".join(textwrap.wrap(caption, columns)), x=0.01, ha="left", **CAPTION)


def _write(draw: Callable[[Figure], None], size: tuple[float, float], paths: Sequence[PathLike]) -> None:
    targets = [Path(path) for path in paths]
    for target in targets:
        check_choice(f"{target}: format", target.suffix.lstrip("."), FORMATS)
    import matplotlib
    from matplotlib.figure import Figure as MatplotlibFigure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = MatplotlibFigure(figsize=size, dpi=DPI, layout="constrained")
        draw(figure)
        for target in targets:
            stream = io.BytesIO()
            kind = target.suffix.lstrip(".")
            # Without the date, the same results give the same file.
            dated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
            figure.savefig(stream, format=kind, metadata=dated)
            write_bytes(target, stream.getvalue())
