"""Journal of a study: its runs, and the events while they ran."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from ht_ray.records.checked_json import SUM, Damaged, parse
from ht_ray.records.study_files import JOURNAL

__all__ = ["JOURNAL", "Event", "Journal", "Run", "load_journal", "summarize_error"]

#: Letters of the summary of an error that are kept.
WIDTH = 160

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
#: The reason, in Ray's messages on the death of an actor.
_REASONS = (
    re.compile(r"Worker exit detail: (.+?)(?= There are some potential root causes| Some common causes|$)", re.M),
    re.compile(r"(the actor's node was terminated.*)"),
)
#: Lines of these messages that give no reason.
_PLAIN = re.compile(
    r"The actor died unexpectedly before finishing this task\.|(class_name|actor_id|pid|name|namespace|ip): "
)


@dataclass(frozen=True)
class Event:
    """A line of the journal.

    Attributes
    ----------
    name
        ``"run started"``, ``"run ended"``, ``"fault"``, ``"resumed"``, ``"node joined"``, ``"node lost"``,
        ``"checkpoint damaged"``, ``"file damaged"``, ``"storage"``, ``"waiting"``, or what a later version adds.
    time
        When the driver wrote it, in ISO 8601; ``""`` where it has none.
    values
        Everything else.
    """

    name: str
    time: str
    values: Mapping[str, Any]

    def text(self, key: str) -> str:
        """Return one of the values as text, ``""`` where there is none."""
        value = self.values.get(key)
        return "" if value is None else _printable(str(value)).strip()

    def number(self, key: str) -> int | None:
        """Return one of the values if it is a whole number."""
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def when(self, zone: tzinfo | None) -> str:
        """Return the time in the zone given, to the second."""
        moment = _moment(self.time)
        if moment is None:
            return _printable(self.time)
        return f"{moment.astimezone(zone) if moment.tzinfo else moment:%Y-%m-%d %H:%M:%S}"


@dataclass(frozen=True)
class Run:
    """One run of a study, from a driver's start to its end.

    Attributes
    ----------
    began
        The event ``"run started"``.
    ended
        The event ``"run ended"``; ``None`` where there is none.
    last
        The last event of the run.
    followed
        Whether another run came after it. One that is followed and has no end is one whose driver died.
    """

    began: Event
    ended: Event | None
    last: Event
    followed: bool

    @property
    def how(self) -> str:
        """How it ended: ``"finished"``, ``"interrupted"``; without an end ``"cut off"``, or ``"open"`` if the last."""
        if self.ended is None:
            return "cut off" if self.followed else "open"
        return self.ended.text("how") or "ended"


@dataclass(frozen=True)
class Journal:
    """The events of a study's ``journal.jsonl``.

    Attributes
    ----------
    events
        In the order written.
    damaged
        How many lines, or parts of lines, could not be read.
    """

    events: tuple[Event, ...]
    damaged: int = 0

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs, in order. Only one driver is at work at a time."""
        starts = [index for index, event in enumerate(self.events) if event.name == "run started"]
        runs = []
        for start, end in itertools.pairwise([*starts, len(self.events)]):
            own = self.events[start:end]
            ended = next((event for event in reversed(own) if event.name == "run ended"), None)
            runs.append(Run(own[0], ended, own[-1], end < len(self.events)))
        return tuple(runs)

    @property
    def zone(self) -> tzinfo | None:
        """The time zone of the first event: drivers may have been elsewhere later."""
        moments = (_moment(event.time) for event in self.events)
        return next((moment.tzinfo for moment in moments if moment is not None and moment.tzinfo), None)

    def named(self, *names: str) -> tuple[Event, ...]:
        """Return the events of these names."""
        return tuple(event for event in self.events if event.name in names)


def load_journal(directory: Path) -> Journal | None:
    """Return the journal in a study's directory; ``None`` where there is none.

    Lines that cannot be read, such as one that a kill has torn, are counted and left out.
    """
    try:
        text = (directory / JOURNAL).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError:
        return Journal((), damaged=1)
    events: list[Event] = []
    damaged = 0
    for line in text.split("\n"):
        whole = line.strip(" \r\0")
        if not whole:
            continue
        event = next(_events(whole), None)
        damaged += event is None or not _is_whole(whole)
        events += [event] if event is not None else []
    return Journal(tuple(events), damaged)


def summarize_error(detail: str, width: int = WIDTH) -> str:
    """Return the most informative line of an error, of at most `width` letters.

    It is the error's own line of a traceback, the reason in one of Ray's messages on the death of an actor, and
    otherwise the first line.

    Examples
    --------
    >>> summarize_error('Traceback (most recent call last):\\n  File "a.py", line 3, in f\\n    g()\\nValueError: no')
    'ValueError: no'
    """
    lines = [_printable(line).rstrip() for line in detail.splitlines() if line.strip()]
    frames = [index for index, line in enumerate(lines) if line.startswith(" ") and line.lstrip().startswith('File "')]
    found = ""
    if frames:
        found = next((line for line in lines[frames[-1] + 1 :] if not line.startswith(" ")), "")
    for reason in _REASONS if not found else ():
        match = reason.search("\n".join(lines))
        found = found or (match[1] if match else "")
    if not found:
        found = next((line for line in lines if not _PLAIN.match(line.strip())), lines[0] if lines else "")
    found = found.strip()
    return found if len(found) <= width else f"{found[: width - 1].rstrip()}…"


def _events(line: str) -> Iterator[Event]:
    """Yield the events of a line; a line after a torn one is joined to its remains."""
    starts = [0, *(match.start() for match in re.finditer(r'\{"time":', line) if match.start())]
    yield from (event for start in starts if (event := _event(line[start:])) is not None)


def _is_whole(line: str) -> bool:
    try:
        parse(line.encode(), {"event": str})
    except Damaged:
        return False
    return True


def _event(text: str) -> Event | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(name := content.pop("event", None), str):
        return None
    content.pop(SUM, None)
    time = content.pop("time", None)
    return Event(_printable(name), time if isinstance(time, str) else "", content)


def _moment(time: str) -> datetime | None:
    try:
        return datetime.fromisoformat(time)
    except ValueError:
        return None


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in _COLOUR.sub("", text))
