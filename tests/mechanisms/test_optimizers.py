"""Every optimiser of torch: recycled units learn with it, and what is forgotten starts as with a new one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from ht_ray.mechanisms import clear_optimizer_state, find_units, fresh_weights
from ht_ray.mechanisms.units.recycle import recycle
from ht_ray.mechanisms.weights.optimizer_state import load_optimizer_state
from ht_ray.methods import ContinualBackprop, HeadReset, ReDo

EVERY = {
    name
    for name in dir(optim)
    if isinstance(kind := getattr(optim, name), type) and issubclass(kind, optim.Optimizer) and name != "Optimizer"
}
# Settings with which the network of these tests learns. One that is new in torch is to be tried, and told in the table
# of docs/methods.md, before it is added.
RECYCLING: dict[str, dict[str, Any]] = {
    "ASGD": {"lr": 0.1, "lambd": 0.0},
    "Adadelta": {"lr": 1.0},
    "Adafactor": {"lr": 0.02},
    "Adagrad": {"lr": 0.05, "initial_accumulator_value": 0.5},
    "Adam": {"lr": 0.005, "amsgrad": True},
    "AdamW": {"lr": 0.005, "weight_decay": 0.0},
    "Adamax": {"lr": 0.01},
    "LBFGS": {"lr": 1.0, "max_iter": 4, "line_search_fn": "strong_wolfe"},
    "Muon": {"lr": 0.02, "weight_decay": 0.0},
    "NAdam": {"lr": 0.005},
    "RAdam": {"lr": 0.005},
    "RMSprop": {"lr": 0.002, "momentum": 0.5, "centered": True},
    "Rprop": {"lr": 0.01},
    "SGD": {"lr": 0.05, "momentum": 0.9},
}
# It has state of embeddings only, and refuses the gradients of all layers that have units.
NOT_RECYCLING = {"SparseAdam": {"lr": 0.1}}
WHOLE_BATCH = ("LBFGS", "Rprop")  # which are not for noisy gradients

Make = Callable[[nn.Module], optim.Optimizer]


def maker(name: str) -> Make:
    settings = {**RECYCLING, **NOT_RECYCLING}[name]
    return lambda net: getattr(optim, name)(net.parameters(), **settings)


def step(net: nn.Module, optimizer: optim.Optimizer, inputs: Tensor, targets: Tensor) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.mse_loss(net(inputs), targets)
        loss.backward()
        return loss

    return optimizer.step(closure).item()  # type: ignore[arg-type,union-attr]


def regression(name: str, number: int) -> tuple[Tensor, Tensor]:
    """Return a batch of a function that six hidden units have to learn."""
    draws = torch.Generator().manual_seed(0 if name in WHOLE_BATCH else number)
    inputs = torch.randn(64, 6, generator=draws)
    weights = torch.Generator().manual_seed(1)
    first, second = torch.randn(6, 24, generator=weights), torch.randn(24, 3, generator=weights) / 4
    return inputs, (inputs @ first).relu() @ second


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24, bias=False), nn.ReLU(), nn.Linear(24, 3, bias=False))


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )


def test_every_optimiser_of_torch_is_decided_on() -> None:
    assert RECYCLING.keys() | NOT_RECYCLING.keys() == EVERY


@pytest.mark.parametrize("name", RECYCLING)
def test_recycled_units_learn_as_with_a_new_optimiser(name: str) -> None:
    """After training, a quarter of the units is made anew: within 20 steps they go about as far as with a new one."""
    moved: dict[str, list[float]] = {}
    for which in ("trained", "new"):
        net = mlp()
        optimizer = maker(name)(net)
        for number in range(5 if name == "LBFGS" else 300):
            step(net, optimizer, *regression(name, number))
        units = torch.arange(6)
        with torch.no_grad():
            net[0].weight[units] = 0.0  # silent
        assert ReDo(net, threshold=0.0).apply([regression(name, 0)[0]], optimizer) == {"1": 6}
        if which == "new":
            optimizer = maker(name)(net)
        before = [parameter.detach().clone() for parameter in net.parameters()]
        losses = [step(net, optimizer, *regression(name, number)) for number in range(300, 320)]
        moved[which] = [
            (net[0].weight.detach() - before[0])[units].norm().item(),
            (net[2].weight.detach() - before[1])[:, units].norm().item(),
        ]
        losses += [step(net, optimizer, *regression(name, number)) for number in range(320, 600)]
        assert which == "new" or losses[-1] < 0.2 * losses[0]
    for ours, new in zip(*moved.values(), strict=True):
        assert new / 4 < ours < new * 30, moved  # a new RAdam warms up


@pytest.mark.parametrize("name", sorted(RECYCLING.keys() - {"LBFGS"}))
def test_the_state_of_recycled_entries_is_what_it_is_at_first_and_no_other_changes(name: str) -> None:
    net = mlp() if name == "Muon" else cnn()
    optimizer = maker(name)(net)
    inputs = torch.randn(8, 6) if name == "Muon" else torch.randn(8, 2, 6, 6)
    for _ in range(3):
        step(net, optimizer, inputs, torch.randn(8, 3))
    before = copy.deepcopy(optimizer.state_dict()["state"])
    hidden, units = find_units(net).hidden[0], torch.tensor([1, 3])
    recycle(net, hidden, units, fresh_weights(net[0], seed=1), None, optimizer)
    after = optimizer.state_dict()["state"]

    # A step with gradients of zero makes the state that an optimiser starts with, and keeps it.
    blank = maker(name)(blank_net := copy.deepcopy(net))
    for parameter in blank_net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    blank.step()
    first = blank.state_dict()["state"]

    numbers = {name: number for number, (name, _) in enumerate(net.named_parameters())}
    rows = [numbers[n] for n in ("0.weight", "0.bias", "1.weight", "1.bias") if n in numbers]
    columns = numbers[f"{hidden.outgoing[0].layer}.weight"]
    for number, states in before.items():
        for key, old in states.items():
            new = after[number][key]
            mask = torch.zeros(old.shape, dtype=torch.bool)
            if old.dim() and number in rows and old.shape[0] > 1:
                mask[units] = True
            elif old.dim() and number == columns and old.shape[1] > 1:
                mask[:, units] = True
            # Adamax keeps its epsilon of the gradient of zero.
            torch.testing.assert_close(new[mask], first[number][key][mask], rtol=0, atol=1e-7)
            assert torch.equal(new[~mask], old[~mask]), (number, key)
            assert old.dim() == 0 or number not in (*rows, columns) or mask.any() or name == "Adafactor"


def test_rprop_takes_its_learning_rate_for_units_of_continual_backprop() -> None:
    net = mlp()
    optimizer = maker("Rprop")(net)
    method = ContinualBackprop(net, replacement_rate=0.05, maturity=5)
    for number in range(40):
        with method.watch():
            step(net, optimizer, *regression("AdamW", number))
        sizes = optimizer.state[net[0].weight]["step_size"].clone()
        method.after_step(optimizer)
        changed = (optimizer.state[net[0].weight]["step_size"] != sizes).any(1)
        if changed.any():
            assert optimizer.state[net[0].weight]["step_size"][changed].eq(0.01).all()
    assert method.replacements > 0


@pytest.mark.parametrize("name", NOT_RECYCLING)
def test_what_cannot_train_units_says_so_itself(name: str) -> None:
    net = mlp()
    with pytest.raises(RuntimeError, match=f"{name} does not support dense gradients"):
        step(net, maker(name)(net), *regression(name, 0))


class Embedded(nn.Module):
    """A network that every optimiser can train: SparseAdam, too."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Embedding(5, 4, sparse=sparse)
        self.head = nn.Embedding(5, 4, sparse=sparse)

    def forward(self, indices: Tensor) -> Tensor:
        return self.backbone(indices) * self.head(indices)


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("part", ["all", "head"])
def test_cleared_is_new(name: str, part: str) -> None:
    """What was cleared goes on as with a new optimiser, bit for bit; LBFGS, which has one memory, as a whole."""
    net = Embedded(sparse=name == "SparseAdam")
    optimizer = maker(name)(net)
    data = torch.arange(5), torch.arange(20.0).view(5, 4) / 10
    for _ in range(3):
        step(net, optimizer, *data)
    twin = copy.deepcopy(net)
    if part == "all":
        clear_optimizer_state(optimizer)
    else:
        HeadReset(net).apply(None, optimizer)
        twin.load_state_dict(net.state_dict())
    other = maker(name)(twin)
    for _ in range(2):
        step(net, optimizer, *data)
        step(twin, other, *data)
        assert torch.equal(net.head.weight, twin.head.weight) or (part == "head" and _ > 0)
    if part == "all" or name == "LBFGS":
        assert torch.equal(net.backbone.weight, twin.backbone.weight)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("there", [torch.channels_last, torch.contiguous_format])
def test_state_that_was_saved_in_another_memory_format_is_that_of_the_same_weights(
    there: torch.memory_format, fused: bool
) -> None:
    """A run that goes on in the other format makes the steps of one that did not change it."""

    def train(net: nn.Module, optimizer: optim.Optimizer, start: int) -> None:
        for number in range(start, start + 3):
            draws = torch.Generator().manual_seed(number)
            for parameter in net.parameters():
                values = torch.randn(parameter.shape, generator=draws)
                parameter.grad = torch.empty_like(parameter).copy_(values)
            optimizer.step()

    plain = cnn()
    reference = optim.AdamW(plain.parameters(), lr=0.1, fused=fused)
    train(plain, reference, 0)
    train(plain, reference, 3)

    net = cnn().to(memory_format=there)
    optimizer = optim.AdamW(net.parameters(), lr=0.1, fused=fused)
    train(net, optimizer, 0)
    here = torch.contiguous_format if there == torch.channels_last else torch.channels_last
    again = cnn().to(memory_format=here)
    again.load_state_dict(net.state_dict())
    goes_on = optim.AdamW(again.parameters(), lr=0.1, fused=fused)
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    load_optimizer_state(goes_on, saved)
    train(again, goes_on, 3)
    for parameter, expected in zip(again.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-6)
    for number, state in kept["state"].items():
        for key, value in state.items():
            assert torch.equal(saved["state"][number][key], value)
