"""What a module consists of: whether it still does is asked at every step, and so has to cost little."""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import Any

from torch import nn

__all__ = ["HeldParameters", "Structure"]


class Structure:
    """The parameters, buffers and parts of modules as they are now.

    Parameters
    ----------
    *modules : nn.Module
        With all their parts.
    """

    def __init__(self, *modules: nn.Module) -> None:
        parts = [part for module in modules for part in module.modules()]
        self._tables: list[dict[str, Any]] = [
            table for part in parts for table in (part._parameters, part._buffers, part._modules)
        ]
        self._sizes = list(map(len, self._tables))
        # Most are empty; whether they still are, their sizes say.
        self._filled = [table for table in self._tables if table]
        self._names = list(chain.from_iterable(self._filled))
        self._views = [table.values() for table in self._filled]
        # Held, so that no other object can take their place in memory, and then compared by identity.
        self._values = list(chain.from_iterable(self._views))

    def holds(self) -> bool:
        """Return whether they still consist of the very same objects, under the same names; compared in C."""
        return (
            list(map(len, self._tables)) == self._sizes
            and all(map(is_, chain.from_iterable(self._views), self._values))
            and list(chain.from_iterable(self._filled)) == self._names
        )


class HeldParameters:
    """The parameters of a module as a list, made again only when the module has been changed.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> parameters = HeldParameters()
    >>> [parameter is layer.weight for parameter in parameters(layer)]
    [True, False]
    >>> layer.weight = nn.Parameter(layer.weight.detach().clone())
    >>> parameters(layer)[0] is layer.weight
    True
    """

    def __init__(self) -> None:
        self._module: nn.Module | None = None
        self._structure = Structure()
        self._parameters: list[nn.Parameter] = []

    def __call__(self, module: nn.Module) -> list[nn.Parameter]:
        """Return ``list(module.parameters())``."""
        if module is not self._module or not self._structure.holds():
            self._module, self._structure = module, Structure(module)
            self._parameters = list(module.parameters())
        return self._parameters
