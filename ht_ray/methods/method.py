"""The moments at which a training loop calls a mechanism."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from ht_ray.methods.tortoise import Tortoise

__all__ = ["Inputs", "Mechanism"]

#: A batch as the network is called with it: ``module(batch)``, or ``module(*batch)`` for a tuple.
Inputs = Tensor | tuple[Tensor, ...]


class Mechanism:
    """Base of what acts while a network trains; every moment does nothing unless a mechanism overrides it.

    A training loop calls, for each phase, `begin_phase`; for each batch, `before_forward`, the network inside
    `watching`, `loss`, `before_step`, the optimiser's step, `after_step`; and after each epoch `end_epoch`. A setting
    that reads "off" makes training bit-identical to training without the mechanism.

    Several mechanisms act in the order of their `rank`. Those below 0 are part of the optimiser's step, and come
    before the tortoise follows (and is copied back); those above 0 change both networks after it.

    Parameters
    ----------
    module
        The network as initialised. A loop whose network is exchanged assigns the attribute of this name.
    """

    rank: ClassVar[int] = 0
    #: Whether what it does within a step may be captured as a CUDA graph, whose replay calls nothing of it:
    #: `before_forward`, `watching`, `loss`, `before_step` and, with a rank below 0, `after_step` change tensors in
    #: place, keep none, and neither count, draw nor decide on the host.
    capturable: bool = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def begin_phase(self) -> None:
        """Call before a phase's first epoch, once the network has grown for it: follow what is new in it."""

    def before_forward(self, inputs: Inputs, tortoise: Tortoise | None = None) -> None:
        """Call before the network computes a training batch.

        Parameters
        ----------
        inputs
            The batch.
        tortoise
            The network's tortoise, if it has one.
        """

    def watching(self) -> AbstractContextManager[Any]:
        """Return a context around the training forward pass, for mechanisms that look at activations."""
        return nullcontext()

    def loss(self, outputs: Tensor) -> Tensor | None:
        """Return what is added to the loss of the batch, shape ``()``; None for nothing.

        Parameters
        ----------
        outputs
            The network's logits ``(B, K)``, float32.
        """
        return None

    def before_step(self, optimizer: Optimizer) -> None:
        """Call when the gradients are as the optimiser will see them."""

    def after_step(self, optimizer: Optimizer, tortoise: Tortoise | None = None) -> None:
        """Call after the optimiser's step.

        Parameters
        ----------
        optimizer
            That made it.
        tortoise
            The tortoise that is to be treated as the network is; None leaves it alone.
        """

    def end_epoch(self, optimizer: Optimizer, tortoise: Tortoise | None = None) -> None:
        """Call after each epoch, before evaluation; arguments as in `after_step`."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from; settings are not part of it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
