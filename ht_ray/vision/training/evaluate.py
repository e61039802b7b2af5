"""Evaluation that leaves no trace in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ht_ray.vision.data.loader import Normalise
from ht_ray.vision.data.transforms import InputTransform
from ht_ray.vision.training import precision
from ht_ray.vision.training.objective import Objective, counted, explained, task_loss

__all__ = ["Evaluation", "evaluate", "evaluating"]


class Evaluation(NamedTuple):
    """Mean cross-entropy (nats) and accuracy (a fraction) over a set of images."""

    loss: float
    accuracy: float


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every part of `model` into evaluation mode inside a block, without gradients, and its own mode back after.

    Parts that a user keeps in evaluation mode while training stay so.
    """
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    normalise: Normalise,
    *,
    batch_size: int = 1000,
    autocast: torch.dtype | None = None,
    channels_last: bool = False,
    transform: InputTransform | None = None,
    outputs: Tensor | None = None,
    objective: Objective | None = None,
) -> Evaluation:
    """Return loss and accuracy of `model` on `images` (uint8, ``(n, C, H, W)``) with true `labels`.

    The inputs go through `transform`, and only `outputs` (a mask, bool ``(K,)``) count, where these are given. With
    `labels` of a floating type, the loss is the mean squared error and the accuracy R2. With an `objective` of a user's
    own, its loss and its measure are in their places, of all outputs at once.

    Nothing random is drawn; modes, gradients and BatchNorm statistics are as before afterwards.
    """
    loss = torch.zeros((), dtype=torch.float64 if images.device.type != "mps" else torch.float32, device=images.device)
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    kept: list[Tensor] | None = [] if objective is not None and objective.own else None
    with evaluating(model):
        for start in range(0, len(images), batch_size):
            batch = normalise(images[start : start + batch_size])
            if transform is not None:
                batch = transform(batch)
            if channels_last:
                batch = batch.contiguous(memory_format=torch.channels_last)
            target = labels[start : start + batch_size]
            with precision.autocast(images.device, autocast):
                logits = counted(model(batch), outputs)
            if kept is not None:
                kept.append(logits.to(torch.promote_types(logits.dtype, torch.float32)))
                continue
            loss += task_loss(logits.to(torch.promote_types(logits.dtype, torch.float32)), target, reduction="sum")
            correct += (logits.argmax(1) == target).sum()
    if objective is not None and kept is not None:
        every = torch.cat(kept)
        with torch.no_grad():
            return Evaluation(objective.loss_of(every, labels).item(), objective.measure_of(every, labels))
    mean = loss.item() / len(images)
    if labels.is_floating_point():
        return Evaluation(mean, explained(mean, labels))
    return Evaluation(mean, correct.item() / len(images))
