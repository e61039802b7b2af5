"""Limited access to the past: the new chunk and a fixed number of older samples, as one data set."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.benchmarks import OnlineCLExperience
from avalanche.benchmarks.utils import AvalancheDataset, concat_datasets
from avalanche.training.plugins import SupervisedPlugin

from ht_ray.mechanisms import generator
from ht_ray.vision.data.reservoir import Reservoir

__all__ = ["LimitedBufferPlugin"]


class LimitedBufferPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Train on the experience's samples together with `size` older ones (arXiv 2406.02596, section 5.2).

    The older samples are a uniform sample of everything seen before. Unlike Avalanche's ``ReplayPlugin``, which
    fills half of every batch from memory, both form one data set: each sample is used once per epoch.

    In online streams, a sub-experience is trained on in as many steps as without the buffer, as with ``ReplayPlugin``:
    together with as many older samples, drawn from those kept, in batches of twice the size.

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
        self._batch_size: int | None = None  # the strategy's, while its loader is made with another

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        self._restore_batch_size(strategy)
        if self.dataset is None:
            return
        old = self.dataset
        if isinstance(strategy.experience, OnlineCLExperience):
            new = len(strategy.adapted_dataset)
            steps = -(-new // strategy.train_mb_size)
            draws = generator(self.reservoir.seed, "older samples", self._seen)
            old = old.subset(torch.randperm(len(old), generator=draws)[:new].tolist())
            self._batch_size = strategy.train_mb_size
            strategy.train_mb_size = -(-(new + len(old)) // steps)
        strategy.adapted_dataset = concat_datasets([strategy.adapted_dataset, old.train()])

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._restore_batch_size(strategy)

    def _restore_batch_size(self, strategy: Any) -> None:
        if self._batch_size is not None:
            strategy.train_mb_size, self._batch_size = self._batch_size, None

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
