"""Scratch folders of this machine that go away with their process, however that ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["scratch_folder"]

_PREFIX = "ht-ray-scratch-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Have an empty folder in the local scratch (``TMPDIR``) while the block runs.

    What processes that were killed left there is deleted, too: a folder is locked by its process for as long as that
    lives. A folder that is to stay is given another name by the block.

    Raises
    ------
    OSError
        If there is no room for it.
    """
    root = Path(tempfile.gettempdir())
    for left in root.glob(f"{_PREFIX}*"):
        _delete_unless_locked(left)
    # Its name makes others look at it, so it has that only when it is locked.
    unseen = Path(tempfile.mkdtemp(prefix=".ht-ray-", dir=root))
    lock = os.open(unseen, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = unseen.rename(root / f"{_PREFIX}{uuid.uuid4().hex[:12]}")
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _delete_unless_locked(folder: Path) -> None:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return  # another user's, or gone
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(lock)
