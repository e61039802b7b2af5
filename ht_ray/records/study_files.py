"""Files of a study, in its directory: their names, the form of each, how lines are added and read back.

The driver alone writes here::

    config.json                  format, name, command, creation time, versions, metric, mode, settings, sum of the plan
    trials.json                  all planned trials, in order
    trials/ID/results.jsonl      a line per report: index, curves, summary, progress, seconds
    trials/ID/status.json        status, error, restarts, node, number of reports
    trials/ID/events.out.*       for TensorBoard
    results.csv                  a row per planned trial
    journal.jsonl                events: runs, nodes that came and went, faults, damage; a line each
    trials/ID/settled.json       label, settings and config of a trial whose settings were suggested when it began
    population.jsonl             who took over whose state: a line per population and round

The workers write ``checkpoints/ID/`` (see `ht_ray.sweep.worker.checkpoints`). Files are replaced whole or appended to.
A kill can tear only the last line of a ``results.jsonl`` or of the journal, which then does not count. Objects and
lines end with a check sum, ``"sum"``; those without one, of earlier versions, are taken as they are.
"""

from __future__ import annotations

import io
import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ht_ray._files import append_whole
from ht_ray._storage import storage_errors
from ht_ray.records.checked_json import Damaged, Scalar, parse, to_sealed_json
from ht_ray.records.statuses import EventKind, TrialStatus

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "CONFIG_FILE",
    "DECISION",
    "FORMAT",
    "ID",
    "JOURNAL",
    "LEASE",
    "LEASE_FILE",
    "LOCK",
    "MANIFEST",
    "PLAN",
    "PLAN_FILE",
    "POPULATION",
    "REPORT",
    "SETTLED",
    "STATUS",
    "TRIALS",
    "Reports",
    "append_line",
    "note",
    "read_file",
]

#: Of the study directory as a whole.
FORMAT = 1
CONFIG_FILE = "config.json"
PLAN_FILE = "trials.json"
JOURNAL = "journal.jsonl"
POPULATION = "population.jsonl"
TRIALS = "trials"
CHECKPOINTS = "checkpoints"
LEASE_FILE = "lease.json"
LOCK = ".lock"

#: Safe as a file name everywhere.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+@-]{0,119}")

# A name in a folder, and nothing that leads out of it.
_NAME = re.compile(r"(?!\.)[^/\\\0\ud800-\udfff]{1,250}")
_SCALAR = (bool, float, str, None)
_NUMBER = (bool, float, None)
_SETTINGS = {str: _SCALAR}

CONFIG = {
    "format": int,
    "study": str,
    "id?": str,
    "metric": str,
    "mode": {"max", "min"},
    "settings": dict,
    "command?": [str],
    "created?": str,
    "versions?": {str: str},
    "plan?": str,
}
PLAN = [{"id": _NAME, "label": str, "settings": _SETTINGS, "config?": dict, "pack?": _NAME}]
SETTLED = {"label": str, "settings": _SETTINGS, "config": dict}
STATUS = {
    "status": {status.value for status in TrialStatus},
    "error?": (str, None),
    "restarts?": int,
    "node?": (str, None),
    "reports?": int,
}
DECISION = {
    "group": str,
    "reports": int,
    "scores": {str: _NUMBER},
    "legs": {str: {"reports": int, "source": (str, None), "values": {str: float}}},
}
LEASE = {"host": str, "pid": int, "machine": str, "token": str, "beat": float}
MANIFEST = {
    "format": int,
    "trial": str,
    "reports": int,
    "part": int,
    "seconds": float,
    "extra": dict,
    "files": {str: [(int, str)]},
}
REPORT = {
    "index": int,
    "curves": {str: [{"step": float, str: _NUMBER}]},
    "summary": {str: _NUMBER},
    "progress": float,
    "seconds": (float, None),
}


class Reports:
    """The good reports of a ``results.jsonl``, up to the first line that is damaged.

    Iterating yields them, once. Reports that come twice, are missing or are in another order are damage, too, and so
    are curves that go back.

    Attributes
    ----------
    damage
        What is wrong with the first bad line, after the last good report; None if nothing is.
    torn
        Whether that is only that a kill, or a full disk, cut off the last line.
    """

    def __init__(self, content: bytes) -> None:
        self.damage: str | None = None
        self.torn = False
        self._content = content

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Without its newline a line may be short of its end, even if it reads as JSON.
        *lines, rest = self._content.split(b"\n")
        reached: dict[str, float] = {}
        for index, line in enumerate(lines):
            try:
                report = parse(line, REPORT)
                if report["index"] != index:
                    raise Damaged(f"it is report {report['index']} where report {index} was due")
                if not 0 <= report["progress"] <= 1:
                    raise Damaged(f"its progress is {report['progress']!r}, and should be between 0 and 1")
                for curve, rows in report["curves"].items():
                    for row in rows:
                        if row["step"] < reached.get(curve, -math.inf):
                            raise Damaged(f"the curve {curve!r} goes back to step {row['step']!r}")
                        reached[curve] = row["step"]
            except Damaged as damage:
                self.damage = f"line {index + 1}: {damage}"
                return
            yield report
        if rest:
            self.damage, self.torn = f"line {len(lines) + 1}: it was not written to its end", True


def read_file(path: Path, form: Any) -> Any:
    """Return the JSON of a file.

    Raises
    ------
    Damaged
        If it is not of the form; the message begins with the file's path.
    OSError
        If it cannot be read.
    """
    try:
        return parse(path.read_bytes(), form)
    except Damaged as damage:
        raise Damaged(f"{path} is damaged: {damage}") from damage


# Threads of the driver share the journal.
_appending = threading.Lock()


def append_line(path: Path, line: str) -> None:
    """Add a line to a file: all of it, or on an error nothing. Half a line that a kill left at its end is deleted.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    with _appending, storage_errors(path), path.open("a+b", buffering=0) as file:
        _cut_torn_line(file)
        append_whole(file, line.encode() + b"\n")


def note(directory: Path, event: EventKind, **values: Scalar | Sequence[str]) -> None:
    """Add an event to the study's journal.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    append_line(directory / JOURNAL, to_sealed_json({"time": now, "event": event, **values}))


def _cut_torn_line(file: io.FileIO) -> None:
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.readall().rfind(b"\n") + 1)
