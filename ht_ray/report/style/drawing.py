"""What all figures share: style, heading and caption, and how they are written.

Matplotlib is imported when the first figure is drawn, and only its classes are used: neither a window system nor the
user's settings and open figures are touched.
"""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ht_ray._checks import check_choice
from ht_ray.report.data.files import write_bytes
from ht_ray.report.data.study import StudyData
from ht_ray.report.style.names import describe

__all__ = [
    "COLOURS",
    "EMPHASIS",
    "ColourScale",
    "Figure",
    "PathLike",
    "fill_cell",
    "frame_cell",
    "plain",
    "title",
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


# Okabe and Ito, Color Universal Design (2008), without the yellow, which is lost on white paper.
COLOURS = ("#000000", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#0072B2", "#E69F00")
#: Hare & Tortoise, and what a reader is to see first.
EMPHASIS = COLOURS[2]
#: The colour of a cell without a value.
UNKNOWN = (0.93, 0.93, 0.93, 1.0)
# The relative luminance on which black and white have the same contrast (WCAG 2.1).
MIDDLE_GREY = 0.179


def plain(text: str) -> str:
    """Return `text` such that matplotlib draws it as it stands: dollar signs would enclose a formula."""
    return text.replace("$", r"\$")


def ink_on(colour: Sequence[float]) -> str:
    """Return whether black or white is read better on an sRGB colour in [0, 1]."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return "white" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < MIDDLE_GREY else "black"


class ColourScale:
    """Colours for the cells of a map.

    Parameters
    ----------
    low, high
        The ends of the values, in the unit of the colour bar; the scale has a margin beyond them.
    """

    def __init__(self, low: float, high: float) -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        margin = 0.02 * (high - low) or 0.005 * abs(high) or 0.005
        self.low, self.high = low - margin, high + margin
        self.mappable = ScalarMappable(Normalize(self.low, self.high), colormaps["viridis"])

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
    place = {"ha": "center", "va": "center", "linespacing": 1.25}
    axis.text(left + 0.5, bottom + 0.5, plain(text), fontsize=fontsize, color=ink, **place)


def frame_cell(axis: Any, left: float, bottom: float) -> None:
    """Mark a cell of a map as the best."""
    from matplotlib.patches import Rectangle

    corner = (left + 0.02, bottom + 0.02)
    axis.add_patch(Rectangle(corner, 0.96, 0.96, facecolor="none", edgecolor=EMPHASIS, linewidth=2.2, zorder=3))


def title(figure: Figure, what: str, study: StudyData, caption: str) -> None:
    columns = int(figure.get_figwidth() * 16)
    heading = "\n".join(textwrap.wrap(describe(study), int(columns * 0.75)))
    figure.suptitle(plain(f"{what}\n{heading}"), x=0.01, ha="left", fontsize=10)
    figure.supxlabel(plain("\n".join(textwrap.wrap(caption, columns))), x=0.01, ha="left", **CAPTION)


def write_figure(draw: Callable[[Figure], None], size: tuple[float, float], paths: Sequence[PathLike]) -> None:
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
