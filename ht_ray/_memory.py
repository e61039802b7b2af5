"""Memory that a worker's C library keeps between steps."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT, _LARGEST = 128 << 20, 32 << 20


def keep_freed_memory() -> bool:
    """Let glibc keep up to 128 MiB of freed memory, and take blocks below 32 MiB from it; return whether it does.

    A training step on a CPU frees the tensors that the next one takes again. By itself glibc gives the end of its heap
    back to the system when twice the largest block that was freed is unused there; the next step then takes a page
    fault for each 4 KiB. For a pack of 75 networks that was a fifth of a step. Where the environment sets such limits
    (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``), or the C library is another one, nothing is changed.
    """
    given = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if sys.platform != "linux" or given:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))
