"""The parameters that a step of the optimiser is about to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

__all__ = ["stepped_groups"]


def stepped_groups(
    optimizer: Optimizer, parameters: Mapping[Tensor, Any]
) -> Iterator[tuple[dict[str, Any], list[Tensor]]]:
    """Yield each parameter group with those of `parameters` in it that are trainable and have a gradient.

    What has no gradient is passed over, as optimisers do. Groups without any such parameter are left out.
    """
    for group in optimizer.param_groups:
        own = [p for p in group["params"] if p.grad is not None and p.requires_grad and p in parameters]
        if own:
            yield group, own
