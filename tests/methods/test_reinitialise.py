"""Shrink & Perturb, Head Reset and fresh weights: values by hand, on both networks alike, and nothing else touched."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ht_ray.mechanisms import (
    SettingError,
    clear_optimizer_state,
    derive_seed,
    find_head,
    fresh_weights,
    generator,
    named_tensors,
)
from ht_ray.methods import HeadReset, ShrinkPerturb, Tortoise


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, classes))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(inputs))


def make(seed: int = 0, dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(seed)
    return Net().to(dtype)


def values_of(source) -> dict[str, torch.Tensor]:
    pairs = named_tensors(source) if isinstance(source, nn.Module) else source.weights.tensors.items()
    return {name: tensor.detach().clone() for name, tensor in pairs}


def assert_same(left, right) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def train(net: nn.Module, steps: int = 4, tortoise: Tortoise | None = None, optimizer=None) -> torch.optim.Optimizer:
    optimizer = optimizer or torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(8, 4, dtype=next(net.parameters()).dtype)).square().mean().backward()
        optimizer.step()
        if tortoise is not None:
            tortoise.step()
    return optimizer


TRAINED = [name for name, _ in Net().named_parameters()]


# Shrink & Perturb


@given(st.floats(0, 1), st.floats(0, 2), st.sampled_from(["initial", "fresh", "zero"]), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_shrink_and_perturb_is_its_formula_on_hare_and_tortoise(ratio, noise, toward, seed) -> None:
    net = make(seed)
    initial = values_of(net)
    method = ShrinkPerturb(net, ratio=ratio, noise=noise, toward=toward, seed=seed)
    tortoise = Tortoise(net, momentum=0.7)
    train(net, 3, tortoise)
    hare_before, tortoise_before = values_of(net), values_of(tortoise)
    state = torch.random.get_rng_state()
    method.apply(tortoise)
    assert torch.equal(state, torch.random.get_rng_state())
    draw = derive_seed(seed, "shrink & perturb: fresh weights", 0)
    toward_values = {"initial": initial, "fresh": fresh_weights(net, seed=draw)}.get(toward)
    normal = generator(seed, "shrink & perturb: noise", 0)
    for name in TRAINED:
        drawn = torch.randn(initial[name].shape, generator=normal)
        start = toward_values[name].double() if toward_values else 0.0
        for before, after in ((hare_before, values_of(net)), (tortoise_before, values_of(tortoise))):
            expected = (1 - ratio) * before[name].double() + ratio * start + noise * drawn
            torch.testing.assert_close(after[name].double(), expected, rtol=1e-5, atol=1e-6)
    for name in hare_before.keys() - set(TRAINED):  # statistics
        assert torch.equal(values_of(net)[name], hare_before[name])
        assert torch.equal(values_of(tortoise)[name], tortoise_before[name])


@given(st.floats(0, 1), st.floats(1e-3, 2), st.sampled_from(["initial", "fresh", "zero"]), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_perturb_is_the_method_of_ash_and_adams(shrink, perturb, toward, seed) -> None:
    """Their two lines, with a network that is new at each event; shrink and perturb need not add up to 1."""
    net = make(seed)
    tortoise = Tortoise(net, momentum=0.9)
    method = ShrinkPerturb(net, ratio=1 - shrink, perturb=perturb, toward=toward, seed=seed)
    for event in range(2):
        train(net, tortoise=tortoise)
        new = make(derive_seed(seed, "shrink & perturb: fresh weights", event))
        expected = []
        for network in (dict(net.named_parameters()), tortoise.weights):
            expected += [shrink * network[n].detach() + perturb * p.detach() for n, p in new.named_parameters()]
        method.apply(tortoise)
        found = [*net.parameters(), *(tortoise.weights[name] for name in TRAINED)]
        for value, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(value.detach(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("toward", ["initial", "fresh", "zero"])
def test_ratio_zero_without_noise_is_the_identity_bit_for_bit(toward: str, dtype: torch.dtype) -> None:
    net = make(dtype=dtype)
    method = ShrinkPerturb(net, ratio=0, toward=toward)
    tortoise = Tortoise(net, momentum=0.7)
    train(net, 3, tortoise)
    before, slow = values_of(net), values_of(tortoise)
    method.apply(tortoise)
    assert_same(before, values_of(net))
    assert_same(slow, values_of(tortoise))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ratio_one_is_the_initial_weights_of_both(dtype: torch.dtype) -> None:
    net = make(dtype=dtype)
    initial = values_of(net)
    method = ShrinkPerturb(net, ratio=1)
    tortoise = Tortoise(net, momentum=0.7)
    train(net, 3, tortoise)
    method.apply(tortoise)
    for name in TRAINED:
        assert torch.equal(values_of(net)[name], initial[name])
        assert torch.equal(values_of(tortoise)[name].to(dtype), initial[name])


@pytest.mark.parametrize("toward", ["initial", "fresh", "zero"])
def test_equal_networks_stay_equal(toward: str) -> None:
    net = make()
    method = ShrinkPerturb(net, ratio=0.4, noise=0.1, toward=toward)
    tortoise = Tortoise(net, momentum=0.7)
    train(net, 3, tortoise)
    tortoise.reset()
    for _ in range(2):
        method.apply(tortoise)
        assert_same(values_of(net), values_of(tortoise))


def test_without_the_tortoise_it_is_left_alone() -> None:
    net = make()
    tortoise = Tortoise(net, momentum=0.7)
    methods = [ShrinkPerturb(net, noise=0.1), HeadReset(net)]
    train(net, 3, tortoise)
    slow = values_of(tortoise)
    for method in methods:
        method.apply()
    assert_same(slow, values_of(tortoise))


@pytest.mark.parametrize("kind", [ShrinkPerturb, HeadReset])
@pytest.mark.parametrize("toward", ["initial", "fresh"])
def test_frozen_parameters_are_left_alone(kind, toward: str) -> None:
    net = make()
    frozen = ["backbone.0.weight", "head.0.weight", "head.3.bias"]
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    method = kind(net, toward=toward)
    tortoise = Tortoise(net, momentum=0.7)
    for name in frozen:
        nn.init.constant_(net.get_parameter(name), 3.0)
    tortoise.follow()
    before, slow = values_of(net), values_of(tortoise)
    method.apply(tortoise)
    for name in frozen:
        assert torch.equal(net.get_parameter(name), before[name])
        assert torch.equal(tortoise.weights[name], slow[name])


@pytest.mark.parametrize(
    ("kind", "chosen"),
    [(ShrinkPerturb, {"ratio": 0.5, "noise": 0.2, "toward": "fresh"}), (HeadReset, {"toward": "fresh"})],
)
def test_fresh_draws_differ_between_applications_and_repeat_with_the_seed(kind, chosen: dict) -> None:
    def run(seed: int) -> list[torch.Tensor]:
        net = make()
        method = kind(net, seed=seed, **chosen)
        found = []
        for _ in range(3):
            method.apply()
            found.append(net.head[3].weight.detach().clone())
        assert method.applications == 3
        return found

    first, again, other = run(0), run(0), run(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    flat = first + other
    assert not any(torch.equal(flat[i], flat[j]) for i in range(6) for j in range(i))


@pytest.mark.parametrize("kind", [ShrinkPerturb, HeadReset])
def test_a_resumed_method_draws_and_holds_what_the_uninterrupted_one_does(kind) -> None:
    for chosen in ({"toward": "fresh"}, {"toward": "initial"}):
        net = make()
        method = kind(net, **chosen)
        train(net, 2)
        method.apply()
        twin = copy.deepcopy(net)
        file = io.BytesIO()
        torch.save(method.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
        method.apply()
        for parameter in twin.parameters():
            parameter.data.add_(0.0)
        resumed = kind(twin, **chosen)  # which takes the weights of now for the initial ones, until it is loaded
        resumed.load_state_dict(state)
        resumed.apply()
        assert_same(values_of(net), values_of(twin))
        assert resumed.applications == method.applications == 2


def grow(net: Net, classes: int) -> None:
    old, net.head[3] = net.head[3], nn.Linear(5, classes)
    with torch.no_grad():
        net.head[3].weight[: old.out_features], net.head[3].bias[: old.out_features] = old.weight, old.bias


@pytest.mark.parametrize("kind", [ShrinkPerturb, HeadReset])
def test_units_that_the_head_has_grown_go_back_to_their_own_initial_weights(kind) -> None:
    net = make()
    initial = net.head[3].weight.detach().clone()
    method = kind(net, **({"ratio": 1} if kind is ShrinkPerturb else {}))
    tortoise = Tortoise(net, momentum=0.7)
    train(net, 3, tortoise)
    grow(net, 5)
    new_units = net.head[3].weight[3:].detach().clone()
    method.before_phase()
    method.grown()
    tortoise.before_phase()
    tortoise.grown()
    train(net, 3, tortoise)
    method.apply(tortoise)
    for weight in (net.head[3].weight, tortoise.weights["head.3.weight"]):
        assert torch.equal(weight[:3], initial)
        assert torch.equal(weight[3:], new_units)


@pytest.mark.parametrize("kind", [ShrinkPerturb, HeadReset])
@pytest.mark.parametrize("toward", ["initial", "fresh"])
def test_networks_that_grew_unannounced_are_followed(kind, toward: str) -> None:
    net = make()
    method = kind(net, toward=toward)
    tortoise = Tortoise(net, momentum=0.7)
    grow(net, 5)
    method.apply(tortoise)
    assert tortoise.weights["head.3.weight"].shape == (5, 5)


def test_shrink_and_perturb_clears_the_optimizer_for_what_it_changes() -> None:
    for choice, left in (("clear", {"backbone.0.weight"}), ("keep", set(TRAINED))):
        net = make()
        method = ShrinkPerturb(net, optimizer_state=choice)
        optimizer = train(net)
        net.backbone[0].weight.requires_grad_(False)
        method.apply(optimizer=optimizer)
        assert {name for name, p in net.named_parameters() if p in optimizer.state} == left
        method.apply()


# Head Reset


@pytest.mark.parametrize("toward", ["initial", "fresh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_reset_sets_head_and_its_statistics_and_nothing_else(toward: str, dtype: torch.dtype) -> None:
    net = make(dtype=dtype)
    initial = values_of(net)
    method = HeadReset(net, toward=toward, seed=4)
    tortoise = Tortoise(net, momentum=0.7)
    optimizer = train(net, 5, tortoise)
    before, slow = values_of(net), values_of(tortoise)
    memory = {name for name, p in net.named_parameters() if not name.startswith("head.")}
    state = torch.random.get_rng_state()
    method.apply(tortoise, optimizer)
    assert torch.equal(state, torch.random.get_rng_state())
    fresh = fresh_weights(net.head, seed=derive_seed(4, "head reset: fresh weights", 0))
    for name, value in values_of(net).items():
        if name.startswith("head."):
            target = initial[name] if toward == "initial" else fresh[name.removeprefix("head.")]
            assert torch.equal(value, target), name
            assert torch.equal(tortoise.weights[name].to(value.dtype), target), name
        else:
            assert torch.equal(value, before[name]), name
            assert torch.equal(tortoise.weights[name], slow[name]), name
    assert {name for name, p in net.named_parameters() if p in optimizer.state} == memory
    assert net.head[1].num_batches_tracked == 0


@pytest.mark.parametrize("toward", ["initial", "fresh"])
def test_masks_of_known_classes_are_not_reset(toward: str) -> None:
    net = make()
    net.head.register_buffer("known", torch.tensor([False, False, False]))
    method = HeadReset(net, toward=toward)
    tortoise = Tortoise(net)
    train(net, 3, tortoise)
    net.head.known[:2] = True
    tortoise.follow()
    method.apply(tortoise)
    assert net.head.known.tolist() == tortoise.weights["head.known"].tolist() == [True, True, False]
    assert net.head[1].num_batches_tracked == tortoise.weights["head.1.num_batches_tracked"] == 0


class Tied(nn.Module):
    """The head's weight is the encoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(7, 4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.encoder.weight


@pytest.mark.parametrize(("toward", "factory"), [("initial", None), ("fresh", None), ("fresh", Tied)])
def test_a_head_that_shares_weights_with_the_backbone_is_reset_with_them(toward: str, factory) -> None:
    torch.manual_seed(0)
    net = Tied()
    initial = values_of(net)
    method = HeadReset(net, toward=toward, factory=factory)
    tortoise = Tortoise(net, momentum=0.5)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 5.0)
    tortoise.follow()
    method.apply(tortoise)
    assert net.head.weight is net.encoder.weight
    assert torch.equal(tortoise.weights["encoder.weight"], net.head.weight)
    assert not (net.head.weight == 5.0).any()
    assert torch.equal(net.head.weight, initial["encoder.weight"]) == (toward == "initial")
    assert (net.middle.weight == 5.0).all()


class Odd(nn.Module):
    """A layer that nothing can initialise anew."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))
        self.phase = nn.Parameter(torch.randn(2, dtype=torch.complex64))


def odd_net() -> nn.Module:
    net = Net()
    net.head.add_module("odd", Odd())
    return net


def test_parameters_without_initialiser_are_refused_by_name_unless_there_is_a_factory() -> None:
    net = odd_net()
    with pytest.raises(ValueError, match=r"\['head.odd.scale', 'head.odd.phase'\].*pass a factory"):
        fresh_weights(net, seed=0)
    before = values_of(net)
    for kind in (ShrinkPerturb, HeadReset):
        with pytest.raises(ValueError, match=r"odd\.scale"):
            kind(net, toward="fresh").apply()
    assert_same(before, values_of(net))
    made = fresh_weights(net, seed=5, factory=odd_net)
    torch.manual_seed(5)
    assert_same(made, values_of(odd_net()))
    for kind in (ShrinkPerturb, HeadReset):
        kind(net, toward="fresh", factory=odd_net).apply()
        assert not torch.equal(net.head.odd.scale, before["head.odd.scale"])
        assert not torch.equal(net.head.odd.phase, before["head.odd.phase"])
    net.head.odd.requires_grad_(False)  # frozen: nothing to draw
    fresh_weights(net, seed=0)


def test_a_factory_of_another_network_is_refused_with_the_difference() -> None:
    with pytest.raises(ValueError, match=r"differs in \['head.3.bias', 'head.3.weight'\]"):
        fresh_weights(make(), seed=0, factory=lambda: Net(classes=9))


@pytest.mark.parametrize("kind", [ShrinkPerturb, HeadReset])
def test_nothing_is_reset_while_the_tortoise_predicts(kind) -> None:
    net = make()
    tortoise, method = Tortoise(net), kind(net)
    with tortoise.predict(), pytest.raises(RuntimeError, match="stop predicting first"):
        method.apply(tortoise)
    assert method.applications == 0


@pytest.mark.parametrize(
    ("kind", "chosen", "message"),
    [
        (ShrinkPerturb, {"ratio": 1.1}, "ratio = 1.1: accepted is a number with 0 <= ratio <= 1"),
        (ShrinkPerturb, {"noise": -1}, "noise = -1"),
        (ShrinkPerturb, {"toward": "init"}, "Did you mean 'initial'"),
        (ShrinkPerturb, {"perturb": -0.1}, "perturb = -0.1: accepted is a number with 0 <= perturb"),
        (ShrinkPerturb, {"perturb": float("nan")}, "perturb = nan"),
        (ShrinkPerturb, {"optimizer_state": "clean"}, "Did you mean 'clear'"),
        (HeadReset, {"toward": "zero"}, "accepted are 'initial', 'fresh'"),
        (HeadReset, {"head": "haed"}, "Did you mean 'head'"),
        (HeadReset, {"head": nn.Linear(1, 1)}, "no part of the network, which has 'backbone', 'head'"),
        (HeadReset, {"head": "backbone.2"}, "'backbone.2' has no parameters"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_accepted(kind, chosen: dict, message: str) -> None:
    with pytest.raises(SettingError, match=f"{kind.__name__}: .*{message}"):
        kind(make(), **chosen)


# The head


def test_the_head_is_found_by_name_by_object_and_by_custom() -> None:
    net = make()
    assert find_head(net) == find_head(net, "head") == find_head(net, net.head) == "head"
    assert find_head(net, "head.3") == find_head(net, net.head[3]) == "head.3"
    assert find_head(nn.ModuleDict({"fc": nn.Linear(1, 1), "classifier": nn.Linear(1, 1)})) == "classifier"
    assert find_head(nn.ModuleDict({"head": nn.ReLU(), "fc": nn.Linear(1, 1)})) == "fc"
    shared = nn.Linear(1, 1)
    assert find_head(nn.ModuleDict({"first": shared, "second": shared}), "second") == "second"
    with pytest.raises(ValueError, match=r"under head, classifier.*the network has 'a'"):
        find_head(nn.ModuleDict({"a": nn.Linear(1, 1)}))


# Fresh weights


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(5, 3),
        lambda: nn.Conv2d(2, 3, 3),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        lambda: nn.Embedding(5, 3),
        lambda: nn.LSTM(3, 4),
        lambda: nn.BatchNorm2d(3),
        lambda: nn.MultiheadAttention(8, 2),
        lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
        lambda: nn.TransformerEncoderLayer(8, 2, 16),
        lambda: nn.TransformerDecoderLayer(8, 2, 16),
        lambda: nn.PReLU(),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fresh_weights_are_those_of_a_layer_made_with_the_same_seed(layer, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    made = layer()
    module = copy.deepcopy(made).to(dtype)
    for parameter in module.parameters():
        nn.init.constant_(parameter, 3.0)
    before = values_of(module)
    state = torch.random.get_rng_state()
    drawn = fresh_weights(module, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert_same(before, values_of(module))
    assert drawn.keys() == before.keys()
    for name, value in drawn.items():
        assert value.dtype == before[name].dtype
        assert not value.requires_grad
        if dtype == torch.float32:
            assert torch.equal(value, dict(named_tensors(made))[name]), name


def test_fresh_weights_have_the_layers_distribution() -> None:
    drawn = fresh_weights(nn.Linear(400, 300), seed=1)["weight"].double()
    assert drawn.abs().max() <= 400**-0.5
    assert drawn.mean().item() == pytest.approx(0, abs=3 * (1 / 1200 / drawn.numel()) ** 0.5)
    assert drawn.var().item() == pytest.approx(1 / 1200, rel=0.02)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrised_layers_are_refused_by_name_unless_there_is_a_factory(norm) -> None:
    def factory() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3), norm(nn.Linear(3, 2)))

    net = factory()
    with pytest.raises(ValueError, match=r"1\.parametrizations\.weight\.original.*pass a factory"):
        fresh_weights(net, seed=0)
    method = ShrinkPerturb(net, ratio=1, toward="fresh", factory=factory)
    before = values_of(net)
    method.apply()
    assert not any(torch.equal(before[name], p) for name, p in net.named_parameters())
    assert torch.isfinite(net(torch.ones(1, 3))).all()


# The optimiser


def test_only_the_named_parameters_are_forgotten() -> None:
    net = make()
    optimizer = train(net)
    stranger = nn.Parameter(torch.zeros(1))
    clear_optimizer_state(optimizer, [net.head[0].weight, stranger])
    assert {name for name, p in net.named_parameters() if p not in optimizer.state} == {"head.0.weight"}
    train(net, 1, optimizer=optimizer)
    assert optimizer.state[net.head[0].weight]["step"] == 1
    assert optimizer.state[net.head[0].bias]["step"] == 5
    clear_optimizer_state(optimizer)
    assert not optimizer.state
