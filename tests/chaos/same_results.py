"""Whether two runs of a study have the same results."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

# What tells of the run and not of what was computed.
_OF_THE_RUN = ("seconds", "restarts")


def reports(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """All report lines by trial, without the time they took."""
    return {
        path.parent.name: [{**json.loads(line), "seconds": None, "sum": None} for line in path.read_text().splitlines()]
        for path in sorted(directory.glob("trials/*/results.jsonl"))
    }


def table(directory: Path) -> list[dict[str, str]]:
    """The rows of results.csv, without what tells of the run."""
    with (directory / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in _OF_THE_RUN} for row in csv.DictReader(file)]


def journal(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a trial."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def differences(directory: Path, reference: Path) -> list[str]:
    """Sentences on what differs: lost, duplicated or changed reports, rows, curves and tables."""
    found = []
    mine, theirs = reports(directory), reports(reference)
    for trial in sorted(mine.keys() | theirs.keys()):
        if mine.get(trial) != theirs.get(trial):
            found.append(f"{trial}: {len(mine.get(trial, []))} reports and {len(theirs.get(trial, []))} differ")
        elif [line["index"] for line in mine[trial]] != list(range(len(mine[trial]))):
            found.append(f"{trial}: its reports are not each there once")
        elif scalars(directory / "trials" / trial) != scalars(reference / "trials" / trial):
            found.append(f"{trial}: its event files differ")
    if table(directory) != table(reference):
        found.append("results.csv differs")
    tables = ("table.csv", "drops.csv")
    found += [
        f"{name} differs" for name in tables if (directory / name).read_bytes() != (reference / name).read_bytes()
    ]
    return found + [f"left behind: {path}" for path in directory.rglob("*.tmp")]
