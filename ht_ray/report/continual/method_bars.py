"""Methods side by side as bars: the paper's figures 4 and 5, with the paper's values."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from ht_ray._checks import check_choice
from ht_ray.report.data.paper import PAPER, Beside, beside_paper
from ht_ray.report.data.statistics import estimate, interval_name, mean_interval
from ht_ray.report.data.study import MissingDataError, StudyData, group, seed_values
from ht_ray.report.style.curve_lines import BASELINE
from ht_ray.report.style.drawing import COLOURS, EMPHASIS, Figure, PathLike, plain, title, write_figure
from ht_ray.report.style.names import seeds_text, shown_number, shown_unit, worded

__all__ = ["method_bars"]

#: Where the lowest value is above this share of the highest, the axis is cut, and points stand for bars.
CUT = 0.6
OTHERS = "#9BB8CC"
PLAIN = "0.45"


def method_bars(study: StudyData, metrics: Sequence[str], *paths: PathLike) -> None:
    """Draw a bar for each label, in the order planned, and a panel for each metric.

    Bars are means over the finished trials, dots single seeds, whiskers the 95% interval where there are two
    seeds or more. A diamond is the paper's value, where the paper has one and the protocol is its own. Where all bars
    would be long, squares stand for them on an axis that does not start at zero, and the caption says so.

    Parameters
    ----------
    study
        A study of one access mode (see `split_by_access`).
    metrics
        Summary numbers; accuracies are shown in per cent.
    *paths
        Where to write the figure, each in the format of its suffix.

    Raises
    ------
    MissingDataError
        If fewer than two labels have a finished trial.
    SettingError
        If no trial reported a metric, two trials share label and seed, or a path cannot be written.
    """
    for metric in metrics if study.summary_names else ():
        check_choice("method_bars: metrics", metric, study.summary_names)
    groups = {str(key[0]): trials for key, trials in group(study).items()}
    values = {
        metric: {label: [*seed_values(trials, metric).values()] for label, trials in groups.items()}
        for metric in metrics
    }
    if max(sum(bool(own) for own in by_label.values()) for by_label in values.values()) < 2:
        raise MissingDataError("method_bars: fewer than two labels have a finished trial.")
    beside = {
        metric: {label: beside_paper(study, trials[0], metric) for label, trials in groups.items()}
        for metric in metrics
    }
    cut = {metric: _is_cut(metric, values[metric], beside[metric]) for metric in metrics}
    names = [plain("\n".join(textwrap.wrap(label, 34))) for label in groups]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for panel, metric in zip(panels, metrics, strict=True):
            _draw_bars(panel, study, metric, values[metric], beside[metric], cut[metric])
        panels[0].set_yticks(range(len(groups)), names, fontsize=8)
        panels[0].set_ylim(len(groups) - 0.4, -0.6)
        means = " and ".join(["bars"] * (not all(cut.values())) + ["squares"] * any(cut.values()))
        caption = f"{means.capitalize()}: mean over {seeds_text(study.seeds)}."
        if len(study.seeds) > 1:
            caption += f" Dots: single seeds; whiskers: {interval_name(len(study.seeds))}."
        caption += " An axis with squares does not start at 0." if any(cut.values()) else ""
        caption += _paper_caption([own for by_label in beside.values() for own in by_label.values()])
        what = " and ".join(worded(metric) for metric in metrics)
        title(figure, f"{what[0].upper()}{what[1:]} by method", study, caption)

    height = sum(0.17 * name.count("\n") + 0.27 for name in names)
    write_figure(draw, (3.2 + 3.4 * len(metrics), height + 1.7), paths)


def _reach(metric: str, values: dict[str, list[float]], beside: dict[str, Beside]) -> tuple[float, float]:
    """Return the smallest and the largest number to be drawn, in the unit of the axis."""
    drawn = [value for own in values.values() for value in own]
    drawn += [value.mean for label, own in beside.items() if values[label] and (value := own.value) is not None]
    factor, _ = shown_unit(metric)
    return factor * min(drawn, default=0.0), factor * max(drawn, default=1.0)


def _is_cut(metric: str, values: dict[str, list[float]], beside: dict[str, Beside]) -> bool:
    low, high = _reach(metric, values, beside)
    return low > CUT * high > 0


def _draw_bars(
    panel: Any, study: StudyData, metric: str, values: dict[str, list[float]], beside: dict[str, Beside], cut: bool
) -> None:
    factor, unit = shown_unit(metric)
    methods = {trial.label: trial.method for trial in study.trials}
    for place, (label, own) in enumerate(values.items()):
        if not own:
            panel.text(0.01, place, "none finished", transform=panel.get_yaxis_transform(), va="center", fontsize=7.5)
            continue
        mean = factor * estimate(own).mean
        ends = factor * np.array(mean_interval(own))
        parts = methods[label].split("+")
        colour = PLAIN if parts == [BASELINE] else EMPHASIS if "hare_tortoise" in parts else OTHERS
        if cut:
            # The length of a bar that does not start at zero says nothing.
            panel.plot([mean], [place], linestyle="", marker="s", markersize=9, color=colour, zorder=2)
        else:
            panel.barh(place, mean, height=0.66, color=colour, zorder=1)
        if math.isfinite(ends[0]):
            panel.errorbar(mean, place, xerr=[[mean - ends[0]], [ends[1] - mean]], color="black", capsize=2.5, zorder=3)
            panel.plot(
                [factor * value for value in own],
                [place] * len(own),
                linestyle="",
                marker="o",
                markersize=3.0,
                markerfacecolor="white",
                markeredgecolor="black",
                markeredgewidth=0.6,
                zorder=4,
            )
        value = beside[label].value
        if value is not None:
            paper = factor * value.mean
            panel.plot(
                [paper], [place], marker="D", markersize=5.5, color=COLOURS[-1], markeredgecolor="black", zorder=5
            )
        # Inside the bar's foot: at its end a number would stand beside the paper's diamond.
        panel.annotate(
            shown_number(metric, estimate(own).mean),
            (0.0, place),
            xycoords=panel.get_yaxis_transform(),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color="white" if colour in (PLAIN, EMPHASIS) and not cut else "black",
        )
    low, high = _reach(metric, values, beside)
    start = low - 0.4 * (high - low or 0.02 * high) if cut else min(low, 0.0)
    panel.set_xlim(start, high + 0.04 * (high - start))
    name = worded(metric)
    panel.set_xlabel(f"{name[0].upper()}{name[1:]}{unit}")
    panel.grid(axis="x", color="0.92", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(axis="y", length=0)


def _paper_caption(beside: Sequence[Beside]) -> str:
    shown = [own for own in beside if own.value is not None]
    if not shown:
        return ""
    tables = " and ".join(dict.fromkeys(own.value.table for own in shown if own.value is not None))
    text = f" Diamonds: {PAPER}, {tables}."
    budgets = dict.fromkeys("; ".join(own.budget) for own in shown if own.budget)
    return text + "".join(f" Our budget is another: {budget}." for budget in budgets)
