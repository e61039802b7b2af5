"""Processes of this machine, as ``/proc`` has them; there are none on systems without it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["process_ids", "process_texts"]


def process_ids() -> list[int]:
    """Return the ids of all processes."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def process_texts(pid: int, name: str) -> list[str]:
    """Return what a process has in ``cmdline`` or ``environ``; one empty text if it is gone, or another user's."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace").split("\0")
    except OSError:
        return [""]
