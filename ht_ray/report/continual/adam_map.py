"""The final accuracy over Adam's settings as a figure: the paper's figure 3."""

from __future__ import annotations

from typing import Any

import numpy as np

from ht_ray._checks import check_choice
from ht_ray.errors import SettingError
from ht_ray.report.data.statistics import Estimate, estimate
from ht_ray.report.data.study import MissingDataError, StudyData, TrialData, seed_values
from ht_ray.report.style.drawing import ColourScale, Figure, PathLike, fill_cell, frame_cell, title, write_figure
from ht_ray.report.style.names import seeds_text, shown_number, shown_pair, shown_unit, worded

__all__ = ["adam_map", "has_adam_grid"]

Key = tuple[float, float, float]
#: The settings of a trial that make its place: columns, rows and panels.
PLACE = ("beta1", "beta2", "epsilon")


def has_adam_grid(study: StudyData) -> bool:
    """Return whether the trials differ in Adam's settings."""
    return len({tuple(trial.settings.get(name) for name in PLACE) for trial in study.trials}) > 1


def adam_map(study: StudyData, metric: str, *paths: PathLike) -> None:
    """Draw `metric` over Adam's beta1 (columns), beta2 (rows) and epsilon (a panel each), on one colour scale.

    Cells tell mean and standard deviation (divisor n - 1) over the finished trials, and how many of the planned seeds
    those are where it is not all; the best of the complete ones is framed.

    Parameters
    ----------
    study
        A study whose trials have the settings ``beta1``, ``beta2`` and ``epsilon``.
    metric
        A summary number; accuracies are shown in per cent.
    *paths
        Where to write the figure, each in the format of its suffix.

    Raises
    ------
    MissingDataError
        If fewer than two places have a finished trial, or two trials share a place and a seed.
    SettingError
        If no trial reported `metric`, or a path cannot be written.
    """
    if study.summary_names and metric not in study.summary_names:
        check_choice("adam_map: metric", metric, study.summary_names)
    cells = _cells(study, metric)
    axes = [sorted({key[axis] for key in cells}) for axis in range(3)]
    means = [own.mean for own, _ in cells.values() if own.n]
    # A mean over the lucky seeds is no contest.
    complete = [own.mean for own, planned in cells.values() if own.n == planned]
    better = study.better(metric) if complete else None
    best = shown_number(metric, (max if better == "max" else min)(complete)) if better else ""
    name = f"{worded(metric)}{shown_unit(metric)[1]}"
    caption = f"Cells: mean over {seeds_text(study.seeds)}"
    caption += " ± standard deviation (n − 1)." if len(study.seeds) > 1 else "."
    partial = len(complete) < len(cells)
    caption += f" Framed: the best{' of those finished on all seeds' * partial}." if better else ""

    def draw(figure: Figure) -> None:
        factor, _ = shown_unit(metric)
        colours = ColourScale(factor * min(means), factor * max(means))
        panels = figure.subplots(1, len(axes[2]), sharey=True, squeeze=False)[0]
        for (beta1, beta2, epsilon), (own, planned) in cells.items():
            panel = panels[axes[2].index(epsilon)]
            place = (axes[0].index(beta1), axes[1].index(beta2))
            text = shown_pair(metric, own.mean, own.sd).replace(" ± ", "\n± ") if own.n else "none\nfinished"
            text += f"\n({own.n} of {planned})" if 0 < own.n < planned else ""
            fill_cell(panel, *place, text, colours(factor * own.mean) if own.n else None, fontsize=7.5)
            if own.n == planned and shown_number(metric, own.mean) == best:
                frame_cell(panel, *place)
        for panel, epsilon in zip(panels, axes[2], strict=True):
            _label_axes(panel, axes)
            panel.set_title(f"ε = {epsilon:g}", fontsize=9)
        panels[0].set_ylabel("β2")
        bar = figure.colorbar(colours.mappable, ax=list(panels), fraction=0.04, pad=0.02)
        bar.set_label(name[0].upper() + name[1:])
        bar.outline.set_visible(False)
        title(figure, f"{name[0].upper()}{name[1:]} over Adam's settings", study, caption)

    width = 0.85 * len(axes[0]) + 0.35
    write_figure(draw, (max(width * len(axes[2]) + 1.6, 5.0), 0.6 * len(axes[1]) + 1.9), paths)


def _cells(study: StudyData, metric: str) -> dict[Key, tuple[Estimate, int]]:
    """Return the estimate of each place, and how many trials were planned for it."""
    members: dict[Key, list[TrialData]] = {}
    for trial in study.trials:
        values = [trial.settings.get(name) for name in PLACE]
        if all(isinstance(value, (int, float)) for value in values):
            beta1, beta2, epsilon = (float(value) for value in values if isinstance(value, (int, float)))
            members.setdefault((beta1, beta2, epsilon), []).append(trial)
    try:
        cells = {key: (estimate(seed_values(trials, metric).values()), len(trials)) for key, trials in members.items()}
    except SettingError as error:
        raise MissingDataError(f"adam_map of {metric}: the trials form no grid: {error}") from error
    if sum(own.n > 0 for own, _ in cells.values()) < 2:
        raise MissingDataError(f"adam_map of {metric}: fewer than two settings of Adam have a finished trial.")
    return cells


def _label_axes(panel: Any, axes: list[list[float]]) -> None:
    panel.set(xlim=(0, len(axes[0])), ylim=(0, len(axes[1])))
    panel.set_xticks(np.arange(len(axes[0])) + 0.5, [f"{value:g}" for value in axes[0]])
    panel.set_yticks(np.arange(len(axes[1])) + 0.5, [f"{value:g}" for value in axes[1]])
    panel.set_xlabel("β1")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
