"""C51's projection against a loop over atoms; its loss and mean; that it is `TwoHotValue` for numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ht_ray.agents.values import TwoHotValue
from ht_ray.agents.values.c51 import C51Value


def by_hand(probabilities: list[float], reward: float, discount: float, limit: float) -> list[float]:
    """Return algorithm 1 of arXiv 1707.06887, as it is written there."""
    atoms = len(probabilities)
    width = 2 * limit / (atoms - 1)
    moved = [0.0] * atoms
    for j, probability in enumerate(probabilities):
        place = (min(max(reward + discount * (-limit + j * width), -limit), limit) + limit) / width
        place = round(place) if abs(place - round(place)) < 1e-9 else place
        low, high = math.floor(place), math.ceil(place)
        if low == high:
            moved[low] += probability
        else:
            moved[low] += probability * (high - place)
            moved[high] += probability * (place - low)
    return moved


@given(
    logits=st.lists(st.floats(-5, 5), min_size=51, max_size=51),
    reward=st.floats(-25, 25),
    gamma=st.sampled_from([0.0, 0.5, 0.97, 0.997, 1.0]),
    steps=st.integers(1, 10),
)
@settings(max_examples=60, deadline=None)
def test_projection(logits: list[float], reward: float, gamma: float, steps: int) -> None:
    probabilities = torch.tensor(logits).softmax(0)
    discount = gamma**steps
    moved = C51Value().move(probabilities[None], torch.tensor([reward]), torch.tensor([discount]))[0]
    expected = torch.tensor(by_hand(probabilities.double().tolist(), reward, discount, 10.0))
    torch.testing.assert_close(moved, expected, atol=2e-5, rtol=0)
    assert float(moved.sum()) == pytest.approx(1, abs=1e-5) and float(moved.min()) >= 0


@pytest.mark.parametrize(("reward", "discount", "at"), [(10.0, 0.0, 50), (-10.0, 0.0, 0), (99.0, 0.9, 50), (-99, 1, 0)])
def test_at_and_beyond_the_borders_it_is_exact(reward: float, discount: float, at: int) -> None:
    uniform = torch.full((1, 51), 1 / 51)
    moved = C51Value().move(uniform, torch.tensor([float(reward)]), torch.tensor([float(discount)]))
    assert moved[0, at] == pytest.approx(1, abs=1e-6)
    assert not moved[0, torch.arange(51) != at].any()


def test_batches_means_and_nothing_moved() -> None:
    value = C51Value(bins=11, limit=5.0)
    outputs = torch.randn(6, 11, generator=torch.Generator().manual_seed(0))
    probabilities = value.probabilities(outputs)
    still = value.move(probabilities, torch.zeros(6), torch.ones(6))
    torch.testing.assert_close(still, probabilities)
    # Inside the support the mean moves as the value does.
    moved = value.move(probabilities, torch.linspace(-1, 1, 6), torch.full((6,), 0.7))
    expected = torch.linspace(-1, 1, 6) + 0.7 * value.expectation(outputs)
    torch.testing.assert_close(moved @ value.centres, expected)


def test_loss() -> None:
    value = C51Value(bins=5, limit=2.0)
    outputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    goals = torch.tensor([[0.1, 0.2, 0.3, 0.2, 0.2]] * 4)
    losses = value.cross_entropy(outputs, goals)
    rows = outputs.detach().double().exp()
    expected = -(goals.double() * (rows / rows.sum(1, keepdim=True)).log()).sum(1)
    torch.testing.assert_close(losses.detach().double(), expected, atol=1e-5, rtol=1e-5)
    losses.sum().backward()
    assert outputs.grad is not None
    torch.testing.assert_close(outputs.grad, outputs.detach().softmax(1) - goals)


def test_a_number_is_a_distribution_of_one_point() -> None:
    value, outputs = C51Value(), torch.randn(3, 51)
    numbers = torch.tensor([-3.3, 0.0, 12.0])
    sure = torch.zeros(3, 51)
    sure[:, 25] = 1
    goals = value.move(sure, numbers, torch.zeros(3))
    torch.testing.assert_close(value.loss(outputs, numbers), value.cross_entropy(outputs, goals))
    torch.testing.assert_close(goals, TwoHotValue().project(numbers))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="expected"):
        C51Value().move(torch.ones(2, 50), torch.zeros(2), torch.zeros(2))
