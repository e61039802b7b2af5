"""Each plasticity indicator against the final test accuracy as a figure: the paper's figure 8."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np

from ht_ray.report.data.statistics import correlation
from ht_ray.report.data.study import MissingDataError, StudyData
from ht_ray.report.indicators.tables import FEWEST_RUNS, runs_of
from ht_ray.report.style.curve_lines import MARKERS
from ht_ray.report.style.drawing import COLOURS, Figure, PathLike, plain, title, write_figure
from ht_ray.report.style.names import indicator_title, seeds_text, shown_indicators

__all__ = ["indicator_scatter"]

ACROSS = 4
PANEL = (2.5, 2.1)
DECADES = 2


def indicator_scatter(study: StudyData, *paths: PathLike) -> None:
    """Draw a panel for each indicator: a point per run, Pearson's correlation in its heading.

    Runs, and when the indicator was measured, are those of `correlation_table`: on a warm-start stream the indicator is
    the one at the end of the first phase. Up to seven labels are told apart. An axis is logarithmic where the values
    are positive and span more than two decades; the correlation is that of the values, not of their logarithms.

    Parameters
    ----------
    study
        A study of one access mode (see `split_by_access`).
    *paths
        Where to write the figure, each in the format of its suffix.

    Raises
    ------
    MissingDataError
        If no finished trial has both an indicator and a final test accuracy.
    """
    runs = runs_of(study)
    panels = {}
    for name in shown_indicators(study):
        values = np.array(runs.values(name))
        both = np.isfinite(values) & np.isfinite(runs.final)
        if both.any():
            panels[name] = (values, both)
    if not panels:
        raise MissingDataError(
            "indicator_scatter: no finished trial has both a plasticity indicator and a final test accuracy."
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
            for place, label in enumerate(labels if apart else [None]):
                own = both & np.array([label in (None, trial.label) for trial in runs.trials])
                (handle,) = axis.plot(
                    values[own],
                    100 * runs.final[own],
                    linestyle="",
                    marker=MARKERS[place % len(MARKERS)],
                    color=COLOURS[place] if apart else COLOURS[5],
                    alpha=0.85 if apart else 0.6,
                    markersize=4.0,
                )
                if label is not None:
                    handles[label] = handle
            known = values[both]
            if known.min() > 0 and known.max() > 10.0**DECADES * known.min():
                axis.set_xscale("log")
                logarithmic.append(name)
            elif np.ptp(known) == 0:
                axis.set_xticks([known[0]])  # no scale around a number that is the same for all
            else:
                axis.xaxis.get_major_locator().set_params(nbins=4)  # more would run into each other
            r = correlation(known, runs.final[both]) if both.sum() >= FEWEST_RUNS else math.nan
            heading = indicator_title(name)
            told = f"r = {r:+.2f}" if math.isfinite(r) else "r undefined"
            axis.set_title(
                textwrap.fill(heading[0].upper() + heading[1:], 36) + f"\n{told}, {both.sum()} runs",
                fontsize=8,
                loc="left",
            )
            axis.tick_params(labelsize=7.5)
            axis.xaxis.get_offset_text().set_fontsize(7.5)
            axis.grid(color="0.92", linewidth=0.6)
            axis.set_axisbelow(True)
        figure.supylabel("Final test accuracy (%)", fontsize=9)
        if apart and len(labels) > 1:
            figure.legend(
                list(handles.values()),
                [plain("\n".join(textwrap.wrap(label, 28))) for label in handles],
                loc="outside right center",
                frameon=False,
                fontsize=8,
                labelspacing=0.8,
            )
        caption = f"Points: runs (label and seed) of {seeds_text(study.seeds)}; r: Pearson's correlation."
        caption += " Horizontal axes are logarithmic where values span more than two decades." if logarithmic else ""
        when = "warm-starting" if runs.warm_start else "the last phase"
        title(figure, f"Plasticity indicators at the end of {when} and final test accuracy", study, caption)

    legend = 2.2 if apart and len(labels) > 1 else 0.0
    write_figure(draw, (max(PANEL[0] * across + legend + 0.4, 6.0), PANEL[1] * down + 1.1), paths)
