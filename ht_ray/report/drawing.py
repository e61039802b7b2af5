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

from ht_ray._checks import check_choice
from ht_ray.report._files import write_bytes
from ht_ray.report.names import describe
from ht_ray.report.study import StudyData

__all__ = ["COLOURS", "EMPHASIS", "Figure", "PathLike", "title", "write_figure"]

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


def title(figure: Figure, what: str, study: StudyData, caption: str) -> None:
    columns = int(figure.get_figwidth() * 16)
    heading = "\n".join(textwrap.wrap(describe(study), int(columns * 0.75)))
    figure.suptitle(f"{what}\n{heading}", x=0.01, ha="left", fontsize=10)
    figure.supxlabel("\n".join(textwrap.wrap(caption, columns)), x=0.01, ha="left", **CAPTION)


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
