"""The DrQ agent: one step against a computation written out, what happens at which gradient step, settings, state."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm

from ht_ray.agents.augmentation import augment, to_unit
from ht_ray.agents.drq.agent import DrQAgent
from ht_ray.agents.drq.config import VARIANTS, DrQConfig
from ht_ray.agents.registry import agent_variant
from ht_ray.agents.replay import Batch
from ht_ray.errors import SettingError
from ht_ray.mechanisms import fresh_weights, generator

SHAPE, ACTIONS = (2, 36, 36), 3
Weights = dict[str, torch.Tensor]


def agent(seed: int = 0, **settings: Any) -> DrQAgent:
    return DrQAgent(DrQConfig(**{"hidden": 8, **settings}), shape=SHAPE, num_actions=ACTIONS, seed=seed)


def batch(number: int, size: int = 6) -> Batch:
    draws = torch.Generator().manual_seed(number)
    frames = torch.randint(256, (2, size, *SHAPE), generator=draws, dtype=torch.uint8)
    return Batch(
        observations=frames[0],
        actions=torch.randint(ACTIONS, (size,), generator=draws),
        returns=torch.randn(size, generator=draws),
        next_observations=frames[1],
        discounts=torch.tensor([0.99**10, 0.0, 0.99**4] * (size // 3)),
        indices=torch.arange(size),
        weights=torch.rand(size, generator=draws),
    )


def weights(module: torch.nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: Weights, two: Weights) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def by_hand(parameters: Weights, observations: torch.Tensor) -> torch.Tensor:
    """Return the values, ``(B, actions)``, of a dueling Nature CNN with these parameters."""
    x = observations
    for layer, stride in ((0, 4), (2, 2), (4, 1)):
        weight, bias = parameters[f"backbone.{layer}.weight"], parameters[f"backbone.{layer}.bias"]
        x = functional.conv2d(x, weight, bias, stride).clamp(min=0)
    hidden = (x.flatten(1) @ parameters["head.hidden.weight"].T + parameters["head.hidden.bias"]).clamp(min=0)
    advantage = hidden @ parameters["head.advantages.weight"].T + parameters["head.advantages.bias"]
    state = hidden @ parameters["head.value.weight"].T + parameters["head.value.bias"]
    return state + advantage - advantage.sum(1, keepdim=True) / ACTIONS


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_updates_are_what_is_written_in_the_papers(momentum: float | None) -> None:
    """Double Q-learning of n steps, Huber's loss, Adam and the average, in float64."""
    learner = agent(momentum=momentum, learning_rate=1e-3)
    online = {name: value.double() for name, value in weights(learner.network).items()}
    target = dict(online)
    first, second = ({name: torch.zeros_like(value) for name, value in online.items()} for _ in range(2))
    for step in range(3):
        data = batch(step)
        draws = generator(0, "augmentation", step)
        now, then = (augment(x, generator=draws).double() for x in (data.observations, data.next_observations))
        chosen = by_hand(online, then).numpy().argmax(1)
        valued = by_hand(target if momentum else online, then).numpy()[np.arange(len(chosen)), chosen]
        goals = data.returns.numpy() + data.discounts.numpy() * valued
        leaves = {name: value.clone().requires_grad_() for name, value in online.items()}
        errors = by_hand(leaves, now)[torch.arange(len(chosen)), data.actions] - torch.from_numpy(goals)
        losses = torch.where(errors.abs() <= 1, errors**2 / 2, errors.abs() - 0.5)
        (losses * data.weights).mean().backward()
        measured = learner.update(data)
        np.testing.assert_allclose(measured["losses"], losses.detach(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(measured["target"], goals.mean(), rtol=1e-4)
        for name, value in online.items():
            gradient = leaves[name].grad
            assert gradient is not None
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            unbiased = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            online[name] = value - 1e-3 * unbiased[0] / (unbiased[1].sqrt() + 1.5e-4)
            if momentum:
                target[name] = momentum * target[name] + (1 - momentum) * online[name]
    for name, value in weights(learner.network).items():
        np.testing.assert_allclose(value, online[name], rtol=1e-4, atol=1e-5, err_msg=name)
    if learner.target is not None:
        for name, value in weights(learner.target).items():
            np.testing.assert_allclose(value, target[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kept", ["keep", "clear"])
def test_the_hare_is_reset_at_its_gradient_steps_and_shares_nothing(kept: Any) -> None:
    learner = agent(momentum=0.9, reset_interval=3, optimizer_state=kept)
    free = agent(momentum=0.9)
    assert learner.target is not None and learner.tortoise is not None
    for step in range(1, 8):
        learner.update(batch(step))
        if step <= 3:
            free.update(batch(step))
        together = same(weights(learner.network), weights(learner.target))
        assert together == (step % 3 == 0), step
        if step == 3:
            assert free.target is not None and not same(weights(free.network), weights(free.target))
            assert same(weights(learner.target), weights(free.target))
            moments = learner.optimizer.state
            assert len(moments) == (0 if kept == "clear" else len(list(learner.network.parameters())))
            if kept == "keep":
                for mine, other in zip(learner.network.parameters(), free.network.parameters(), strict=True):
                    assert torch.equal(moments[mine]["exp_avg"], free.optimizer.state[other]["exp_avg"])
    assert learner.tortoise.resets == 2
    for mine, other in zip(learner.network.parameters(), learner.target.parameters(), strict=True):
        assert mine.data_ptr() != other.data_ptr()


@pytest.mark.parametrize("both", [True, False])
def test_head_reset_acts_after_the_reset_that_is_due(both: bool) -> None:
    learner = agent(momentum=0.9, reset_interval=2, head_reset_interval=4, toward="initial", reinitialize_tortoise=both)
    assert learner.target is not None and learner.head_reset is not None
    initial = weights(learner.network.head)
    for step in range(1, 5):
        learner.update(batch(step))
        assert learner.head_reset.applications == step // 4
    assert same(weights(learner.network.backbone), weights(learner.target.backbone))
    assert same(weights(learner.network.head), initial)
    assert same(weights(learner.target.head), initial) == both
    assert set(learner.optimizer.state) == set(learner.network.backbone.parameters())


def test_shrink_and_perturb_with_fresh_weights() -> None:
    learner, free = agent(shrink_perturb_interval=2, shrink_perturb_ratio=0.25), agent()
    for step in range(2):
        learner.update(batch(step))
        free.update(batch(step))
    assert learner.shrink_perturb is not None and not learner.optimizer.state
    towards = [
        (mine.detach() - 0.75 * other.detach()) / 0.25
        for mine, other in zip(learner.network.parameters(), free.network.parameters(), strict=True)
    ]
    # What the weights went to is a draw from the layers' own distribution: Glorot's, and zero for biases.
    bounds = [value.abs().max() for value in fresh_weights(free.network, seed=1).values()]
    for value, bound in zip(towards, bounds, strict=True):
        assert value.abs().max() <= bound * 1.2 + 1e-5


def test_variants_are_the_papers() -> None:
    assert list(VARIANTS) == [
        "drq",
        "drq+sp",
        "drq+ht",
        "drq+hr20k",
        "drq+hr40k",
        "drq+hr40k+ht",
        "drq-published",
    ]
    changed = {
        name: {key: value for key, value in vars(config).items() if value != getattr(DrQConfig(), key)}
        for name, config in VARIANTS.items()
    }
    tortoise = {"momentum": 0.995, "reset_interval": 4000}
    assert changed == {
        "drq": {},
        "drq+sp": {"shrink_perturb_interval": 20_000},
        "drq+ht": tortoise,
        "drq+hr20k": {"head_reset_interval": 20_000},
        "drq+hr40k": {"head_reset_interval": 40_000},
        "drq+hr40k+ht": {"head_reset_interval": 40_000, **tortoise},
        "drq-published": {"padding": "same", "published_shift": True},
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"momentum": 1.0}, "DrQConfig.momentum"),
        ({"momentum": 0.9, "reset_interval": 0}, "DrQConfig.reset_interval = 0"),
        ({"reset_interval": 10}, "without momentum"),
        ({"act_with_tortoise": True}, "without momentum"),
        ({"head_reset_interval": 1.5}, "DrQConfig.head_reset_interval"),
        ({"value": "two_hots"}, "Did you mean 'two_hot'"),
        ({"toward": "initials"}, "Did you mean 'initial'"),
        ({"optimizer_state": "reset"}, "DrQConfig.optimizer_state"),
        ({"discount": 1.1}, "DrQConfig.discount"),
        ({"batch_size": 0}, "DrQConfig.batch_size"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        DrQConfig(**settings)


def test_names_that_are_not_known_are_refused() -> None:
    with pytest.raises(SettingError, match=r"Did you mean 'drq\+hr40k'"):
        agent_variant("drq+hr40")
    with pytest.raises(SettingError, match="Did you mean 'momentum'"):
        agent_variant("drq+ht", momentun=0.9)


@pytest.mark.parametrize(
    "settings",
    [{}, {"value": "two_hot"}, {"value": "hl_gauss"}, {"layer_norm": True}, {"dueling": False, "double": False}],
)
def test_what_is_given_is_learned(settings: dict[str, Any]) -> None:
    """Ends of episodes, whose values are known: nothing is bootstrapped, and the network can learn them by heart."""
    learner = agent(learning_rate=3e-3, momentum=0.9, hidden=32, shift=0, intensity=0, **settings)
    data = batch(0)
    data = replace(data, discounts=torch.zeros_like(data.discounts), weights=torch.ones_like(data.weights))
    for _ in range(60):
        learner.update(data)
    taken = learner.value.expectation(learner.network(to_unit(data.observations)))[torch.arange(6), data.actions]
    assert float((taken.detach() - data.returns).abs().mean()) < 0.2 * float(data.returns.abs().mean())


def test_acting_leaves_training_alone_and_explores_as_often_as_told() -> None:
    one, two = agent(), agent()
    observations = batch(0, size=6).observations
    torch.manual_seed(0)
    before = torch.get_rng_state()
    greedy = one.act(observations)
    assert one.explorations == 0 and greedy.dtype == torch.int64 and greedy.shape == (6,)
    drawn = torch.stack([one.act(observations, 0.3) for _ in range(600)])
    one.update(batch(1))
    two.update(batch(1))
    assert same(weights(one.network), weights(two.network))
    assert torch.equal(torch.get_rng_state(), before)
    # Random actions hit the greedy one in a third of the cases.
    assert float((drawn != greedy).float().mean()) == pytest.approx(0.3 * 2 / 3, abs=0.03)
    assert set(agent().act(observations.repeat(20, 1, 1, 1), 1.0).tolist()) == {0, 1, 2}


def test_the_tortoise_acts_if_told() -> None:
    learner = agent(momentum=0.999, learning_rate=0.05, act_with_tortoise=True)
    other = agent(momentum=0.999, learning_rate=0.05)
    initial = agent(momentum=0.999)
    observations = torch.cat([batch(n).observations for n in range(20)])
    for step in range(3):
        learner.update(batch(step))
        other.update(batch(step))
    assert same(weights(learner.network), weights(other.network))
    slow = learner.act(observations)
    assert (slow == initial.act(observations)).float().mean() > 0.8
    assert not torch.equal(slow, other.act(observations))


@pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")
@pytest.mark.parametrize("name", ["drq", "drq+sp", "drq+hr40k+ht"])
def test_continued_from_a_state_it_does_the_same(name: str) -> None:
    intervals = {key: 2 for key, value in vars(VARIANTS[name]).items() if key.endswith("interval") and value}
    config = agent_variant(name, hidden=8, toward="initial", **intervals)

    def fresh(seed: int) -> DrQAgent:
        return DrQAgent(config, shape=SHAPE, num_actions=ACTIONS, seed=seed)

    learner = fresh(0)
    for step in range(3):
        learner.update(batch(step))
    state = learner.state_dict()
    again = fresh(0)
    again.network.load_state_dict(fresh(5).network.state_dict())
    again.load_state_dict(state)
    for step in range(3, 7):
        learner.update(batch(step))
    for step in range(3, 7):
        again.update(batch(step))
    assert same(weights(learner.network), weights(again.network))
    observations = batch(9).observations
    assert torch.equal(learner.act(observations, 0.5), again.act(observations, 0.5))
    # The state is a snapshot, and what was loaded from it a copy.
    third = fresh(0)
    third.load_state_dict(state)
    for step in range(3, 7):
        third.update(batch(step))
    assert same(weights(third.network), weights(again.network))


def test_compute_in_bf16_keeps_weights_in_fp32() -> None:
    learner = DrQAgent(agent_variant("drq+ht", hidden=8), shape=SHAPE, num_actions=ACTIONS, precision="bf16")
    plain = DrQAgent(agent_variant("drq+ht", hidden=8), shape=SHAPE, num_actions=ACTIONS)
    narrow, wide = learner.update(batch(0)), plain.update(batch(0))
    assert float(narrow["loss"]) == pytest.approx(float(wide["loss"]), rel=0.05)
    assert all(p.dtype == torch.float32 for p in learner.network.parameters())


def test_a_network_that_has_just_been_trained_is_taken() -> None:
    network = DrQAgent.make_network(DrQConfig(hidden=8), shape=SHAPE, num_actions=ACTIONS, seed=0)
    network.features = network(torch.rand(1, *SHAPE))
    learner = DrQAgent(DrQConfig(momentum=0.9), shape=SHAPE, num_actions=ACTIONS, network=network)
    assert learner.target is not None
    assert torch.equal(learner.target.features, network.features)
    assert learner.target.features.is_leaf and not network.features.is_leaf


def test_buffers_of_ones_own_network() -> None:
    """The target has the mask of the last step, vectors of its own, and averages what is named; resets keep the mask"""
    network = DrQAgent.make_network(DrQConfig(hidden=8), shape=SHAPE, num_actions=ACTIONS, seed=0)
    hidden = network.head.hidden
    prune.identity(hidden, "weight")
    spectral_norm(network.backbone[0])
    network.register_buffer("codebook", torch.zeros(2))
    learner = DrQAgent(
        DrQConfig(momentum=0.5, reset_interval=3, learning_rate=1e-2),
        shape=SHAPE,
        num_actions=ACTIONS,
        network=network,
        average_buffers=("codebook",),
    )
    target = learner.target
    assert target is not None
    for step in range(4):
        if step == 1:
            prune.l1_unstructured(hidden, "weight", amount=0.5)
            network.codebook.fill_(4.0)
        learner.update(batch(step))
        assert torch.equal(target.head.hidden.weight_mask, hidden.weight_mask)
    assert learner.tortoise is not None and learner.tortoise.resets == 1
    assert (hidden.weight_mask == 0).float().mean() == 0.5
    assert network.codebook.tolist() == target.codebook.tolist() == [3.0, 3.0]  # two steps, then set back to it
    for module in (network, target):
        weight = module.eval().backbone[0].weight.detach().flatten(1)
        assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=0.01)


def test_buffers_that_are_not_there_are_refused() -> None:
    with pytest.raises(SettingError, match="average_buffers"):
        DrQAgent(DrQConfig(momentum=0.9), shape=SHAPE, num_actions=ACTIONS, average_buffers=("*.codebook",))


def test_the_target_network_warms_up_and_resets_of_parts_follow_a_schedule() -> None:
    settings = {"momentum": 0.9, "momentum_warmup": 1.0, "reset_interval": 1, "reset_only": ("head",)}
    learner = agent(**settings, reset_schedule=(2, 3))
    assert learner.config == DrQConfig(**json.loads(json.dumps(asdict(learner.config))))
    assert learner.target is not None and learner.tortoise is not None
    held = {name: tensor.double() for name, tensor in learner.target.named_parameters()}
    for update in range(1, 6):
        learner.update(batch(update))
        online = dict(learner.network.named_parameters())
        for name, slow in learner.target.named_parameters():
            due = update in (2, 5) and name.startswith("head.")
            assert torch.equal(online[name], slow) == (due or update == 1), (update, name)
            if not name.startswith("head."):
                share = 1 / update
                held[name] += share * (online[name].detach().double() - held[name])
                torch.testing.assert_close(slow.double(), held[name], rtol=1e-5, atol=1e-6)
    assert learner.tortoise.resets == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"momentum_warmup": 1.0}, r"DrQConfig.momentum_warmup = 1.0 without momentum"),
        ({"momentum": 0.9, "momentum_warmup": -1.0}, r"DrQConfig.momentum_warmup = -1.0: accepted is"),
        ({"momentum": 0.9, "reset_only": "head"}, r"DrQConfig.reset_only = 'head': accepted is a tuple"),
        ({"momentum": 0.9, "reset_interval": 1, "reset_schedule": (0,)}, r"DrQConfig.reset_schedule = 0: accepted is"),
        ({"momentum": 0.9, "reset_schedule": (2,)}, r"reset_interval is None, which means never"),
    ],
)
def test_settings_of_the_tortoise_are_checked(setting, message) -> None:
    with pytest.raises(SettingError, match=message):
        DrQConfig(**setting)
