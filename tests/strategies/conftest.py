"""Small models, benchmarks made from tensors, and bit-exact pictures of a strategy's state."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from avalanche.benchmarks import class_incremental_benchmark, task_incremental_benchmark, with_classes_timeline
from avalanche.benchmarks.scenarios import CLScenario
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    ConstantSequence,
    DataAttribute,
    TaskAwareSupervisedClassificationDataset,
    TaskLabels,
    TransformGroups,
)
from avalanche.core import SupervisedPlugin
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ht_ray.errors import SettingWarning
from ht_ray.vision import ImageData

FEATURES = 6


@pytest.fixture(autouse=True)
def _fixed_generators() -> Iterator[None]:
    """Start each test from the same state, without warnings of momenta that are too long for tiny phases."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SettingWarning)
        warnings.filterwarnings("ignore", "No loggers specified")
        yield


class Network(nn.Module):
    """An encoder with BatchNorm, and a head that may grow."""

    def __init__(self, head: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout)
        )
        self.classifier = head

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.classifier(self.encoder(inputs))
        return output


class MultiHeadNetwork(MultiTaskModule):
    """A head for each task."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.classifier = MultiHeadClassifier(8, initial_out_features=2)

    def forward(self, inputs: Tensor, task_labels: Any) -> Any:
        return self.classifier(self.encoder(inputs), task_labels)


@pytest.fixture
def make_network() -> Callable[..., nn.Module]:
    """Return a maker of networks: kind is "plain", "growing", "masked" (full size, units masked) or "multi"."""

    def make(kind: str = "plain", *, classes: int = 6, seed: int = 0, dropout: float = 0.0) -> nn.Module:
        torch.manual_seed(seed)
        if kind == "multi":
            return MultiHeadNetwork()
        heads: dict[str, Callable[[], nn.Module]] = {
            "plain": lambda: nn.Linear(8, classes),
            "growing": lambda: IncrementalClassifier(8, initial_out_features=2, masking=False),
            "masked": lambda: IncrementalClassifier(8, initial_out_features=classes, masking=True),
        }
        return Network(heads[kind](), dropout)

    return make


def tensor_dataset(inputs: Tensor, labels: Tensor, *, aware: bool, train: Any = None) -> AvalancheDataset:
    groups = None if train is None else TransformGroups({"train": (train, None), "eval": (None, None)})
    attributes = [DataAttribute(labels.tolist(), "targets")]
    if aware:
        attributes.append(TaskLabels(ConstantSequence(0, len(labels))))
    kind = TaskAwareSupervisedClassificationDataset if aware else AvalancheDataset
    return kind([TensorDataset(inputs, labels)], data_attributes=attributes, transform_groups=groups)


@pytest.fixture
def make_benchmark() -> Callable[..., CLScenario]:
    """Return a maker of class-incremental benchmarks of separable clusters.

    With `tasks` each experience is a task; with `aware` alone, items have the task label 0, experiences none.
    """

    def make(
        experiences: int = 3,
        *,
        tasks: bool = False,
        aware: bool = False,
        per_class: int = 12,
        class_order: Sequence[int] = (0, 1, 2, 3, 4, 5),
        train: Any = None,
    ) -> CLScenario:
        draw = torch.Generator().manual_seed(1)
        centres = 2 * torch.randn(len(class_order), FEATURES, generator=draw)
        sets = {}
        for name, count in (("train", per_class), ("test", 5)):
            labels = torch.arange(len(class_order)).repeat_interleave(count)
            inputs = centres[labels] + torch.randn(len(labels), FEATURES, generator=draw)
            sets[name] = tensor_dataset(inputs, labels, aware=aware or tasks, train=train)
        benchmark = class_incremental_benchmark(sets, num_experiences=experiences, class_order=list(class_order))
        if tasks:
            benchmark = with_classes_timeline(task_incremental_benchmark(benchmark, reset_task_labels=True))
        for stream in benchmark.streams.values():
            for experience in stream:  # Avalanche gives sets, and its MultiHeadClassifier takes lists only
                experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)
        return benchmark

    return make


@pytest.fixture(scope="session")
def image_data() -> ImageData:
    """90 training and 40 test images of 3 classes, 2x8x8, that can be told apart."""
    draw = torch.Generator().manual_seed(2)
    patterns = torch.randint(0, 200, (3, 2, 8, 8), generator=draw)

    def images(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(3, (count,), generator=draw)
        noise = torch.randint(0, 56, (count, 2, 8, 8), generator=draw)
        return (patterns[labels] + noise).to(torch.uint8), labels

    train, train_labels = images(90)
    test, test_labels = images(40)
    return ImageData(
        name="made up",
        train_images=train,
        train_labels=train_labels,
        test_images=test,
        test_labels=test_labels,
        classes=("a", "b", "c"),
        mean=(0.4, 0.5),
        std=(0.25, 0.3),
    )


class Recorder(SupervisedPlugin):
    """Records copies of the model's tensors, by default after every optimiser step."""

    def __init__(self, moment: str = "after_update") -> None:
        super().__init__()
        self.states: list[dict[str, Tensor]] = []
        setattr(self, moment, self._record)

    def _record(self, strategy: Any, **kwargs: Any) -> None:
        self.states.append(tensors_of(strategy.model))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def recorder() -> Callable[..., Recorder]:
    """Return the class of plugins that record the model's tensors; put one before the plugin under test."""
    return Recorder


def picture(strategy: Any) -> dict[str, Any]:
    """Everything that evaluation must leave as it was, as plain values and copies of tensors."""
    state: dict[str, Any] = {f"model/{k}": v for k, v in tensors_of(strategy.model).items()}
    for name, parameter in strategy.model.named_parameters():
        state[f"grad/{name}"] = None if parameter.grad is None else parameter.grad.clone()
        state[f"pointer/{name}"] = parameter.data_ptr()
        for key, value in strategy.optimizer.state.get(parameter, {}).items():
            state[f"optimizer/{name}/{key}"] = value.clone() if torch.is_tensor(value) else value
    for index, group in enumerate(strategy.optimizer.param_groups):
        state[f"group/{index}"] = {key: value for key, value in group.items() if key != "params"}
    state["modes"] = [part.training for part in strategy.model.modules()]
    state["rng"] = torch.get_rng_state()
    for plugin in strategy.plugins:
        tortoise = getattr(plugin, "tortoise", None)
        if tortoise is not None:
            state["predicting"] = tortoise.predicting
            state["counters"] = (tortoise.updates, tortoise.resets, tortoise.epochs)
            state |= {f"tortoise/{k}": v.clone() for k, v in tortoise.weights.tensors.items()}
    return state


@pytest.fixture
def picture_of() -> Callable[[Any], dict[str, Any]]:
    """Return the function that takes a bit-exact picture of a strategy."""
    return picture


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if torch.is_tensor(a) and torch.is_tensor(b) else bool(a == b)

    missing = object()
    keys = [*one, *(key for key in other if key not in one)]
    return [key for key in keys if not same(one.get(key, missing), other.get(key, missing))]


@pytest.fixture
def differing() -> Callable[[dict[str, Any], dict[str, Any]], list[str]]:
    """Return the function that names what differs, to the bit, between two pictures or state dictionaries."""
    return differences
