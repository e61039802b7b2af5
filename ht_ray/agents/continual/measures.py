"""Measures of continual RL: returns per task and cycle, area under the curve, loss of plasticity, forgetting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ContinualMeasures", "measure"]

Table = NDArray[np.float64]


@dataclass(frozen=True)
class ContinualMeasures:
    """What a run's visits were worth; all in the returns' own unit, NaN where a visit is not finished.

    Attributes
    ----------
    area
        ``(tasks, cycles)``: the area under the learning curve of a visit, divided by its steps: the mean, over the
        steps, of the return of the game that a step is of.
    start, end
        ``(tasks, cycles)``: the return of games without learning, before a visit and after it.
    """

    area: Table
    start: Table
    end: Table

    @property
    def plasticity_loss(self) -> Table:
        """``(tasks, cycles)``: how far the area is below that of the same task's first visit; 0 there."""
        return self.area[:, :1] - self.area

    @property
    def forgetting(self) -> Table:
        """``(tasks, cycles - 1)``: what was lost of a task's return from one visit's end to the next one's start."""
        return self.end[:, :-1] - self.start[:, 1:]

    def summary(self) -> dict[str, float]:
        """Return means over the tasks.

        Returns
        -------
        dict
            ``average_return``: the area under the curve, of all visits; ``first_area`` and ``last_area``: of the first
            cycle and of the last quarter of the cycles; ``plasticity_loss``: their difference; ``forgetting``, of all
            cycles.
        """
        if not np.isfinite(self.area).any():
            return dict.fromkeys(("average_return", "first_area", "last_area", "plasticity_loss", "forgetting"), np.nan)
        cycles = self.area.shape[1]
        first, last = self.area[:, 0], self.area[:, cycles - max(1, cycles // 4) :]
        return {
            "average_return": _mean(self.area),
            "first_area": _mean(first),
            "last_area": _mean(last),
            "plasticity_loss": _mean(first) - _mean(last),
            "forgetting": _mean(self.forgetting),
        }


def _mean(values: Table) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def measure(visits: Iterable[Mapping[str, float]], *, tasks: int, cycles: int) -> ContinualMeasures:
    """Return the measures of finished visits.

    Parameters
    ----------
    visits
        Rows with ``task`` and ``cycle``, from 0, and ``area``, ``start_return``, ``end_return``.
    tasks, cycles
        How many there are in the whole stream.

    Examples
    --------
    >>> rows = [
    ...     {"task": 0, "cycle": 0, "area": 90.0, "start_return": 10.0, "end_return": 200.0},
    ...     {"task": 0, "cycle": 1, "area": 60.0, "start_return": 150.0, "end_return": 170.0},
    ... ]
    >>> found = measure(rows, tasks=1, cycles=2)
    >>> found.plasticity_loss.tolist(), found.forgetting.tolist()
    ([[0.0, 30.0]], [[50.0]])
    """
    tables = {name: np.full((tasks, cycles), np.nan) for name in ("area", "start_return", "end_return")}
    for row in visits:
        for name, table in tables.items():
            table[int(row["task"]), int(row["cycle"])] = row[name]
    return ContinualMeasures(tables["area"], tables["start_return"], tables["end_return"])
