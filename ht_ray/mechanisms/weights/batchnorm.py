"""BatchNorm statistics that belong to given weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ht_ray.mechanisms.modes import evaluation_mode

__all__ = ["recalibrate_batchnorm"]


@torch.no_grad()
def recalibrate_batchnorm(module: nn.Module, batches: Iterable[Tensor | tuple[Tensor, ...]]) -> int:
    """Set the running statistics of every BatchNorm layer to those of `batches` under the module's weights.

    An averaged network's activations have other statistics than the average of the statistics. Only the BatchNorm
    layers run in training mode, so nothing random is drawn and dropout stays off; modes are put back.

    Parameters
    ----------
    batches
        Inputs of the module (a tuple where it takes several), each at least two samples; statistics are averaged over
        the batches with equal weight.

    Returns
    -------
    int
        How many batches were used. Without any, or without BatchNorm layers, nothing changes.
    """
    inputs = list(batches)
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not inputs or not layers:
        return 0
    momenta = {layer: layer.momentum for layer in layers}
    with evaluation_mode(module):
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # a cumulative mean
                layer.train()
            for batch in inputs:
                module(*batch) if isinstance(batch, tuple) else module(batch)
        finally:
            for layer, momentum in momenta.items():
                layer.momentum = momentum
    return len(inputs)
