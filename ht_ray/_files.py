"""Writing of files: whole or not at all, whenever the process dies. The standard library only."""

from __future__ import annotations

import io
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["append_whole", "atomic_path", "locked", "print_line", "write_atomic"]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, which takes its name if the block ends well, and is deleted otherwise.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "new.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...     [path.name for path in Path(folder).iterdir()]
    ['new.txt']
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}_{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        # On a full disk half a file only takes more room.
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file that, whenever the process dies, has either its old content or all of the new one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def append_whole(file: io.FileIO, content: bytes) -> None:
    """Write `content` at the end of an open file: all of it, or on an error nothing."""
    end = file.seek(0, os.SEEK_END)
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        # A full disk takes part of it.
        file.truncate(end)
        raise


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file, which is made, while the block runs; yield whether it was free.

    It goes with the process, so a killed one leaves none behind.
    """
    import fcntl

    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def print_line(text: str) -> None:
    """Print a line; a reader may close the pipe (``| head``), and what is being done goes on."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Nor shall Python's own flush at the end find it closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
