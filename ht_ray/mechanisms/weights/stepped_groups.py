"""The parameters that a step of the optimiser is about to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ht_ray.mechanisms.weights.optimizer_state import Optimizers, each_optimizer

__all__ = ["stepped_groups"]


def stepped_groups(
    optimizer: Optimizers, parameters: Mapping[Tensor, Any]
) -> Iterator[tuple[Optimizer, dict[str, Any], list[Tensor]]]:
    """Yield each optimiser and parameter group with those of `parameters` in it that are trainable and have a gradient.

    What has no gradient is passed over, as optimisers do. Groups without any such parameter are left out.
    """
    for one in each_optimizer(optimizer):
        for group in one.param_groups:
            own = [p for p in group["params"] if p.grad is not None and p.requires_grad and p in parameters]
            if own:
                yield one, group, own
