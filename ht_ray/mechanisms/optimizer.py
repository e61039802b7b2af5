"""What a re-initialisation does to the optimiser."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import Optimizer

__all__ = ["Optimizers", "clear_optimizer_state"]

#: A network's optimiser, or several, each with a share of its parameters.
Optimizers = Optimizer | Sequence[Optimizer]


def clear_optimizer_state(optimizer: Optimizers, parameters: Iterable[nn.Parameter] | None = None) -> None:
    """Forget what `optimizer` remembers of `parameters` (moments, momentum buffers, step counts).

    The next step builds the state anew, as at the first step. Parameter groups, learning rates and schedules stay.

    Parameters
    ----------
    optimizer
        One optimiser or several.
    parameters
        Whose state to forget; all of the optimiser's by default. Parameters that it does not know are passed over.
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    if parameters is None:
        for one in optimizers:
            one.state.clear()
        return
    for parameter in parameters:
        for one in optimizers:
            one.state.pop(parameter, None)
