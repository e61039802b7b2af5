"""Small data, small networks and short runs, for tests on any device."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ht_ray.methods import Composition
from ht_ray.vision import (
    ContinualConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    Network,
    Pack,
    Row,
    TrainingConfig,
    TrainingRun,
    fit,
    make_model,
    make_stream,
)

HARE_TORTOISE = MethodConfig("hare_tortoise", momentum=0.9, reset_interval=1)


def make_data(network: str = "mlp", *, count: int = 250) -> ImageData:
    """Images that a network can tell apart."""
    shape = (1, 12, 12) if network == "mlp" else (3, 16, 16)
    draw = torch.Generator().manual_seed(0)
    patterns = torch.randint(128, (10, *shape), generator=draw, dtype=torch.uint8)

    def split(number: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(10, (number,), generator=draw)
        return patterns[labels] + torch.randint(128, (number, *shape), generator=draw, dtype=torch.uint8), labels

    names = tuple("0123456789")
    return ImageData("patterns", *split(count), *split(100), names, (0.5,) * shape[0], (0.22,) * shape[0])


def make_net(network: str = "mlp", method: MethodConfig = HARE_TORTOISE) -> Network:
    width = 1.0 if network == "mlp" else 0.125
    config = method.model(ModelConfig(network, width=width, dropout=0.0))
    return make_model(config, shape=make_data(network, count=1).shape, num_classes=10, seed=0)


def train(
    device: torch.device | str,
    method: MethodConfig = HARE_TORTOISE,
    network: str = "mlp",
    *,
    phases: int = 2,
    epochs: int = 2,
    training: dict[str, Any] | None = None,
    count: int = 250,
    plain_steps: bool = False,
    **more: Any,
) -> tuple[nn.Module, Composition, list[Row]]:
    """Return the network, the method over it, and the rows of a run; its epochs end in a smaller batch.

    With `plain_steps` no steps are captured as a graph, whatever the device.
    """
    data = make_data(network, count=count)
    net = make_net(network, method).to(device)
    acting = method.build(net, seed=0)
    stream = make_stream(data.train_labels, 10, ContinualConfig(phases=phases, epochs=epochs), seed=0)
    steps = TrainingConfig(**{"batch_size": 32, **(training or {})})
    if plain_steps and "graph" in inspect.signature(fit).parameters:
        more["graph"] = "off"
    return net, acting, fit(net, data, stream, method=acting, training=steps, device=device, **more)


def make_runs(
    device: torch.device | str,
    method: MethodConfig = HARE_TORTOISE,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    phases: int = 2,
    epochs: int = 2,
    training: dict[str, Any] | None = None,
    count: int = 250,
) -> list[TrainingRun]:
    """Return runs of `train` for a pack: those of the first seeds, of different learning rates."""
    data, runs = make_data(count=count), []
    for seed in seeds:
        stream = make_stream(data.train_labels, 10, ContinualConfig(phases=phases, epochs=epochs), seed=seed)
        steps = TrainingConfig(**{"batch_size": 32, "learning_rate": 1e-3 * (1 + seed % 2), **(training or {})})
        net = make_net("mlp", method)
        runs.append(TrainingRun(net, data, stream, method=method, training=steps, seed=seed, device=device))
    return runs


def train_pack(
    device: torch.device | str, method: MethodConfig = HARE_TORTOISE, *, graph: Any = "auto", **more: Any
) -> list[TrainingRun]:
    """Return the runs of `make_runs`, trained as a pack."""
    runs = make_runs(device, method, **more)
    pack = Pack(runs, graph=graph)
    while pack.runs:
        pack.train_phase()
    return runs


def assert_close_rows(rows: Sequence[Row], expected: Sequence[Row], *, rel: float, accuracy: float) -> None:
    """Losses agree to `rel`, accuracies to `accuracy`."""
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        for name in ("step", "phase", "epoch"):
            assert row[name] == wanted[name]
        for name in ("train_loss", "test_loss"):
            assert abs(row[name] - wanted[name]) <= rel * abs(wanted[name]), (name, row, wanted)
        for name in ("train_accuracy", "test_accuracy"):
            assert abs(row[name] - wanted[name]) <= accuracy, (name, row, wanted)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The module's state as copies on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}


@contextmanager
def deterministic(network: str = "mlp") -> Iterator[None]:
    """Kernels that give the same bits in every run.

    Attention has them only where torch may raise an error for those that have none, as the gradient of a maximum over
    windows (VGG-16) in torch's opinion.
    """
    torch.use_deterministic_algorithms(True, warn_only=network == "vgg16")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
