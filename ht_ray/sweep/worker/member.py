"""Member of a pack: what one trial of a worker has reported, and what of that is saved. No Ray here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ht_ray.errors import Diverged
from ht_ray.records import Outcome
from ht_ray.records.checked_json import to_sealed_json
from ht_ray.sweep.search.population import Lineage, Segment
from ht_ray.sweep.study.trial import Report, Trial
from ht_ray.sweep.worker.checkpoints import Checkpoint, CheckpointStore

__all__ = ["Lone", "Member"]


class Lone:
    """A pack of one trial that cannot be packed.

    Parameters
    ----------
    name
        The trial's id.
    """

    def __init__(self, name: str, trial: Trial) -> None:
        self._name = name
        self._trial = trial
        self.interrupt = getattr(trial, "interrupt", None)

    def advance(self) -> Mapping[str, Report | Exception]:
        try:
            return {self._name: self._trial.advance()}
        except Diverged as error:
            return {self._name: error}

    def save(self, trial: str, directory: Path) -> None:
        self._trial.save(directory)

    def load(self, trial: str, directory: Path) -> None:
        self._trial.load(directory)

    def drop(self, trial: str) -> None:
        """Nothing: its worker lets the pack go."""


@dataclass
class Member:
    """One trial of a worker.

    Parameters
    ----------
    id
        The trial's.
    store
        Its checkpoints.
    lineage
        What a search has decided of its settings; None if nothing is.

    Attributes
    ----------
    read
        Whether it was found out from where it goes on.
    files
        The folder with the state that it goes on from; None if it has no past.
    segment
        The segment of its lineage in which it was made ready; None if it has no lineage.
    lines
        Its reports so far, as JSON.
    part
        How often it was saved after the last of them.
    seconds
        What the part that was cut off has cost.
    unsaved
        The result to return once it is saved; None if it is.
    asked
        Whether it was looked up, since its last report, if the driver lets it go on.
    """

    id: str
    store: CheckpointStore
    lineage: Lineage | None = None
    read: bool = False
    files: Path | None = None
    segment: Segment | None = None
    lines: list[str] = field(default_factory=list)
    part: int = 0
    seconds: float = 0.0
    unsaved: dict[str, Any] | None = None
    asked: bool = True
    _reached: dict[str, float] = field(default_factory=dict)  # the last step of each curve

    @property
    def position(self) -> dict[str, Any]:
        """How far it is, as results have it."""
        return {"reports": len(self.lines), "part": self.part}

    @property
    def checkpoint(self) -> Checkpoint:
        """What is saved with its state."""
        return Checkpoint((len(self.lines), self.part), tuple(self.lines), round(self.seconds, 6))

    @property
    def finished(self) -> bool:
        """Whether its last report is made."""
        return bool(self.lines) and bool(json.loads(self.lines[-1])["progress"] >= 1)

    @property
    def source(self) -> str | None:
        """The trial whose state it takes over where it stands."""
        here = self.segment is not None and (self.segment.reports, 0) == (len(self.lines), self.part)
        return self.segment.source if self.segment is not None and here else None

    @property
    def turns(self) -> bool:
        """Whether it goes on in another segment than that in which it was made ready."""
        return self.lineage is not None and self.lineage.segment(len(self.lines)) != self.segment

    @property
    def held(self) -> int | None:
        """After how many reports it waits for a decision; None if it can go on."""
        waits = self.lineage is not None and self.lineage.until == len(self.lines)
        return len(self.lines) if waits else None

    def resume(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Go on from a checkpoint, and return the result of that."""
        self.lines, self.seconds, self.part = list(checkpoint.lines), checkpoint.seconds, checkpoint.position[1]
        self.segment = self.lineage.segment(len(self.lines)) if self.lineage is not None else None
        self._reached = {}
        for line in self.lines:
            self._go_to(json.loads(line)["curves"])
        # Its worker may have died between the last report and the driver's note of it.
        outcome = Outcome.FINISHED if self.finished else Outcome.RESUMED
        return {"outcome": outcome, "lines": list(self.lines), **self.position}

    def report(self, report: Report, seconds: float) -> None:
        """Take in a report, the last part of which took so long. It is to be saved before it is returned."""
        row = self.lineage.row(len(self.lines)) if self.lineage is not None else None
        curves = {**report.curves, **({"schedule": [row]} if row is not None else {})}
        self._go_to(curves)
        content = {
            "index": len(self.lines),
            "curves": curves,
            "summary": report.summary,
            "progress": report.progress,
            "seconds": round(self.seconds + seconds, 6),
        }
        self.lines.append(to_sealed_json(content))
        self.seconds, self.part = 0.0, 0
        outcome = Outcome.FINISHED if report.progress >= 1 else Outcome.RUNNING
        self.unsaved = {"outcome": outcome, "report": self.lines[-1], "samples": report.samples, **self.position}

    def cut_off(self, seconds: float, result: Mapping[str, Any]) -> None:
        """Stop inside a part, after so long. It is to be saved before `result` is returned."""
        self.seconds += seconds
        self.part += 1
        self.unsaved = {**result, **self.position}

    def _go_to(self, curves: Mapping[str, list[dict[str, float]]]) -> None:
        """Take in how far the curves are; raise if one goes back, which on disk would look like damage."""
        for curve, rows in curves.items():
            for row in rows:
                reached = self._reached.get(curve, -math.inf)
                if row["step"] < reached:
                    raise ValueError(f"the curve {curve!r} goes back from step {reached:g} to step {row['step']:g}")
                self._reached[curve] = row["step"]
