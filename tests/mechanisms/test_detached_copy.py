"""Copies of networks right after a training pass, whatever they keep of it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from ht_ray.diagnostics import plasticity_probe, probe_loss
from ht_ray.mechanisms import fresh_weights
from ht_ray.mechanisms.weights.detached_copy import detached_copy
from ht_ray.methods import PlasticityInjection, Tortoise

INPUTS = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


class KeepsFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)
        self.kept: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).relu()
        # Twice the same object, a tuple, a view: what is one stays one.
        self.kept = {"features": hidden, "again": [hidden, (hidden[:2],)], "plain": x}
        return self.head(hidden)


class KeepsState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.LSTM(4, 4), nn.Linear(4, 2)
        self.state: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        outputs, self.state = self.recurrent(x[None])
        return self.head(outputs[0])


class Collects:
    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.outputs.append(output)


def into(outputs: list[Tensor], module: nn.Module, inputs: Any, output: Tensor) -> None:
    outputs.append(output)


def sequential(first: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2))


def hooked(hook: Callable[..., None]) -> nn.Module:
    net = sequential(nn.Linear(4, 4))
    net[0].register_forward_hook(hook)
    return net


def pruned() -> nn.Module:
    net = sequential(nn.Linear(4, 4))
    prune.l1_unstructured(net[0], "weight", amount=0.5)
    return net


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "features": KeepsFeatures,
    "recurrent state": KeepsState,
    "hook that collects": lambda: hooked(Collects()),
    "partial that collects": lambda: hooked(functools.partial(into, [])),
    "older weight_norm": lambda: sequential(weight_norm(nn.Linear(4, 4))),
    "older spectral_norm": lambda: sequential(spectral_norm(nn.Linear(4, 4))),
    "weight_norm": lambda: sequential(parametrizations.weight_norm(nn.Linear(4, 4))),
    "spectral_norm": lambda: sequential(parametrizations.spectral_norm(nn.Linear(4, 4))),
    "pruned": pruned,
}


def trained(name: str) -> tuple[nn.Module, Tortoise]:
    """Return a network whose last pass was one of training."""
    torch.manual_seed(0)
    net = NETWORKS[name]()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tortoise = Tortoise(net, momentum=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        net(INPUTS).square().mean().backward()
        optimizer.step()
        tortoise.step(optimizer)
    return net, tortoise


def tensors_in(thing: Any, seen: set[int] | None = None) -> list[Tensor]:
    """Return every tensor that can be reached from `thing`."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return []
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, functools.partial):
        return tensors_in(thing.args, seen)
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, (list, tuple)) else ()
    found = [tensor for part in parts for tensor in tensors_in(part, seen)]
    return found + (tensors_in(vars(thing), seen) if hasattr(thing, "__dict__") else [])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tortoise_is_exported_right_after_a_step(name: str) -> None:
    net, tortoise = trained(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    identities = list(map(id, tensors_in(net)))
    gradients = [parameter.grad for parameter in net.parameters()]
    exported = tortoise.trained_tortoise()
    assert not tortoise.predicting and not exported.training and net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert list(map(id, tensors_in(net))) == identities, "the hare keeps what it kept"
    assert all(p.grad is gradient for p, gradient in zip(net.parameters(), gradients, strict=True))

    copies = tensors_in(exported)
    assert all(tensor.is_leaf for tensor in copies)
    memory = {tensor.untyped_storage().data_ptr() for tensor in tensors_in(net) if tensor.numel()}
    assert memory.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in copies)
    with tortoise.predict(), torch.no_grad():
        wanted = net.eval()(INPUTS)
    assert torch.equal(exported(INPUTS), wanted)
    exported(INPUTS).sum().backward()
    copy.deepcopy(tortoise.trained_tortoise())  # it is a plain module


def test_what_is_kept_is_copied_as_it_is() -> None:
    net, tortoise = trained("features")
    exported = tortoise.trained_tortoise()
    kept = exported.kept["features"]
    assert torch.equal(kept, net.kept["features"]) and not kept.requires_grad
    assert exported.kept["again"][0] is kept
    assert torch.equal(exported.kept["again"][1][0], kept[:2])
    assert not net.kept["features"].is_leaf


@pytest.mark.parametrize("name", ["older weight_norm", "older spectral_norm", "pruned"])
def test_computed_weights_are_the_tortoises_before_any_pass(name: str) -> None:
    net, tortoise = trained(name)
    exported = tortoise.trained_tortoise()
    found = exported[0].weight.clone()
    assert not torch.allclose(found, net[0].weight)
    exported(INPUTS)
    assert torch.equal(found, exported[0].weight)
    if name == "pruned":
        assert (found == 0).sum() == 8


def test_features_of_an_evaluation_in_inference_mode() -> None:
    net, tortoise = trained("features")
    with torch.inference_mode():
        net(INPUTS)
    assert torch.equal(tortoise.trained_tortoise().kept["features"], net.kept["features"])


@pytest.mark.parametrize("name", NETWORKS)
def test_probe_of_a_network_right_after_a_step(name: str) -> None:
    net, _ = trained(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    settings: dict[str, Any] = {"num_classes": 2, "batch_size": 16}
    losses = [
        probe_loss(net, lambda p: torch.optim.SGD(p, lr=0.5), INPUTS, steps=steps, **settings).item()
        for steps in (1, 200)
    ]
    assert losses[1] < losses[0] - 0.02
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_probe_trains_weights_that_hooks_compute() -> None:
    """The older weight norm computes by a hook; without it, nothing but the fixed last weight would be left."""
    torch.manual_seed(0)
    older = weight_norm(nn.Linear(4, 2, bias=False))
    newer = parametrizations.weight_norm(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        newer.parametrizations.weight.original0.copy_(older.weight_g)
        newer.parametrizations.weight.original1.copy_(older.weight_v)
    older(INPUTS).sum().backward()
    losses = [
        probe_loss(net, lambda p: torch.optim.SGD(p, lr=0.5), INPUTS, num_classes=2, steps=20).item()
        for net in (older, newer)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_fresh_weights_and_injection_right_after_a_step() -> None:
    net, _ = trained("features")
    assert not torch.equal(fresh_weights(net, seed=0)["body.weight"], net.body.weight)
    net.head = KeepsFeatures()
    net(INPUTS).sum().backward()
    before = net.eval()(INPUTS)
    net.train()(INPUTS)
    PlasticityInjection(net, head="head").apply()
    assert torch.equal(net.eval()(INPUTS), before)
    assert plasticity_probe(net, torch.optim.Adam, INPUTS, num_classes=2, steps=2).loss.isfinite()


def test_a_copy_is_made_in_the_mode_that_the_module_has() -> None:
    net, _ = trained("older spectral_norm")
    made = detached_copy(net)
    assert made.training
    for key, value in net.state_dict().items():
        assert torch.equal(made.state_dict()[key], value)
