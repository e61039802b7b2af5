"""Hidden units: columns against what changes when a unit does, reasons, purity, edits that touch nothing else."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from ht_ray.errors import SettingError
from ht_ray.mechanisms import fresh_weights, named_tensors
from ht_ray.mechanisms.units.crelu import CReLU
from ht_ray.mechanisms.units.find_units import Outgoing, find_units, watch_activations
from ht_ray.mechanisms.units.recycle import recycle
from ht_ray.methods import Tortoise


class Calls(nn.Module):
    """A network whose forward pass is given as a function of its parts and the batch."""

    def __init__(self, forward, **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.calls = forward

    def forward(self, batch: Tensor) -> Tensor:
        return self.calls(self.parts, batch)


def linear_net(activation: nn.Module | None = None, forward=None) -> Calls:
    return Calls(
        forward or (lambda p, x: p["after"](p["act"](p["before"](x)))),
        before=nn.Linear(4, 6),
        act=activation or nn.ReLU(),
        after=nn.Linear(6, 3),
    )


MAPS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FLAT = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(2))


def conv_net(between, columns: int, activation: nn.Module | None = None) -> Calls:
    return Calls(
        lambda p, x: p["after"](between(p, p["act"](p["norm"](p["before"](x))))),
        before=nn.Conv2d(3, 5, 3, padding=1),
        norm=nn.BatchNorm2d(5),
        act=activation or nn.ReLU(),
        pool=nn.MaxPool2d(2),
        flat=nn.Flatten(),
        drop=nn.Dropout(0.5),
        after=nn.Linear(columns, 3),
    )


NETWORKS = {
    "linear": (linear_net(), FLAT),
    "tokens": (linear_net(nn.GELU()), TOKENS),
    "dropout and identity": (
        nn.Sequential(nn.Linear(4, 6), nn.Identity(), nn.Tanh(), nn.Dropout(), nn.Linear(6, 2)),
        FLAT,
    ),
    "tokens flattened": (nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Flatten(), nn.Linear(42, 3)), TOKENS),
    "convolutions": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ELU(), nn.AvgPool2d(2), nn.Conv2d(4, 2, 3)), MAPS),
    "signal": (nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3)), MAPS[:, :, 0]),
    "pool and flatten": (conv_net(lambda p, x: p["flat"](p["drop"](p["pool"](x))), 80), MAPS),
    "torch.flatten": (conv_net(lambda p, x: torch.flatten(functional.max_pool2d(x, 4), 1), 20), MAPS),
    "flatten method": (conv_net(lambda p, x: functional.dropout(x.flatten(1), 0.0), 320), MAPS),
    "view": (conv_net(lambda p, x: x.view(x.size(0), -1), 320), MAPS),
    "reshape": (conv_net(lambda p, x: x.reshape((x.shape[0], -1)), 320), MAPS),
    "average": (conv_net(lambda p, x: p["flat"](functional.adaptive_avg_pool2d(x, 1)), 5), MAPS),
    "units last": (conv_net(lambda p, x: p["flat"](x.permute(0, 2, 3, 1)), 320), MAPS),
    "crelu, units last": (conv_net(lambda p, x: p["flat"](x.permute((0, 2, 3, 1))), 640, CReLU()), MAPS),
    "padded": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(4, 2, 3)), MAPS),
    "made in the forward pass": (linear_net(forward=lambda p, x: p["after"](nn.ReLU()(p["before"](x)))), FLAT),
    "crelu": (nn.Sequential(nn.Linear(4, 6), CReLU(), nn.Linear(12, 3)), FLAT),
    "crelu tokens": (nn.Sequential(nn.Linear(4, 6), CReLU(-1), nn.Linear(12, 3)), TOKENS),
    "crelu maps": (conv_net(lambda p, x: p["flat"](p["pool"](x)), 160, CReLU()), MAPS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_columns_are_those_that_change_when_the_unit_does(name: str) -> None:
    template, batch = NETWORKS[name]
    net = copy.deepcopy(template).eval()
    found = find_units(net)
    assert not found.skipped
    (hidden,) = found.hidden
    (outgoing,) = hidden.outgoing
    incoming, reader = net.get_submodule(hidden.incoming), net.get_submodule(outgoing.layer)
    column_dim = -1 if isinstance(reader, nn.Linear) else 1
    kept: list[Tensor] = []
    reader.register_forward_pre_hook(lambda _part, inputs: kept.append(inputs[0].detach().clone()))
    with torch.no_grad():
        net(batch)
        for unit in range(hidden.units):
            changed: set[int] = set()
            for shift in (30.0, -30.0):  # so that either half of a CReLU wakes up
                before = incoming.bias.clone()
                incoming.bias[unit] += shift
                net(batch)
                incoming.bias.copy_(before)
                differs = (kept[0] != kept.pop()).transpose(0, column_dim).flatten(1).any(1)
                changed |= set(differs.nonzero().flatten().tolist())
            assert changed == set(outgoing.columns()[:, unit].flatten().tolist())
    assert len(outgoing.columns().flatten().unique()) == kept[0].shape[column_dim]


@given(st.integers(1, 7), st.integers(1, 2), st.integers(1, 6), st.booleans())
def test_every_column_belongs_to_one_unit(units: int, halves: int, repeats: int, interleaved: bool) -> None:
    outgoing = Outgoing("x", units, halves, repeats, interleaved)
    columns = outgoing.columns()
    assert columns.shape == (halves, units, repeats)
    assert sorted(columns.flatten().tolist()) == list(range(units * halves * repeats))
    values = torch.randn(units * halves * repeats)
    assert torch.equal(outgoing.by_unit(values), values[columns])


def test_a_unit_may_be_read_by_several_layers_and_normed() -> None:
    def forward(p: nn.ModuleDict, x: Tensor) -> Tensor:
        features = p["act"](p["norm"](p["before"](x)))
        return p["left"](features) + p["right"](features)

    parts = {"norm": nn.BatchNorm1d(6), "act": nn.ReLU(), "left": nn.Linear(6, 2), "right": nn.Linear(6, 2)}
    net = Calls(forward, before=nn.Linear(4, 6), **parts)
    (hidden,) = find_units(net).hidden
    assert hidden.norm == "parts.norm"
    assert [outgoing.layer for outgoing in hidden.outgoing] == ["parts.left", "parts.right"]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.act, self.act2 = nn.ReLU(), nn.ReLU()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.two(self.act(self.one(x)))))


def frozen(net: nn.Module, name: str) -> nn.Module:
    net.get_submodule(name).requires_grad_(False)
    return net


REASONS = {
    "feeds a sum": linear_net(forward=lambda p, x: p["after"](p["act"](p["before"](x)) + 1)),
    "its input is a sum": linear_net(forward=lambda p, x: p["after"](p["act"](p["before"](x) + 1))),
    "no layer before it": linear_net(forward=lambda p, x: p["after"](p["before"](p["act"](x)))),
    "not alone in reading parts.before": linear_net(
        forward=lambda p, x: p["after"](p["act"](h := p["before"](x))) * h.mean()
    ),
    "LayerNorm before it mixes the units of a layer": nn.Sequential(
        nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2)
    ),
    "its input comes from 1 (MaxPool2d)": nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2)
    ),
    "it is an output of the network": nn.Sequential(nn.Linear(4, 6), nn.ReLU()),
    "feeds 2 (BatchNorm1d)": nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 2)),
    "feeds cat": linear_net(forward=lambda p, x: p["after"](torch.cat([p["act"](p["before"](x)), x], 1))),
    "feeds flatten": linear_net(forward=lambda p, x: p["after"](p["act"](p["before"](x)).flatten())),
    "feeds 3, whose 4 inputs are not those 4": nn.Sequential(  # the columns of a map, not its channels
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2)
    ),
    "feeds 2 (MaxPool1d)": nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.MaxPool1d(2), nn.Linear(3, 2)),
    "0 is grouped": nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 3)),
    "2 is grouped": nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4)),
    "parts.before is used more than once": linear_net(
        forward=lambda p, x: p["after"](p["act"](p["before"](x))) * p["before"].weight.sum()
    ),
    "one shares its weights": Shared(),
    "0 is frozen": frozen(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), "0"),
    "2 is frozen": frozen(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), "2"),
    "it has parameters of its own": nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 2)),
    "its input comes from mul": linear_net(forward=lambda p, x: p["after"](functional.relu(p["before"](x) * 2))),
    "a function of more than a layer's output": linear_net(
        forward=lambda p, x: p["after"](functional.leaky_relu(p["before"](x), x.mean()))
    ),
    "0 has other parameters": nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2)
    ),
    "0 has no values yet": nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 2)),
    "it doubles dimension 2": nn.Sequential(nn.Linear(4, 6), CReLU(2), nn.Linear(6, 2)),
    "nothing reads it": linear_net(forward=lambda p, x: (p["act"](p["before"](x)), x.sum())[1]),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_cannot_be_recycled_is_skipped_with_its_reason(reason: str) -> None:
    found = find_units(REASONS[reason])
    assert not found.hidden
    assert reason in found.reasons()


def test_one_reason_for_many_is_said_once() -> None:
    layers = [nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU()]
    found = find_units(nn.Sequential(*layers, *[nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU()], nn.Linear(4, 2)))
    assert found.reasons() == "2, 5: LayerNorm before it mixes the units of a layer"


class Functional(nn.Module):
    """One activation module for three layers, of which the middle one has functions as well."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Linear(5, 5) for _ in range(4))
        self.norm = nn.BatchNorm1d(5)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.one(x))
        x = functional.leaky_relu(self.norm(self.two(x)), 0.2, inplace=True)
        return self.four(self.relu(self.three(x)).tanh())


def test_shared_modules_and_functions_show_their_activations() -> None:
    torch.manual_seed(0)
    net = Functional().eval()
    found = find_units(net)
    assert [(h.name, h.incoming, h.norm) for h in found.hidden] == [
        ("relu", "one", None),
        ("leaky_relu(norm)", "two", "norm"),
    ]
    # The shared module's second use feeds a function of its own.
    assert found.skipped.keys() == {"relu#2", "tanh(relu)"}
    seen: dict[str, torch.Tensor] = {}
    batch = torch.randn(7, 5)
    with watch_activations(net, found.hidden, lambda hidden, values: seen.update({hidden.name: values.clone()})):
        for _ in range(2):  # calls are counted again in each pass
            net(batch)
    first = functional.relu(net.one(batch))
    assert torch.equal(seen["relu"], first)
    assert torch.equal(seen["leaky_relu(norm)"], functional.leaky_relu(net.norm(net.two(first)), 0.2))


def test_residual_networks_that_share_one_relu() -> None:
    resnet = pytest.importorskip("torchvision.models").resnet18(num_classes=3)
    found = find_units(resnet)
    # In each of the eight blocks, what is between the two convolutions.
    assert [hidden.incoming for hidden in found.hidden] == [
        f"layer{stage}.{block}.conv1" for stage in (1, 2, 3, 4) for block in (0, 1)
    ]
    assert all(hidden.calls == 2 and hidden.call == 0 for hidden in found.hidden)
    assert len(found.skipped) == 9


class Stateful(nn.Module):
    """Draws, counts, holds a constant, and has hooks: what tracing could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()), nn.Linear(6, 2)])

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = x * torch.tensor([1.0, 2.0, 3.0, 4.0]) + torch.rand(4)
        if scale is not None:
            x = x * scale
        for part in self.body:
            x = part(x)
        return x


def test_tracing_runs_nothing_and_changes_nothing() -> None:
    net = Stateful()
    ran: list[str] = []
    for name, part in net.named_modules():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    net.body[0].eval()
    before = {name: tensor.clone() for name, tensor in named_tensors(net)}
    attributes = {name: set(part.__dict__) for name, part in net.named_modules()}
    modes = [part.training for part in net.modules()]
    random = torch.get_rng_state()
    (hidden,) = find_units(net).hidden
    assert (hidden.name, hidden.incoming, hidden.norm) == ("body.0.2", "body.0.0", "body.0.1")
    assert ran == []
    assert torch.equal(torch.get_rng_state(), random)
    assert modes == [part.training for part in net.modules()]
    assert attributes == {name: set(part.__dict__) for name, part in net.named_modules()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(net))


class Depends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.act, self.after = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.act(self.before(x))) if x.sum() > 0 else x[:, :2]


def test_a_network_that_cannot_be_traced_can_be_named() -> None:
    with pytest.raises(SettingError, match=r"Depends cannot be traced.*control flow.*layers=\["):
        find_units(Depends())
    (hidden,) = find_units(Depends(), layers=[("before", "act", ("after",))]).hidden
    assert (hidden.norm, hidden.units, hidden.outgoing) == (None, 6, (Outgoing("after", 6),))
    (hidden,) = find_units(Depends(), layers=[("before", "act", ("after",), "norm")]).hidden
    assert hidden.norm == "norm"


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([("befor", "act", ("after",))], "Did you mean 'before'"),
        ([("before", "act", "after")], "accepted is"),
        ([("before", "act", ())], "accepted is"),
        ([("before", "norm", ("after",))], "is no activation"),
        ([("act", "act", ("after",))], "is a ReLU"),
        ([("before", "act", ("before",))], "whose 4 inputs are not those 6 units"),
        ([("after", "act", ("after",), "norm")], "norm is no BatchNorm over the 2 units"),
    ],
)
def test_named_layers_that_do_not_fit_are_refused(layers: list, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        find_units(Depends(), layers=layers)


def test_named_layers_give_what_tracing_gives() -> None:
    for name in ("pool and flatten", "crelu maps"):
        net = NETWORKS[name][0]
        named = find_units(net, layers=[("parts.before", "parts.act", ("parts.after",), "parts.norm")])
        assert named.hidden == find_units(net).hidden


def recyclable_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        CReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(90, 7),
        nn.BatchNorm1d(7, affine=False),
        nn.ReLU(),
        nn.Linear(7, 4, bias=False),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.Tanh(),
        nn.Linear(4, 3),
    )


OPTIMIZERS = {
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
}


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(list(OPTIMIZERS)), st.booleans())
def test_recycling_touches_exactly_the_units(data: st.DataObject, kind: str, as_mask: bool) -> None:
    torch.manual_seed(0)
    net = recyclable_net()
    optimizer = OPTIMIZERS[kind](net.parameters())
    tortoise = Tortoise(net, momentum=0.7)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(6, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        tortoise.step()
    found = find_units(net)
    hidden = data.draw(st.sampled_from(found.hidden))
    chosen = data.draw(st.lists(st.integers(0, hidden.units - 1), unique=True))
    units = torch.tensor(chosen, dtype=torch.int64)
    fresh = fresh_weights(net.get_submodule(hidden.incoming), seed=data.draw(st.integers(0, 9)))

    # By hand: what every tensor must be afterwards.
    wanted = {name: tensor.detach().clone() for name, tensor in named_tensors(net)}
    slow = {name: tensor.clone() for name, tensor in tortoise.weights.tensors.items()}
    states = copy.deepcopy(optimizer.state_dict()["state"])
    names = [name for name, _ in net.named_parameters()]
    edited: dict[str, Tensor] = {}
    for held in (wanted, slow):
        for name in fresh:
            held[f"{hidden.incoming}.{name}"][chosen] = fresh[name][chosen]
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            if f"{hidden.norm}.{name}" in held:
                held[f"{hidden.norm}.{name}"][chosen] = value
        for unit, half in itertools.product(chosen, range(hidden.halves)):
            if hidden.name == "2":  # 5 channels in two halves, each a map of 3 x 3
                start = (unit + 5 * half) * 9
                held["5.weight"][:, start : start + 9] = 0.0
            else:
                held[f"{hidden.outgoing[0].layer}.weight"][:, unit] = 0.0
    for name in names:
        where = torch.zeros_like(wanted[name], dtype=torch.bool)
        if name.startswith((f"{hidden.incoming}.", f"{hidden.norm}.")):
            where[chosen] = True
        elif name == f"{hidden.outgoing[0].layer}.weight":
            where[:, (slow[name] == 0).all(0)] = True
        edited[name] = where
    for index, state in states.items():
        for value in state.values():
            if isinstance(value, Tensor) and value.shape == edited[names[index]].shape:
                value[edited[names[index]]] = 0.0

    mask = torch.zeros(hidden.units, dtype=torch.bool)
    mask[units] = True
    recycle(net, hidden, mask if as_mask else units, fresh, tortoise, optimizer)

    for name, tensor in named_tensors(net):
        assert torch.equal(tensor, wanted[name]), name
        assert torch.equal(tortoise.weights[name], slow[name]), name
    after = optimizer.state_dict()["state"]
    assert after.keys() == states.keys()
    for index, state in states.items():
        assert state.keys() == after[index].keys()
        for key, value in state.items():
            same = torch.equal(value, after[index][key]) if isinstance(value, Tensor) else value == after[index][key]
            assert same, (names[index], key)


def test_recycling_refuses_a_tortoise_that_predicts() -> None:
    net = recyclable_net()
    tortoise = Tortoise(net)
    (hidden, *_) = find_units(net).hidden
    with tortoise.predict(), pytest.raises(RuntimeError, match="stop predicting first"):
        recycle(net, hidden, torch.tensor([0]), fresh_weights(net[0], seed=0), tortoise)
