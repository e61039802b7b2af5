"""Methods do what their names say, at their moments, in their order."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from torch import nn

from ht_ray.mechanisms import SettingError, SettingWarning, named_tensors, recalibrate_batchnorm
from ht_ray.methods import METHODS, Composition, MethodConfig, Phase, display_name, method_parts


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(inputs))


def values_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(net)}


def slow_of(method: Composition) -> dict[str, torch.Tensor]:
    assert method.tortoise is not None
    return {name: tensor.clone() for name, tensor in method.tortoise.weights.tensors.items()}


def assert_same(left, right, names=None) -> None:
    for name in names or left:
        assert torch.equal(left[name], right[name]), name


def start(name: str, **chosen) -> tuple[Net, Composition, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net()
    return net, MethodConfig(name, **chosen).build(net, seed=0), torch.optim.Adam(net.parameters(), lr=0.1)


def train(net: Net, method: Composition, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        batch = torch.randn(8, 3)
        optimizer.zero_grad()
        net(batch).square().mean().backward()
        optimizer.step()
        method.after_step(optimizer, batch)


def begin(method: Composition, phase: int, optimizer: torch.optim.Optimizer) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SettingWarning)  # phases of three steps
        method.before_phase(Phase(phase, 4, 3), optimizer)


PARAMETERS = [name for name, _ in Net().named_parameters()]


def test_names_combine_and_are_displayed() -> None:
    assert method_parts(" Hare-Tortoise + head_reset") == ("hare_tortoise", "head_reset")
    assert MethodConfig("ema+shrink_perturb").parts == ("ema", "shrink_perturb")
    assert display_name("ema+shrink_perturb") == "EMA + Shrink & Perturb"
    for name, method in METHODS.items():
        assert display_name(name) == method.title


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"name": "hare_tortose"}, "Did you mean 'hare_tortoise'"),
        ({"name": "ema+"}, "name = ''"),
        ({"name": "ema+ema"}, "given twice"),
        ({"name": "plain+ema"}, "'plain' means none"),
        ({"name": "ema+hare_tortoise"}, "accepted is one of the two"),
        ({"momentum": 1}, "momentum = 1"),
        ({"reset_interval": 0}, "reset_interval = 0"),
        ({"reset_unit": "phases"}, "reset_unit = 'phases'"),
        ({"optimizer_state": "new"}, "optimizer_state = 'new'"),
        ({"recalibrate_batchnorm": -1}, "recalibrate_batchnorm = -1"),
        ({"shrink_perturb_ratio": 2}, "shrink_perturb_ratio = 2"),
        ({"shrink_perturb_noise": -1}, "shrink_perturb_noise = -1"),
        ({"shrink_perturb_perturb": -0.1}, "shrink_perturb_perturb = -0.1"),
        ({"toward": "none"}, "accepted are 'initial', 'fresh'"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_accepted(chosen: dict, message: str) -> None:
    with pytest.raises(SettingError, match=f"MethodConfig[:.] ?.*{message}"):
        MethodConfig(**chosen)


def test_plain_does_nothing() -> None:
    net, method, optimizer = start("plain")
    train(net, method, optimizer)
    before = values_of(net)
    begin(method, 1, optimizer)
    method.end_epoch(optimizer, last=True)
    with method.predict():
        assert_same(values_of(net), before)
    assert method.state_dict() == {"plain": {}}


@pytest.mark.parametrize("name", ["ema", "hare_tortoise"])
def test_ema_is_hare_and_tortoise_without_resets(name: str) -> None:
    net, method, optimizer = start(name, momentum=0.9, reset_interval=2)
    for epoch in range(1, 5):
        train(net, method, optimizer)
        before = values_of(net)
        method.end_epoch(optimizer, last=epoch == 4)
        expected = slow_of(method) if name == "hare_tortoise" and epoch % 2 == 0 else before
        assert_same(values_of(net), expected)
    assert method.tortoise is not None
    assert method.tortoise.resets == (2 if name == "hare_tortoise" else 0)


def test_settings_reach_the_tortoise() -> None:
    _, method, _ = start(
        "hare_tortoise", momentum=0.7, reset_interval=3, reset_unit="steps", optimizer_state="clear",
        reset_at_phase_end=False,
    )  # fmt: skip
    tortoise = method.tortoise
    assert tortoise is not None
    found = (tortoise.momentum, tortoise.reset_interval, tortoise.reset_unit, tortoise.optimizer_state)
    assert found == (0.7, 3, "steps", "clear")
    assert tortoise.reset_at_phase_end is False


def test_it_predicts_with_the_tortoise() -> None:
    net, method, optimizer = start("ema", momentum=0.9)
    train(net, method, optimizer)
    fast, slow = values_of(net), slow_of(method)
    with method.predict():
        assert_same(values_of(net), slow)
    assert_same(values_of(net), fast)


@pytest.mark.parametrize("both", [True, False])
def test_reinitialisation_comes_before_each_new_phase_for_both_networks(both: bool) -> None:
    net, method, optimizer = start(
        "hare_tortoise+shrink_perturb+head_reset", momentum=0.9, reset_interval=None, shrink_perturb_ratio=0.75,
        shrink_perturb_noise=0.1, reinitialize_tortoise=both,
    )  # fmt: skip
    initial = values_of(net)
    begin(method, 0, optimizer)
    assert_same(values_of(net), initial)  # not before the first
    train(net, method, optimizer)
    before, slow = values_of(net), slow_of(method)
    method.end_epoch(optimizer, last=True)
    assert_same(values_of(net), before)
    assert len(optimizer.state) == len(PARAMETERS)
    begin(method, 1, optimizer)
    assert not optimizer.state
    # Noise, and then a head that is exactly the initial one: Shrink & Perturb first, Head Reset second.
    assert_same(values_of(net), initial, ["head.weight", "head.bias"])
    moved = values_of(net)["backbone.0.weight"] - (
        0.25 * before["backbone.0.weight"] + 0.75 * initial["backbone.0.weight"]
    )
    assert 0.01 < moved.std() < 0.3
    assert_same(values_of(net), before, ["backbone.1.running_mean"])
    after = slow_of(method)
    if not both:
        assert_same(after, slow)
        return
    assert_same(after, initial, ["head.weight", "head.bias"])
    same = after["backbone.0.weight"] - (0.25 * slow["backbone.0.weight"] + 0.75 * initial["backbone.0.weight"])
    torch.testing.assert_close(same, moved, rtol=1e-4, atol=1e-6)


def test_fresh_weights_come_from_the_methods_seed() -> None:
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        net = Net()
        method = MethodConfig("head_reset", toward="fresh").build(net, seed=seed)
        begin(method, 1, torch.optim.Adam(net.parameters()))
        heads.append(net.head.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_batchnorm_is_recalibrated_from_the_last_batches_before_a_reset() -> None:
    net, method, optimizer = start("hare_tortoise", momentum=0.9, reset_interval=1, recalibrate_batchnorm=2)
    batches: list[torch.Tensor] = []
    method.after_step(optimizer, torch.full((8, 3), 9.0))  # of an earlier epoch
    method.tortoise._inputs.clear()
    for _ in range(4):
        train(net, method, optimizer, 1)
        batches.append(method.tortoise._inputs[-1])
    assert method.tortoise is not None
    expected = method.tortoise.trained_tortoise()
    recalibrate_batchnorm(expected, batches[-2:])
    method.end_epoch(optimizer, last=False)
    assert_same(slow_of(method), values_of(expected))
    assert_same(values_of(net), values_of(expected))
    assert len(method.tortoise._inputs) == 0


@pytest.mark.parametrize("name", ["ema", "hare_tortoise+shrink_perturb", "shrink_perturb+head_reset", "plain"])
def test_a_state_continues_the_same_methods(name: str) -> None:
    net, method, optimizer = start(name, momentum=0.9, toward="fresh", shrink_perturb_noise=0.1)
    begin(method, 1, optimizer)
    train(net, method, optimizer)
    state = copy.deepcopy(method.state_dict())
    twin = copy.deepcopy(net)
    resumed = MethodConfig(name, momentum=0.9, toward="fresh", shrink_perturb_noise=0.1).build(twin, seed=0)
    resumed.load_state_dict(state)
    for one, other in ((net, method), (twin, resumed)):
        torch.manual_seed(2)
        memory = torch.optim.Adam(one.parameters(), lr=0.1)
        begin(other, 2, memory)
        train(one, other, memory)
    assert_same(values_of(net), values_of(twin))
    if method.tortoise is not None:
        assert_same(slow_of(method), slow_of(resumed))


@pytest.mark.parametrize(("saved", "loaded"), [("plain", "ema"), ("ema", "plain"), ("ema", "ema+head_reset")])
def test_a_state_of_other_methods_is_refused(saved: str, loaded: str) -> None:
    state = start(saved)[1].state_dict()
    with pytest.raises(ValueError, match=re.escape(f"{loaded!r} has")):
        start(loaded)[1].load_state_dict(state)


class Hidden(Net):
    """With a layer of units that can be recycled after an injection, too."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU())


def test_the_order_at_each_moment_is_fixed(monkeypatch) -> None:
    torch.manual_seed(0)
    net = Hidden()
    name = (
        "optimizer_reset+redo+continual_backprop+weight_clipping+upgd+self_distillation+regenerative+l2"
        "+spectral_decoupling+plasticity_injection+head_reset+shrink_perturb+hare_tortoise"
    )
    method = MethodConfig(name, redo_unit="steps", redo_interval=1).build(net, seed=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    calls: list[str] = []

    def record(part: object, called: str, moment: str) -> None:
        original = getattr(part, moment)

        def noted(*arguments, **named):
            calls.append(called)
            return original(*arguments, **named)

        monkeypatch.setattr(part, moment, noted)

    assert method.tortoise is not None
    for called in ("shrink_perturb", "head_reset", "plasticity_injection"):
        record(method.by_name[called], called, "apply")
    others = {name: one for name, one in method.by_name.items() if one is not method.tortoise}
    for moment in ("loss", "before_step", "after_step", "end_epoch"):
        for called, one in others.items():
            if not one.acts_before_phases:
                record(one, called, moment)
    record(method.tortoise, "tortoise follows", "average")
    record(method.tortoise, "tortoise", "count_step")
    record(method.tortoise, "tortoise", "end_epoch")

    begin(method, 1, optimizer)
    assert calls == ["shrink_perturb", "head_reset", "plasticity_injection"]
    calls.clear()
    terms = ["l2", "spectral_decoupling", "regenerative", "self_distillation"]
    batch = torch.randn(8, 3)
    method.before_forward(batch)
    with method.watch():
        outputs = net(batch)
    method.loss(outputs.sum(), outputs).backward()
    assert calls[:4] == terms
    calls.clear()
    method.before_step(optimizer)
    assert calls[0] == "l2" and calls.index("regenerative") < calls.index("upgd")
    optimizer.step()
    calls.clear()
    method.after_step(optimizer, batch)
    acting = [call for call in calls if call not in terms]
    follows = ["upgd", "weight_clipping", "tortoise follows"]
    assert acting == [*follows, "tortoise", "continual_backprop", "redo", "optimizer_reset"]
    calls.clear()
    method.end_epoch(optimizer, last=False)
    assert calls[0] == "tortoise" and calls.index("redo") < calls.index("optimizer_reset")


def test_a_new_head_can_be_reset_to_its_own_initial_weights() -> None:
    net, method, optimizer = start("head_reset+plasticity_injection")
    begin(method, 0, optimizer)
    begin(method, 1, optimizer)
    first = values_of(net)
    added = [name for name in first if ".grown." in name]
    assert added
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    begin(method, 2, optimizer)
    assert_same(first, values_of(net), added)


@pytest.mark.parametrize("part", ["crelu", "layer_norm"])
def test_an_architecture_must_be_that_of_the_network(part) -> None:
    with pytest.raises(SettingError, match=r"make_model\(method\.model"):
        MethodConfig(part).build(Net(), seed=0)


def test_a_state_of_more_methods_is_refused() -> None:
    _, method, _ = start("l2+upgd")
    _, other, _ = start("l2")
    with pytest.raises(ValueError, match=r"\['l2', 'upgd'\].*'l2' has \['l2'\]"):
        other.load_state_dict(method.state_dict())


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"l2_strength": -1}, "l2_strength = -1"),
        ({"redo_interval": 0}, "redo_interval = 0"),
        ({"redo_unit": "epoch"}, "Did you mean 'epochs'"),
        ({"adam_betas": (0.9, 1.0)}, "adam_betas = 1.0"),
        ({"adam_betas": (0.9,)}, "two numbers"),
        ({"augment_kind": "flip"}, "augment_kind = 'flip'"),
        ({"regenerative_norm": "L1"}, "regenerative_norm = 'L1'"),
        ({"continual_backprop_replacement_rate": 1.5}, "continual_backprop_replacement_rate = 1.5"),
        ({"weight_clipping_factor": 0}, "weight_clipping_factor = 0"),
        ({"name": "ema+self_distillation"}, "leave 'ema' out"),
        ({"name": "l2_init+regenerative"}, "given twice"),
        ({"name": "upgdd"}, "Did you mean 'upgd'"),
    ],
)
def test_settings_of_every_method_are_checked(chosen, message) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        MethodConfig(**{"name": "plain", **chosen})
