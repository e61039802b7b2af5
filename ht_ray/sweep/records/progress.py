"""Progress of a study: the time left, and the lines that say so."""

from __future__ import annotations

import heapq
import math
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

from ht_ray.records import TrialStatus
from ht_ray.records.names import humanize
from ht_ray.sweep.records.trial_record import TrialRecord

__all__ = ["Console", "StudyProgress", "Workload", "clock", "seconds_left"]

# Of trials that have ended it is not known in which pack that was.
_SOME_PACK = -1
_NAMED = (TrialStatus.RUNNING, TrialStatus.STOPPED, TrialStatus.FAILED, TrialStatus.DIVERGED)
#: What the bar is drawn with.
BAR, REST = "━", "─"
# How parts of a panel are coloured: what is done, and what went wrong.
_COLOURS = {rf"({BAR}+)": 36, r"(\d+ failed|\d+ diverged)": 31}


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
    pack
        The number of the pack it is in; None if it runs alone. The seconds of a trial in a pack are its share of the
        pack's.
    trials
        How many such trials this is, with their sums.
    """

    progress: float
    seconds: float
    ended: bool = False
    running_for: float | None = None
    pack: int | None = None
    trials: int = 1


def seconds_left(trials: Sequence[Workload], slots: int, *, untouched: int = 0) -> float | None:
    """Return the time until all trials have ended, if `slots` of them run at a time; None while nothing is known.

    A trial that has reported goes on at its own speed, the others take the mean of all that run alike: alone, or in
    packs. Waiting trials start, in order, wherever a slot is free first; so a last, long trial counts in full. A pack
    takes what its trials take together.

    Parameters
    ----------
    trials
        Those of which anything is known, and all that are in packs.
    untouched
        How many more have not been started; they come last. Any number of them costs as little as one.

    Examples
    --------
    Two trials of ten seconds each are left, and one half of a third:

    >>> half_done = [Workload(0.5, 5.0, running_for=0.0)]
    >>> seconds_left(half_done, slots=1, untouched=2), seconds_left(half_done, slots=2, untouched=2)
    (25.0, 15.0)
    """
    if not untouched and all(trial.ended for trial in trials):
        return 0.0
    if not any(trial.progress > 0 for trial in trials):
        return None
    usual, usual_packed = (_usual_seconds(trials, packed=packed) for packed in (False, True))
    running, waiting = [], []
    for members in _together([trial for trial in trials if not trial.ended]):
        left = 0.0
        for trial in members:
            seconds = usual if trial.pack is None else usual_packed
            whole = trial.seconds / trial.progress if trial.progress > 0 else seconds * trial.trials
            left += (1 - trial.progress) * whole
        began = [trial.running_for for trial in members if trial.running_for is not None]
        if began:
            running.append(max(left - min(began), 0.0))
        else:
            waiting.append(left)
    free_at = running + [0.0] * (slots - len(running))
    heapq.heapify(free_at)
    for left in waiting:
        heapq.heapreplace(free_at, free_at[0] + left)
    last = max(free_at)
    while untouched:
        if last - free_at[0] <= usual:
            # From here on they go round the slots in turn.
            rounds, rest = divmod(untouched, len(free_at))
            in_turn = sorted(free_at)
            return max(in_turn[-1] + rounds * usual, in_turn[rest - 1] + (rounds + 1) * usual if rest else 0.0)
        last = max(last, free_at[0] + usual)
        heapq.heapreplace(free_at, free_at[0] + usual)
        untouched -= 1
    return last


def _usual_seconds(trials: Sequence[Workload], *, packed: bool) -> float:
    """The mean time of a whole trial that runs alone, or in a pack; that of all while nothing is known of its kind."""
    measured = [trial for trial in trials if trial.progress > 0]
    alike = [trial for trial in measured if (trial.pack is not None) == packed] or measured
    return sum(trial.seconds for trial in alike) / sum(trial.progress for trial in alike)


def _together(trials: Sequence[Workload]) -> list[list[Workload]]:
    """The trials, those of a pack in one list, in the order of the first of each."""
    together: dict[object, list[Workload]] = {}
    for number, trial in enumerate(trials):
        together.setdefault(("alone", number) if trial.pack is None else trial.pack, []).append(trial)
    return list(together.values())


class Console:
    """Lines that are repainted on a terminal and in a notebook, and printed now and then elsewhere.

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
        # A notebook's output has no cursor, but goes back to the beginning of a line.
        self._notebook = type(self._stream).__module__.startswith("ipykernel.")
        self._every = 1.0 if self._repaints else every
        self._painted: list[str] = []
        self._last = -float("inf")

    def due(self) -> bool:
        """Whether it is time for the next status."""
        return time.monotonic() - self._last >= self._every

    def status(self, lines: Iterable[str]) -> None:
        """Show the status, instead of the last one on a terminal."""
        self._last = time.monotonic()
        self._erase()
        if self._repaints:
            self._paint([self._coloured(line[: _columns()]) for line in lines])
        elif self._notebook:
            self._paint(["; ".join(lines)])
        else:
            self._print(["; ".join(lines)])

    def show(self, progress: StudyProgress) -> None:
        """Show how far a study is: as a panel on a terminal, as a line elsewhere."""
        if not self._repaints:
            self.status(progress.lines())
            return
        encoding = (getattr(self._stream, "encoding", None) or "utf-8").lower()
        self.status(progress.panel(_columns(), ascii_only=not encoding.startswith("utf")))

    def say(self, text: str) -> None:
        """Print a text that stays."""
        painted = self._painted
        self._erase()
        self._print([text])
        if painted:
            self._paint(painted)

    def _coloured(self, line: str) -> str:
        for pattern, colour in () if os.environ.get("NO_COLOR") else _COLOURS.items():
            line = re.sub(pattern, f"\x1b[{colour}m\\1\x1b[0m", line)
        return line

    def _paint(self, lines: list[str]) -> None:
        self._painted = lines
        self._print(lines, end="" if self._notebook else "\n")

    def _erase(self) -> None:
        if self._painted:
            blank = f"\r{' ' * len(self._painted[0])}\r"
            self._stream.write(blank if self._notebook else f"\x1b[{len(self._painted)}F\x1b[J")
            self._painted = []

    def _print(self, lines: Iterable[str], end: str = "\n") -> None:
        self._stream.writelines(f"{line}{end}" for line in lines)
        self._stream.flush()


def _columns() -> int:
    """How many columns of the terminal a line may fill without being wrapped."""
    return shutil.get_terminal_size().columns - 1


@dataclass(frozen=True)
class _Seen:
    """A record as it was when it was looked at last."""

    status: TrialStatus
    progress: float
    seconds: float

    @property
    def waits(self) -> bool:
        """Whether the trial has not been started."""
        return self.status == TrialStatus.UNFINISHED and self.progress == 0


@dataclass
class _Ended:
    """The sums over trials that have ended."""

    trials: int = 0
    progress: float = 0.0
    seconds: float = 0.0


class StudyProgress:
    """Sums a study up in two lines, or in a panel.

    Only records that have changed are looked at again: the lines of a study of thousands of trials cost what those of a
    small one do.

    Parameters
    ----------
    records
        All its trials. From now on their changes are followed here.
    metric, mode
        By which the best trial is found.
    slots
        How many trials, or packs, run at a time.
    packs
        The ids of the trials that run together, as far as any do.
    """

    def __init__(
        self,
        name: str,
        records: Sequence[TrialRecord],
        metric: str,
        mode: str,
        slots: int,
        packs: Sequence[Sequence[str]] = (),
    ) -> None:
        self._name = name
        self._records = records
        self._metric = metric
        self._sign = 1 if mode == "max" else -1
        self._slots = slots
        self._start = time.monotonic()
        self._part_began: dict[str, float] = {}
        self._order = {record.spec.id: number for number, record in enumerate(records)}
        self._seen: dict[str, _Seen] = {}
        self._counts: Counter[TrialStatus] = Counter()
        # Trials of which something is known but that have not ended; of the ended ones, the sums.
        self._open: dict[str, TrialRecord] = {}
        self._ended = {None: _Ended(), _SOME_PACK: _Ended()}  # those that run alone, and those in packs
        # A pack's number is that of its first trial.
        packed = {record.spec.id for record in records if record.spec.pack is not None}
        self._pack = {name: self._order[pack[0]] for pack in packs for name in pack if name in packed}
        self._waiting = Counter(self._pack.values())  # how many of each pack have not been started
        self._values: dict[int, float] = {}  # the metrics of finished trials, by their number
        for record in records:
            self._look(record)
            record.on_change = self._look
        self._ended_before = self._ended_number

    def part_began(self, record: TrialRecord) -> None:
        """Note that a trial has begun a part of its work."""
        self._part_began[record.spec.id] = time.monotonic()

    @property
    def counts(self) -> dict[TrialStatus, int]:
        """How many trials have each status; the usual ones always."""
        usual = [status for status in TrialStatus if status != TrialStatus.STOPPED]
        return {**dict.fromkeys(usual, 0), **self._counts}

    @property
    def best(self) -> float | None:
        """The metric of the best trial that has finished; None if there is none."""
        best = self._best_trial()
        return None if best is None else self._values[best]

    def seconds_left(self) -> float | None:
        """The time until the study has ended; None while nothing is known."""
        known = {self._place(name): self._workload(record) for name, record in self._open.items()}
        for pack, number in self._waiting.items():
            if number:
                known[pack, -1] = Workload(0.0, 0.0, pack=pack, trials=number)
        # Those that wait start in the order of the plan, whichever was opened first.
        trials = [known[place] for place in sorted(known)]
        for kind, ended in self._ended.items():
            if ended.trials:
                trials.append(Workload(ended.progress, ended.seconds, ended=True, pack=kind, trials=ended.trials))
        untouched = len(self._records) - len(self._open) - self._ended_number - self._waiting.total()
        return seconds_left(trials, self._slots, untouched=untouched)

    def _place(self, name: str) -> tuple[int, int]:
        """Where a trial comes in the order in which they start."""
        return self._pack.get(name, self._order[name]), self._order[name]

    def lines(self) -> list[str]:
        """The study's state, then the best finished trial if there is one."""
        parts = [f"{self._name}: {self._counts[TrialStatus.FINISHED]} of {len(self._records)} trials done"]
        parts += [f"{self._counts[status]} {status}" for status in _NAMED if self._counts[status]]
        return [", ".join([*parts, *self._times()]), *self._best_line()]

    def panel(self, width: int = 100, *, ascii_only: bool = False) -> list[str]:
        """The study's state as a terminal shows it: a bar, trials by state, the rate, the time left, the best so far.

        Parameters
        ----------
        width
            Columns of the terminal.
        ascii_only
            Whether the terminal has no other characters.
        """
        whole = len(self._records)
        open_share = math.fsum(record.progress for record in self._open.values())
        done = self._ended_number + open_share
        end = f"{self._ended_number} of {whole} trials  {done / whole:4.0%}"
        room = max(width - len(self._name) - len(end) - 4, 8)
        full = round(room * done / whole)
        filled, empty = ("#", ".") if ascii_only else (BAR, REST)
        counts = [
            f"{self._counts[status]} {status}" for status in (TrialStatus.FINISHED, *_NAMED) if self._counts[status]
        ]
        waiting = whole - self._ended_number - self._counts[TrialStatus.RUNNING]
        if waiting:
            counts.append(f"{waiting} waiting")
        elapsed = time.monotonic() - self._start
        times = self._times()
        if (new := self._ended_number - self._ended_before) and elapsed > 0:
            times.append(_rate(new / elapsed))
        bar = f"{self._name}  {filled * full}{empty * (room - full)}  {end}"
        return [bar, "   ".join(counts), "   ".join(times), *self._best_line()]

    @property
    def _ended_number(self) -> int:
        return sum(ended.trials for ended in self._ended.values())

    def _times(self) -> list[str]:
        left = self.seconds_left()
        parts = [f"{clock(time.monotonic() - self._start)} elapsed"]
        if left is None or left > 0:
            parts.append("time left not known yet" if left is None else f"about {clock(left)} left")
        return parts

    def _best_line(self) -> list[str]:
        if (best := self._best_trial()) is None:
            return []
        spec = self._records[best].spec
        seed = spec.settings.get("seed")
        which = spec.label if seed is None else f"{spec.label} (seed {seed})"
        return [f"best {humanize(self._metric)} so far {_shown(self._metric, self._values[best])}: {which}"]

    def _best_trial(self) -> int | None:
        """The number of the best trial that has finished; of equals the one that was planned first."""
        return max(self._values, key=lambda number: (self._sign * self._values[number], -number), default=None)

    def _look(self, record: TrialRecord) -> None:
        """Take in what has changed of `record`."""
        name = record.spec.id
        now = _Seen(record.status, record.progress, record.seconds)
        before = self._seen.get(name)
        self._seen[name] = now
        if before is not None:
            self._counts[before.status] -= 1
            if before.status.ended:
                self._count_ended(record, before, -1)
        self._counts[now.status] += 1
        if now.status.ended:
            self._count_ended(record, now, 1)
            self._part_began.pop(name, None)
        if name in self._pack:
            waited = before is None or before.waits
            self._waiting[self._pack[name]] += now.waits - waited
        if not now.status.ended and not now.waits:
            self._open[name] = record
        else:
            self._open.pop(name, None)
        value = record.summary.get(self._metric) if now.status == TrialStatus.FINISHED else None
        if value is None:
            self._values.pop(self._order[name], None)
        else:
            self._values[self._order[name]] = value

    def _count_ended(self, record: TrialRecord, seen: _Seen, sign: int) -> None:
        ended = self._ended[None if record.spec.pack is None else _SOME_PACK]
        ended.trials += sign
        ended.progress += sign * seen.progress
        ended.seconds += sign * seen.seconds

    def _workload(self, record: TrialRecord) -> Workload:
        running_for = None
        if record.status == TrialStatus.RUNNING and record.spec.id in self._part_began:
            running_for = time.monotonic() - self._part_began[record.spec.id]
        pack = self._pack.get(record.spec.id)
        return Workload(record.progress, record.seconds, record.status.ended, running_for, pack)


def _shown(metric: str, value: float) -> str:
    """Return a value as tables have it: accuracies in per cent."""
    return f"{100 * value:.2f} %" if metric.endswith("accuracy") else f"{value:.4g}"


def _rate(per_second: float) -> str:
    """Return how many trials end, by a unit of time in which it is at least one.

    Examples
    --------
    >>> _rate(2.0), _rate(0.1), _rate(0.001)
    ('2.0 trials a second', '6.0 trials a minute', '3.6 trials an hour')
    """
    for unit, seconds in (("a second", 1), ("a minute", 60)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.1f} trials {unit}"
    return f"{per_second * 3600:.1f} trials an hour"


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
