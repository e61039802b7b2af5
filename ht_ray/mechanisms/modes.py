"""Modes of a network's parts: evaluation for as long as a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluation_mode"]


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put every part of `module` into evaluation mode inside a block, and its own mode back after, errors included.

    Each part's own flag: a network may keep some parts in evaluation mode, and ``train()`` may be overridden.

    Examples
    --------
    >>> net = nn.Sequential(nn.Dropout(), nn.Linear(1, 1).eval())
    >>> with evaluation_mode(net):
    ...     [part.training for part in net]
    [False, False]
    >>> [part.training for part in net]
    [True, False]
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode
