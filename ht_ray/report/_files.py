"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import os
from pathlib import Path

from ht_ray._checks import SettingError

__all__ = ["remove", "write_bytes", "write_text"]


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
