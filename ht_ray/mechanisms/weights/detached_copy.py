"""Deep copies of modules that hold tensors with a graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

__all__ = ["computes_weight", "detached_copy"]

Module = TypeVar("Module", bound=nn.Module)


def computes_weight(hook: object) -> bool:
    """Return whether a forward pre-hook is part of its layer, whose weight it computes, and not someone who watches."""
    return isinstance(hook, (SpectralNorm, WeightNorm, BasePruningMethod))


class _Detaching(TorchFunctionMode):
    """Copies tensors that are part of a graph without it, which torch refuses to copy."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def detached_copy(module: Module, memo: dict[int, Any] | None = None) -> Module:
    """Return a deep copy of `module`, also right after a training pass.

    Whatever it keeps of one (features, a recurrent state, what an object that is its hook has collected) is copied
    without its graph; `module` is left alone. Weights that torch computes before each forward pass (``weight_norm``,
    ``spectral_norm`` and ``prune`` of ``torch.nn.utils``) are those of the copy's own tensors.

    Parameters
    ----------
    memo
        What stands for objects that are not to be copied, by their ids; see `copy.deepcopy`.
    """
    with _Detaching():
        made = copy.deepcopy(module, memo)
    with torch.no_grad():
        for part in made.modules():
            for hook in part._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm):  # which would move its vectors in training mode
                    setattr(part, hook.name, hook.compute_weight(part, do_power_iteration=False))
                elif computes_weight(hook):
                    hook(part, ())
    return made
