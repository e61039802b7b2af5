"""Recycling of hidden units: fresh incoming weights, no outgoing ones, nothing remembered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from ht_ray.mechanisms.units.find_units import HiddenUnits
from ht_ray.mechanisms.units.step_counts import RecycledSteps
from ht_ray.mechanisms.weights.optimizer_state import Optimizers, forget_entries
from ht_ray.mechanisms.weights.weight_copy import WeightCopy, named_tensors

__all__ = ["SlowCopy", "recycle"]


class SlowCopy(Protocol):
    """A second copy of the network's weights that is treated as the network is: `ht_ray.methods.Tortoise`."""

    weights: WeightCopy

    @property
    def predicting(self) -> bool:
        """Whether the network holds the copy's values at present."""


@torch.no_grad()
def recycle(
    module: nn.Module,
    hidden: HiddenUnits,
    units: Tensor,
    fresh: Mapping[str, Tensor],
    tortoise: SlowCopy | None = None,
    optimizer: Optimizers | None = None,
    steps: RecycledSteps | None = None,
) -> None:
    """Reinitialize single units: they start from their initial weights and count for nothing yet.

    Their rows of the incoming layer become those of `fresh`, their BatchNorm entries 1 (weight, running variance) and
    0 (bias, running mean), their columns of the outgoing layers 0; the optimiser's state of exactly these entries
    becomes what it is at first (see `ht_ray.mechanisms.weights.optimizer_state`), and its step counts are as `steps`
    says. Nothing else changes.

    Parameters
    ----------
    module
        The network.
    hidden
        Where the units are.
    units
        Which: indices, or a mask of shape ``(hidden.units,)``.
    fresh
        Newly drawn weights of the whole incoming layer, by their names in it.
    tortoise
        That gets the same values; None leaves it alone.
    optimizer
        That forgets what it remembers of them; one or several.
    steps
        What becomes of its step counts; None leaves them alone.

    Raises
    ------
    RuntimeError
        While the tortoise predicts: its values are in the network then.
    """
    if tortoise is not None and tortoise.predicting:
        raise RuntimeError("recycling of units while the tortoise predicts: stop predicting first")
    chosen = units.nonzero().flatten().cpu() if units.dtype == torch.bool else units.cpu()
    edits: list[tuple[Tensor, tuple[slice | Tensor, ...], Tensor | float]] = []
    for name, parameter in module.get_submodule(hidden.incoming).named_parameters():
        edits.append((parameter, (chosen,), fresh[name][chosen]))
    if hidden.norm is not None:
        norm = module.get_submodule(hidden.norm)
        for name, neutral in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            if (tensor := getattr(norm, name)) is not None:
                edits.append((tensor, (chosen,), neutral))
    for outgoing in hidden.outgoing:
        weight = module.get_submodule(outgoing.layer).get_parameter("weight")
        edits.append((weight, (slice(None), outgoing.columns()[:, chosen].flatten()), 0.0))

    names: dict[Tensor, str] = {}
    if tortoise is not None:
        tortoise.weights.sync(module)
        names = {tensor: name for name, tensor in named_tensors(module)}
    for live, index, value in edits:
        for tensor in (live, *([tortoise.weights[names[live]]] if tortoise is not None else [])):
            tensor[_on(index, tensor)] = value.to(tensor.device, tensor.dtype) if isinstance(value, Tensor) else value
        if optimizer is not None:
            forget_entries(optimizer, live, _on(index, live))
            if steps is not None:
                steps.recycled(module, optimizer, live, _on(index, live))


def _on(index: tuple[slice | Tensor, ...], tensor: Tensor) -> tuple[slice | Tensor, ...]:
    # Where indices may lie depends on what torch makes of an assignment: where the tensor lies they always may.
    return tuple(part.to(tensor.device) if isinstance(part, Tensor) else part for part in index)
