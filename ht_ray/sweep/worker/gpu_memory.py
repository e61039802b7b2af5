"""Memory of a GPU that several trials share: whether each has what it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ht_ray.errors import SettingError
from ht_ray.records import EventKind
from ht_ray.sweep.study.config import GIB

__all__ = ["gpu_memory", "wait_for_gpu_memory"]


def gpu_memory() -> tuple[int, int]:
    """Return the free and the whole memory of this process's GPU, in bytes.

    Raises
    ------
    SettingError
        If the process has no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise SettingError("gpu_memory_per_trial: the trial has no GPU; give it a share with gpus_per_trial.")
    free, whole = torch.cuda.mem_get_info()
    return free, whole


def wait_for_gpu_memory(
    needed: float,
    *,
    share: float,
    say: Callable[[Mapping[str, str]], None],
    memory: Callable[[], tuple[int, int]] = gpu_memory,
    patience: float = 60.0,
    every: float = 2.0,
) -> None:
    """Return when this process's GPU has `needed` bytes free.

    Parameters
    ----------
    share
        The share of the GPU that a trial has: as many trials as fit will be on it.
    say
        Called, once, if there is something to wait for: a trial that ended a moment ago may still hold its memory.
    memory
        What is free and what there is, in bytes.
    patience, every
        Seconds to wait, and between two looks.

    Raises
    ------
    SettingError
        If trials with such a share of the GPU cannot all have as much: that would never change.
    MemoryError
        If it is not free in time: something else uses the GPU.
    """
    free, whole = memory()
    together = max(1, int(1 / share + 1e-9)) if 0 < share <= 1 else 1
    if together * needed > whole:
        raise SettingError(
            f"gpu_memory_per_trial = {needed / GIB:.3g} GiB and gpus_per_trial = {share:g}: {together} trials would "
            f"share a GPU of {whole / GIB:.3g} GiB, which has not as much for each. Give each trial a larger share."
        )
    began = time.monotonic()
    if free < needed:
        detail = f"the GPU has {free / GIB:.3g} GiB free; {needed / GIB:.3g} are needed"
        say({"event": EventKind.WAITING, "detail": detail})
    while free < needed:
        if time.monotonic() - began > patience:
            raise MemoryError(
                f"the GPU has {free / GIB:.3g} of {whole / GIB:.3g} GiB free, and the trial needs "
                f"{needed / GIB:.3g}: something else uses it"
            )
        time.sleep(every)
        free, whole = memory()
