"""Precision in which a network computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["autocast"]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Return a context in which a network computes in `dtype`, or with None in that of its weights, whoever calls.

    A context of torch's costs as much as a small layer: there is one only where it changes something.

    Examples
    --------
    >>> layer, batch = torch.nn.Linear(2, 2), torch.ones(1, 2)
    >>> with autocast(batch.device, torch.bfloat16):
    ...     print(layer(batch).dtype)
    ...     with autocast(batch.device, None):
    ...         print(layer(batch).dtype)
    torch.bfloat16
    torch.float32
    """
    if dtype is None and not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
