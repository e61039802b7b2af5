"""Accuracy matrix of a stream of tasks: each task's test accuracy after each task, as a figure, and what it tells."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ht_ray.report.data.statistics import estimate
from ht_ray.report.data.study import MissingDataError, StudyData, TrialData, seed_values
from ht_ray.report.style.figures import (
    ColourScale,
    Figure,
    PathLike,
    add_colour_bar,
    add_title,
    escape_math,
    fill_cell,
    label_cells,
    write_figure,
)
from ht_ray.report.style.formats import (
    best_as_shown,
    capitalize,
    describe,
    display_unit,
    format_mean_sd,
    format_seeds,
    format_value,
    humanize,
    metric_title,
)
from ht_ray.report.style.tables import Cell, Column, Table, format_n, label_columns, study_table

__all__ = ["has_matrix", "has_own_tests", "matrix_figure", "transfer_table"]

#: Panels in a row.
ACROSS = 3
#: Cells of more tasks have no room for a number.
MOST_NUMBERS = 12
#: Ticks at an axis.
MOST_TICKS = 20

Matrix = NDArray[np.float64]


def has_matrix(study: StudyData) -> bool:
    """Return whether trials measured an accuracy matrix."""
    return any(_columns(study, trial) for trial in study.trials)


def has_own_tests(study: StudyData) -> bool:
    """Return whether phases are tasks with tests of their own: to be worse there than on the one before is no drop."""
    return has_matrix(study) or "plasticity_slope" in study.summary_names


def transfer_table(study: StudyData) -> Table:
    """Tabulate the accuracy on all tasks' test samples at the end, forgetting, backward and forward transfer, by label.

    Mean and standard deviation (divisor n - 1) over the finished trials. The best of each column is marked among the
    labels that finished on all seeds, where not all are alike.
    """
    measure = humanize(study.measure)
    points = " (points)" if display_unit(study.measure)[1] else ""
    titles = {
        f"stream_{study.measure}": f"{measure}, all tasks{display_unit(study.measure)[1]}",
        "task_forgetting": f"forgetting{points}",
        "backward_transfer": f"backward transfer{points}",
        "forward_transfer": f"forward transfer{points}",
    }
    columns, cells = label_columns(study)
    for name, title in titles.items():
        if name not in study.summary_names:
            continue
        columns.append(Column(title, tuple(f"{name}_{part}" for part in ("n", "mean", "sd"))))
        means = {label: estimate(seed_values(trials, name).values()) for label, trials in study.by_label.items()}
        complete = {label: own.mean for label, own in means.items() if own.n == len(study.seeds)}
        better = "min" if name == "task_forgetting" else "max"
        best = best_as_shown(complete, better, partial(format_value, study.measure))
        # Where all are alike, that is no distinction.
        best = best if len(best) < len(means) else []
        for label, own in means.items():
            finished = sum(trial.finished for trial in study.by_label[label])
            text = format_mean_sd(study.measure, own.mean, own.sd) + format_n(own.n, finished)
            cells[label].append(Cell(text, (own.n, own.mean, own.sd), label in best))
    notes = [
        f"R(i, j): test {measure} on task j after task i, R(0, j) that of the untrained network; t: the last task. All "
        "tasks: on the test samples of all of them together, after t. Forgetting: mean over the tasks before t of "
        "R(j, j) − R(t, j); backward transfer is its negative. Forward transfer: mean over the tasks from the second "
        "on of R(j − 1, j) − R(0, j). The definitions are Avalanche's.",
        "Mean ± standard deviation (n − 1) over seeds.",
    ]
    title = f"What tasks do to each other, {describe(study)}"
    return study_table(study, title, columns, cells.values(), notes, problems=False)


def matrix_figure(study: StudyData, *paths: PathLike) -> None:
    """Draw the accuracy matrix of each label: columns are the tasks tested, rows the tasks trained before.

    Cells are means over the finished trials. The first row is the untrained network.
    """
    matrices = {label: own for label, trials in study.by_label.items() if (own := _mean(study, trials)) is not None}
    if not matrices:
        raise MissingDataError("matrix_figure: no finished trial has an accuracy matrix.")
    factor = display_unit(study.measure)[0]
    tasks = max(matrix.shape[1] for matrix in matrices.values())
    across, down = min(ACROSS, len(matrices)), math.ceil(len(matrices) / ACROSS)
    known = np.concatenate([factor * matrix[np.isfinite(matrix)] for matrix in matrices.values()])
    numbers = tasks <= MOST_NUMBERS

    def draw(figure: Figure) -> None:
        colours = ColourScale(float(known.min()), float(known.max()))
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
        for panel in panels.flat[len(matrices) :]:
            panel.remove()
        used = list(panels.flat[: len(matrices)])
        for index, (panel, (label, matrix)) in enumerate(zip(used, matrices.items(), strict=True)):
            rows = len(matrix)
            if numbers:
                for (row, column), value in np.ndenumerate(factor * matrix):
                    known_cell = math.isfinite(value)
                    text = f"{value:.0f}" if known_cell and factor > 1 else f"{value:.2f}" if known_cell else ""
                    fill_cell(panel, column, rows - 1 - row, text, colours(value) if known_cell else None, 7.5)
            else:
                style = {"aspect": "auto", "interpolation": "nearest", "extent": (0, tasks, 0, rows)}
                panel.imshow(factor * matrix, norm=colours.mappable.norm, cmap=colours.mappable.cmap, **style)
            every = math.ceil(tasks / MOST_TICKS)
            names = [str(task) if task % every == 0 or every == 1 else "" for task in range(1, tasks + 1)]
            label_cells(panel, names, [*reversed(names), "untrained"])
            panel.set_title(escape_math("\n".join(textwrap.wrap(label, 34))), fontsize=9)
            if index + across >= len(matrices):
                panel.set_xlabel("Tested on task")
                panel.tick_params(labelbottom=True)
            if index % across == 0:
                panel.set_ylabel("After task")
        add_colour_bar(figure, colours, used, f"test {metric_title(study.measure)}", 0.04)
        caption = f"Cells: mean over {format_seeds(study.seeds)}." if len(study.seeds) > 1 else ""
        what = f"{capitalize(humanize(study.measure))} on each task, after each task"
        add_title(figure, what, study, f"{caption} Below the diagonal: what is kept; above: what is known before.")

    side = 0.42 * tasks if numbers else 3.4
    write_figure(draw, (max(across * (side + 0.35) + 1.7, 5.5), down * (side + 0.95) + 1.1), paths)


def _columns(study: StudyData, trial: TrialData) -> list[str]:
    curve, found = trial.curves.get("phase", {}), list[str]()
    while (name := f"test_{study.measure}_on_{len(found) + 1}") in curve:
        found.append(name)
    return found


def _mean(study: StudyData, trials: Sequence[TrialData]) -> Matrix | None:
    """Return the mean matrix over the finished trials, the untrained network's row first; None if there is none."""
    seed_values(trials, "")  # refuses trials that are not one method's repetitions
    found: dict[tuple[int, ...], list[Matrix]] = {}
    for trial in trials:
        columns, curve = _columns(study, trial), trial.curves.get("phase", {})
        if trial.finished and columns:
            before = [name.replace("_on_", "_untrained_on_") for name in columns]
            untrained = [curve[name][0] if name in curve else math.nan for name in before]
            matrix = np.vstack([untrained, np.stack([curve[name] for name in columns], axis=1)])
            found.setdefault(matrix.shape, []).append(matrix)
    return np.mean(max(found.values(), key=len), axis=0) if found else None
