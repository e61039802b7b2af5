"""Augmentation of batches, whatever loads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin

from ht_ray._checks import check_choice, check_number
from ht_ray.errors import SettingError
from ht_ray.mechanisms import generator
from ht_ray.vision.data.augment import random_crop_flip
from ht_ray.vision.data.loader import InMemoryLoader

__all__ = ["AugmentPlugin"]


class AugmentPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Random crop and flip of each image of a training batch, on the device (arXiv 2406.02596, appendix A.4).

    For pipelines with a loader of their own; `strategies.InMemoryLoading` augments by itself, and draws the same. It
    acts before the network is called, so that all plugins see the augmented batch, wherever they stand in the list.

    Parameters
    ----------
    kind
        ``"crop"`` (pad and crop) or ``"crop_flip"`` (and mirror). Default ``"crop_flip"``.
    fill
        Value of each channel that images are padded with: what a black pixel is after normalisation. Default 0.
    seed
        Of the draws; they depend on it, the experience and the epoch alone.

    Raises
    ------
    SettingError
        If a setting is not accepted; in training, if batches are no images, or the strategy's loader augments already.
    """

    def __init__(self, *, kind: str = "crop_flip", fill: Sequence[float] | None = None, seed: int = 0) -> None:
        super().__init__()
        check_choice("AugmentPlugin: kind", kind, ["crop", "crop_flip"])
        check_number("AugmentPlugin: seed", seed, integer=True)
        self.kind = kind
        if fill is not None and not isinstance(fill, Sequence):
            raise SettingError(f"AugmentPlugin: fill = {fill!r}: accepted is a number for each channel.")
        for value in fill or ():
            check_number("AugmentPlugin: fill", value)
        self.fill = None if fill is None else tuple(float(value) for value in fill)
        self.seed = seed
        self._draw: torch.Generator | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_draw": None}  # made again at each epoch

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        loader = getattr(strategy.dataloader, "loader", None)
        if isinstance(loader, InMemoryLoader) and loader.augment != "none":
            raise SettingError(
                f"AugmentPlugin: the strategy's loader has augment = {loader.augment!r} already: accepted is one of "
                "the two."
            )

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        epoch = strategy.clock.train_exp_epochs + 1
        self._draw = generator(self.seed, "augmentation", strategy.clock.train_exp_counter, epoch)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        assert self._draw is not None
        images = strategy.mbatch[0]
        fill = None if self.fill is None else torch.tensor(self.fill, dtype=images.dtype, device=images.device)
        strategy.mbatch[0] = random_crop_flip(images, generator=self._draw, flip=self.kind == "crop_flip", fill=fill)
