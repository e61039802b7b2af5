"""The files of a study, which a sweep writes and a report reads: what each must be.

This is the ground floor: the standard library only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ht_ray._schema import Damaged, parse

__all__ = [
    "CONFIG",
    "DECISION",
    "FORMAT",
    "ID",
    "JOURNAL",
    "LEASE",
    "LOCK",
    "MANIFEST",
    "PLAN",
    "REPORT",
    "SETTLED",
    "STATUS",
    "Reports",
    "read_file",
]

FORMAT = 1
JOURNAL = "journal.jsonl"
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
    "metric": str,
    "mode": {"max", "min"},
    "settings": dict,
    "command?": [str],
    "created?": str,
    "versions?": {str: str},
    "plan?": str,
}
PLAN = [{"id": _NAME, "label": str, "settings": _SETTINGS, "config?": dict}]
SETTLED = {"label": str, "settings": _SETTINGS, "config": dict}
STATUS = {
    "status": {"unfinished", "running", "finished", "failed", "diverged", "stopped"},
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
