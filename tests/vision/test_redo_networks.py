"""Recycling on the paper's four networks: planted dormant units are found, made anew, and nothing else changes."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from ht_ray.errors import SettingWarning
from ht_ray.mechanisms import named_tensors
from ht_ray.mechanisms.units.find_units import HiddenUnits, find_units
from ht_ray.methods import Tortoise
from ht_ray.methods.continual_backprop import ContinualBackprop
from ht_ray.methods.redo import ReDo
from ht_ray.vision.models import ModelConfig, make_model
from ht_ray.vision.models.layers import HeConv2d, TruncNormalLinear

# Name, settings, side of the images, hidden layers that can be recycled, and activations that cannot.
NETWORKS = {
    "mlp": ({"width": 0.3}, 12, 2, 0),
    "resnet18": ({"width": 0.1}, 16, 8, 9),
    "vgg16": ({"width": 0.1}, 64, 15, 0),
    "vit_tiny": ({"width": 0.1}, 16, 12, 0),
    "mlp, crelu": ({"width": 0.5, "activation": "crelu"}, 12, 2, 0),
    "vgg16, crelu": ({"width": 0.1, "activation": "crelu"}, 64, 15, 0),
}
STEPS = 3


class Trained:
    """A network with its optimiser and tortoise after a few steps, and batches to look at."""

    def __init__(self, name: str, seed: int = 0) -> None:
        given, side, *_ = NETWORKS[name]
        config = ModelConfig(name=name.split(",")[0], **given)
        self.net = make_model(config, shape=(3, side, side), num_classes=10, seed=seed)
        self.batches = list(torch.randn(2, 24, 3, side, side, generator=torch.Generator().manual_seed(seed)))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3)
        self.tortoise = Tortoise(self.net, momentum=0.9)
        torch.manual_seed(seed)
        self.net.train()
        for _ in range(STEPS):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.net(self.batches[0]), torch.arange(24) % 10).backward()
            self.optimizer.step()
            self.tortoise.step()

    def outputs(self) -> Tensor:
        self.net.eval()
        with torch.no_grad():
            outputs = self.net(torch.cat(self.batches))
        self.net.train()
        return outputs


def silently(trained: Trained, **settings) -> ReDo:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SettingWarning)
        return ReDo(trained.net, **settings)


@torch.no_grad()
def plant(net: nn.Module, hidden: HiddenUnits, units: list[int]) -> None:
    incoming = net.get_submodule(hidden.incoming)
    incoming.weight[units] = 0.0
    # CReLU passes what is negative on: its units are silent at 0 alone, the others far below it.
    low = 0.0 if hidden.halves == 2 else -100.0
    if incoming.bias is not None:
        incoming.bias[units] = low
    if hidden.norm is not None:
        norm = net.get_submodule(hidden.norm)
        norm.weight[units] = 0.0
        norm.bias[units] = low


def planted(trained: Trained) -> dict[str, list[int]]:
    """Make units of every third layer dead: its first, and one in the middle."""
    places = {}
    for hidden in find_units(trained.net).hidden[::3]:
        places[hidden.name] = sorted({0, hidden.units // 2})
        plant(trained.net, hidden, places[hidden.name])
    return places


def scores(trained: Trained) -> dict[str, Tensor]:
    """Mean |activation| of every unit over its layer's mean, by hooks of our own."""
    kept: dict[str, list[Tensor]] = {}
    hidden = {units.name: units for units in find_units(trained.net).hidden}
    handles = [
        trained.net.get_submodule(name).register_forward_hook(
            lambda _part, _inputs, output, name=name: kept.setdefault(name, []).append(output.double().abs())
        )
        for name in hidden
    ]
    trained.outputs()
    for handle in handles:
        handle.remove()
    found = {}
    for name, outputs in kept.items():
        means = torch.cat(outputs).movedim(hidden[name].dim, 0).flatten(1).mean(1)
        means = means.view(hidden[name].halves, -1).mean(0)
        found[name] = means / means.mean()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_which_units_of_the_networks_can_be_recycled(name: str) -> None:
    net = Trained(name).net
    found = find_units(net)
    assert (len(found.hidden), len(found.skipped)) == NETWORKS[name][2:]
    if name == "resnet18":
        assert found.skipped.pop("backbone.stem.2") == "feeds a sum (residual stream)"
        assert set(found.skipped) == {f"backbone.stages.{i}.{j}.relu2" for i in range(4) for j in range(2)}
        assert set(found.skipped.values()) == {"its input is a sum (residual stream)"}
        with pytest.warns(SettingWarning, match="9 of 17 activations"):
            ReDo(net)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ReDo(net)
    if name == "vgg16":  # the features are maps of 2 x 2
        assert found.hidden[12].outgoing[0].repeats == 4
        assert found.hidden[12].outgoing[0].layer == "head.0"


def test_layer_norm_leaves_nothing_to_recycle_in_a_resnet() -> None:
    net = make_model(
        ModelConfig("resnet18", width=0.1, normalisation="layer"), shape=(3, 16, 16), num_classes=2, seed=0
    )
    found = find_units(net)
    assert not found.hidden
    assert found.skipped["backbone.stages.0.0.relu1"] == "GroupNorm before it mixes the units of a layer"


@pytest.mark.parametrize("name", NETWORKS)
def test_planted_units_are_found_and_made_anew_and_the_function_stays(name: str) -> None:
    trained = Trained(name)
    places = planted(trained)
    trained.tortoise.weights.copy_from(trained.net)
    method = silently(trained, threshold=1e-6)
    dormant = method.dormant(trained.batches)
    by_hand = scores(trained)
    assert dormant.keys() == by_hand.keys()
    for layer, mask in dormant.items():
        assert torch.equal(mask, by_hand[layer] <= 1e-6), layer
        assert mask[places.get(layer, [])].all(), layer
    if "crelu" not in name and name != "vgg16":  # whose last maps have silent units of their own
        assert {layer: mask.nonzero().flatten().tolist() for layer, mask in dormant.items() if mask.any()} == places

    before = {name: tensor.detach().clone() for name, tensor in named_tensors(trained.net)}
    states = {
        name: {key: value.clone() for key, value in trained.optimizer.state[parameter].items()}
        for name, parameter in trained.net.named_parameters()
    }
    outputs = trained.outputs()
    counts = method.apply(trained.batches, trained.optimizer, trained.tortoise)
    assert counts == {layer: int(mask.sum()) for layer, mask in dormant.items()}

    touched = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in before.items()}
    live = dict(named_tensors(trained.net))
    for hidden in method.units.hidden:
        mask = dormant[hidden.name]
        for part in (hidden.incoming, hidden.norm):
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                if f"{part}.{tensor}" in touched:
                    touched[f"{part}.{tensor}"][mask] = True
        assert live[f"{hidden.incoming}.weight"][mask].flatten(1).ne(0).any(1).all()
        if hidden.norm is not None:
            for tensor, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                assert live[f"{hidden.norm}.{tensor}"][mask].eq(value).all()
        (outgoing,) = hidden.outgoing
        columns = outgoing.columns()[:, mask].flatten()
        touched[f"{outgoing.layer}.weight"][:, columns] = True
        # Where the next layer's unit is new as well, the weight between the two is its fresh one.
        rows = torch.ones(len(live[f"{outgoing.layer}.weight"]), dtype=torch.bool)
        for following in method.units.hidden:
            if following.incoming == outgoing.layer:
                rows = ~dormant[following.name]
        assert live[f"{outgoing.layer}.weight"][rows][:, columns].eq(0).all()
    for tensor, value in before.items():
        rest = ~touched[tensor]
        assert torch.equal(live[tensor][rest], value[rest]), tensor
        assert torch.equal(trained.tortoise.weights[tensor], live[tensor]), tensor
        for key, state in states.get(tensor, {}).items():
            now = trained.optimizer.state[live[tensor]][key]
            if key == "step":
                assert float(now) == STEPS
            else:
                assert torch.equal(now[rest], state[rest])
                assert now[touched[tensor]].eq(0).all()
    torch.testing.assert_close(trained.outputs(), outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_recycling_weak_units_takes_exactly_their_contribution(name: str) -> None:
    trained = Trained(name)
    method = silently(trained, threshold=0.9)
    without = copy.deepcopy(trained.net).eval()
    dormant = method.dormant(trained.batches)
    with torch.no_grad():
        for hidden in method.units.hidden:
            mask = dormant[hidden.name]
            weight = without.get_submodule(hidden.outgoing[0].layer).weight
            for half in range(hidden.halves):
                for unit in mask.nonzero().flatten().tolist():
                    size = weight.shape[1] // (hidden.halves * hidden.units)
                    start = (half * hidden.units + unit) * size
                    weight[:, start : start + size] = 0.0
        wanted = without(torch.cat(trained.batches))
    outputs = trained.outputs()
    assert sum(method.apply(trained.batches).values()) > 0
    torch.testing.assert_close(trained.outputs(), wanted, rtol=1e-4, atol=1e-5)
    assert (outputs - wanted).abs().max() > 2e-4


@pytest.mark.parametrize(
    ("name", "layer"), [("resnet18", HeConv2d), ("vit_tiny", TruncNormalLinear), ("mlp", nn.Linear)]
)
def test_new_weights_are_from_the_layers_own_distribution(name: str, layer: type[nn.Module]) -> None:
    trained = Trained(name)
    for hidden in find_units(trained.net).hidden:
        plant(trained.net, hidden, [0, 1])
    method = silently(trained, threshold=0.0)
    method.apply(trained.batches)
    drawn = []
    for hidden in method.units.hidden:
        incoming = trained.net.get_submodule(hidden.incoming)
        assert type(incoming) is layer
        rows = incoming.weight[[0, 1]].detach().flatten()
        if layer is HeConv2d:
            drawn.append(rows / math.sqrt(2 / (incoming.out_channels * 9)))
        elif layer is TruncNormalLinear:
            drawn.append(rows / 0.02)
            assert incoming.bias[[0, 1]].eq(0).all()
        else:
            drawn.append(rows * math.sqrt(incoming.in_features))
    distribution = stats.uniform(-1, 2) if layer is nn.Linear else stats.norm()
    assert stats.kstest(torch.cat(drawn).numpy(), distribution.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_continual_backprop_runs_on_the_networks(name: str) -> None:
    trained = Trained(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SettingWarning)
        method = ContinualBackprop(trained.net, replacement_rate=0.3, maturity=1)
    for _ in range(3):
        trained.optimizer.zero_grad()
        with method.watch():
            loss = nn.functional.cross_entropy(trained.net(trained.batches[0]), torch.arange(24) % 10)
        loss.backward()
        trained.optimizer.step()
        trained.tortoise.step()
        method.after_step(trained.optimizer, trained.tortoise)
    assert loss.isfinite()
    # Two steps with all units mature in the first: 0.3 n, then 0.3 of those left.
    for hidden in method.hidden:
        first = int(0.3 * hidden.units)
        second = int(0.3 * hidden.units - first + 0.3 * (hidden.units - first) + 1e-9)
        assert int(method.ages[hidden.name].eq(0).sum()) == second
    assert all(utility.ge(0).all() and utility.isfinite().all() for utility in method.utilities.values())
