"""Stream of an Avalanche benchmark: its settings. What needs Avalanche, and makes it, is in `strategies`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ht_ray._checks import check_fields, refused
from ht_ray.methods.config import parse_value
from ht_ray.vision.data.dataset import ImageData
from ht_ray.vision.data.streams import Stream, StreamConfig

__all__ = ["BenchmarkStreamConfig", "is_benchmark", "with_labels_of"]

_PREFIX = "avalanche:"


def is_benchmark(name: str) -> bool:
    """Whether the name is that of an Avalanche benchmark.

    Examples
    --------
    >>> is_benchmark("avalanche:SplitMNIST"), is_benchmark("my_module:make_stream")
    (True, False)
    """
    return name.startswith(_PREFIX)


@dataclass(frozen=True)
class BenchmarkStreamConfig(StreamConfig):
    """A stream whose phases are the experiences of an Avalanche benchmark, over the benchmark's own data set.

    Attributes
    ----------
    path
        ``"avalanche:SplitMNIST"``, a function of `avalanche.benchmarks.classic`; or
        ``"avalanche:my_package.my_module:make_benchmark"``, a function of a user's own.
    arguments
        Of the function, each as ``"n_experiences=5"``.
    task_epochs
        Epochs of each experience; None is 1.

    Raises
    ------
    SettingError
        If a value is not accepted.

    Examples
    --------
    >>> BenchmarkStreamConfig("avalanche:SplitMNIST", ("n_experiences=2", "fixed_class_order=3/1")).given
    {'n_experiences': 2, 'fixed_class_order': [3, 1]}
    """

    path: str
    arguments: tuple[str, ...] = ()
    task_epochs: int | None = None
    name: ClassVar[str] = "avalanche"
    not_packed: ClassVar[str] = "its tasks have test sets of their own"
    makes_data: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.benchmark:
            why = ": accepted is avalanche:NAME, as in avalanche:SplitMNIST, or avalanche:my_module:make_benchmark."
            raise refused("VisionSettings.stream", self.path, why)
        check_fields(self, "task_epochs", low=1, high=1_000_000, integer=True)
        self.given  # noqa: B018 - it checks

    @property
    def benchmark(self) -> str:
        """The name without ``avalanche:``."""
        return self.path.removeprefix(_PREFIX)

    @property
    def given(self) -> dict[str, Any]:
        """The function's arguments."""
        found: dict[str, Any] = {}
        for text in self.arguments:
            name, equals, value = (piece.strip() for piece in text.partition("="))
            name = name.replace("-", "_")
            if not equals or not name or not value:
                raise refused("VisionSettings.stream_args", text, accepted="name=value, as in n_experiences=5")
            if name in found:
                raise refused("VisionSettings.stream_args", text, ": {twice} is given twice.", twice=name)
            read = parse_value(value)
            found[name] = list(read) if isinstance(read, tuple) else read
        return found

    def value(self, name: str) -> Any:
        """Return a setting, or what it is by default."""
        given = getattr(self, name)
        return 1 if given is None and name == "task_epochs" else given

    def make(self, labels: Tensor, num_classes: int, *, seed: int) -> Stream:
        """Refuse: the phases come with the data set.

        Raises
        ------
        SettingError
            Always.
        """
        why = ": its phases come with its data set: accepted is strategies.stream_from_benchmark, or a study."
        raise refused("VisionSettings.stream", self.path, why)


def with_labels_of(data: ImageData, stream: Stream) -> ImageData:
    """Return a benchmark's images with the labels that they have in this stream, where they come first.

    Benchmarks of other seeds may number the classes otherwise.
    """
    train, test = data.train_labels.clone(), data.test_labels.clone()
    for phase in reversed(stream.phases):
        train[phase.indices] = phase.labels
        if phase.test_indices is not None and phase.test_labels is not None:
            test[phase.test_indices] = phase.test_labels
    same = torch.equal(train, data.train_labels) and torch.equal(test, data.test_labels)
    return data if same else replace(data, train_labels=train, test_labels=test)
