"""The memory format of a network changes no draw, and no optimiser is handed a gradient laid out otherwise."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ht_ray.mechanisms import SettingWarning, find_units, fresh_weights, named_tensors
from ht_ray.methods import (
    UPGD,
    ContinualBackprop,
    HeadReset,
    PlasticityInjection,
    ReDo,
    Regenerative,
    ShrinkPerturb,
    Tortoise,
)
from ht_ray.vision import (
    METHODS,
    ContinualConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    TrainingConfig,
    fit,
    make_model,
    make_stream,
)

CONFIGS = {
    "mlp": ModelConfig("mlp", hidden=(12, 8)),
    "resnet18": ModelConfig("resnet18", width=0.125),
    "vgg16": ModelConfig("vgg16", width=0.06),
    "vit_tiny": ModelConfig("vit_tiny", width=0.1),
    "resnet18, crelu": ModelConfig("resnet18", width=0.06, activation="crelu"),
    "vgg16, crelu": ModelConfig("vgg16", width=0.06, activation="crelu"),
    "resnet18, layer_norm": ModelConfig("resnet18", width=0.06, normalisation="layer"),
    "vgg16, layer_norm": ModelConfig("vgg16", width=0.06, normalisation="layer"),
}
PLACES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Orthogonal(nn.Conv2d):
    """A user's layer, with an initialiser that raises on weights that are not contiguous."""

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def users() -> nn.Module:
    net = nn.Sequential()
    net.add_module("backbone", nn.Sequential(Orthogonal(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()))
    net.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(6 * 900, 4), nn.ReLU(), nn.Linear(4, 5)))
    return net


def network(name: str) -> nn.Module:
    if name == "users":
        torch.manual_seed(0)
        return users()
    side = 64 if name.startswith("vgg16") else 32
    return make_model(CONFIGS[name], shape=(3, side, side), num_classes=5, seed=0)


def images(name: str) -> Tensor:
    side = 64 if name.startswith("vgg16") else 32
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))


def quietly(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SettingWarning)  # of units that cannot be recycled, and of linear heads
        return make()


def silence(net: nn.Module) -> None:
    """Make the third unit of each hidden layer the least useful, and silent."""
    with torch.no_grad():
        for hidden in find_units(net).hidden:
            layer = net.get_submodule(hidden.incoming)
            layer.weight[2] = 0.0  # type: ignore[index,operator]
            if layer.bias is not None:
                layer.bias[2] = 0.0  # type: ignore[index,operator]
            if hidden.norm is not None:
                net.get_submodule(hidden.norm).bias[2] = -9.0  # type: ignore[index,operator]
            for outgoing in hidden.outgoing:
                net.get_submodule(outgoing.layer).weight[:, outgoing.columns()[:, 2].flatten()] = 0.0  # type: ignore[index,operator]


def shrink_perturb(net: nn.Module, inputs: Tensor, **settings: Any) -> None:
    method = ShrinkPerturb(net, seed=3, **settings)
    for _ in range(2):
        method.apply(Tortoise(net))


def recycle_dormant(net: nn.Module, inputs: Tensor) -> None:
    silence(net)
    method = quietly(lambda: ReDo(net, threshold=0.0, seed=3))
    assert sum(method.apply([inputs]).values()) >= len(method.units.hidden)


def replace_useless(net: nn.Module, inputs: Tensor) -> None:
    silence(net)
    method = quietly(lambda: ContinualBackprop(net, replacement_rate=0.1, maturity=0, seed=3))
    net.eval()
    with torch.no_grad(), method.watch():
        net(inputs)
    for hidden in method.hidden:
        method.due[hidden.name] = 1.0 - 0.1 * hidden.units  # one unit is due
    method.after_step(torch.optim.SGD(net.parameters()))
    assert method.replacements == len(method.hidden)


def inject(net: nn.Module, inputs: Tensor) -> None:
    quietly(lambda: PlasticityInjection(net, seed=3)).apply(Tortoise(net))


def regenerate(net: nn.Module, inputs: Tensor) -> None:
    method = Regenerative(net, strength=0.5, toward="fresh", coupling="decoupled", seed=3)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    method.before_step(torch.optim.SGD(net.parameters(), lr=1.0))


def perturb_the_useless(net: nn.Module, inputs: Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    method = UPGD(net, noise=0.5, seed=3)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    method.before_step(optimizer)
    method.after_step(optimizer)


REDRAWING: dict[str, Callable[[nn.Module, Tensor], None]] = {
    "shrink_perturb, fresh": lambda net, inputs: shrink_perturb(net, inputs, toward="fresh"),
    "shrink_perturb, noise": lambda net, inputs: shrink_perturb(net, inputs, noise=0.1),
    "shrink_perturb, perturb": lambda net, inputs: shrink_perturb(net, inputs, ratio=0.6, perturb=0.1),
    "head_reset": lambda net, inputs: HeadReset(net, toward="fresh", seed=3).apply(Tortoise(net)),
    "redo": recycle_dormant,
    "continual_backprop": replace_useless,
    "plasticity_injection": inject,
    "regenerative": regenerate,
    "upgd": perturb_the_useless,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [*CONFIGS, "users"])
def test_fresh_weights_are_the_same_in_every_memory_format(name: str, place: str) -> None:
    net = network(name)
    drawn = fresh_weights(net, seed=5)
    other = copy.deepcopy(net).to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    again = fresh_weights(other, seed=5)
    assert drawn.keys() == again.keys()
    for key, value in drawn.items():
        assert value.is_contiguous() and again[key].is_contiguous()
        assert torch.equal(value, again[key]), key
    kept = dict(named_tensors(other))
    assert all(torch.equal(tensor.cpu(), dict(named_tensors(net))[key]) for key, tensor in kept.items())


@pytest.mark.parametrize("method", REDRAWING)
@pytest.mark.parametrize("name", [*CONFIGS, "users"])
def test_what_is_drawn_anew_is_the_same_in_every_memory_format(name: str, method: str) -> None:
    if method in ("redo", "continual_backprop") and not find_units(network(name)).hidden:
        pytest.skip("the network has no units that can be recycled")
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net = network(name).to(memory_format=layout)  # type: ignore[call-overload]
        REDRAWING[method](net, images(name).contiguous(memory_format=layout))
        ends.append({key: tensor.detach().clone() for key, tensor in named_tensors(net)})
    start = dict(named_tensors(network(name)))
    changed = 0
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key
        changed += key not in start or not torch.equal(value, start[key])
    assert changed > 0


LEFT_OUT = ("plain", "ema", "layer_norm", "crelu", "deep_fourier", "aid", "muon")
EVERYTHING = "+".join(name for name in METHODS if name not in LEFT_OUT)
SETTINGS: dict[str, Any] = {
    "momentum": 0.8,
    "reset_interval": 1,
    "redo_threshold": 0.7,
    "redo_interval": 1,
    "continual_backprop_replacement_rate": 0.1,
    "continual_backprop_maturity": 1,
    "toward": "fresh",
    "perturb": 0.1,
    "noise": 0.01,
    "recalibrate_batchnorm": 1,
}


class Killed(Exception):
    pass


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", [*METHODS, EVERYTHING, f"{EVERYTHING}, loss", f"{EVERYTHING}, vit_tiny"])
def test_gradients_and_state_are_laid_out_as_the_weights_are(
    name: str, channels_last: bool, matching_layouts: list[int], tmp_path: Path
) -> None:
    """Of a network that comes in the other format, in a run that is made in two parts."""
    chosen = dict(SETTINGS)
    if name.endswith("loss"):
        chosen |= {"l2_coupling": "loss", "regenerative_norm": "l1", "regenerative_toward": "fresh"}
    else:
        chosen |= {"regenerative_coupling": "decoupled"}
    model = CONFIGS["vit_tiny"] if name.endswith("vit_tiny") or name == "muon" else ModelConfig("resnet18", width=0.04)
    method = MethodConfig(name.partition(",")[0], **chosen)
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (24,), generator=draw)
    pictures = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8, generator=draw)
    data = ImageData("random", pictures, labels, pictures[:6], labels[:6], ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)
    training = TrainingConfig(batch_size=8, fresh_optimizer=False, channels_last=channels_last)
    stream = make_stream(labels, 3, ContinualConfig(phases=3, epochs=1), seed=0)

    def go(on_epoch: Callable[[Any], None] | None = None) -> None:
        net = make_model(method.model(model), shape=data.shape, num_classes=3, seed=0)
        net.to(memory_format=torch.contiguous_format if channels_last else torch.channels_last)  # type: ignore[call-overload]
        settings = {"method": method, "training": training, "checkpoint": tmp_path / "run", "on_epoch": on_epoch}
        quietly(lambda: fit(net, data, stream, **settings))

    def kill(row: Any) -> None:
        if row["phase"] == 3:
            raise Killed

    with pytest.raises(Killed):
        go(kill)
    made = len(matching_layouts)
    go()
    assert max(matching_layouts) > matching_layouts[0] > 0  # first gradients alone, then the optimiser's state, too
    # Muon's has two of torch's inside, whose steps count as well.
    assert len(matching_layouts) == made + 3 * (3 if name == "muon" else 1)
