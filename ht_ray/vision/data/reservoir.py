"""Reservoir: a bounded memory that is a uniform sample of everything seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ht_ray._checks import check_number
from ht_ray.mechanisms import generator

__all__ = ["Reservoir"]


class Reservoir:
    """Reservoir sampling by random keys: keeps the `size` items with the smallest keys of all that were added.

    Each item gets a uniform key once, when it arrives, so at any time the content is a uniform sample without
    replacement of everything seen (Vitter 1985; Efraimidis & Spirakis 2006 with equal weights), and only items held
    before, or arriving now, can be held next.

    Parameters
    ----------
    size
        How many items are kept; at least 1.
    seed
        Of the keys.

    Raises
    ------
    SettingError
        If `size` is below 1.

    Examples
    --------
    >>> memory = Reservoir(3, seed=0)
    >>> memory.add(torch.arange(10))
    >>> memory.add(torch.arange(10, 20))
    >>> len(memory.items)
    3
    """

    def __init__(self, size: int, *, seed: int = 0) -> None:
        check_number("Reservoir: size", size, low=1, integer=True)
        check_number("Reservoir: seed", seed, integer=True)
        self.size = size
        self.seed = seed
        #: How many times items were added.
        self.rounds = 0
        #: The items held, int64 of shape ``(n,)``, ``n <= size``, in order of arrival.
        self.items = torch.empty(0, dtype=torch.int64)
        self._keys = torch.empty(0, dtype=torch.float64)

    def add(self, items: Tensor) -> None:
        """Let `items` (int64, shape ``(n,)``) compete for the places; they are taken to be new."""
        keys = torch.rand(len(items), dtype=torch.float64, generator=generator(self.seed, "buffer", self.rounds))
        self.rounds += 1
        self.items = torch.cat([self.items, items.to(torch.int64).cpu()])
        self._keys = torch.cat([self._keys, keys])
        if len(self.items) > self.size:
            kept = torch.argsort(self._keys, stable=True)[: self.size].sort().values
            self.items, self._keys = self.items[kept], self._keys[kept]

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to continue."""
        return {"items": self.items, "keys": self._keys, "rounds": self.rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.items, self._keys, self.rounds = state["items"], state["keys"], int(state["rounds"])
