"""Streams of phases: which samples, with which labels, a network trains on, one phase after the other.

A stream is added by one class: its settings, and how they make it (`StreamConfig`, `register_stream`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from ht_ray._checks import check_choice, check_fields, check_number, refused
from ht_ray.errors import SettingError
from ht_ray.mechanisms import generator
from ht_ray.vision.data.reservoir import Reservoir
from ht_ray.vision.data.transforms import InputTransform

__all__ = [
    "STREAMS",
    "ContinualConfig",
    "Phase",
    "Stream",
    "StreamConfig",
    "WarmStartConfig",
    "continual",
    "make_stream",
    "noise_schedule",
    "noisy_labels",
    "register_stream",
    "stream_config",
    "warm_start",
]

# Beyond are typing errors.
_MOST_PHASES, _MOST_EPOCHS = 100_000, 1_000_000

NoiseRule = Literal["uniform", "other"]


@dataclass(frozen=True)
class Phase:
    """One phase of a stream.

    Attributes
    ----------
    index
        Number of the phase, from 0.
    epochs
        How long to train on it.
    indices
        Positions in the training set, int64 of shape ``(n,)``. In `continual` the new chunk comes first, then older
        samples.
    labels
        Their labels with this phase's noise, int64 of shape ``(n,)``; of a regression float32.
    noise
        Share of the labels that were redrawn.
    new
        How many of the samples are new in this phase.
    transform
        What the task does to its inputs, in training and when it is tested, see `ht_ray.vision.data.transforms`; None
        leaves them as they are.
    relabel
        The label that each class of the data set has in this task, int64 of shape ``(K,)``; -1 for a class that does
        not count when the task is tested. None leaves labels as they are.
    outputs
        Which of the network's outputs count, a mask, bool of shape ``(K,)``: the others are left out of the loss and of
        the prediction. None counts all.
    reset_head
        Whether the last layer is set to zero as the phase begins.
    tested_on
        ``"test"``: the test set; ``"own"``: the samples of the phase with its labels, which a network memorizes.
    test_indices, test_labels
        Positions in the test set of what the phase is tested on, and their labels, int64 of shape ``(m,)``; None is all
        of it.

    `labels` of a floating type are targets of a regression: the loss is the mean squared error of the first output,
    and what is reported as accuracy is R2, the share of the targets' variance that is explained.
    """

    index: int
    epochs: int
    indices: Tensor
    labels: Tensor
    noise: float
    new: int
    transform: InputTransform | None = None
    relabel: Tensor | None = None
    outputs: Tensor | None = None
    reset_head: bool = False
    tested_on: Literal["test", "own"] = "test"
    test_indices: Tensor | None = None
    test_labels: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether the phase is indices and labels alone, tested on the whole test set."""
        tasks = (self.transform, self.relabel, self.outputs, self.test_indices)
        own = self.reset_head or self.tested_on == "own" or self.labels.is_floating_point()
        return not own and all(part is None for part in tasks)

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Stream:
    """A sequence of phases over one training set; see `continual` and `warm_start`."""

    name: str
    phases: tuple[Phase, ...]

    def __len__(self) -> int:
        return len(self.phases)

    def __iter__(self) -> Iterator[Phase]:
        return iter(self.phases)

    def __getitem__(self, index: int) -> Phase:
        return self.phases[index]

    @property
    def plain(self) -> bool:
        """Whether all phases are indices and labels alone, tested on the whole test set."""
        return all(phase.plain for phase in self.phases)

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.phases)


class StreamConfig(ABC):
    """Settings of a stream, and how they make it; base of `ContinualConfig` and `WarmStartConfig`.

    Examples
    --------
    >>> @register_stream("shuffled_labels")
    ... @dataclass(frozen=True)
    ... class ShuffledLabelsConfig(StreamConfig):
    ...     epochs: int = 5
    ...
    ...     def make(self, labels, num_classes, *, seed):
    ...         order = torch.randperm(len(labels), generator=generator(seed, "shuffled labels"))
    ...         phase = Phase(0, self.epochs, torch.arange(len(labels)), labels[order], noise=1.0, new=len(labels))
    ...         return Stream(self.name, (phase,))
    >>> make_stream(torch.arange(4), 4, "shuffled_labels", seed=0).epochs
    5
    >>> del STREAMS["shuffled_labels"]
    """

    name: ClassVar[str]
    """The stream's name in `STREAMS`, given by `register_stream`."""

    not_packed: ClassVar[str] = ""
    """Why a `Pack` cannot train its phases; nothing where it can."""

    makes_data: ClassVar[bool] = False
    """Whether its data are its own, of each seed others: ``data(seed=)`` returns them."""

    memorized: ClassVar[bool] = False
    """Whether its tasks are tested on their own samples, so that there is nothing to validate on."""

    needs_classes: ClassVar[bool] = False
    """Whether it is about classes, which a regression has not."""

    @abstractmethod
    def make(self, labels: Tensor, num_classes: int, *, seed: int) -> Stream:
        """Return the stream over a training set with these true `labels` (int64, shape ``(n,)``).

        It depends on the arguments and the settings alone; draws come from `ht_ray.mechanisms.generator`.
        """


_Config = TypeVar("_Config", bound=type[StreamConfig])

STREAMS: dict[str, type[StreamConfig]] = {}
"""The class of each stream's settings, by the stream's name."""


def register_stream(name: str) -> Callable[[_Config], _Config]:
    """Return a class decorator that enters the class into `STREAMS` under `name`; see `StreamConfig`.

    Raises
    ------
    SettingError
        If another stream has the name.
    """

    def register(config: _Config) -> _Config:
        if name in STREAMS:
            raise SettingError(f"register_stream: name = {name!r}: accepted is a name that no other stream has.")
        config.name = name
        STREAMS[name] = config
        return config

    return register


def stream_config(name: str, **settings: Any) -> StreamConfig:
    """Return the settings of the stream `name`, those that are not given at their defaults.

    Raises
    ------
    SettingError
        If there is no such stream, it has no such setting, or a value is not accepted.

    Examples
    --------
    >>> stream_config("warm_start", epochs=20, fresh=True).epochs
    20
    >>> stream_config("warmstart")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: stream = 'warmstart': accepted are 'continual', ... Did you mean 'warm_start'?
    """
    config = STREAMS[check_choice("stream", name, STREAMS)]
    for setting in settings:
        check_choice(f"{config.__name__}: setting", setting, [field.name for field in fields(config)])  # type: ignore[arg-type]
    return config(**settings)


def noisy_labels(
    labels: Tensor,
    ratio: float,
    num_classes: int,
    *,
    rule: NoiseRule = "uniform",
    generator: torch.Generator,
) -> Tensor:
    """Return `labels` with a share redrawn at random (Zhang et al. 2017; arXiv 2406.02596, section 3.1).

    Parameters
    ----------
    labels
        True labels, int64 of shape ``(n,)``; left alone.
    ratio
        Share of the samples, in [0, 1], whose labels are redrawn; exactly ``round(ratio * n)`` of them. Targets of a
        regression, of a floating type, are redrawn from all targets.
    rule
        ``"uniform"`` draws from all classes, so that some stay true by chance (the paper);
        ``"other"`` never draws the true label (the authors' code), and needs two classes.

    Raises
    ------
    SettingError
        If `ratio`, `rule` or `num_classes` is not accepted.

    Examples
    --------
    >>> draw = torch.Generator().manual_seed(0)
    >>> clean = torch.zeros(10, dtype=torch.int64)
    >>> int((noisy_labels(clean, 0.5, 3, rule="other", generator=draw) != clean).sum())
    5
    """
    check_number("noisy_labels: ratio", ratio, low=0, high=1)
    check_choice("noisy_labels: rule", rule, ["uniform", "other"])
    regression = labels.is_floating_point()
    check_number(
        "noisy_labels: num_classes", num_classes, low=2 if rule == "other" and not regression else 1, integer=True
    )
    if regression and rule != "uniform":
        raise SettingError(f"noisy_labels: rule = {rule!r}: accepted for a regression is 'uniform'.")
    count = round(ratio * len(labels))
    if count == 0:
        return labels.clone()
    chosen = torch.randperm(len(labels), generator=generator)[:count]
    noisy = labels.clone()
    if regression:
        noisy[chosen] = labels[torch.randint(len(labels), (count,), generator=generator)]
    elif rule == "uniform":
        noisy[chosen] = torch.randint(num_classes, (count,), generator=generator)
    else:
        shift = torch.randint(1, num_classes, (count,), generator=generator)
        noisy[chosen] = (labels[chosen] + shift) % num_classes
    return noisy


def noise_schedule(noise: str | Sequence[float], phases: int) -> tuple[float, ...]:
    """Return the label noise of each phase.

    Parameters
    ----------
    noise
        ``"paper"``: from 0.5 to 0, rounded to tenths, which for ten phases is the authors' schedule;
        ``"linear"``: from 0.5 to 0; ``"none"``; or a number for all phases, or one for each, separated by commas or
        as a sequence.

    Raises
    ------
    SettingError
        If the schedule is unknown, has the wrong length or a value outside [0, 1].

    Examples
    --------
    >>> noise_schedule("paper", 10)
    (0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0)
    >>> noise_schedule("0.3,0", 2)
    (0.3, 0.0)
    """
    if isinstance(noise, str):
        if noise == "none":
            return (0.0,) * phases
        if noise in ("paper", "linear"):
            line = [0.5 * (1 - k / max(1, phases - 1)) for k in range(phases)]
            return tuple(round(value, 1) if noise == "paper" else value for value in line)
        try:
            values = [float(part) for part in noise.split(",")]
        except ValueError:
            check_choice("ContinualConfig: noise", noise, ["paper", "linear", "none", "numbers such as 0.5,0.3,0"])
            raise
    else:
        values = [float(value) for value in noise]
    if len(values) == 1:
        values *= phases
    if len(values) != phases:
        raise refused(
            "ContinualConfig.noise", noise, f": accepted are one number, or one for each of the {phases} phases."
        )
    for value in values:
        check_number("ContinualConfig: noise", value, low=0, high=1)
    return tuple(values)


@register_stream("continual")
@dataclass(frozen=True)
class ContinualConfig(StreamConfig):
    """Settings of the continual stream (arXiv 2406.02596, section 5.2).

    Attributes
    ----------
    phases
        Number of phases.
    epochs
        Epochs of each phase.
    chunk_ratio
        Share of the training set that is new in each phase; None means that the phases use all of it, equally.
    noise
        Label noise over the phases: ``"paper"``, ``"linear"``, ``"none"``, or numbers; see `noise_schedule`.
    access
        ``"full"``: a phase trains on all that has arrived; ``"buffer"``: on the new chunk and `buffer_size` older
        samples, drawn uniformly from everything seen; ``"new"``: on the new chunk alone.
    buffer_size
        How many older samples are kept under limited access.
    noise_rule
        Which labels noise draws, see `noisy_labels`.
    """

    phases: int = 10
    epochs: int = 100
    chunk_ratio: float | None = None
    noise: str = "paper"
    access: Literal["full", "buffer", "new"] = "full"
    buffer_size: int = 5000
    noise_rule: NoiseRule = "uniform"

    def __post_init__(self) -> None:
        check_fields(self, "phases", low=1, high=_MOST_PHASES, integer=True)
        check_fields(self, "epochs", low=1, high=_MOST_EPOCHS, integer=True)
        check_fields(self, "chunk_ratio", low=0, low_open=True, high=1 / self.phases)
        check_choice("ContinualConfig.access", self.access, ["full", "buffer", "new"])
        check_fields(self, "buffer_size", low=1, integer=True)
        check_choice("ContinualConfig.noise_rule", self.noise_rule, ["uniform", "other"])
        noise_schedule(self.noise, self.phases)

    def make(self, labels: Tensor, num_classes: int, *, seed: int) -> Stream:
        """Return the stream: see `continual`."""
        return continual(labels, num_classes, self, seed=seed)


@register_stream("warm_start")
@dataclass(frozen=True)
class WarmStartConfig(StreamConfig):
    """Settings of the warm-start stream (arXiv 2406.02596, section 3; Ash & Adams 2020).

    Attributes
    ----------
    subset_ratio
        Share of the training set in the first phase.
    label_noise
        Label noise of the first phase; the second has none and uses the whole set.
    epochs
        Epochs of the second phase.
    warm_epochs
        Epochs of the first phase; None means ``floor(epochs / subset_ratio)``, the same number of updates.
    noise_rule
        Which labels noise draws, see `noisy_labels`.
    fresh
        Whether the first phase is left out: the second alone, from initial weights, is what warm-starting is compared
        with.
    """

    subset_ratio: float = 0.1
    label_noise: float = 0.5
    epochs: int = 100
    warm_epochs: int | None = None
    noise_rule: NoiseRule = "uniform"
    fresh: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "subset_ratio", low=0, low_open=True, high=1)
        check_fields(self, "label_noise", low=0, high=1)
        check_fields(self, "epochs", "warm_epochs", low=1, high=_MOST_EPOCHS, integer=True)
        check_choice("WarmStartConfig.noise_rule", self.noise_rule, ["uniform", "other"])

    def make(self, labels: Tensor, num_classes: int, *, seed: int) -> Stream:
        """Return the stream: see `warm_start`."""
        return warm_start(labels, num_classes, self, seed=seed)


def continual(labels: Tensor, num_classes: int, config: ContinualConfig, *, seed: int) -> Stream:
    """Make the continual stream over a training set with these true `labels` (int64, shape ``(n,)``).

    Order of arrival, buffer and label noise each come from their own generator, derived from `seed`; the labels of
    all samples of a phase, replayed ones too, are drawn again at the phase's ratio.

    Examples
    --------
    >>> stream = continual(torch.arange(100) % 10, 10, ContinualConfig(access="buffer", buffer_size=20), seed=0)
    >>> [len(phase) for phase in stream]
    [10, 20, 30, 30, 30, 30, 30, 30, 30, 30]
    """
    total = len(labels)
    ratio = config.chunk_ratio if config.chunk_ratio is not None else 1 / config.phases
    bounds = [min(total, round(k * ratio * total)) for k in range(config.phases + 1)]
    if any(high == low for low, high in pairwise(bounds)):
        why = f" of a share of {ratio:g} each: the training set of {total} samples is too small, a phase would be "
        raise refused("ContinualConfig.phases", config.phases, f"{why}empty.")
    order = torch.randperm(total, generator=generator(seed, "order of arrival"))
    memory = Reservoir(config.buffer_size, seed=seed)
    phases = []
    schedule = noise_schedule(config.noise, config.phases)
    for k, noise in enumerate(schedule):
        chunk = order[bounds[k] : bounds[k + 1]]
        older = {"full": order[: bounds[k]], "buffer": memory.items, "new": order[:0]}[config.access]
        indices = torch.cat([chunk, older])
        draw = generator(seed, "label noise", k)
        noisy = noisy_labels(labels[indices], noise, num_classes, rule=config.noise_rule, generator=draw)
        phases.append(Phase(k, config.epochs, indices, noisy, noise, len(chunk)))
        memory.add(chunk)
    return Stream(config.name, tuple(phases))


def warm_start(labels: Tensor, num_classes: int, config: WarmStartConfig, *, seed: int) -> Stream:
    """Make the warm-start stream: a noisy subset, then the clean whole; with ``config.fresh``, the whole alone.

    Examples
    --------
    >>> stream = warm_start(torch.arange(100) % 10, 10, WarmStartConfig(subset_ratio=0.1), seed=0)
    >>> [(len(phase), phase.epochs, phase.noise) for phase in stream]
    [(10, 1000, 0.5), (100, 100, 0.0)]
    """
    total = len(labels)
    whole = torch.arange(total)
    if config.fresh:
        return Stream(config.name, (Phase(0, config.epochs, whole, labels.clone(), 0.0, total),))
    count = max(1, round(config.subset_ratio * total))
    subset = torch.randperm(total, generator=generator(seed, "order of arrival"))[:count]
    # Tolerance, as 100 / 0.1 must be 1000 whatever the last bit says.
    warm = config.warm_epochs or int(config.epochs / config.subset_ratio + 1e-9)
    noisy = noisy_labels(
        labels[subset],
        config.label_noise,
        num_classes,
        rule=config.noise_rule,
        generator=generator(seed, "label noise", 0),
    )
    return Stream(
        config.name,
        (
            Phase(0, warm, subset, noisy, config.label_noise, count),
            Phase(1, config.epochs, whole, labels.clone(), 0.0, total - count),
        ),
    )


def make_stream(labels: Tensor, num_classes: int, config: StreamConfig | str, *, seed: int) -> Stream:
    """Make the stream that `config` describes.

    Parameters
    ----------
    labels : Tensor
        The true labels of the training set, int64 of shape ``(n,)``.
    num_classes : int
        How many classes there are.
    config : StreamConfig or str
        The stream's settings; or its name in `STREAMS`, which stands for the default settings.
    seed : int
        The seed that all draws are derived from.

    Raises
    ------
    SettingError
        If there is no such stream, or the training set is too small for it.
    """
    if not isinstance(config, StreamConfig):
        config = stream_config(config)
    if config.needs_classes and labels.is_floating_point():
        raise SettingError(f"stream = {config.name!r}: it is about classes, and the data are a regression.")
    return config.make(labels, num_classes, seed=seed)
