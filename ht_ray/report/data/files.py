"""Files that are either the old ones or the new ones, never half of each; lines that may go into a closed pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TypeVar

from ht_ray._files import write_atomic
from ht_ray._storage import PASSING, StorageError, retry
from ht_ray.errors import SettingError

__all__ = ["remove", "say", "waited", "waiting", "write_bytes", "write_text"]

T = TypeVar("T")
Say = Callable[[str], object]

_patience: ContextVar[tuple[float, Say]] = ContextVar("patience", default=(0.0, lambda text: None))


@contextmanager
def waiting(patience: float, say: Say) -> Iterator[None]:
    """Let what is written in the block wait up to `patience` seconds for a disk that is full or lost, and say so."""
    token = _patience.set((patience, say))
    try:
        yield
    finally:
        _patience.reset(token)


def waited(what: Callable[[], T]) -> T:
    """Return ``what()``, tried again while it raises `StorageError` for as long as `waiting` says."""
    patience, say = _patience.get()

    def trouble(error: StorageError) -> None:
        if patience:
            say(f"{error}; waiting up to {patience / 60:g} minutes for it")

    return retry(what, patience=patience, on_trouble=trouble)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path` and rename it; folders are made.

    Raises
    ------
    SettingError
        If that is not possible there.
    StorageError
        If the disk is full or lost, after the time of `waiting`.
    """
    waited(partial(_write_bytes, path, content))


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        told = f"{path} cannot be written: {error.strerror or error}"
        if error.errno in PASSING:
            raise StorageError(told) from error
        raise SettingError(f"{told}.") from error


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
