"""Files that are replaced as a whole, with patience for a full disk; lines that may go into a closed pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TypeVar

from ht_ray._files import print_line, write_atomic
from ht_ray._storage import PASSING, StorageError, retry
from ht_ray.errors import SettingError

__all__ = ["Log", "print_line", "remove", "storage_patience", "with_patience", "write_bytes", "write_text"]

T = TypeVar("T")
Log = Callable[[str], object]
"""A function that is called with each line of progress."""

_patience: ContextVar[tuple[float, Log]] = ContextVar("patience", default=(0.0, lambda text: None))


@contextmanager
def storage_patience(seconds: float, log: Log) -> Iterator[None]:
    """Let the writes of the block wait for a disk that is full or lost, for so many seconds at most, and log that."""
    token = _patience.set((seconds, log))
    try:
        yield
    finally:
        _patience.reset(token)


def with_patience(action: Callable[[], T]) -> T:
    """Return ``action()``, tried again while it raises `StorageError`, as `storage_patience` allows."""
    seconds, log = _patience.get()

    def trouble(error: StorageError) -> None:
        if seconds:
            log(f"{error}; waiting up to {seconds / 60:g} minutes for it")

    return retry(action, patience=seconds, on_trouble=trouble)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name next to `path` and rename it; folders are made.

    Raises
    ------
    SettingError
        If that is not possible there.
    StorageError
        If the disk is full or lost, for longer than `storage_patience` allows.
    """
    with_patience(partial(_write_bytes, path, content))


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        if error.errno in PASSING:
            raise StorageError(message) from error
        raise SettingError(f"{message}.") from error


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
