"""Files that are either the old ones or the new ones, never half of each; lines that may go into a closed pipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ht_ray._checks import SettingError

__all__ = ["remove", "say", "write_bytes", "write_text"]


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path` and rename it; folders are made.

    Raises
    ------
    SettingError
        If that is not possible there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SettingError(f"{path} cannot be written: {error.strerror or error}.") from error


def write_text(path: Path, content: str) -> None:
    """Write `content` in UTF-8, as `write_bytes` does; what UTF-8 has no bytes for, as ``\\udcff``."""
    write_bytes(path, content.encode(errors="backslashreplace"))


def remove(path: Path) -> None:
    """Remove a file.

    Raises
    ------
    SettingError
        If that is not possible.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SettingError(f"{path} cannot be removed: {error.strerror or error}.") from error


def say(text: str) -> None:
    """Print; who closes the pipe (``| head``) has read enough, and the report is written all the same."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Nor shall Python's own flush at the end find it closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
