"""Plasticity indicators while a network trains on a stream."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from ht_ray.diagnostics import IndicatorConfig, Indicators
from ht_ray.mechanisms import generator
from ht_ray.vision.data.dataset import ImageData
from ht_ray.vision.data.loader import Normalise
from ht_ray.vision.training.optimizer import TrainingConfig, make_optimizer

__all__ = ["make_indicators"]


def make_indicators(
    config: IndicatorConfig | None,
    model: nn.Module,
    data: ImageData,
    *,
    training: TrainingConfig,
    normalise: Normalise,
    seed: int,
    device: torch.device | str = "cpu",
) -> Indicators | None:
    """Return what measures the indicators of `model`, on one batch for the whole run.

    The batch is drawn from the training set, with true labels and without augmentation (arXiv 2406.02596, appendix C:
    at least 512 training samples).

    Parameters
    ----------
    config
        What to measure and how often; None, or every 0 epochs, is nothing.
    model
        The network with its initial weights: distances are from them.
    data, normalise
        The images, and how they become inputs.
    training
        How the network is trained, for the plasticity probe.
    seed
        Of the batch and the probe.
    device
        Where `model` is.
    """
    if config is None or not config.every:
        return None

    order = torch.randperm(len(data.train_images), generator=generator(seed, "indicators: samples"))
    chosen = order[: config.samples]
    return Indicators(
        config,
        model,
        normalise(data.train_images[chosen].to(device)),
        data.train_labels[chosen].to(device),
        make_optimizer=partial(make_optimizer, config=training),
        num_classes=data.num_classes,
        seed=seed,
    )
