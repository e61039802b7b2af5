"""Figures: their style, title and caption, the cells of maps, and how they are written.

A function that draws a figure takes a study of one access mode (see `split_by_access`) and ``*paths``, where to write
it, each in the format of its suffix: png, pdf or svg. It raises `MissingDataError` where the study has nothing to draw,
and `SettingError` where a name is unknown, two trials share label and seed, or a path cannot be written. Accuracies are
shown in per cent.

Matplotlib is imported when the first figure is drawn, and only its classes are used: neither a window system nor the
user's settings and open figures are touched.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ht_ray._checks import check_choice
from ht_ray.report.data.files import write_bytes
from ht_ray.report.data.study import StudyData
from ht_ray.report.style.formats import capitalize, describe

__all__ = [
    "COLOURS",
    "EMPHASIS",
    "ColourScale",
    "Figure",
    "PathLike",
    "add_colour_bar",
    "add_grid",
    "add_legend",
    "add_legend_below",
    "add_panels",
    "add_title",
    "escape_math",
    "fill_cell",
    "frame_cell",
    "label_cells",
    "mark_paper",
    "write_figure",
]

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
LEGEND = {"frameon": False, "fontsize": 8}


# Okabe and Ito, Color Universal Design (2008), without the yellow, which is lost on white paper.
COLOURS = ("#000000", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#0072B2", "#E69F00")
#: Hare & Tortoise, and what a reader is to see first.
EMPHASIS = COLOURS[2]
#: The colour of a cell without a value.
UNKNOWN = (0.93, 0.93, 0.93, 1.0)
# The relative luminance on which black and white have the same contrast (WCAG 2.1).
MIDDLE_GREY = 0.179


def escape_math(text: str) -> str:
    """Return `text` such that matplotlib draws it unchanged: dollar signs would enclose a formula."""
    return text.replace("$", r"\$")


def ink_on(colour: Sequence[float]) -> str:
    """Return whether black or white is read better on an sRGB colour in [0, 1]."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return "white" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < MIDDLE_GREY else "black"


class ColourScale:
    """Colours for the cells of a map.

    Parameters
    ----------
    low, high : float
        The ends of the values, in the unit of the colour bar; the scale has a margin beyond them.
    colours : str, default "viridis"
        Matplotlib's name of the colours.
    """

    def __init__(self, low: float, high: float, colours: str = "viridis") -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        margin = 0.02 * (high - low) or 0.005 * abs(high) or 0.005
        self.low, self.high = low - margin, high + margin
        self.mappable = ScalarMappable(Normalize(self.low, self.high), colormaps[colours])

    def __call__(self, value: float) -> tuple[float, ...]:
        """Return the colour of a value."""
        return tuple(self.mappable.to_rgba(np.array([value]))[0])


def fill_cell(
    axis: Any, left: float, bottom: float, text: str, colour: tuple[float, ...] | None, fontsize: float = 8
) -> None:
    """Draw a cell of a map, of width and height 1; one without a value (`colour` is None) is hatched."""
    from matplotlib.patches import Rectangle

    hatch = "///" if colour is None else None
    colour = UNKNOWN if colour is None else colour
    axis.add_patch(Rectangle((left, bottom), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5, hatch=hatch))
    ink = ink_on(colour)
    centred = {"ha": "center", "va": "center", "linespacing": 1.25}
    axis.text(left + 0.5, bottom + 0.5, escape_math(text), fontsize=fontsize, color=ink, **centred)


def frame_cell(axis: Any, left: float, bottom: float) -> None:
    """Mark a cell of a map as the best."""
    from matplotlib.patches import Rectangle

    corner = (left + 0.02, bottom + 0.02)
    axis.add_patch(Rectangle(corner, 0.96, 0.96, facecolor="none", edgecolor=EMPHASIS, linewidth=2.2, zorder=3))


def label_cells(axis: Any, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Fit the axes to a map's cells, each of width and height 1, with the names of its columns and rows."""
    axis.set(xlim=(0, len(columns)), ylim=(0, len(rows)))
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def add_colour_bar(figure: Figure, scale: ColourScale, axes: Any, name: str, fraction: float) -> None:
    """Put the colour bar of a map next to its axes."""
    bar = figure.colorbar(scale.mappable, ax=axes, fraction=fraction, pad=0.02)
    bar.set_label(capitalize(name))
    bar.outline.set_visible(False)


def add_grid(axis: Any, which: str = "both", colour: str = "0.92") -> None:
    """Draw faint lines at the ticks, behind everything else."""
    axis.grid(axis=which, color=colour, linewidth=0.6)
    axis.set_axisbelow(True)


def add_legend(figure: Figure, *entries: Any, **options: Any) -> None:
    """Put a legend to the right of all axes."""
    figure.legend(*entries, loc="outside right center", labelspacing=0.8, **LEGEND, **options)


def add_panels(figure: Figure, count: int, across: int, height: float, legend: float) -> tuple[list[Any], Any]:
    """Return `count` axes in rows of `across`, and an axis under them, for a legend that is clear of the caption.

    Parameters
    ----------
    height, legend : float
        Inches of a row, and of the legend.
    """
    down = math.ceil(count / across)
    grid = figure.add_gridspec(down + 1, across, height_ratios=[*[height] * down, legend])
    panels = [figure.add_subplot(grid[divmod(index, across)]) for index in range(count)]
    below = figure.add_subplot(grid[down, :])
    below.set_axis_off()
    return panels, below


def add_legend_below(axis: Any, handles: Sequence[Any], names: Sequence[str], columns: int) -> None:
    """Fill the lower axis of `add_panels`."""
    axis.legend(handles, names, loc="upper left", ncols=columns, handlelength=3, borderaxespad=0, **LEGEND)


def mark_paper(axis: Any, value: float, row: float, **style: Any) -> None:
    """Draw the diamond of a published value."""
    style = {"marker": "D", "markersize": 5.5, "color": COLOURS[-1], "markeredgecolor": "black", **style}
    axis.plot([value], [row], linestyle="", **style)


def add_title(figure: Figure, what: str, study: StudyData, caption: str) -> None:
    """Put a title above the figure, which names the study, and a caption below it."""
    columns = int(figure.get_figwidth() * 16)
    heading = "\n".join(textwrap.wrap(describe(study), int(columns * 0.75)))
    figure.suptitle(escape_math(f"{what}\n{heading}"), x=0.01, ha="left", fontsize=10)
    figure.supxlabel(escape_math("\n".join(textwrap.wrap(caption, columns))), x=0.01, ha="left", **CAPTION)


def write_figure(draw: Callable[[Figure], None], size: tuple[float, float], paths: Sequence[PathLike]) -> None:
    """Draw a figure of this size in inches, and write it to each of the paths."""
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
