"""Save and load whole strategies, where Avalanche's own functions fail."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeVar

import torch
from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint

from ht_ray._files import atomic_path

__all__ = ["load_strategy", "save_strategy"]

TStrategy = TypeVar("TStrategy")


def _let_dill_find_optimizers() -> None:
    # torch.optim hides its sub-modules, so dill takes its classes for ones without a home, and fails on them.
    for name, module in list(sys.modules.items()):
        parent, _, leaf = name.rpartition(".")
        if parent == "torch.optim" and not hasattr(torch.optim, leaf):
            setattr(torch.optim, leaf, module)


def save_strategy(strategy: Any, path: str | Path) -> None:
    """Write the state of `strategy` to `path`: to a temporary name, then renamed.

    Call it between experiences. Images of `stream_benchmark` are not written.
    """
    path = Path(path)
    _let_dill_find_optimizers()
    with atomic_path(path) as temporary:
        save_checkpoint(strategy, str(temporary))


def load_strategy(strategy: TStrategy, path: str | Path, map_location: Any = None) -> tuple[TStrategy, int]:
    """Continue from what `save_strategy` wrote, if `path` exists.

    The file holds pickled objects, as Avalanche's checkpoints do: load only what you trust. Make the benchmark first.

    Returns
    -------
    strategy, int
        The strategy in its saved state, and the index of the experience to train on next (0 without a file).
    """
    _let_dill_find_optimizers()
    path = Path(path)
    loaded: tuple[TStrategy, int] = maybe_load_checkpoint(strategy, path, map_location=map_location)
    return loaded
