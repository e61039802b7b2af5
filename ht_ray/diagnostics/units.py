"""Units of a network: which of them are active, and which of them the loss reaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle

from ht_ray._checks import check_number
from ht_ray.diagnostics._measuring import Loss, accumulator, measuring, run
from ht_ray.diagnostics.gradients import loss_gradients
from ht_ray.mechanisms.units.crelu import Doubling
from ht_ray.mechanisms.units.find_units import ACTIVATIONS
from ht_ray.methods.method import Inputs

__all__ = [
    "ACTIVATIONS",
    "ActivationRecord",
    "activation_recorder",
    "dormant_ratios",
    "grama_ratios",
    "unit_gradient_recorder",
]


class ActivationRecord:
    """Mean absolute activation of each unit over the batches inside `activation_recorder`.

    Of a `unit_gradient_recorder`: the mean absolute gradient with respect to each unit's pre-activation.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._calls: dict[str, int] = {}

    def means(self) -> dict[str, Tensor]:
        """Return ``mean |a_i|`` of each layer's units, ``(units,)``, by the name of the activation module.

        A module that is used more than once in a forward pass is a layer each time: ``"relu"``, ``"relu#2"``.
        """
        return {layer: total / self._counts[layer] for layer, total in self._sums.items()}

    def dormant_ratios(self, thresholds: Sequence[float]) -> dict[float, dict[str, Tensor]]:
        """Return the share of dormant units at each threshold: see `dormant_ratios`."""
        for threshold in thresholds:
            check_number("dormant_ratios: thresholds", threshold, low=0)
        means = self.means()
        nan = torch.tensor(float("nan"))
        ratios: dict[float, dict[str, Tensor]] = {}
        for threshold in thresholds:
            dormant: dict[str, Tensor] = {}
            for layer, mean in means.items():
                # Not divided by the layer's mean: a layer without any activity is all dormant.
                inactive = (mean <= threshold * mean.mean()).to(mean.dtype).sum()
                dormant[layer] = torch.where(torch.isfinite(mean).all(), inactive, nan.to(mean))
            units = {layer: mean.numel() for layer, mean in means.items()}
            ratios[threshold] = {layer: number / units[layer] for layer, number in dormant.items()}
            counts = list(dormant.values())
            ratios[threshold]["all"] = (
                torch.stack([number.to(counts[0].device) for number in counts]).sum() / sum(units.values())
                if counts
                else nan
            )
        return ratios

    def _layer(self, name: str) -> str:
        """Return what this call of the activation `name` is known by in the present forward pass."""
        self._calls[name] = self._calls.get(name, 0) + 1
        return name if self._calls[name] == 1 else f"{name}#{self._calls[name]}"

    @torch.no_grad()
    def _add(self, layer: str, part: nn.Module, values: Tensor, *, halves: int = 1) -> None:
        dim = part.dim if isinstance(part, Doubling) else -1 if values.dim() in (1, 3) else 1
        by_unit = values.detach().movedim(dim, 0).reshape(values.shape[dim], -1)
        total = by_unit.abs().sum(1, dtype=accumulator(values.device))
        if halves > 1:
            total = total.reshape(halves, -1).mean(0)
        self._sums[layer] = self._sums[layer] + total if layer in self._sums else total
        self._counts[layer] = self._counts.get(layer, 0) + by_unit.shape[1]


@contextmanager
def activation_recorder(
    module: nn.Module, kinds: tuple[type[nn.Module], ...] = ACTIVATIONS
) -> Iterator[ActivationRecord]:
    """Record the mean absolute activation of the units of `module` while the block runs.

    Parameters
    ----------
    module
        The network. Only activations that are modules are seen, not calls such as ``F.relu``.
    kinds
        The classes of modules whose output is looked at.

    Notes
    -----
    Units are along dimension 1 of an output, as of linear layers ``(B, units)`` and convolutions ``(B, units, H, W)``,
    and along the last of an output of 3 dimensions, as of tokens ``(B, T, units)``. A `CReLU` knows its dimension and
    has half as many units as outputs: the two outputs of a unit are averaged.

    Examples
    --------
    >>> net = nn.Sequential(nn.Identity(), nn.ReLU())
    >>> with activation_recorder(net) as record:
    ...     _ = net(torch.tensor([[1.0, -1.0], [3.0, -2.0]]))
    >>> record.means()["1"].tolist()
    [2.0, 0.0]
    """
    with _recording(module) as (record, handles):

        def look(name: str, part: nn.Module, arguments: Any, output: Tensor) -> None:
            # Both halves of CReLU, relu(x) and relu(-x), are one unit's: together |x|.
            record._add(record._layer(name), part, output, halves=2 if isinstance(part, Doubling) else 1)

        for name, part in module.named_modules():
            if isinstance(part, kinds):
                handles.append(part.register_forward_hook(partial(look, name)))
        yield record


@contextmanager
def unit_gradient_recorder(
    module: nn.Module, kinds: tuple[type[nn.Module], ...] = ACTIVATIONS
) -> Iterator[ActivationRecord]:
    """Record the mean absolute gradient with respect to the pre-activations while the block runs backward passes.

    Parameters
    ----------
    module, kinds
        As in `activation_recorder`; units are the same. A layer before which nothing is trainable is not seen.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> with unit_gradient_recorder(net) as record:
    ...     net(torch.tensor([[1.0], [3.0]])).sum().backward()
    >>> record.means()["1"].tolist()
    [1.0, 0.0]
    """
    with _recording(module) as (record, handles):

        def look(name: str, part: nn.Module, arguments: Any) -> None:
            layer = record._layer(name)  # now: in the backward pass the calls come in another order
            if arguments[0].requires_grad:
                arguments[0].register_hook(partial(record._add, layer, part))

        for name, part in module.named_modules():
            if isinstance(part, kinds):
                handles.append(part.register_forward_pre_hook(partial(look, name)))
        yield record


@contextmanager
def _recording(module: nn.Module) -> Iterator[tuple[ActivationRecord, list[RemovableHandle]]]:
    record = ActivationRecord()
    handles = [module.register_forward_pre_hook(lambda part, arguments: record._calls.clear())]
    try:
        yield record, handles
    finally:
        for handle in handles:
            handle.remove()


def dormant_ratios(
    module: nn.Module, batch: Inputs, thresholds: Sequence[float] = (0.0, 0.025, 0.1), *, chunk_size: int = 256
) -> dict[float, dict[str, Tensor]]:
    """Return the share of units that are dormant on a batch, in evaluation mode.

    A unit is dormant at threshold τ if its score, its mean absolute activation over that of its layer's average unit,
    is at most τ. All units of a layer without any activity are dormant.

    Parameters
    ----------
    module
        The network: see `activation_recorder` for what counts as a unit.
    batch
        Its inputs.
    thresholds
        The τ: 0 finds units that never fire; 0.025 and 0.1 are those of Sokar et al.
    chunk_size
        Samples computed at a time.

    Returns
    -------
    dict
        By threshold, the ratio of each layer by the name of its activation module, and ``"all"``: of all units
        together. Device tensors of shape ``()``; NaN where an activation is not finite, and ``"all"`` where the network
        has no activation modules.

    Raises
    ------
    SettingError
        If a threshold is negative.

    References
    ----------
    Sokar et al. (2023). The dormant neuron phenomenon in deep reinforcement learning. arXiv:2302.12902.

    Examples
    --------
    >>> net = nn.Sequential(nn.Identity(), nn.ReLU())
    >>> dormant_ratios(net, torch.tensor([[1.0, -1.0], [3.0, -2.0]]))[0.025]["1"].item()
    0.5
    """
    check_number("dormant_ratios: chunk_size", chunk_size, low=1, integer=True)
    with measuring(module), activation_recorder(module) as record:
        run(module, batch, chunk_size)
    return record.dormant_ratios(thresholds)


def grama_ratios(
    module: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    thresholds: Sequence[float] = (0.01,),
    *,
    loss: Loss = cross_entropy,
    chunk_size: int = 256,
) -> dict[float, dict[str, Tensor]]:
    """Return the share of units that the loss hardly reaches (GraMa), in evaluation mode.

    A unit's score is the mean absolute gradient of the loss with respect to its pre-activation, over samples and
    positions, divided by the mean of that over its layer. A unit is inactive at threshold τ if its score is at most τ;
    all units of a layer without any gradient are.

    Parameters
    ----------
    module, chunk_size
        As in `dormant_ratios`.
    inputs, labels
        The batch.
    thresholds
        The τ. Default 0.01, as of `ht_ray.methods.ReGraMa`, which resets these units.
    loss
        Maps outputs and labels to the mean loss of a batch.

    Returns
    -------
    dict
        As of `dormant_ratios`.

    Raises
    ------
    SettingError
        If a threshold is negative.

    References
    ----------
    Liu et al. (2025). Measure gradients, not activations! Enhancing neuronal activity in deep reinforcement learning.
    arXiv:2505.24061.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    >>> with torch.no_grad():
    ...     _ = net[0].bias.copy_(torch.tensor([0.0, 1e6]))  # the second unit is saturated
    >>> grama_ratios(net, torch.rand(4, 2), torch.tensor([0, 1, 0, 1]))[0.01]["all"].item()
    0.5
    """
    with unit_gradient_recorder(module) as record:
        # The whole network as its backbone: it need not be divided into backbone and head.
        loss_gradients(module, inputs, labels, backbone=module, loss=loss, chunk_size=chunk_size)
    return record.dormant_ratios(thresholds)
