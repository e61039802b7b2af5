"""A stand-in for CUDA graphs that works on the CPU: operations are noted with their tensors, and repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorded(TorchDispatchMode):
    """Stands in for `ht_ray.cuda_graph.Graph` on the CPU.

    As a CUDA graph does, it repeats operations on the very memory that they were captured with, and nothing that
    Python did besides; and it refuses to look at values while it captures.
    """

    captures = 0
    replays = 0

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        self._operations: list[tuple[Any, Any, Any, Any]] | None = None

    @property
    def captured(self) -> bool:
        return self._operations is not None

    def warm_up(self, function: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return dict(function())

    def run(self, function: Callable[..., Mapping[str, Tensor]], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._operations is None:
            Recorded.captures += 1
            self._inputs = {name: x.clone() for name, x in inputs.items()}
            self._operations = []
            with self:
                self._outputs = function(**self._inputs)
        else:
            Recorded.replays += 1
            with torch.no_grad():
                for name, x in inputs.items():
                    self._inputs[name].copy_(x)
                for operation, given, named, results in self._operations:
                    again = operation(*given, **named)
                    for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                        if isinstance(old, Tensor) and old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                            old.copy_(new)
        return {name: output.clone() for name, output in self._outputs.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal"), f"{name} waits for the GPU"
        results = func(*args, **(kwargs or {}))
        assert self._operations is not None
        self._operations.append((func, args, kwargs or {}, results))
        return results
