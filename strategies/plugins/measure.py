"""Measurements after epochs that cost one pass over the test set and leave no trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor

from ht_ray._checks import check_number
from ht_ray.diagnostics import Indicators
from ht_ray.errors import Diverged
from ht_ray.vision.data.dataset import ImageData
from ht_ray.vision.training.epoch_sums import EpochSums
from ht_ray.vision.training.evaluate import Evaluation, evaluate
from ht_ray.vision.training.fit import Row

from ..benchmark import ImagePool
from .method import MethodPlugin

__all__ = ["MeasurePlugin"]


class MeasurePlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Measure after epochs as `ht_ray.vision.fit` does: the same rows, bit for bit.

    The network that predicts (the tortoise, if there is one) is tested on ``data.test_images``; training loss and
    accuracy are those of the batches as they were trained on, without what methods add to the loss. Put it after the
    other plugins.

    Parameters
    ----------
    data
        With the test set.
    autocast, channels_last
        How the network is evaluated.
    indicators
        Measures the plasticity indicators of the strategy's model, in the epochs where they are due and in each
        experience's last.
    evaluate_every
        Measure every so many epochs of an experience, in its last, and where `indicators` are due. Default 1.
    on_epoch
        Called with each row.

    Attributes
    ----------
    rows
        A row for each epoch that was measured, see `ht_ray.vision.fit`.
    epochs
        How many epochs have been trained so far, over all experiences.
    samples
        How many images have been trained on in the last experience, counted in each epoch.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        autocast: torch.dtype | None = None,
        channels_last: bool = False,
        indicators: Indicators | None = None,
        evaluate_every: int = 1,
        on_epoch: Callable[[Row], None] | None = None,
    ) -> None:
        super().__init__()
        check_number("MeasurePlugin: evaluate_every", evaluate_every, low=1, integer=True)
        # A pool is not written into checkpoints, and goes to the device once.
        self.pool = ImagePool(data.test_images, data.mean, data.std)
        self.labels = data.test_labels
        self.validation: tuple[ImagePool, Tensor] | None = None
        if data.val_images is not None and data.val_labels is not None:
            self.validation = ImagePool(data.val_images, data.mean, data.std), data.val_labels
        self.autocast = autocast
        self.channels_last = channels_last
        self.indicators = indicators
        self.evaluate_every = evaluate_every
        self.on_epoch = on_epoch
        self.rows: list[Row] = []
        self.epochs = 0
        self.samples = 0

    def continue_from(self, rows: Sequence[Row], *, epochs: int | None = None, samples: int = 0) -> None:
        """Take over what was measured before a restart.

        Parameters
        ----------
        rows, epochs, samples
            The attributes of these names. Default: those of a run that ended with an experience.
        """
        self.rows[:] = rows
        last = int(rows[-1]["step"]) if rows else 0
        self.epochs = last if epochs is None else epochs
        self.samples = samples

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        host = MethodPlugin.host(strategy)
        if host is not None and self.validation is not None:
            host.validate = partial(self._validated, strategy)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.samples = 0

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._sums = EpochSums()
        self._host = MethodPlugin.host(strategy)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        self._batch_loss = strategy.loss.detach()

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        # Without what methods add to it.
        plain = None if self._host is None else self._host.plain_loss
        self._sums.add(self._batch_loss if plain is None else plain, strategy.mb_output, strategy.mb_y)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if self._host is not None:
            self._host.after_training_epoch(strategy)  # if this plugin stands before it
        phase, epoch = strategy.clock.train_exp_counter + 1, strategy.clock.train_exp_epochs + 1
        loss_sum, correct, seen = self._sums.total()
        train_loss = loss_sum / max(1, seen)
        if not math.isfinite(train_loss):
            raise Diverged(f"training loss {train_loss} in phase {phase}, epoch {epoch}")
        self.epochs += 1
        self.samples += seen
        last = epoch == strategy.train_epochs
        indicated = self.indicators is not None and self.indicators.due(epoch, last=last)
        if not (last or indicated or epoch % self.evaluate_every == 0):
            return
        tortoise = next((t for p in MethodPlugin.all_in(strategy) if (t := p.tortoise) is not None), None)
        with nullcontext() if tortoise is None else tortoise.predict():
            tested = self._evaluate(strategy, self.pool, self.labels)
            validated = None if self.validation is None else self._evaluate(strategy, *self.validation)
        row: Row = {
            "step": self.epochs,
            "phase": phase,
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": correct / max(1, seen),
            "test_loss": tested.loss,
            "test_accuracy": tested.accuracy,
        }
        if validated is not None:
            row |= {"val_loss": validated.loss, "val_accuracy": validated.accuracy}
        if self.indicators is not None and indicated:
            self.indicators.module = strategy.model
            row.update(self.indicators.measure())
        self.rows.append(row)
        if self.on_epoch is not None:
            self.on_epoch(row)

    def _validated(self, strategy: Any) -> tuple[float, float]:
        assert self.validation is not None
        tested = self._evaluate(strategy, *self.validation)
        return tested.accuracy, -tested.loss

    def _evaluate(self, strategy: Any, pool: ImagePool, labels: Tensor) -> Evaluation:
        images, normalise = pool.on(strategy.device)
        return evaluate(
            strategy.model,
            images,
            labels.to(strategy.device),
            normalise,
            autocast=self.autocast,
            channels_last=self.channels_last,
        )
