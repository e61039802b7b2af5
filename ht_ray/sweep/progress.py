"""How far a study is: the time left, and the lines that say so."""

from __future__ import annotations

import heapq
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from ht_ray.sweep.study_dir import TrialRecord

__all__ = ["Console", "StudyProgress", "Workload", "seconds_left"]


@dataclass(frozen=True)
class Workload:
    """What is known of one trial's cost.

    Parameters
    ----------
    progress
        The share that is done, in [0, 1].
    seconds
        The worker's time for that share.
    ended
        Whether nothing more will be done.
    running_for
        Seconds since a running trial began its present part; None if it does not run.
    """

    progress: float
    seconds: float
    ended: bool = False
    running_for: float | None = None


def seconds_left(trials: Sequence[Workload], slots: int) -> float | None:
    """Return the time until all trials have ended, if `slots` of them run at a time; None while nothing is known.

    A trial that has reported goes on at its own speed, the others take the mean of all. Waiting trials start, in
    order, wherever a slot is free first; so a last, long trial counts in full.

    Examples
    --------
    Two trials of ten seconds each are left, and one half of a third:

    >>> trials = [Workload(0.5, 5.0, running_for=0.0), Workload(0.0, 0.0), Workload(0.0, 0.0)]
    >>> seconds_left(trials, slots=1), seconds_left(trials, slots=2)
    (25.0, 15.0)
    """
    measured = [(trial.progress, trial.seconds) for trial in trials if trial.progress > 0]
    if all(trial.ended for trial in trials):
        return 0.0
    if not measured:
        return None
    usual = sum(seconds for _, seconds in measured) / sum(progress for progress, _ in measured)
    running, waiting = [], []
    for trial in trials:
        if trial.ended:
            continue
        whole = trial.seconds / trial.progress if trial.progress > 0 else usual
        left = (1 - trial.progress) * whole
        if trial.running_for is None:
            waiting.append(left)
        else:
            running.append(max(left - trial.running_for, 0.0))
    free_at = running + [0.0] * (slots - len(running))
    heapq.heapify(free_at)
    for left in waiting:
        heapq.heapreplace(free_at, free_at[0] + left)
    return max(free_at)


class Console:
    """Lines that are repainted on a terminal, and printed now and then elsewhere.

    Parameters
    ----------
    stream
        Where to; standard error by default, so that a program's results can be piped on.
    every
        Seconds between two status lines where there is no terminal. A terminal is repainted every second.
    """

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._repaints = self._stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._every = 1.0 if self._repaints else every
        self._painted: list[str] = []
        self._last = -float("inf")

    def due(self) -> bool:
        """Whether it is time for the next status."""
        return time.monotonic() - self._last >= self._every

    def status(self, lines: Iterable[str]) -> None:
        """Show the status, in place of the last one on a terminal."""
        self._last = time.monotonic()
        self._erase()
        if self._repaints:
            width = shutil.get_terminal_size().columns - 1
            self._painted = [line[:width] for line in lines]
            self._print(self._painted)
        else:
            self._print(["; ".join(lines)])

    def say(self, text: str) -> None:
        """Print a text that stays."""
        painted = self._painted
        self._erase()
        self._print([text])
        if painted:
            self._painted = painted
            self._print(painted)

    def _erase(self) -> None:
        if self._painted:
            self._stream.write(f"\x1b[{len(self._painted)}F\x1b[J")
            self._painted = []

    def _print(self, lines: Iterable[str]) -> None:
        self._stream.writelines(f"{line}\n" for line in lines)
        self._stream.flush()


class StudyProgress:
    """Sums a study up in two lines.

    Parameters
    ----------
    records
        All its trials.
    metric, mode
        What the best trial is told by.
    slots
        How many trials run at a time.
    """

    def __init__(self, name: str, records: Sequence[TrialRecord], metric: str, mode: str, slots: int) -> None:
        self._name = name
        self._records = records
        self._metric = metric
        self._sign = 1 if mode == "max" else -1
        self._slots = slots
        self._start = time.monotonic()
        self._part_began: dict[str, float] = {}

    def part_began(self, record: TrialRecord) -> None:
        """Note that a trial has begun a part of its work."""
        self._part_began[record.spec.id] = time.monotonic()

    def lines(self) -> list[str]:
        """The study's state, then the best finished trial if there is one."""
        count = Counter(record.status for record in self._records)
        parts = [f"{self._name}: {count['finished']} of {len(self._records)} trials done"]
        parts += [f"{count[status]} {status}" for status in ("running", "failed", "diverged") if count[status]]
        parts.append(f"{clock(time.monotonic() - self._start)} elapsed")
        left = seconds_left([self._workload(record) for record in self._records], self._slots)
        if left is None or left > 0:
            parts.append("time left not known yet" if left is None else f"about {clock(left)} left")
        return [", ".join(parts), *self._best()]

    def _best(self) -> list[str]:
        values = [
            (self._sign * record.finite_summary[self._metric], record)
            for record in self._records
            if record.status == "finished" and self._metric in record.finite_summary
        ]
        if not values:
            return []
        value, record = max(values, key=lambda pair: pair[0])
        seed = record.spec.settings.get("seed")
        which = record.spec.label if seed is None else f"{record.spec.label} (seed {seed})"
        return [f"best {self._metric} so far {self._sign * value:.4g}: {which}"]

    def _workload(self, record: TrialRecord) -> Workload:
        running_for = None
        if record.status == "running" and record.spec.id in self._part_began:
            running_for = time.monotonic() - self._part_began[record.spec.id]
        return Workload(record.progress, record.seconds, record.final, running_for)


def clock(seconds: float) -> str:
    """Write a duration as h:mm:ss.

    Examples
    --------
    >>> clock(3725.4)
    '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
