"""Fast loading: batches are gathered from memory, on the device, instead of sample by sample."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from avalanche.benchmarks.utils import AvalancheDataset, ConstantSequence
from avalanche.benchmarks.utils.flat_data import FlatData
from torch import Tensor
from torch.utils.data import default_collate

from ht_ray._checks import check_choice, check_number
from ht_ray.mechanisms import isolated_rng
from ht_ray.vision.data.loader import EpochDraws, InMemoryLoader, Normalise
from ht_ray.vision.training.optimizer import AUGMENTATIONS
from ht_ray.vision.training.precision import autocast

from .benchmark import PoolDataset

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate as _Template
else:
    _Template = object  # a mixin: the template comes after it

__all__ = ["InMemoryLoading", "TaskLoader"]


class _Held(NamedTuple):
    """A data set in memory: images (or normalised inputs) of a pool, and which of them with which labels."""

    images: Tensor
    indices: Tensor
    labels: Tensor
    tasks: Tensor
    normalise: Normalise | None


class TaskLoader:
    """Batches of an `InMemoryLoader` with the task label that Avalanche expects as the last entry."""

    def __init__(self, loader: InMemoryLoader, task: int | None, device: torch.device) -> None:
        self.loader = loader
        self.task = task
        self.device = device
        self._tasks = torch.full((loader.batch_size,), task or 0, dtype=torch.int64, device=device)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        yield from map(self._with_task, self.loader)

    def _with_task(self, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [*batch] if self.task is None else [*batch, self._tasks[: len(batch[1])]]

    def coming(self) -> Iterator[list[Tensor]]:
        """Yield the batches of an epoch before the first, which is drawn for this alone; the next is what it was."""
        following, self.loader.epoch = self.loader.epoch, 0
        yield from self
        self.loader.epoch = following

    def before(self, epoch: int, count: int) -> list[list[Tensor]]:
        """Return the last batches, at most `count`, of the epochs before `epoch`, which is the next one then."""
        return list(map(self._with_task, self.loader.before(epoch, count)))


class _SequentialLoader:
    """Batches of an `InMemoryLoader` in order, for evaluation, with their task labels if there are any."""

    def __init__(self, loader: InMemoryLoader, tasks: Tensor | None) -> None:
        self.loader = loader
        self.tasks = tasks

    def __len__(self) -> int:
        return -(-len(self.loader.indices) // self.loader.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        loader, size = self.loader, self.loader.batch_size
        everything = EpochDraws(loader.indices, loader.labels, None)
        for start in range(0, len(loader.indices), size):
            part = slice(start, start + size)
            yield [*loader.batch(everything, part), *([] if self.tasks is None else [self.tasks[part]])]


class _CannotHold(Exception):
    """Why a data set is left to Avalanche's own loader."""


def _leaves(dataset: Any) -> list[Any]:
    """Return the data sets that an Avalanche data set is composed of."""
    if isinstance(dataset, AvalancheDataset):
        return _leaves(dataset._flat_data)
    if isinstance(dataset, FlatData):
        transforms = getattr(dataset, "_transform_groups", None)
        frozen = getattr(dataset, "_frozen_transform_groups", None)
        for groups in (transforms, frozen):
            if groups is not None and any(f is not None for f in groups.transform_groups.values()):
                return [None]  # somebody's transforms: the leaves are not what comes out
        return [leaf for part in dataset._datasets for leaf in _leaves(part)]
    return [dataset]


def _positions(dataset: Any) -> Tensor:
    """Return, for each item, its position in the concatenation of the leaves; int64 of shape ``(n,)``."""
    flat = dataset._flat_data if isinstance(dataset, AvalancheDataset) else dataset
    if not isinstance(flat, FlatData):
        return torch.arange(len(flat))
    starts = 0
    parts = []
    for part in flat._datasets:
        inner = _positions(part)
        parts.append(inner + starts)
        starts += sum(len(leaf) for leaf in _leaves(part))
    whole = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
    if flat._indices is None:
        return whole
    return whole[torch.as_tensor(list(flat._indices), dtype=torch.int64)]


class InMemoryLoading(_Template):
    """Mixin for any supervised Avalanche strategy: data sets are held in memory and batches gathered from it.

    ``class FastNaive(InMemoryLoading, Naive)``, then ``FastNaive(..., in_memory=True, seed=0)``.

    Benchmarks of `strategies.stream_benchmark` are gathered as uint8, augmented and normalised a batch at once, on
    the device. Data sets of any other benchmark are read once per experience through Avalanche, transforms included,
    and kept as tensors, if that changes nothing: where transforms are random (two readings differ), items have other
    parts than input, label and task, an experience mixes tasks, or `max_bytes` would be exceeded, Avalanche's own
    loader is used and a warning says why, once.

    Order and augmentation depend on `seed`, experience and epoch alone. A last batch of one sample, which BatchNorm
    cannot normalise, is left out of an epoch. Evaluation draws nothing from the global generators that training would
    notice (Avalanche's loaders do, so with ``in_memory=False`` evaluating changes what training draws next).

    Parameters
    ----------
    in_memory
        Whether to load this way. Default True.
    seed
        Of order and augmentation.
    augment
        Augmentation of images from `stream_benchmark`; must agree with the benchmark's. None (default) takes that.
    max_bytes
        Largest size of a data set that is kept as tensors. Default 2 GiB.
    precision
        ``"fp32"``, or ``"bf16"`` for autocast in the forward pass; outputs are float32.
    channels_last
        Whether batches of images come in that memory format.
    """

    def __init__(
        self,
        *,
        in_memory: bool = True,
        seed: int = 0,
        augment: str | None = None,
        max_bytes: int = 2 << 30,
        precision: str = "fp32",
        channels_last: bool = False,
        **kwargs: Any,
    ) -> None:
        check_number("InMemoryLoading: seed", seed, integer=True)
        check_number("InMemoryLoading: max_bytes", max_bytes, low=0, integer=True)
        check_choice("InMemoryLoading: precision", precision, ["fp32", "bf16"])
        if augment is not None:
            check_choice("InMemoryLoading: augment", augment, AUGMENTATIONS)
        self.in_memory = in_memory
        self.loading_seed = seed
        self.augment = augment
        self.max_bytes = max_bytes
        self.precision = precision
        self.channels_last = channels_last
        self._said: set[str] = set()
        self._as_adapted: Any = None
        super().__init__(**kwargs)

    def forward(self) -> Tensor:
        """Compute the model's output for the current batch, float32 also under autocast."""
        output: Tensor
        if self.precision == "fp32":
            output = super().forward()
            return output
        with self.autocast():
            output = super().forward()
        return output.float()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model computes."""
        return autocast(self.device, torch.bfloat16 if self.precision == "bf16" else None)

    def eval(self, experiences: Any, **kwargs: Any) -> dict[str, Any]:
        """Evaluate as Avalanche does; loaders, and heads that grow, draw from generators that are put back."""
        with isolated_rng() if self.in_memory else nullcontext():
            metrics: dict[str, Any] = super().eval(experiences, **kwargs)
        return metrics

    def make_train_dataloader(self, shuffle: bool = True, drop_last: bool = False, **kwargs: Any) -> None:
        held = self._hold(training=True) if self.in_memory and shuffle and not drop_last else None
        if held is None:
            super().make_train_dataloader(shuffle=shuffle, drop_last=drop_last, **kwargs)
            return
        augment = "none"
        if held.normalise is not None:
            augment = self.augment or _leaves(self.adapted_dataset)[0].augment
        loader = self._loader(held, self.train_mb_size, augment)
        task = int(held.tasks[0]) if hasattr(self.experience, "task_labels") else None
        self.dataloader: Any = TaskLoader(loader, task, self.device)

    def eval_dataset_adaptation(self, **kwargs: Any) -> None:
        super().eval_dataset_adaptation(**kwargs)
        self._as_adapted = self.adapted_dataset

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        held = self._hold(training=False) if self.in_memory else None
        self._as_adapted = None
        if held is None:
            super().make_eval_dataloader(**kwargs)
            return
        tasks = held.tasks if hasattr(self.experience, "task_labels") else None
        self.dataloader = _SequentialLoader(self._loader(held, self.eval_mb_size), tasks)

    def _loader(self, held: _Held, batch_size: int, augment: str = "none") -> InMemoryLoader:
        return InMemoryLoader(
            held.images,
            held.indices,
            held.labels,
            normalise=held.normalise,
            batch_size=batch_size,
            augment=augment,
            seed=self.loading_seed,
            phase=self.experience.current_experience,
            channels_last=self.channels_last and held.images.dim() == 4,
        )

    def _hold(self, *, training: bool) -> _Held | None:
        try:
            held: _Held | None = self._from_pool() or self._materialised(training)
        except _CannotHold as reason:
            text = str(reason)
            if text not in self._said:
                self._said.add(text)
                warnings.warn(f"in-memory loading is not used: {text}; Avalanche's own loader is.", stacklevel=2)
            return None
        return held

    def _from_pool(self) -> _Held | None:
        leaves = _leaves(self.adapted_dataset)
        if not leaves or any(not isinstance(leaf, PoolDataset) for leaf in leaves):
            return None
        if any(leaf.pool.key != leaves[0].pool.key or leaf.augment != leaves[0].augment for leaf in leaves):
            return None
        attributes = self.adapted_dataset._data_attributes
        if any(attribute.use_in_getitem and name != _TASKS for name, attribute in attributes.items()):
            return None
        images, normalise = leaves[0].pool.on(self.device)
        positions = _positions(self.adapted_dataset)
        indices = torch.cat([leaf.indices for leaf in leaves])[positions].to(self.device)
        labels = torch.cat([leaf.labels for leaf in leaves])[positions].to(self.device)
        tasks = torch.zeros_like(labels)
        if _TASKS in attributes:
            given = attributes[_TASKS].data
            constant = isinstance(given, ConstantSequence)
            tasks += given[0] if constant else torch.as_tensor(list(given), device=self.device)
        return _Held(images, indices, labels, self._one_task(tasks), normalise)

    def _materialised(self, training: bool) -> _Held:
        dataset = self.adapted_dataset
        cached = _MATERIALISED.get(id(self.experience.dataset))
        # What plugins have put in its place (a buffer, say) is another data set each time.
        kept = not training and dataset is self._as_adapted
        key = str(self.device)
        if cached is not None and kept and cached[0]() is self.experience.dataset and key in cached[1]:
            return cached[1][key]
        held: _Held = self._read(dataset)
        if kept:
            identity = id(self.experience.dataset)
            reference = weakref.ref(self.experience.dataset, lambda _: _MATERIALISED.pop(identity, None))
            _MATERIALISED.setdefault(identity, (reference, {}))[1][key] = held
        return held

    def _read(self, dataset: Any) -> _Held:
        count = len(dataset)
        if count == 0:
            raise _CannotHold("the data set is empty")
        with isolated_rng(0):
            first = dataset[0]
        parts = len(first) if isinstance(first, (tuple, list)) else 0
        if parts not in (2, 3) or not isinstance(first[0], Tensor) or dataset.collate_fn is not default_collate:
            raise _CannotHold("items are not a tensor, a label and a task label")
        label = torch.as_tensor(first[1])
        if label.dim() > 0 or label.is_floating_point():
            raise _CannotHold("labels are not class numbers")
        size = first[0].numel() * first[0].element_size() * count
        if size > self.max_bytes:
            raise _CannotHold(f"the data set takes {size / 2**20:.0f} MiB, more than max_bytes allows")
        # Random transforms cannot be read once for all: 64 items, read twice under different seeds, would differ.
        probe = range(0, count, max(1, count // 64))
        readings = []
        for seed in (1, 2):
            with isolated_rng(seed):
                readings.append([dataset[item][0] for item in probe])
        if any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(*readings, strict=True)):
            raise _CannotHold("its transforms are random")
        inputs: Tensor | None = None
        labels = torch.empty(count, dtype=torch.int64)
        tasks = torch.zeros(count, dtype=torch.int64)
        with isolated_rng(0):
            for item in range(count):
                sample = dataset[item]
                if inputs is None:
                    inputs = torch.empty((count, *sample[0].shape), dtype=sample[0].dtype)
                if sample[0].shape != inputs.shape[1:]:
                    raise _CannotHold("inputs have different shapes")
                inputs[item] = sample[0]
                labels[item] = int(sample[1])
                if len(sample) == 3:
                    tasks[item] = int(sample[2])
        assert inputs is not None
        device = self.device
        indices = torch.arange(count, device=device)
        return _Held(inputs.to(device), indices, labels.to(device), self._one_task(tasks).to(device), None)

    def _one_task(self, tasks: Tensor) -> Tensor:
        if self.is_training and hasattr(self.experience, "task_labels") and len(tasks.unique()) > 1:
            raise _CannotHold("an experience mixes tasks, which Avalanche balances")
        return tasks


_TASKS = "targets_task_labels"
_MATERIALISED: dict[int, tuple[weakref.ref[Any], dict[str, _Held]]] = {}
