"""Value representations, targets, losses and the exploration schedule against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ht_ray.agents.epsilon import EpsilonSchedule
from ht_ray.agents.values import HLGaussValue, ScalarValue, TwoHotValue, Value, ValueConfig, make_value
from ht_ray.agents.values.losses import bootstrap_targets, td_loss
from ht_ray.errors import SettingError


def two_hot(target: float, bins: int, limit: float) -> np.ndarray:
    support = np.linspace(-limit, limit, bins)
    target = min(max(target, -limit), limit)
    upper = min(max(int(np.searchsorted(support, target)), 1), bins - 1)
    share = (target - support[upper - 1]) / (support[upper] - support[upper - 1])
    result = np.zeros(bins)
    result[upper - 1], result[upper] = 1 - share, share
    return result


def hl_gauss(target: float, bins: int, limit: float, sigma: float) -> np.ndarray:
    edges = np.linspace(-limit, limit, bins + 1)
    target = min(max(target, -limit), limit)
    deviation = sigma * 2 * limit / bins
    cdf = np.array([0.5 * (1 + math.erf((edge - target) / deviation / math.sqrt(2))) for edge in edges])
    return np.diff(cdf) / (cdf[-1] - cdf[0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=5), st.integers(2, 60), st.sampled_from([1.0, 10.0, 20.0]))
def test_two_hot(targets: list[float], bins: int, limit: float) -> None:
    value = TwoHotValue(bins=bins, limit=limit)
    projected = value.project(torch.tensor(targets))
    reference = np.stack([two_hot(target, bins, limit) for target in targets])
    np.testing.assert_allclose(projected.numpy(), reference, atol=3e-5)
    assert ((projected > 1e-5).sum(-1) <= 2).all()
    clipped = torch.tensor(targets).clamp(-limit, limit)
    # Logits of the projection: the expectation gives the target back inside the support, its edge outside.
    torch.testing.assert_close(value.expectation(projected.clamp(min=1e-30).log()), clipped, atol=2e-5 * limit, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=5), st.integers(10, 60), st.floats(0.3, 2.0))
def test_hl_gauss(targets: list[float], bins: int, sigma: float) -> None:
    value = HLGaussValue(bins=bins, limit=10.0, sigma=sigma)
    projected = value.project(torch.tensor(targets))
    reference = np.stack([hl_gauss(target, bins, 10.0, sigma) for target in targets])
    np.testing.assert_allclose(projected.numpy(), reference, atol=2e-5)
    torch.testing.assert_close(projected.sum(-1), torch.ones(len(targets)))


def test_hl_gauss_gives_inner_targets_back() -> None:
    value = HLGaussValue()
    width = 20 / 51
    targets = torch.linspace(-8, 8, 201)
    error = value.expectation(value.project(targets).log().clamp(min=-1e4)) - targets
    assert error.abs().max() < 1e-4 * width
    edge = value.expectation(value.project(torch.tensor([10.0])).log().clamp(min=-1e4))
    assert 10 - 0.75 * width < edge.item() < 10 - 0.8 * 0.75 * width


@pytest.mark.parametrize("kind", ["two_hot", "hl_gauss"])
def test_categorical_loss_is_the_cross_entropy(kind: str) -> None:
    config = ValueConfig(kind, bins=21, limit=5.0)  # type: ignore[arg-type]
    value = make_value(config)
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(8, 21)), rng.uniform(-7, 7, 8)
    losses = value.loss(torch.tensor(logits, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32))
    for row, target, loss in zip(logits, targets, losses.tolist(), strict=True):
        p = two_hot(target, 21, 5.0) if kind == "two_hot" else hl_gauss(target, 21, 5.0, 0.75)
        log_softmax = row - np.log(np.exp(row).sum())
        assert math.isclose(loss, -(p * log_softmax).sum(), rel_tol=1e-4)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    centres = np.linspace(-5, 5, 21) if kind == "two_hot" else np.linspace(-5, 5, 43)[1::2]
    expected = (softmax * centres).sum(1)
    np.testing.assert_allclose(value.expectation(torch.tensor(logits)).numpy(), expected, atol=1e-5)


def test_scalar_loss_is_hubers() -> None:
    errors = np.array([0.0, 0.3, -0.9, 1.0, -1.5, 20.0])
    losses = ScalarValue().loss(torch.zeros(6, 1), torch.tensor(errors, dtype=torch.float32))
    expected = [0.5 * e**2 if abs(e) <= 1 else abs(e) - 0.5 for e in errors]
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("value", [ScalarValue(), TwoHotValue(), HLGaussValue()], ids=lambda v: type(v).__name__)
def test_a_value_has_no_parameters_and_a_gradient(value: Value) -> None:
    assert not list(value.parameters()) and not value.state_dict()
    outputs = torch.zeros(3, value.bins, requires_grad=True)
    value.loss(outputs, torch.tensor([-20.0, 0.1, 20.0])).sum().backward()
    assert outputs.grad is not None and outputs.grad.isfinite().all() and outputs.grad.any()
    low = torch.zeros(3, value.bins, dtype=torch.bfloat16)
    assert value.loss(low, torch.zeros(3)).dtype == value.expectation(low).dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 5), st.booleans())
def test_double_q_targets_of_n_steps(seed: int, batch: int, actions: int, double: bool) -> None:
    rng = np.random.default_rng(seed)
    gamma, n = 0.99, 10
    rewards, online, target = (
        rng.normal(size=batch),
        rng.normal(size=(batch, actions)),
        rng.normal(size=(batch, actions)),
    )
    terminated = rng.random(batch) < 0.4
    targets = bootstrap_targets(
        torch.tensor(rewards),
        torch.tensor(gamma**n * ~terminated),
        torch.tensor(target),
        torch.tensor(online) if double else None,
    )
    for i in range(batch):
        chooser = online if double else target
        best = max(range(actions), key=lambda a, i=i, q=chooser: q[i, a])
        expected = rewards[i] + (0 if terminated[i] else gamma**n * target[i, best])
        assert math.isclose(targets[i].item(), expected, rel_tol=1e-12, abs_tol=1e-12)


def test_td_loss_is_of_the_actions_taken() -> None:
    outputs = torch.randn(4, 3, 1, requires_grad=True)
    actions, targets = torch.tensor([2, 0, 1, 2]), torch.randn(4)
    losses = td_loss(ScalarValue(), outputs, actions, targets)
    for i, action in enumerate(actions.tolist()):
        error = outputs[i, action, 0].item() - targets[i].item()
        assert math.isclose(losses[i].item(), 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5, rel_tol=1e-5)
    losses.sum().backward()
    assert outputs.grad is not None
    touched = outputs.grad.squeeze(-1) != 0
    assert torch.equal(touched, torch.nn.functional.one_hot(actions, 3).bool())


def test_shapes_that_would_broadcast_are_refused() -> None:
    values = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="bootstrap_targets"):
        bootstrap_targets(torch.zeros(4, 1), torch.zeros(4), values)
    with pytest.raises(ValueError, match="bootstrap_targets"):
        bootstrap_targets(torch.zeros(4), torch.zeros(4), values, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="td_loss"):
        td_loss(ScalarValue(), torch.zeros(4, 3, 1), torch.zeros(4, 1).long(), torch.zeros(4))
    with pytest.raises(ValueError, match="td_loss"):
        td_loss(TwoHotValue(), torch.zeros(4, 3, 1), torch.zeros(4).long(), torch.zeros(4))


def test_epsilon_by_hand() -> None:
    epsilon = EpsilonSchedule()
    # 1600 steps of 1, then 0.99 / 5000 = 0.000198 less each step.
    by_hand = {0: 1.0, 1599: 1.0, 1600: 1.0, 1601: 0.999802, 2600: 0.802, 6599: 0.010198, 6600: 0.01, 99_999: 0.01}
    for step, expected in by_hand.items():
        assert math.isclose(epsilon(step), expected, rel_tol=1e-12)
    assert EpsilonSchedule(final=0.0, decay_steps=1, warmup_steps=0)(1) == 0.0


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ValueConfig("twohot"), "Did you mean 'two_hot'"),  # type: ignore[arg-type]
        (lambda: ValueConfig(bins=1), "ValueConfig.bins"),
        (lambda: ValueConfig(limit=0.0), "ValueConfig.limit"),
        (lambda: EpsilonSchedule(final=1.1), "EpsilonSchedule.final"),
        (lambda: EpsilonSchedule(decay_steps=0), "EpsilonSchedule.decay_steps"),
    ],
)
def test_settings_are_checked(make: object, named: str) -> None:
    with pytest.raises(SettingError, match=named):
        make()  # type: ignore[operator]
