"""Figure of the methods as bars: the paper's figures 4 and 5, with the paper's values."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from ht_ray.report.data.paper import PaperComparison, compare_with_paper, paper_caption
from ht_ray.report.data.statistics import estimate, interval_name, mean_interval
from ht_ray.report.data.study import MissingDataError, StudyData, seed_values
from ht_ray.report.style.curve_lines import BASELINE
from ht_ray.report.style.figures import (
    EMPHASIS,
    Figure,
    PathLike,
    add_grid,
    add_title,
    escape_math,
    mark_paper,
    write_figure,
)
from ht_ray.report.style.formats import capitalize, display_unit, format_seeds, format_value, humanize, metric_title

__all__ = ["method_bars"]

#: Where the lowest value is above this share of the highest, the axis is cut, and points stand for bars.
CUT = 0.6
OTHERS = "#9BB8CC"
PLAIN = "0.45"

Values: TypeAlias = dict[str, list[float]]
"""The values of a metric, one for each seed, by label."""

Published: TypeAlias = dict[str, PaperComparison]
"""The paper's values of a metric, by label."""


def method_bars(study: StudyData, metrics: Sequence[str], *paths: PathLike) -> None:
    """Draw a bar for each label, in the order planned, and a panel for each metric.

    Bars are means over the finished trials, dots single seeds, whiskers the 95% interval where there are two
    seeds or more. A diamond is the paper's value, where the paper has one and the protocol is its own. Where all bars
    would be long, squares stand for them on an axis that does not start at zero, and the caption says so.
    """
    for metric in metrics:
        study.check_metric("method_bars: metrics", metric)
    groups = study.by_label
    values = {
        metric: {label: [*seed_values(trials, metric).values()] for label, trials in groups.items()}
        for metric in metrics
    }
    if max(sum(bool(own) for own in by_label.values()) for by_label in values.values()) < 2:
        raise MissingDataError("method_bars: fewer than two labels have a finished trial.")
    published = {
        metric: {label: compare_with_paper(study, trials[0], metric) for label, trials in groups.items()}
        for metric in metrics
    }
    reach = {metric: _reach(metric, values[metric], published[metric]) for metric in metrics}
    cut = {metric: low > CUT * high > 0 for metric, (low, high) in reach.items()}
    names = [escape_math("\n".join(textwrap.wrap(label, 34))) for label in groups]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for panel, metric in zip(panels, metrics, strict=True):
            _draw_bars(panel, study, metric, values[metric], published[metric], cut[metric])
            low, high = reach[metric]
            start = low - 0.4 * (high - low or 0.02 * high) if cut[metric] else min(low, 0.0)
            panel.set_xlim(start, high + 0.04 * (high - start))
        panels[0].set_yticks(range(len(groups)), names, fontsize=8)
        panels[0].set_ylim(len(groups) - 0.4, -0.6)
        means = " and ".join(["bars"] * (not all(cut.values())) + ["squares"] * any(cut.values()))
        caption = f"{means.capitalize()}: mean over {format_seeds(study.seeds)}."
        if len(study.seeds) > 1:
            caption += f" Dots: single seeds; whiskers: {interval_name(len(study.seeds))}."
        caption += " An axis with squares does not start at 0." if any(cut.values()) else ""
        caption += paper_caption("Diamonds", [own for by_label in published.values() for own in by_label.values()])
        what = " and ".join(humanize(metric) for metric in metrics)
        add_title(figure, f"{capitalize(what)} by method", study, caption)

    height = sum(0.17 * name.count("\n") + 0.27 for name in names)
    write_figure(draw, (3.2 + 3.4 * len(metrics), height + 1.7), paths)


def _reach(metric: str, values: Values, published: Published) -> tuple[float, float]:
    """Return the smallest and the largest number to be drawn, in the unit of the axis."""
    drawn = [value for own in values.values() for value in own]
    drawn += [value.mean for label, own in published.items() if values[label] and (value := own.value) is not None]
    factor, _ = display_unit(metric)
    return factor * min(drawn, default=0.0), factor * max(drawn, default=1.0)


def _draw_bars(panel: Any, study: StudyData, metric: str, values: Values, published: Published, cut: bool) -> None:
    factor, _ = display_unit(metric)
    methods = {trial.label: trial.method for trial in study.trials}
    for row, (label, own) in enumerate(values.items()):
        if not own:
            panel.text(0.01, row, "none finished", transform=panel.get_yaxis_transform(), va="center", fontsize=7.5)
            continue
        mean = factor * estimate(own).mean
        ends = factor * np.array(mean_interval(own))
        parts = methods[label].split("+")
        colour = PLAIN if parts == [BASELINE] else EMPHASIS if "hare_tortoise" in parts else OTHERS
        if cut:
            # The length of a bar that does not start at zero says nothing.
            panel.plot([mean], [row], linestyle="", marker="s", markersize=9, color=colour, zorder=2)
        else:
            panel.barh(row, mean, height=0.66, color=colour, zorder=1)
        if math.isfinite(ends[0]):
            panel.errorbar(mean, row, xerr=[[mean - ends[0]], [ends[1] - mean]], color="black", capsize=2.5, zorder=3)
            dots = {"marker": "o", "markersize": 3.0, "markerfacecolor": "white", "markeredgecolor": "black"}
            seeds = [factor * value for value in own]
            panel.plot(seeds, [row] * len(own), linestyle="", markeredgewidth=0.6, zorder=4, **dots)
        if published[label].value is not None:
            mark_paper(panel, factor * published[label].mean, row, zorder=5)
        # Inside the bar's foot: at its end a number would stand next to the paper's diamond.
        panel.annotate(
            format_value(metric, estimate(own).mean),
            (0.0, row),
            xycoords=panel.get_yaxis_transform(),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color="white" if colour in (PLAIN, EMPHASIS) and not cut else "black",
        )
    panel.set_xlabel(capitalize(metric_title(metric)))
    add_grid(panel, "x")
    panel.tick_params(axis="y", length=0)
