"""ReDo: scores against numpy, when it acts, on both networks alike, off is off, and a resumed run continues."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms import named_tensors
from ht_ray.mechanisms.units.crelu import CReLU
from ht_ray.methods import Tortoise
from ht_ray.methods.redo import ReDo


def make(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3)
    )


def batches(count: int = 3, size: int = 16, seed: int = 1) -> list[Tensor]:
    return list(torch.randn(count, size, 4, generator=torch.Generator().manual_seed(seed)))


def silence(net: nn.Sequential, layer: int, units: list[int]) -> None:
    with torch.no_grad():
        net[layer].weight[units] = 0.0
        net[layer].bias[units] = -50.0


def train(net: nn.Module, method: ReDo | None, steps: int, *, start: int = 0, tortoise=None, optimizer=None):
    optimizer = optimizer or torch.optim.AdamW(net.parameters(), lr=0.01)
    for step in range(start, start + steps):
        batch = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        torch.manual_seed(step)  # dropout
        optimizer.zero_grad()
        if method is not None:
            method.before_forward(batch, tortoise)
        net(batch).square().mean().backward()
        optimizer.step()
        if tortoise is not None:
            tortoise.step(optimizer)
        if method is not None:
            method.after_step(optimizer, tortoise)
            if step % 5 == 4:
                method.end_epoch(optimizer, tortoise)
    return optimizer


def values(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(net)}


@settings(max_examples=20, deadline=None)
@given(st.floats(0.0, 2.0), st.integers(0, 99), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_scores_are_those_of_numpy(threshold: float, seed: int, sizes: list[int]) -> None:
    net = make(seed).double()
    for _ in range(3):
        net(torch.randn(32, 4, dtype=torch.float64))
    data = [torch.randn(size, 4, dtype=torch.float64) for size in sizes]
    found = ReDo(net, threshold=threshold).dormant(data)
    x = torch.cat(data).numpy()
    norm, first = net[1], net[0]
    h = x @ first.weight.detach().numpy().T + first.bias.detach().numpy()
    h = (h - norm.running_mean.numpy()) / np.sqrt(norm.running_var.numpy() + norm.eps)
    h = np.maximum(h * norm.weight.detach().numpy() + norm.bias.detach().numpy(), 0.0)
    score = np.abs(h).mean(0) / np.abs(h).mean(0).mean()
    assert found["2"].tolist() == (score <= threshold).tolist()
    h = nn.functional.gelu(net[4](torch.from_numpy(h))).detach().numpy()
    score = np.abs(h).mean(0) / np.abs(h).mean(0).mean()
    assert found["5"].tolist() == (score <= threshold).tolist()


def test_maps_are_scored_over_positions_and_both_halves_of_a_crelu() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), CReLU(), nn.Flatten(), nn.Linear(12 * 36, 2))
    with torch.no_grad():
        net[0].weight[2] = 0.0
        net[0].bias[2] = 0.0
        net[0].weight[4] = 0.0
        net[0].bias[4] = -3.0  # alive in the second half
    images = torch.randn(5, 2, 8, 8)
    maps = net[0](images).detach().numpy()
    score = np.abs(maps).mean((0, 2, 3))  # |relu(x)| + |relu(-x)| = |x|
    for threshold in (0.0, 0.5, 1.0):
        found = ReDo(net, threshold=threshold).dormant([images])["1"]
        assert found.tolist() == (score / score.mean() <= threshold).tolist()
    assert ReDo(net, threshold=0.0).dormant([images])["1"].nonzero().tolist() == [[2]]


def test_a_silent_layer_is_dormant_as_a_whole_and_zero_takes_only_silent_units() -> None:
    net = make()
    silence(net, 4, list(range(8)))
    found = ReDo(net, threshold=0.0).dormant(batches())
    assert found["5"].all()
    assert not found["2"].any()


def test_looking_for_dormant_units_changes_nothing() -> None:
    net = make()
    net[0].eval()
    method = ReDo(net)
    before, modes, random = values(net), [part.training for part in net.modules()], torch.get_rng_state()
    method.dormant(batches())
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(net))
    assert modes == [part.training for part in net.modules()]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(part._forward_hooks for part in net.modules())
    with pytest.raises(RuntimeError):
        method.dormant([torch.zeros(2, 5)])  # too wide
    assert modes == [part.training for part in net.modules()]
    assert not any(part._forward_hooks for part in net.modules())
    with pytest.raises(ValueError, match="no batches"):
        method.dormant([])


def test_recycling_dead_units_leaves_the_function_as_it_is_on_both_networks() -> None:
    net = make()
    tortoise = Tortoise(net, momentum=0.5)
    optimizer = train(net, None, 5, tortoise=tortoise)
    silence(net, 4, [1, 6])
    tortoise.weights.copy_from(net)
    net.eval()
    before = net(torch.cat(batches()))
    method = ReDo(net, threshold=0.0)
    assert method.apply(batches(), optimizer, tortoise) == {"2": 0, "5": 2}
    assert torch.equal(net(torch.cat(batches())), before)
    for holder in (dict(named_tensors(net)), tortoise.weights.tensors):
        assert holder["6.weight"][:, [1, 6]].eq(0).all()
        assert holder["4.weight"][[1, 6]].ne(0).all()
        assert holder["4.bias"][[1, 6]].abs().max() <= 1 / np.sqrt(12)  # torch's default for linear layers
    assert torch.equal(net[4].weight[1], tortoise.weights["4.weight"][1])
    assert optimizer.state[net[4].weight]["exp_avg"][[1, 6]].eq(0).all()
    assert optimizer.state[net[4].weight]["exp_avg"].ne(0).any()
    assert float(optimizer.state[net[4].weight]["step"]) == 5
    assert (method.applications, method.recycled) == (1, 2)


def test_each_application_draws_other_weights_and_the_seed_repeats_them() -> None:
    rows = []
    for seed in (0, 0, 1):
        net = make()
        method = ReDo(net, threshold=0.0, seed=seed)
        for _ in range(2):
            silence(net, 4, [3])
            method.apply(batches())
            rows.append(net[4].weight[3].detach().clone())
    first, second, again, again2, other, _ = rows
    assert torch.equal(first, again)
    assert torch.equal(second, again2)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("setting", "applications"),
    [
        ({"interval": None}, 0),
        ({"interval": 2, "unit": "epochs"}, 2),
        ({"interval": 4, "unit": "epochs"}, 1),
        ({"interval": 6, "unit": "steps"}, 3),
        ({"interval": 1, "unit": "steps"}, 20),
    ],
)
def test_when_it_acts(setting: dict, applications: int) -> None:
    net = make()
    method = ReDo(net, **setting)
    train(net, method, 20)  # four epochs
    assert (method.applications, method.steps, method.epochs) == (applications, 20, 4)


def test_epochs_are_counted_anew_in_each_phase_and_steps_go_on() -> None:
    net = make()
    epochs, steps = ReDo(net, interval=2), ReDo(net, interval=4, unit="steps")
    for method in (epochs, steps):
        for phase in range(2):
            method.before_phase()
            method.grown()
            assert not method.batches
            train(net, method, 15, start=15 * phase)
    assert epochs.applications == 2
    assert steps.applications == 7


@pytest.mark.parametrize("setting", [{"interval": None}, {"threshold": 0.0, "interval": 1}])
def test_off_and_nothing_to_recycle_are_bit_identical_to_plain_training(setting: dict) -> None:
    plain, other = make(), make()
    train(plain, None, 20)
    method = ReDo(other, **setting)
    train(other, method, 20)
    assert method.recycled == 0
    assert all(torch.equal(a, b) for a, b in zip(values(plain).values(), values(other).values(), strict=True))


def test_off_needs_no_network_that_can_be_recycled_and_holds_no_batches() -> None:
    method = ReDo(nn.Linear(2, 2), interval=None)
    method.before_phase()
    method.grown()
    method.before_forward(torch.zeros(1, 2))
    assert not method.batches


def test_the_last_batches_are_scored() -> None:
    net = make()
    method = ReDo(net, batches=2, interval=1)
    data = batches(5)
    for batch in data:
        method.before_forward(batch)
    assert all(torch.equal(a, b) for a, b in zip(method.batches, data[-2:], strict=True))
    with pytest.raises(RuntimeError, match="before_forward"):
        ReDo(net, interval=1).end_epoch(torch.optim.SGD(net.parameters()))


def test_a_resumed_run_continues_bit_for_bit() -> None:
    whole = make()
    method = ReDo(whole, threshold=0.9, interval=2)
    optimizer = torch.optim.AdamW(whole.parameters(), lr=0.01)
    method.before_phase()
    method.grown()
    train(whole, method, 20, optimizer=optimizer)
    kept = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), method.state_dict()))
    method.before_phase()
    method.grown()
    train(whole, method, 20, start=20, optimizer=optimizer)
    assert method.recycled > kept[2]["recycled"] > 0

    part = make(seed=7)
    part.load_state_dict(kept[0])
    optimizer = torch.optim.AdamW(part.parameters(), lr=0.01)
    optimizer.load_state_dict(kept[1])
    resumed = ReDo(part, threshold=0.9, interval=2)
    resumed.load_state_dict(kept[2])
    resumed.before_phase()
    resumed.grown()
    train(part, resumed, 20, start=20, optimizer=optimizer)
    assert resumed.state_dict() == method.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(values(whole).values(), values(part).values(), strict=True))


def test_a_network_that_has_grown_is_looked_at_anew() -> None:
    net = make()
    method = ReDo(net, threshold=0.0)
    net[4], net[6] = nn.Linear(12, 10), nn.Linear(10, 5)
    silence(net, 4, [9])
    method.before_phase()
    method.grown()
    assert method.apply(batches()) == {"2": 0, "5": 1}


def test_inputs_may_be_several() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.act, self.after = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)

        def forward(self, x: Tensor, task: Tensor) -> Tensor:
            return self.after(self.act(self.before(x))) + task[:, None]

    net = Two()
    with torch.no_grad():
        net.before.bias[2] = -1e4
    found = ReDo(net, threshold=0.0).dormant([(batches()[0], torch.zeros(16))])
    assert found["act"][2]


def test_what_is_left_alone_is_said_once() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.act = make(), nn.ReLU()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + self.act(self.head(x))

    with pytest.warns(SettingWarning, match=r"ReDo: units of 1 of 3 .* left alone \(act: feeds a sum") as caught:
        method = ReDo(Residual())
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.before_phase()
        method.grown()
        ReDo(make())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"threshold": -0.1}, "ReDo: threshold"),
        ({"interval": 0}, "ReDo: interval"),
        ({"unit": "epoch"}, "Did you mean 'epochs'"),
        ({"batches": 0}, "ReDo: batches"),
        ({"seed": 0.5}, "ReDo: seed"),
    ],
)
def test_bad_settings_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ReDo(make(), **setting)


def test_a_network_without_units_is_refused() -> None:
    with pytest.raises(SettingError, match=r"no hidden units that can be recycled .*output"):
        ReDo(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with pytest.raises(SettingError, match="no activation modules"):
        ReDo(nn.Linear(2, 2))


def test_a_tortoise_that_predicts_is_refused() -> None:
    net = make()
    tortoise = Tortoise(net)
    with tortoise.predict(), pytest.raises(RuntimeError, match="stop predicting first"):
        ReDo(net).apply(batches(), None, tortoise)


class Shared(nn.Module):
    """An activation module used twice, and a function of BatchNorm's output."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.norm = nn.BatchNorm1d(6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.one(x))
        x = torch.relu(self.norm(self.two(x)))
        return self.head(self.relu(self.three(x)))


def test_units_of_shared_modules_and_of_functions_are_told_apart() -> None:
    torch.manual_seed(0)
    net = Shared()
    batch = torch.randn(64, 5)
    with torch.no_grad():
        net.one.bias.fill_(1.0)
        net.three.bias.fill_(1.0)
        net.one.bias[1] = net.three.bias[4] = -1e4
        net.norm.bias[2] = -1e4
    method = ReDo(net, threshold=1e-6)
    dead = {name: mask.nonzero().flatten().tolist() for name, mask in method.dormant([batch]).items()}
    assert dead == {"relu": [1], "relu(norm)": [2], "relu#2": [4]}
    before = net.eval()(batch)
    assert method.apply([batch]) == {"relu": 1, "relu(norm)": 1, "relu#2": 1}
    torch.testing.assert_close(net(batch), before)
    assert net.two.weight[:, 1].count_nonzero() == 1  # the new unit of the second layer reads it
    assert net.three.weight[:, 2].count_nonzero() == 1 and not net.head.weight[:, 4].any()
    assert net.one.bias[1] > -1 and net.norm.bias[2] == 0 and net.three.bias[4] > -1
