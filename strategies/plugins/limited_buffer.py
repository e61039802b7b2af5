"""Limited access to the past: the new chunk and a fixed number of older samples, as one data set."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset, concat_datasets
from avalanche.training.plugins import SupervisedPlugin

from ht_ray.vision.reservoir import Reservoir

__all__ = ["LimitedBufferPlugin"]


class LimitedBufferPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Train on the experience's samples together with `size` older ones (arXiv 2406.02596, section 5.2).

    The older samples are a uniform sample of everything seen before. Unlike Avalanche's ``ReplayPlugin``, which
    fills half of every batch from memory, both form one data set: each sample is used once per epoch.

    Parameters
    ----------
    size
        How many older samples are kept. Default 5000 (the paper's).
    seed
        Of the choice.

    Raises
    ------
    SettingError
        If `size` is below 1.
    """

    def __init__(self, size: int = 5000, *, seed: int = 0) -> None:
        super().__init__()
        self.reservoir = Reservoir(size, seed=seed)
        #: The samples kept; None before the end of the first experience.
        self.dataset: AvalancheDataset | None = None
        self._seen = 0

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        if self.dataset is not None:
            strategy.adapted_dataset = concat_datasets([strategy.adapted_dataset, self.dataset.train()])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        new = strategy.experience.dataset
        old = self.reservoir.items
        arrived = torch.arange(self._seen, self._seen + len(new))
        self._seen += len(new)
        self.reservoir.add(arrived)
        # Samples are known by their number of arrival; both runs are in rising order.
        kept = torch.searchsorted(torch.cat([old, arrived]), self.reservoir.items)
        both = new if self.dataset is None else concat_datasets([self.dataset, new])
        self.dataset = both.subset(kept.tolist())
