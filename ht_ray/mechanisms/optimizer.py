"""What a re-initialisation does to the optimiser."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

__all__ = ["clear_optimizer_state"]


def clear_optimizer_state(optimizer: Optimizer, parameters: Iterable[nn.Parameter] | None = None) -> None:
    """Forget what `optimizer` remembers of `parameters` (moments, momentum buffers, step counts).

    The next step builds the state anew, as at the first step. Parameter groups, learning rates and schedules stay.

    Parameters
    ----------
    parameters
        Whose state to forget; all of the optimiser's by default. Parameters that it does not know are passed over.
    """
    if parameters is None:
        optimizer.state.clear()
        return
    for parameter in parameters:
        optimizer.state.pop(parameter, None)
