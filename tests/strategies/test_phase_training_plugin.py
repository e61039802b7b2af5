from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from torch.optim import SGD, AdamW

from ht_ray.errors import SettingError
from strategies import PhaseTrainingPlugin


class Rates(SupervisedPlugin):
    """Records learning rates, gradient norms and what the optimiser knows, just before each step."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[list[float]] = []
        self.norms: list[float] = []
        self.known: list[int] = []

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_epochs == 0:
            self.known.append(sum(bool(state) for state in strategy.optimizer.state.values()))

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        self.rates.append([group["lr"] for group in strategy.optimizer.param_groups])
        grads = [p.grad for p in strategy.model.parameters() if p.grad is not None]
        self.norms.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))


def naive(network: Any, plugins: list[Any], optimizer: Any = None, epochs: int = 2) -> Naive:
    return Naive(
        model=network,
        optimizer=optimizer or AdamW(network.parameters(), lr=0.01),
        train_mb_size=8,
        train_epochs=epochs,
        plugins=plugins,
        evaluator=None,
    )


def test_warm_up_in_every_experience_for_every_group(make_network, make_benchmark) -> None:
    network = make_network()
    groups = [
        {"params": network.encoder.parameters(), "lr": 0.1},
        {"params": network.classifier.parameters(), "lr": 0.01},
    ]
    rates = Rates()
    plugin = PhaseTrainingPlugin(warmup_ratio=0.5, clip=None)
    naive(network, [plugin, rates], SGD(groups, momentum=0.9)).train(make_benchmark().train_stream)
    assert len(rates.rates) == 18  # three experiences of two epochs of three steps
    factors = [0, 1 / 3, 2 / 3, 1, 1, 1]
    for step, (encoder, head) in enumerate(rates.rates):
        assert encoder == pytest.approx(0.1 * factors[step % 6])
        assert head == pytest.approx(0.01 * factors[step % 6])


@pytest.mark.parametrize("clip", [None, 0.05])
def test_clipping(make_network, make_benchmark, clip) -> None:
    rates = Rates()
    naive(make_network(), [PhaseTrainingPlugin(clip=clip), rates]).train(make_benchmark().train_stream[0])
    assert max(rates.norms) > 0.1 if clip is None else max(rates.norms) <= 0.05 * 1.001


@pytest.mark.parametrize(("fresh", "known"), [(True, [0, 0, 0]), (False, [0, 6, 6])])
def test_optimizer_state_between_experiences(make_network, make_benchmark, fresh, known) -> None:
    rates = Rates()
    naive(make_network(), [PhaseTrainingPlugin(fresh_optimizer=fresh), rates]).train(make_benchmark().train_stream)
    assert rates.known == known


def test_fresh_state_with_growing_head_and_several_groups(make_network, make_benchmark) -> None:
    network = make_network("growing")
    groups = [{"params": network.encoder.parameters()}, {"params": network.classifier.parameters()}]
    rates = Rates()
    strategy = naive(network, [PhaseTrainingPlugin(), rates], SGD(groups, lr=0.1, momentum=0.9))
    strategy.train(make_benchmark().train_stream)
    assert rates.known == [0, 0, 0]
    assert network.classifier.classifier.out_features == 6
    assert [len(group["params"]) for group in strategy.optimizer.param_groups] == [4, 2]


def test_seed_makes_training_independent_of_the_generators_and_leaves_them_alone(
    make_network, make_benchmark, differing
) -> None:
    ends = []
    for state in (1, 2):
        network = make_network(dropout=0.5)
        strategy = naive(network, [PhaseTrainingPlugin(seed=3)])
        for experience in make_benchmark().train_stream:
            torch.manual_seed(state)
            before = torch.get_rng_state()
            strategy.train(experience)
            assert torch.equal(before, torch.get_rng_state())
        ends.append(dict(network.state_dict()))
    assert differing(*ends) == []
    other = make_network(dropout=0.5)
    naive(other, [PhaseTrainingPlugin(seed=4)]).train(make_benchmark().train_stream)
    assert differing(ends[0], dict(other.state_dict()))


def test_exception_inside_an_epoch_does_not_keep_the_generators(make_network, make_benchmark) -> None:
    failing = SupervisedPlugin()

    def fail(strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_iterations == 1:
            raise KeyError("in training")

    failing.before_forward = fail
    plugin = PhaseTrainingPlugin(seed=3)
    strategy = naive(make_network(dropout=0.5), [plugin, failing])
    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        strategy.train(make_benchmark().train_stream[0])
    twin = copy.deepcopy(plugin)
    strategy.plugins.remove(failing)
    strategy.train(make_benchmark().train_stream[1])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(8)
    before = torch.get_rng_state()
    network = make_network(dropout=0.5)
    torch.set_rng_state(before)
    naive(network, [twin]).train(make_benchmark().train_stream[1])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_ratio": 1.5}, "PhaseTrainingPlugin: warmup_ratio = 1.5"),
        ({"warmup_ratio": -0.1}, "warmup_ratio = -0.1"),
        ({"clip": 0}, "PhaseTrainingPlugin: clip = 0"),
    ],
)
def test_wrong_settings_are_refused_at_construction(settings, message) -> None:
    with pytest.raises(SettingError, match=message):
        PhaseTrainingPlugin(**settings)
