"""Task streams of the field: a sequence of tasks over one data set, each with its own inputs, labels or classes."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ht_ray._checks import check_choice, check_fields, refused
from ht_ray.errors import SettingError
from ht_ray.mechanisms import derive_seed, generator
from ht_ray.vision.data.dataset import ImageData
from ht_ray.vision.data.streams import (
    ContinualConfig,
    Phase,
    Stream,
    StreamConfig,
    continual,
    register_stream,
)
from ht_ray.vision.data.transforms import Blur, DrawnPermutation, DriftingNoise, InputTransform, Rotate

__all__ = [
    "BinaryConfig",
    "BitFlippingConfig",
    "ClassIncrementalConfig",
    "DriftingConfig",
    "FivePlusOneConfig",
    "GrowingConfig",
    "PermutedConfig",
    "RandomLabelsConfig",
    "ShuffledClassesConfig",
    "TaskStreamConfig",
]

_MOST_TASKS, _MOST_EPOCHS = 100_000, 1_000_000


@dataclass(frozen=True)
class TaskStreamConfig(StreamConfig):
    """Settings that all streams of tasks have; None stands for the published value, see the class's ``published``.

    Attributes
    ----------
    tasks
        How many tasks there are; None is the stream's published number.
    task_epochs
        Epochs of each task; None is the stream's published number, 1 where samples come online.
    """

    tasks: int | None = None
    task_epochs: int | None = None

    #: The published values, by the setting's name; a number of samples of None is the whole training set.
    published: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        check_fields(self, "tasks", low=1, high=_MOST_TASKS, integer=True)
        check_fields(self, "task_epochs", low=1, high=_MOST_EPOCHS, integer=True)

    @property
    def one_epoch(self) -> bool:
        """Whether each task is one epoch."""
        return self.value("task_epochs") == 1

    def value(self, name: str) -> Any:
        """Return a setting, or what is published where it is None."""
        given = getattr(self, name)
        return self.published[name] if given is None else given

    def make(self, labels: Tensor, num_classes: int, *, seed: int) -> Stream:
        """Return the stream: `tasks` phases, see `task`."""
        return Stream(
            self.name, tuple(self.task(index, labels, num_classes, seed) for index in range(self.value("tasks")))
        )

    @abstractmethod
    def task(self, index: int, labels: Tensor, num_classes: int, seed: int) -> Phase:
        """Return one task over a training set with these true labels."""


@dataclass(frozen=True)
class _SampledConfig(TaskStreamConfig):
    """Settings of streams whose tasks take some of the training set.

    Attributes
    ----------
    task_samples
        Samples of each task, drawn once for all of them; None is the stream's published number.
    """

    task_samples: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "task_samples", low=2, integer=True)

    def chosen(self, labels: Tensor, seed: int, *purpose: int) -> Tensor:
        """Return positions of the task's samples in the training set; all of it where it has fewer."""
        order = torch.randperm(len(labels), generator=generator(seed, "task samples", *purpose))
        return order[: self.value("task_samples")]


@register_stream("permuted")
@dataclass(frozen=True)
class PermutedConfig(_SampledConfig):
    """Online permuted inputs: each task has its own order of pixels, and every sample comes once.

    Published: 800 tasks of the whole training set, one epoch each (Dohare et al. 2024, online permuted MNIST). Kumar et
    al. (2023), section 4.2, has 500 tasks of the same 10 000 images: ``tasks=500, task_samples=10000``. The test set is
    permuted as the task is.
    """

    published: ClassVar[dict[str, Any]] = {"tasks": 800, "task_epochs": 1, "task_samples": None}

    def task(self, index: int, labels: Tensor, num_classes: int, seed: int) -> Phase:
        """See `TaskStreamConfig.task`."""
        chosen = self.chosen(labels, seed)
        order = DrawnPermutation(derive_seed(seed, "permuted inputs", index))
        return Phase(index, self.value("task_epochs"), chosen, labels[chosen], 0.0, len(chosen), transform=order)


@register_stream("random_labels")
@dataclass(frozen=True)
class RandomLabelsConfig(_SampledConfig):
    """Random labels that are memorized: the same images in each task, every label drawn again from all classes.

    Published: 50 tasks of 1200 images and 400 epochs (Kumar et al. 2023, section 4.2, after Lyle et al. 2023). A task
    is tested on its own samples, as nothing else has its labels.
    """

    published: ClassVar[dict[str, Any]] = {"tasks": 50, "task_epochs": 400, "task_samples": 1200}
    memorized: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True

    def task(self, index: int, labels: Tensor, num_classes: int, seed: int) -> Phase:
        """See `TaskStreamConfig.task`."""
        chosen = self.chosen(labels, seed)
        drawn = torch.randint(num_classes, (len(chosen),), generator=generator(seed, "random labels", index))
        return Phase(index, self.value("task_epochs"), chosen, drawn, 1.0, len(chosen), tested_on="own")


@register_stream("shuffled_classes")
@dataclass(frozen=True)
class ShuffledClassesConfig(_SampledConfig):
    """Shuffled classes: in each task the classes have other labels, samples of a class the same one.

    As in the label-permuted streams of Elsayed & Mahmood (2024, UPGD): 400 tasks of 2500 samples that come once.
    """

    published: ClassVar[dict[str, Any]] = {"tasks": 400, "task_epochs": 1, "task_samples": 2500}
    needs_classes: ClassVar[bool] = True

    def task(self, index: int, labels: Tensor, num_classes: int, seed: int) -> Phase:
        """See `TaskStreamConfig.task`."""
        chosen = self.chosen(labels, seed, index)
        relabel = torch.randperm(num_classes, generator=generator(seed, "shuffled classes", index))
        own = relabel[labels[chosen]]
        return Phase(index, self.value("task_epochs"), chosen, own, 0.0, len(chosen), relabel=relabel)


def _class_order(seed: int, num_classes: int, turn: int = 0) -> Tensor:
    return torch.randperm(num_classes, generator=generator(seed, "order of classes", turn))


def _relabelled(classes: Tensor, to: Tensor, num_classes: int) -> Tensor:
    relabel = torch.full((num_classes,), -1)
    relabel[classes] = to
    return relabel


@register_stream("class_incremental")
@dataclass(frozen=True)
class ClassIncrementalConfig(TaskStreamConfig):
    """Class-incremental learning: each task brings classes, and trains on all that have come; the head grows with them.

    Published: 20 tasks of 200 epochs, 5 of CIFAR-100's classes each (Dohare et al. 2024, class-incremental CIFAR-100).
    Outputs of classes to come do not count, which is a head that grows; test samples are of the classes that have come.

    Attributes
    ----------
    tasks
        How many tasks there are; None is as many as bring all classes.
    classes_per_task
        How many classes each task brings.
    """

    classes_per_task: int = 5
    published: ClassVar[dict[str, Any]] = {"task_epochs": 200}
    needs_classes: ClassVar[bool] = True
    not_packed: ClassVar[str] = "its head grows"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "classes_per_task", low=1, integer=True)

    def make(self, labels: Tensor, num_classes: int, *, seed: int) -> Stream:
        """Return the stream.

        Raises
        ------
        SettingError
            If there are not as many classes.
        """
        most = -(-num_classes // self.classes_per_task)
        tasks = most if self.tasks is None else self.tasks
        if tasks > most:
            why = f": {num_classes} classes, {self.classes_per_task} in each, are {most} tasks at most."
            raise refused("ClassIncrementalConfig.tasks", tasks, why)
        return Stream(self.name, tuple(self.task(index, labels, num_classes, seed) for index in range(tasks)))

    def task(self, index: int, labels: Tensor, num_classes: int, seed: int) -> Phase:
        """See `TaskStreamConfig.task`."""
        order = _class_order(seed, num_classes)
        seen, before = order[: (index + 1) * self.classes_per_task], order[: index * self.classes_per_task]
        chosen = torch.isin(labels, seen).nonzero().flatten()
        new = len(chosen) - int(torch.isin(labels, before).sum())
        relabel = _relabelled(seen, seen, num_classes)
        epochs = self.value("task_epochs")
        return Phase(index, epochs, chosen, labels[chosen], 0.0, new, relabel=relabel, outputs=relabel >= 0)


@register_stream("five_plus_one")
@dataclass(frozen=True)
class FivePlusOneConfig(TaskStreamConfig):
    """Alternation of hard tasks of five classes and easy tasks of one (Kumar et al. 2023, section 4.2).

    Published, on CIFAR-100: 10 epochs of a hard task, as many steps of an easy one, each class in one task only; 30
    tasks are ours, as that section names no number. With fewer classes they come again. All outputs count.
    """

    published: ClassVar[dict[str, Any]] = {"tasks": 30, "task_epochs": 10}
    needs_classes: ClassVar[bool] = True
    not_packed: ClassVar[str] = "tasks are tested on some of the classes"

    def task(self, index: int, labels: Tensor, num_classes: int, seed: int) -> Phase:
        """See `TaskStreamConfig.task`."""
        hard, turns = min(5, num_classes - 1), 1 + (index + 2) * 6 // num_classes
        order = torch.cat([_class_order(seed, num_classes, turn) for turn in range(turns)])
        start = (index // 2) * (hard + 1) + (hard if index % 2 else 0)
        classes = order[start : start + (1 if index % 2 else hard)].unique()
        chosen = torch.isin(labels, classes).nonzero().flatten()
        epochs = self.value("task_epochs")
        if index % 2:  # as many steps as the hard one before it
            one_class = max(1, len(chosen))
            of_hard = torch.isin(labels, order[start - hard : start]).sum()
            epochs = max(1, round(epochs * int(of_hard) / one_class))
        relabel = _relabelled(classes, classes, num_classes)
        return Phase(index, epochs, chosen, labels[chosen], 0.0, len(chosen), relabel=relabel)


@register_stream("drifting")
@dataclass(frozen=True)
class DriftingConfig(_SampledConfig):
    """Inputs that drift slowly, from one task to the next a little further; labels stay.

    Not of one paper: defaults are ours, 100 tasks of the whole training set and one epoch each.

    Attributes
    ----------
    drift
        What drifts: ``"rotate"``, ``"blur"``, or ``"noise"``, a pattern that is added to every image of a task, and
        turns into another.
    drift_reach
        Where the last task has arrived: degrees, the blur's standard deviation in pixels, or the noise's in those of
        the data set; None is 180, 2 and 1.
    """

    drift: Literal["rotate", "blur", "noise"] = "rotate"
    drift_reach: float | None = None
    published: ClassVar[dict[str, Any]] = {"tasks": 100, "task_epochs": 1, "task_samples": None}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("DriftingConfig.drift", self.drift, ["rotate", "blur", "noise"])
        check_fields(self, "drift_reach", low=0, high=1000)

    def task(self, index: int, labels: Tensor, num_classes: int, seed: int) -> Phase:
        """See `TaskStreamConfig.task`."""
        chosen = self.chosen(labels, seed)
        reach = (
            {"rotate": 180.0, "blur": 2.0, "noise": 1.0}[self.drift] if self.drift_reach is None else self.drift_reach
        )
        level = reach * index / max(1, self.value("tasks") - 1)
        transform: InputTransform = DriftingNoise(derive_seed(seed, "drifting noise"), index, level)
        if self.drift == "rotate":
            transform = Rotate(torch.tensor(level))
        elif self.drift == "blur":
            transform = Blur.gaussian(level)
        return Phase(index, self.value("task_epochs"), chosen, labels[chosen], 0.0, len(chosen), transform=transform)


@register_stream("binary")
@dataclass(frozen=True)
class BinaryConfig(TaskStreamConfig):
    """Binary tasks of two classes each, with a new head: Continual ImageNet's protocol (Dohare et al. 2024).

    Published: 250 epochs of each of 5000 tasks; the last layer is set to zero as a task begins, has two outputs that
    count, and a task is tested on the test samples of its classes. Classes come in a drawn order, and again when all
    have been there.
    """

    published: ClassVar[dict[str, Any]] = {"tasks": 5000, "task_epochs": 250}
    needs_classes: ClassVar[bool] = True
    not_packed: ClassVar[str] = "each task has a head of its own"

    def task(self, index: int, labels: Tensor, num_classes: int, seed: int) -> Phase:
        """See `TaskStreamConfig.task`.

        Raises
        ------
        SettingError
            If there is one class only.
        """
        if num_classes < 2:
            raise SettingError(f"BinaryConfig: num_classes = {num_classes}: accepted are two or more.")
        turn, place = divmod(index, num_classes // 2)
        pair = _class_order(seed, num_classes, turn)[2 * place : 2 * place + 2]
        chosen = torch.isin(labels, pair).nonzero().flatten()
        relabel = _relabelled(pair, torch.tensor([0, 1]), num_classes)
        outputs = torch.arange(num_classes) < 2
        epochs, own = self.value("task_epochs"), relabel[labels[chosen]]
        return Phase(index, epochs, chosen, own, 0.0, len(chosen), relabel=relabel, outputs=outputs, reset_head=True)


@register_stream("growing")
@dataclass(frozen=True)
class GrowingConfig(TaskStreamConfig):
    """Growing data without noise: a share arrives with each task, and all that has arrived is trained on.

    The warm start of DASH (Shin et al. 2024) and FIRE over many stages. 50 tasks are ours; epochs default to 100.
    """

    published: ClassVar[dict[str, Any]] = {"tasks": 50, "task_epochs": 100}

    def make(self, labels: Tensor, num_classes: int, *, seed: int) -> Stream:
        """Return the stream: `ContinualConfig` with full access and without noise."""
        config = ContinualConfig(phases=self.value("tasks"), epochs=self.value("task_epochs"), noise="none")
        return Stream(self.name, continual(labels, num_classes, config, seed=seed).phases)

    def task(self, index: int, labels: Tensor, num_classes: int, seed: int) -> Phase:
        """See `TaskStreamConfig.task`."""
        return self.make(labels, num_classes, seed=seed)[index]


@register_stream("bit_flipping")
@dataclass(frozen=True)
class BitFlippingConfig(_SampledConfig):
    """Slowly changing regression (Dohare et al. 2024): bits of which some change once a task, and a fixed target.

    It makes its own data, `data`. Of an example's bits, those that flip are the same throughout a task, and one of them
    changes with the next; the others are drawn for each example; a last one is always 1. The target is that of a fixed
    network of linear threshold units with weights of -1 and 1; each is active where its input exceeds its threshold, as
    many weights of -1 taken off `flip_beta` times the number of inputs.

    Published: 10 000 examples of each task, which come once, and are tested on as they end; 100 tasks.

    Attributes
    ----------
    flip_inputs
        Bits of an example, without the last.
    flip_bits
        How many of them flip.
    flip_units
        Threshold units of the target.
    flip_beta
        Of the thresholds.
    """

    flip_inputs: int = 20
    flip_bits: int = 15
    flip_units: int = 100
    flip_beta: float = 0.7
    published: ClassVar[dict[str, Any]] = {"tasks": 100, "task_epochs": 1, "task_samples": 10_000}
    makes_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "flip_inputs", low=2, high=10_000, integer=True)
        check_fields(self, "flip_bits", low=1, high=self.flip_inputs, integer=True)
        check_fields(self, "flip_units", low=1, high=1_000_000, integer=True)
        check_fields(self, "flip_beta", low=0, high=1)

    def bits(self, seed: int) -> Tensor:
        """Return all examples, uint8 of shape ``(tasks * task_samples, flip_inputs + 1)``, one task after the other."""
        tasks, samples = self.value("tasks"), self.value("task_samples")
        draw = generator(seed, "bit flipping: examples")
        flipped = torch.randint(self.flip_bits, (tasks,), generator=draw)
        change = torch.nn.functional.one_hot(flipped, self.flip_bits)
        change[0] = torch.randint(2, (self.flip_bits,), generator=draw)
        flipping = (change.cumsum(0) % 2).repeat_interleave(samples, 0)
        drawn = torch.randint(2, (len(flipping), self.flip_inputs - self.flip_bits), generator=draw)
        return torch.cat([flipping, drawn, torch.ones(len(flipping), 1, dtype=torch.int64)], 1).to(torch.uint8)

    def targets(self, bits: Tensor, seed: int) -> Tensor:
        """Return the targets of examples, float32 of shape ``(n,)``."""
        draw = generator(seed, "bit flipping: target")
        inner = 2.0 * torch.randint(2, (self.flip_units, bits.shape[1]), generator=draw) - 1
        outer = 2.0 * torch.randint(2, (self.flip_units,), generator=draw) - 1
        threshold = bits.shape[1] * self.flip_beta - (inner < 0).sum(1)
        return torch.cat([(part.float() @ inner.T > threshold).float() @ outer for part in bits.split(10_000)])

    def data(self, *, seed: int) -> ImageData:
        """Return the examples as a data set of images of one row, whose labels are not used."""
        images = self.bits(seed)[:, None, None, :]
        none = torch.zeros(len(images), dtype=torch.int64)
        return ImageData(self.name, images, none, images[:1], none[:1], ("target",), (0.0,), (1 / 255,))

    def task(self, index: int, labels: Tensor, num_classes: int, seed: int) -> Phase:
        """See `TaskStreamConfig.task`."""
        return self.make(labels, num_classes, seed=seed)[index]

    def make(self, labels: Tensor, num_classes: int, *, seed: int) -> Stream:
        """Return the stream over what `data` made with the same seed.

        Raises
        ------
        SettingError
            If it is over another data set.
        """
        tasks, samples = self.value("tasks"), self.value("task_samples")
        if num_classes != 1 or len(labels) != tasks * samples:
            raise SettingError(
                "stream = 'bit_flipping': it makes its own data: accepted is fit(model, config.data(seed=seed), ...), "
                "see docs/streams.md."
            )
        targets = self.targets(self.bits(seed), seed)
        places = torch.arange(len(labels)).split(samples)
        epochs = self.value("task_epochs")
        return Stream(
            self.name,
            tuple(Phase(k, epochs, own, targets[own], 0.0, samples, tested_on="own") for k, own in enumerate(places)),
        )
