"""Visits of agents to the tasks of a stream: the area under their learning curves by cycle, as figure and table.

A study directory (see `load_study`) is one of continual RL if its trials have a setting ``task_stream``. They then have
a curve ``visit`` with the columns ``step``, ``task``, ``cycle`` (from 0), ``area``, ``start_return`` and
``end_return``, and the summary numbers ``average_return``, ``first_area``, ``last_area``, ``plasticity_loss`` and
``forgetting``.
"""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ht_ray.report.data.statistics import estimate, interval_name, mean_interval
from ht_ray.report.data.study import MissingDataError, StudyData, TrialData, seed_values
from ht_ray.report.style.curve_lines import BASELINE, method_colour
from ht_ray.report.style.figures import Figure, PathLike, add_grid, add_title, escape_math, write_figure
from ht_ray.report.style.formats import format_seeds
from ht_ray.report.style.tables import Cell, Column, Table, study_table

__all__ = ["is_continual_rl", "losses_figure", "visits_figure", "visits_table"]

#: Panels in a row.
ACROSS = 3
#: Panels of `losses_figure`: summary numbers, and what is good.
LOSSES = {"average_return": "Average return ↑", "plasticity_loss": "Loss of plasticity ↓", "forgetting": "Forgetting ↓"}

Array = NDArray[np.float64]


def is_continual_rl(study: StudyData) -> bool:
    """Return whether the trials name streams of tasks for agents."""
    return any("task_stream" in trial.settings for trial in study.trials)


def visits_figure(study: StudyData, *paths: PathLike) -> None:
    """Draw the area under the learning curve by cycle, mean over the tasks: a panel for each method, over plain.

    Lines are means over the finished runs, bands the 95% interval over the seeds. The plain method is black in every
    panel.
    """
    found = {label: _by_cycle(trials) for label, trials in study.by_label.items()}
    found = {label: areas for label, areas in found.items() if areas.size}
    if not found:
        raise MissingDataError("visits_figure: no finished run has visits.")
    methods = {trial.label: trial.method for trial in study.trials}
    plain = next((label for label in found if methods[label] == BASELINE), None)
    panels = [label for label in found if label != plain] or [*found]
    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    runs = [len(areas) for areas in found.values()]
    ends = _reach([area for areas in found.values() for area in areas.ravel()])

    def draw_line(axis: Any, areas: Array, colour: str, marker: str, **style: Any) -> None:
        cycles = np.arange(1, areas.shape[1] + 1)
        axis.plot(cycles, areas.mean(axis=0), color=colour, marker=marker, markersize=3.5, **style)
        ends = np.array([mean_interval(areas[:, cycle]) for cycle in range(areas.shape[1])])
        axis.fill_between(cycles, *ends.T, color=colour, alpha=0.2, linewidth=0)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for index, (axis, label) in enumerate(zip(axes.flat, panels, strict=False)):
            if plain is not None:
                draw_line(axis, found[plain], "black", "o", linewidth=1.1, linestyle="--")
            if label != plain:
                draw_line(axis, found[label], method_colour(methods[label]), "s", linewidth=1.6)
            axis.set_ylim(*ends)
            axis.set_title(escape_math(textwrap.fill(label, 38)), fontsize=8.5, loc="left")
            axis.tick_params(labelsize=7.5, labelbottom=index + across >= len(panels))
            axis.xaxis.get_major_locator().set_params(integer=True)
            add_grid(axis, "y")
        figure.supylabel("Mean return during a visit", fontsize=9)
        caption = "Horizontal: cycle, that is how often each task was visited. Vertical: the area under a visit's "
        caption += f"learning curve, divided by its steps; mean over tasks and {format_seeds(study.seeds)}."
        if max(runs) > 1:
            caption += f" Bands: {interval_name(max(runs))} over seeds; the axis spans single runs."
        caption += f" Dashed, in black: {plain}." if plain is not None else ""
        fewer = [f"{label} {len(areas)}" for label, areas in found.items() if len(areas) < len(study.seeds)]
        caption += f" Finished runs, where fewer: {', '.join(fewer)}." if fewer else ""
        add_title(figure, "Return while learning, visit after visit to the same tasks", study, caption)

    write_figure(draw, (max(3.1 * across, 6.0), 2.1 * down + 1.5), paths)


def losses_figure(study: StudyData, *paths: PathLike) -> None:
    """Draw what each method got and lost: average return, loss of plasticity, forgetting; a row for each method.

    Squares are means over the finished runs, whiskers the 95% interval, dots single runs.
    """
    values = {
        metric: {label: [*seed_values(trials, metric).values()] for label, trials in study.by_label.items()}
        for metric in LOSSES
    }
    if not any(own for by_label in values.values() for own in by_label.values()):
        raise MissingDataError("losses_figure: no finished run has a summary.")
    methods = {trial.label: trial.method for trial in study.trials}
    names = [escape_math("\n".join(textwrap.wrap(label, 34))) for label in methods]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(LOSSES), sharey=True)
        for panel, (metric, title) in zip(panels, LOSSES.items(), strict=True):
            for row, (label, own) in enumerate(values[metric].items()):
                if not own:
                    continue
                colour, mean = method_colour(methods[label]), estimate(own).mean
                low, high = mean_interval(own)
                if math.isfinite(low):
                    panel.plot([low, high], [row, row], color=colour, linewidth=1.8)
                panel.plot(own, [row + 0.25] * len(own), linestyle="", marker="o", markersize=2.5, color="0.6")
                panel.plot([mean], [row], linestyle="", marker="s", markersize=6, color=colour)
            if metric != "average_return":
                panel.axvline(0, color="0.4", linewidth=0.8, zorder=0)
            shown = [value for own in values[metric].values() for value in own]
            panel.set_xlim(*_reach(shown if metric == "average_return" else [0.0, *shown]))
            panel.set_title(title, fontsize=9)
            panel.tick_params(axis="y", length=0)
            add_grid(panel, "x")
        panels[0].set_yticks(range(len(names)), names, fontsize=8)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        caption = f"In the unit of the returns. Squares: mean over {format_seeds(study.seeds)}, of all tasks."
        if len(study.seeds) > 1:
            caption += f" Whiskers: {interval_name(len(study.seeds))}; dots: single seeds, which the axes span."
        caption += (
            " Loss of plasticity: area of the first cycle minus that of the last quarter of the cycles. Forgetting:"
        )
        caption += " Forgetting: return at the end of a visit minus that at the start of the next one to the same task."
        add_title(figure, "Average return, loss of plasticity and forgetting by method", study, caption)

    height = sum(0.17 * name.count("\n") + 0.3 for name in names)
    write_figure(draw, (10.0, height + 1.8), paths)


def visits_table(study: StudyData) -> Table:
    """Tabulate the visits by method, task and cycle: area, and the returns without learning before and after."""
    rows = []
    for label, trials in study.by_label.items():
        tables = {name: _tables(trials, name) for name in ("area", "start_return", "end_return")}
        if not len(tables["area"]):
            continue
        for task, cycle in np.ndindex(tables["area"].shape[1:]):
            cells = [Cell(label, (label,)), Cell(str(task + 1), (task + 1,)), Cell(str(cycle + 1), (cycle + 1,))]
            for values in tables.values():
                own = values[:, task, cycle]
                known = estimate(own[np.isfinite(own)])
                cells.append(Cell(f"{known.mean:.1f}", (known.n, known.mean, known.sd)))
            rows.append(cells)
    if not rows:
        raise MissingDataError("visits_table: no finished run has visits.")
    columns = [Column("method", ("label",)), Column("task", ("task",)), Column("cycle", ("cycle",))]
    columns += [
        Column(title, (f"{name}_n", f"{name}_mean", f"{name}_sd"))
        for name, title in (("area", "area"), ("start_return", "return before"), ("end_return", "return after"))
    ]
    return study_table(study, f"Visits of {study.name}", columns, rows, (), problems=False)


def _reach(values: list[float]) -> tuple[float, float]:
    """Return the ends of an axis that shows all runs: intervals of a few would press them together."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def _tables(trials: tuple[TrialData, ...], name: str) -> Array:
    """Return a number of the finished runs' visits, ``(runs, tasks, cycles)``; NaN where it is unknown."""
    known = [trial.curves["visit"] for trial in trials if trial.finished and "visit" in trial.curves]
    if not known:
        return np.empty((0, 0, 0))
    shape = [int(max(rows[axis].max() for rows in known)) + 1 for axis in ("task", "cycle")]
    tables = np.full((len(known), *shape), np.nan)
    for table, rows in zip(tables, known, strict=True):
        table[rows["task"].astype(int), rows["cycle"].astype(int)] = rows[name]
    return tables


def _by_cycle(trials: tuple[TrialData, ...]) -> Array:
    """Return the area of the finished runs, mean over the tasks: ``(runs, cycles)``."""
    areas = _tables(trials, "area")
    known = np.isfinite(areas)
    counts = known.sum(axis=1)
    return np.divide(np.where(known, areas, 0).sum(axis=1), counts, out=np.full(counts.shape, np.nan), where=counts > 0)
