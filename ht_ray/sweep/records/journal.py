"""Journal of a study: its runs, nodes that came and went, faults and damage, a line each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ht_ray.records import EventKind
from ht_ray.records.checked_json import Scalar, to_sealed_json
from ht_ray.records.study_files import JOURNAL, append_line

__all__ = ["note"]


def note(directory: Path, event: EventKind, **values: Scalar | Sequence[str]) -> None:
    """Add an event to the study's journal.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    append_line(directory / JOURNAL, to_sealed_json({"time": now, "event": event, **values}))
