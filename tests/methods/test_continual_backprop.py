"""Continual backprop: which units are replaced when, against numpy; off is off; a resumed run continues."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms import named_tensors
from ht_ray.mechanisms.units.crelu import CReLU
from ht_ray.methods import Tortoise
from ht_ray.methods.continual_backprop import ContinualBackprop


def make(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)
    )


def train(
    net: nn.Module, method: ContinualBackprop | None, steps: int, *, start: int = 0, optimizer=None, tortoise=None
):
    optimizer = optimizer or torch.optim.AdamW(net.parameters(), lr=0.01, amsgrad=True)
    torch.manual_seed(start)  # dropout, which a mechanism must not shift
    for step in range(start, start + steps):
        batch = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        if method is None:
            outputs = net(batch)
        else:
            with method.watch():
                outputs = net(batch)
        outputs.square().mean().backward()
        optimizer.step()
        if tortoise is not None:
            tortoise.step(optimizer)
        if method is not None:
            method.after_step(optimizer, tortoise)
    return optimizer


def assert_same(left: nn.Module, right: nn.Module) -> None:
    held = dict(named_tensors(right))
    for name, tensor in named_tensors(left):
        assert torch.equal(tensor, held[name]), name


def test_units_are_replaced_as_by_hand() -> None:
    """Algorithm 1 in numpy for two layers; only the drawn weights are taken from ours."""
    rate, maturity, decay, lr = 0.004, 40, 0.95, 0.05
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 2)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    method = ContinualBackprop(net, replacement_rate=rate, maturity=maturity, utility_decay=decay)

    w = [net[i].weight.detach().numpy().copy() for i in (0, 2, 4)]
    b = [net[i].bias.detach().numpy().copy() for i in (0, 2, 4)]
    utility, age, due = [np.zeros(10), np.zeros(7)], [np.zeros(10, int), np.zeros(7, int)], [0.0, 0.0]
    replaced = [0, 0]
    for step in range(300):
        x = np.random.default_rng(step).normal(size=(8, 4))
        target = np.sin(x[:, :2] * 3)
        optimizer.zero_grad()
        with method.watch():
            loss = (net(torch.from_numpy(x)) - torch.from_numpy(target)).square().sum() / 16
        loss.backward()
        optimizer.step()
        method.after_step(optimizer)

        h1 = np.tanh(x @ w[0].T + b[0])
        z2 = h1 @ w[1].T + b[1]
        h2 = np.maximum(z2, 0)
        g3 = (h2 @ w[2].T + b[2] - target) / 8
        g2 = (g3 @ w[2]) * (z2 > 0)
        g1 = (g2 @ w[1]) * (1 - h1**2)
        for i, (g, h) in enumerate(((g1, x), (g2, h1), (g3, h2))):
            w[i] -= lr * g.T @ h
            b[i] -= lr * g.sum(0)
        for i, h in enumerate((h1, h2)):
            age[i] += 1
            utility[i] = decay * utility[i] + (1 - decay) * np.abs(h).mean(0) * np.abs(w[i + 1]).sum(0)
            eligible = age[i] > maturity
            due[i] += rate * eligible.sum()
            while due[i] >= 1:
                unit = min(np.flatnonzero(eligible), key=lambda j: utility[i][j])
                old = w[i][unit].copy()
                w[i][unit] = net[2 * i].weight[unit].detach().numpy()
                b[i][unit] = net[2 * i].bias[unit].item()
                assert np.abs(old - w[i][unit]).min() > 1e-6, "ours has replaced another unit"
                w[i + 1][:, unit] = 0.0
                utility[i][unit], age[i][unit], eligible[unit] = 0.0, 0, False
                due[i] -= 1
                replaced[i] += 1
        for i, name in enumerate(("1", "3")):
            np.testing.assert_allclose(net[2 * i].weight.detach().numpy(), w[i], rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal(method.ages[name].numpy(), age[i])
            np.testing.assert_allclose(method.utilities[name].numpy(), utility[i], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(net[4].weight.detach().numpy(), w[2], rtol=1e-9, atol=1e-12)
    assert replaced[0] >= 8
    assert replaced[1] >= 5
    assert method.replacements == sum(replaced)


def test_contributions_of_maps_positions_and_halves_are_summed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), CReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )
    images = torch.randn(5, 2, 8, 8)
    method = ContinualBackprop(net, utility_decay=0.0)
    with method.watch():
        net(images)
    method.after_step(torch.optim.SGD(net.parameters()))
    maps = net[:2](images).detach().numpy()
    out = np.abs(net[3].weight.detach().numpy()).sum((0, 2, 3))
    each = np.abs(maps).mean((0, 2, 3)) * out
    np.testing.assert_allclose(method.utilities["1"].numpy(), each[:3] + each[3:], rtol=1e-5)
    maps = net[:5](images).detach().numpy()
    out = np.abs(net[6].weight.detach().numpy()).reshape(2, 4, 4).sum((0, 2))
    np.testing.assert_allclose(method.utilities["4"].numpy(), maps.mean((0, 2, 3)) * out, rtol=1e-5)


def test_several_units_at_once_are_the_least_useful_mature_ones() -> None:
    net = make()
    optimizer = train(net, None, 3)
    method = ContinualBackprop(net, replacement_rate=1.0, maturity=5, utility_decay=0.5)
    train(net, method, 5, optimizer=optimizer)
    assert method.replacements == 0
    train(net, method, 1, optimizer=optimizer)
    assert method.replacements == 20  # all at once: every unit is 6 steps old
    assert all(age.eq(0).all() for age in method.ages.values())
    method = ContinualBackprop(net, replacement_rate=0.25, maturity=0)
    method.utilities["2"] = torch.arange(12.0)
    method.ages["2"][:4] = -1  # not mature after the step
    train(net, method, 1, optimizer=optimizer)
    assert method.ages["2"].tolist() == [0] * 4 + [0, 0] + [1] * 6
    assert method.due == {"2": 0.0, "5": 0.0}


def test_replacement_touches_the_units_alone_on_both_networks_and_in_the_optimiser() -> None:
    net, twin = make(), make()
    tortoise, twin_tortoise = Tortoise(net, momentum=0.5), Tortoise(twin, momentum=0.5)
    method = ContinualBackprop(net, replacement_rate=0.05, maturity=9)
    optimizer = train(net, method, 11, tortoise=tortoise)
    plain = train(twin, None, 11, tortoise=twin_tortoise)
    units = method.ages["2"].eq(0).nonzero().flatten()
    assert len(units) == 1
    assert method.replacements == 1  # in the other layer 0.8 of a unit is due
    touched = {"0.weight": (units,), "0.bias": (units,), "1.weight": (units,), "1.bias": (units,)}
    touched |= {"1.running_mean": (units,), "1.running_var": (units,), "4.weight": (slice(None), units)}
    states = {name: (optimizer.state[p], q) for (name, p), q in zip(
        net.named_parameters(), (plain.state[p] for p in twin.parameters()), strict=True)}  # fmt: skip
    for name, tensor in named_tensors(net):
        rest = torch.ones_like(tensor, dtype=torch.bool)
        if name in touched:
            rest[touched[name]] = False
        assert torch.equal(tensor[rest], dict(named_tensors(twin))[name][rest]), name
        assert torch.equal(tortoise.weights[name][rest], twin_tortoise.weights[name][rest]), name
        assert torch.equal(tortoise.weights[name][~rest], tensor[~rest]), name
        for key, value in states[name][0].items() if name in states else ():
            if key == "step":
                assert float(value) == 11
            else:
                assert value[~rest].eq(0).all()
                assert torch.equal(value[rest], states[name][1][key][rest])
    assert net[4].weight[:, units].eq(0).all()
    assert net[0].weight[units].abs().max() <= 0.5


def test_no_two_units_get_the_same_new_weights() -> None:
    net = make()
    seen: list[Tensor] = []
    method = ContinualBackprop(net, replacement_rate=0.2, maturity=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    for step in range(60):
        if step == 30:
            method.before_phase()
            method.grown()
        with method.watch():
            net(torch.randn(8, 4))
        method.after_step(optimizer)
        seen += list(net[0].weight[method.ages["2"] == 0].detach().clone())
    assert len(seen) > 60
    assert len(torch.stack(seen).unique(dim=0)) == len(seen)
    assert 3 < method.draws["2"] < len(seen) / 4, "rows of a draw are used before the next"


@pytest.mark.parametrize("setting", [{"replacement_rate": 0.0}, {"maturity": 10**6}])
def test_off_is_bit_identical_to_plain_training_dropout_included(setting: dict) -> None:
    plain, other = make(), make()
    train(plain, None, 20)
    train(other, ContinualBackprop(other, **setting), 20)
    assert_same(plain, other)


def test_replacing_does_not_shift_dropout() -> None:
    net = make()
    method = ContinualBackprop(net, replacement_rate=0.5, maturity=1)
    train(net, method, 10)
    after = torch.get_rng_state()
    train(make(), None, 10)
    assert method.replacements > 10
    assert torch.equal(after, torch.get_rng_state())


def test_off_needs_no_units_and_leaves_no_hooks() -> None:
    net = nn.Linear(2, 2)
    method = ContinualBackprop(net, replacement_rate=0.0)
    method.before_phase()
    method.grown()
    with method.watch():
        net(torch.zeros(1, 2))
    method.after_step(torch.optim.SGD(net.parameters()))
    assert method.steps == 0


def test_hooks_are_there_for_the_forward_pass_only() -> None:
    net = make()
    method = ContinualBackprop(net)
    with pytest.raises(RuntimeError), method.watch():
        net(torch.zeros(2, 7))
    assert not any(part._forward_hooks for part in net.modules())
    copy.deepcopy(net)


def test_a_forward_pass_that_was_not_watched_is_told() -> None:
    net = make()
    method = ContinualBackprop(net)
    net(torch.zeros(2, 4))
    with pytest.raises(RuntimeError, match=r"no activation of 2, 5 was seen.*watch"):
        method.after_step(torch.optim.SGD(net.parameters()))
    train(net, method, 1)
    with pytest.raises(RuntimeError, match="watch"):
        method.after_step(torch.optim.SGD(net.parameters()))


def test_utilities_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    method = ContinualBackprop(net, utility_decay=0.0)
    batch = torch.randn(4096, 4)
    with method.watch(), torch.autocast("cpu", dtype=torch.bfloat16):
        net(batch)
    method.after_step(torch.optim.SGD(net.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = net[:2](batch)
    assert narrow.dtype == torch.bfloat16
    wanted = narrow.double().mean(0) * net[2].weight.double().abs().sum(0)
    assert method.utilities["1"].dtype == torch.float32
    torch.testing.assert_close(method.utilities["1"].double(), wanted, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("at", [7, 23])
def test_a_resumed_run_continues_bit_for_bit(at: int) -> None:
    setting = {"replacement_rate": 0.02, "maturity": 6, "seed": 3}
    whole = make()
    method = ContinualBackprop(whole, **setting)
    optimizer = train(whole, method, at)
    kept = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), method.state_dict()))
    train(whole, method, 30, start=at, optimizer=optimizer)
    assert method.replacements > kept[2]["replacements"] + 5

    part = make(seed=9)
    part.load_state_dict(kept[0])
    optimizer = torch.optim.AdamW(part.parameters(), lr=0.01, amsgrad=True)
    optimizer.load_state_dict(kept[1])
    resumed = ContinualBackprop(part, **setting)
    resumed.load_state_dict(kept[2])
    train(part, resumed, 30, start=at, optimizer=optimizer)
    assert_same(whole, part)
    left, right = method.state_dict(), resumed.state_dict()
    for name in ("due", "draws", "steps", "replacements"):
        assert left[name] == right[name]
    assert all(torch.equal(utility, right["utilities"][name]) for name, utility in left["utilities"].items())
    assert kept[2]["steps"] == at, "the saved state is not the running one's"


def test_the_state_of_other_units_is_refused() -> None:
    state = ContinualBackprop(make()).state_dict()
    with pytest.raises(ValueError, match="the state is of the units"):
        ContinualBackprop(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))).load_state_dict(state)


def test_known_units_keep_their_state_when_the_network_grows() -> None:
    net = make()
    method = ContinualBackprop(net)
    train(net, method, 3)
    utility = method.utilities["5"].clone()
    net[4], net[6] = nn.Linear(12, 10), nn.Linear(10, 5)
    method.before_phase()
    method.grown()
    assert method.ages["5"].tolist() == [3] * 8 + [0, 0]
    assert torch.equal(method.utilities["5"][:8], utility)
    assert method.utilities["5"][8:].eq(0).all()
    assert method.ages["2"].tolist() == [3] * 12
    train(net, method, 1, start=3)


def test_settings_and_networks_are_checked() -> None:
    for setting, message in (
        ({"replacement_rate": 1.5}, "ContinualBackprop: replacement_rate"),
        ({"maturity": -1}, "ContinualBackprop: maturity"),
        ({"utility_decay": 1.0}, "ContinualBackprop: utility_decay"),
        ({"seed": None}, "ContinualBackprop: seed"),
    ):
        with pytest.raises(SettingError, match=message):
            ContinualBackprop(make(), **setting)
    with pytest.raises(SettingError, match="ContinualBackprop: Linear has no hidden units"):
        ContinualBackprop(nn.Linear(2, 2))
    with pytest.warns(SettingWarning, match="ContinualBackprop: units of 1 of 3"):
        ContinualBackprop(nn.Sequential(make(), nn.ReLU()))


def test_layers_can_be_named() -> None:
    class Depends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.act, self.after = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.act(self.before(x))) if bool(x.sum() < 1e9) else x

    net = Depends()
    method = ContinualBackprop(net, replacement_rate=1.0, maturity=0, layers=[("before", "act", ("after",))])
    train(net, method, 1)
    assert method.replacements == 6
