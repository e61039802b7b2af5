"""Records of ``python -m ht_ray.agents.continual``: JSON lines, one for each run, read as a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ht_ray.errors import SettingError
from ht_ray.report.data.study import Curve, StudyData, TrialData

__all__ = ["load_record"]


def load_record(path: Path) -> StudyData:
    """Read a record.

    Raises
    ------
    SettingError
        If it is none, or a line is damaged; a last line that a kill has cut short is left out.
    """
    trials, settings = [], dict[str, Any]()
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            trials.append(_trial(row))
            settings = row["run"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines) > 1 and not line.endswith(b"\n"):
                break
            raise SettingError(
                f"{path}: line {number} is damaged, or none of a record of python -m ht_ray.agents.continual."
            ) from error
    if not trials:
        raise SettingError(f"{path}: it has no runs.")
    config = {"study": path.stem, "settings": settings, "metric": "average_return", "mode": "max"}
    return StudyData(path, config, tuple(trials), source=str(path))


def _trial(row: dict[str, Any]) -> TrialData:
    method, seed, record, stream = row["method"], row["seed"], row["record"], row["run"]["stream"]
    named = {"method": method.partition(":")[0], "task_stream": record["stream"], "seed": seed}
    visits = _curve(record["visits"])
    measured = {name: visits.pop(name) for name in [*visits] if name not in _VISIT}
    curves = {"visit": visits, "training": _curve(record["curve"])}
    if measured:
        number = visits["visit"] + 1
        curves["phase"] = {"step": number, "phase": number, **measured}
    return TrialData(
        id=f"{method}-seed{seed}",
        label=row.get("label", method),
        settings={**named, "tasks": len(record["tasks"]), "cycles": stream["cycles"]},
        status="finished",
        error="",
        curves=curves,
        summary={name: float(value) for name, value in row["summary"].items()},
        progress=1.0,
        seconds=0.0,
        damage=(),
        config={"stream": stream, "agent": record["config"]},
    )


# What a visit has that is no indicator.
_VISIT = ("visit", "step", "task", "cycle", "area", "start_return", "end_return")


def _curve(rows: list[dict[str, float]]) -> Curve:
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]} if rows else {}
