"""Stream of a user's own, named by the path of what makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ht_ray._checks import refused
from ht_ray._parts import is_path_of_part, load_function, load_part, own_code
from ht_ray.vision.data.benchmark_stream import BenchmarkStreamConfig, is_benchmark
from ht_ray.vision.data.streams import Phase, Stream, StreamConfig, stream_config

__all__ = ["OwnStreamConfig", "is_own_stream", "stream_settings"]


def is_own_stream(name: str) -> bool:
    """Whether the name is the path of what makes a stream."""
    return is_path_of_part(name) and not is_benchmark(name)


@dataclass(frozen=True)
class OwnStreamConfig(StreamConfig):
    """A stream that a user's function or class makes.

    Attributes
    ----------
    path
        ``"my_package.my_module:make_stream"``: a function of labels, num_classes and seed that returns a `Stream` or
        its phases; or a class derived from `StreamConfig`, which is made without arguments.
    """

    path: str
    name: ClassVar[str] = "own"

    def _factory(self) -> Any:
        found = load_part("VisionSettings", "stream", self.path)
        if isinstance(found, type) and issubclass(found, StreamConfig):
            return found().make
        given: dict[str, Any] = {"labels": None, "num_classes": 2, "seed": 0}
        return load_function("VisionSettings", "stream", self.path, "labels, num_classes and seed", **given)

    def make(self, labels: Tensor, num_classes: int, *, seed: int) -> Stream:
        """Return the stream over a training set with these true `labels`.

        Raises
        ------
        SettingError
            If there is no such function, it fails, or what it returns is no stream over these labels.
        """
        factory = self._factory()
        refuse = partial(refused, "VisionSettings.stream", self.path)
        with own_code("VisionSettings.stream", self.path, ": making the stream raised {text}."):
            made = factory(labels=labels, num_classes=num_classes, seed=seed)
        phases = made.phases if isinstance(made, Stream) else made
        if not isinstance(phases, Sequence) or not phases or not all(isinstance(phase, Phase) for phase in phases):
            kind = "no phases" if phases == () or phases == [] else type(made).__name__
            raise refuse(": it returned {kind}; accepted is a Stream, or a list of its phases.", kind=kind)
        for number, phase in enumerate(phases):
            if why := self._wrong(phase, number, len(labels), num_classes):
                raise refuse(": phase {number}: {text}.", number=number + 1, text=why)
        return Stream(self.path.partition(":")[2], tuple(phases))

    @staticmethod
    def _wrong(phase: Phase, number: int, samples: int, num_classes: int) -> str:
        """Return what is wrong with a phase; nothing if it can be trained on."""
        places, labels = phase.indices, phase.labels
        if phase.index != number:
            return f"its index is {phase.index}; accepted is {number}"
        if not isinstance(phase.epochs, int) or phase.epochs < 1:
            return f"its epochs are {phase.epochs!r}; accepted is a positive whole number"
        if places.dtype != torch.int64 or places.dim() != 1 or len(places) < 2:
            return f"its indices are {places.dtype} {tuple(places.shape)}; accepted are two or more, int64 (n,)"
        if int(places.min()) < 0 or int(places.max()) >= samples:
            return f"an index is {int(places.max())}; accepted are 0 to {samples - 1}"
        if labels.shape != places.shape:
            return f"it has {tuple(labels.shape)} labels for {len(places)} indices; accepted is one each"
        if labels.is_floating_point():
            return "" if bool(labels.isfinite().all()) else "a label is not finite"
        if labels.dtype != torch.int64 or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
            return (
                f"its labels are {labels.dtype}, up to {int(labels.max())}; accepted are int64, 0 to {num_classes - 1}"
            )
        return ""


def stream_settings(name: str, **settings: Any) -> StreamConfig:
    """Return the settings of a stream, by its name, by the path of what makes it, or by its benchmark's name."""
    if is_benchmark(name):
        return BenchmarkStreamConfig(**{"path": name, **settings})
    return OwnStreamConfig(**{"path": name, **settings}) if is_own_stream(name) else stream_config(name, **settings)
