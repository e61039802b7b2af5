"""Figures of a search: cost and outcome compared with the grid, settings tried, settings of a population over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ht_ray.report.data.selection import test_metric
from ht_ray.report.data.study import MissingDataError, StudyData, TrialData
from ht_ray.report.search.outcomes import (
    grid_outcome,
    has_metric,
    is_population,
    is_search,
    only_hare_tortoise,
    reference_grid,
    search_name,
    search_outcome,
    search_source,
    whole_trainings,
)
from ht_ray.report.style.figures import (
    COLOURS,
    EMPHASIS,
    ColourScale,
    Figure,
    PathLike,
    add_grid,
    add_title,
    escape_math,
    write_figure,
)
from ht_ray.report.style.formats import display_unit, format_seeds, format_value, humanize, metric_title

__all__ = ["population_figure", "search_figure", "search_map"]

FAINT = "0.78"
STOPPED = "#9BB8CC"


def search_figure(studies: Sequence[StudyData], *paths: PathLike) -> None:
    """Draw what each study trained, and the metric of every trial that finished, with the best of each marked."""
    if not any(map(is_search, studies)):
        raise MissingDataError("search_figure: the study is a plain grid: nothing was searched.")
    first, grid = studies[0], reference_grid(studies)
    reported = test_metric(first.metric)
    found = [search_outcome(study) for study in studies]
    if not any(found):
        raise MissingDataError("search_figure: no trial of Hare & Tortoise has finished.")
    factor, _ = display_unit(reported)
    names = [escape_math(f"{search_name(study)}\n({study.directory.resolve().name})") for study in studies]

    def draw(figure: Figure) -> None:
        cost, gain = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.4))
        for row, (study, best) in enumerate(zip(studies, found, strict=True)):
            own = only_hare_tortoise(study)
            stopped = math.fsum(trial.progress for trial in own.trials if trial.status == "stopped")
            whole = whole_trainings(own)
            colour = COLOURS[5] if study is grid else EMPHASIS
            cost.barh(row, whole - stopped, height=0.55, color=colour)
            cost.barh(row, stopped, left=whole - stopped, height=0.55, color=STOPPED)
            per_seed = "" if len(own.seeds) < 2 else f" ({whole / len(own.seeds):.1f} a seed)"
            text = f" {whole:.1f}{per_seed}"
            cost.annotate(text, (whole, row), xytext=(2, 0), textcoords="offset points", va="center", fontsize=8)
            values = [factor * trial.summary[reported] for trial in own.trials if has_metric(trial, reported)]
            # Side by side where they would lie on each other, the same every time.
            offsets = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else np.zeros(len(values))
            shuffled = np.random.default_rng(0).permutation(offsets)
            gain.plot(values, row + shuffled, linestyle="", marker="o", markersize=3.2, color=FAINT, zorder=1)
            if best is None:
                continue
            reference = grid_outcome(grid, study, best)
            if reference is not None:
                ends = [row - 0.36, row + 0.36]
                gain.plot([factor * reference.value] * 2, ends, color=COLOURS[5], linewidth=1.6, zorder=2)
            diamond = {"marker": "D", "markersize": 7, "color": colour, "markeredgecolor": "black"}
            gain.plot([factor * best.value], [row], zorder=3, **diamond)
            gain.annotate(
                format_value(reported, best.value),
                (factor * best.value, row),
                xytext=(0, 9),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
            )
        cost.set_yticks(range(len(studies)), names, fontsize=8)
        cost.set_ylim(len(studies) - 0.45, -0.6)
        cost.set_xlim(0, 1.35 * max(whole_trainings(only_hare_tortoise(study)) for study in studies))
        cost.set_xlabel("trained, in whole trials")
        gain.set_xlabel(metric_title(reported))
        gain.margins(x=0.08)
        for panel in (cost, gain):
            add_grid(panel, "x")
            panel.tick_params(axis="y", length=0)
        caption = (
            "Left: Hare & Tortoise only; pale: in trials that were stopped early. Right: dots are trials that "
            "finished, each with one seed; a diamond is the best setting, as the mean over its seeds"
            + (", for PBT over the best member of each population." if any(map(is_population, studies)) else ".")
            + (" Blue line: the grid's best on the same seeds." if grid is not None else "")
        )
        add_title(figure, "What the search cost and found", first, caption)

    write_figure(draw, (8.6, 0.72 * len(studies) + 1.9), paths)


def search_map(study: StudyData, *paths: PathLike) -> None:
    """Draw the settings that were tried at random, or by Optuna, over momentum and reset interval."""
    if search_source(study) == "grid":
        raise MissingDataError("search_map: the settings were not drawn or suggested.")
    tried: dict[tuple[float, float], list[TrialData]] = {}
    for trial in only_hare_tortoise(study).trials:
        if (point := _point(trial)) is not None:
            tried.setdefault(point, []).append(trial)
    factor, _ = display_unit(study.metric)
    finished = {
        point: [factor * trial.summary[study.metric] for trial in trials if has_metric(trial, study.metric)]
        for point, trials in tried.items()
    }
    values = {point: float(np.mean(own)) for point, own in finished.items() if own}
    best = search_outcome(study)
    if len(values) < 2 or best is None:
        raise MissingDataError(f"search_map: a map needs two settings that finished, and the study has {len(values)}.")

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        scale = ColourScale(min(values.values()), max(values.values()))
        for point, trials in tried.items():
            if point not in values and any(trial.status == "stopped" for trial in trials):
                axis.plot(*point, "x", color="0.6", markersize=5)
        for point, value in values.items():
            edge: dict[str, Any] = {"markeredgecolor": "0.3"}
            if point == _point(best.trials[0]):
                edge = {"markeredgecolor": EMPHASIS, "markeredgewidth": 2.2}
            axis.plot(*point, "o", color=scale(value), markersize=9, **edge)
        _log_axis(axis.xaxis, "reset_interval")
        _log_axis(axis.yaxis, "momentum")
        axis.set_xlabel(f"reset interval ({best.trials[0].settings.get('reset_unit')})")
        axis.set_ylabel("momentum")
        add_grid(axis)
        figure.colorbar(scale.mappable, ax=axis, label=metric_title(study.metric))
        several = ", as the mean over the seeds that finished" if len(study.seeds) > 1 else ""
        caption = (
            f"{search_name(study)}. Circles: {humanize(study.metric)}{several}; the ringed one is the best of those "
            "that finished on the most seeds. Crosses: stopped early on every seed."
        )
        add_title(figure, "Settings that were tried", study, caption)

    write_figure(draw, (6.4, 4.6), paths)


def population_figure(study: StudyData, *paths: PathLike) -> None:
    """Draw how momentum and reset interval of a population's members changed, and the lineage of the best weights."""
    found = search_outcome(study) if is_population(study) else None
    if found is None:
        raise MissingDataError("population_figure: the study has no population with a trial that finished.")
    best, reported = found.trials[0], test_metric(study.metric)
    members = [
        trial for trial in only_hare_tortoise(study).trials if trial.seed == best.seed and "schedule" in trial.curves
    ]
    names = [name for name in best.curves["schedule"] if name not in ("step", "copied_from")]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for panel, name in zip(panels, names, strict=True):
            for trial in members:
                schedule = trial.curves["schedule"]
                ordinate = _ordinate(name, schedule[name])
                panel.plot(schedule["step"], ordinate, color=FAINT, linewidth=1.0, marker=".", markersize=4, zorder=1)
                copied = schedule["copied_from"] > 0
                panel.plot(schedule["step"][copied], ordinate[copied], "o", color="0.5", markersize=4, zorder=2)
            path = lineage(best, members)
            steps = np.arange(1, len(path) + 1)
            own = np.array([trial.curves["schedule"][name][part] for part, trial in enumerate(path)])
            panel.step(steps, _ordinate(name, own), where="mid", color=EMPHASIS, linewidth=2.0, zorder=3)
            panel.plot(steps, _ordinate(name, own), "o", color=EMPHASIS, markersize=4.5, zorder=4)
            add_grid(panel)
            panel.set_ylabel(escape_math(humanize(name)))
            _log_axis(panel.yaxis, name)
        panels[-1].set_xlabel("phase")
        copies = sum(int((trial.curves["schedule"]["copied_from"] > 0).sum()) for trial in members)
        caption = (
            f"{len(members)} members, {format_seeds([best.seed])}; grey dots: a member took over another's weights "
            f"there ({copies} times). Bold: the settings that the weights of the best, {best.label}, were trained with "
            f"({humanize(reported)} {format_value(reported, best.summary[reported])}"
            f"{display_unit(reported)[1].replace(' (', ' ').replace(')', '')})."
        )
        add_title(figure, "Settings of a population", study, caption)

    write_figure(draw, (7.2, 1.9 * len(names) + 1.7), paths)


def lineage(best: TrialData, members: Sequence[TrialData]) -> list[TrialData]:
    """Return the members through which the weights of `best` went, one for each part of their training."""
    path: list[TrialData] = []
    trial = best
    for part in range(best.curves["schedule"]["step"].size - 1, -1, -1):
        path.append(trial)
        source = int(trial.curves["schedule"]["copied_from"][part])
        if source:
            trial = next(other for other in members if other.settings.get("member") == source)
    return path[::-1]


def _ordinate(name: str, values: np.ndarray) -> np.ndarray:
    return 1 - values if name == "momentum" else values


def _log_axis(axis: Any, name: str) -> None:
    """Make an axis logarithmic; a momentum's is that of its complement, labelled as it is, the larger further out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_formatter(NullFormatter())
    if name == "momentum":
        axis.set_inverted(True)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{1 - value:.6g}"))
    else:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _point(trial: TrialData) -> tuple[float, float] | None:
    """Return a trial's reset interval and the complement of its momentum; None where it has none."""
    interval, momentum = trial.number("reset_interval"), trial.number("momentum")
    return None if interval is None or momentum is None else (interval, 1 - momentum)
