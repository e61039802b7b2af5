"""The sum tree against running sums in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ht_ray.agents.replay import SumTree
from ht_ray.errors import SettingError


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_finds_what_running_sums_find(data: st.DataObject) -> None:
    # Whole numbers, whose sums are exact in any order.
    size = data.draw(st.sampled_from([1, 3, 63, 64, 65, 200, 4096, 4097, 5000]))
    tree, weights = SumTree(size), np.zeros(size)
    for _ in range(data.draw(st.integers(1, 4))):
        draws = np.random.default_rng(data.draw(st.integers(0, 10**6)))
        indices = np.unique(draws.integers(0, size, draws.integers(1, 50)))
        weights[indices] = draws.integers(0, 4, len(indices))
        tree.update(torch.from_numpy(indices), torch.from_numpy(weights[indices]))
        sums = weights.cumsum()
        assert tree.total.item() == sums[-1]
        np.testing.assert_array_equal(tree[torch.arange(size)].numpy(), weights)
        if sums[-1]:
            points = np.concatenate((np.arange(sums[-1]), draws.uniform(0, sums[-1], 20)))
            found = tree.find(torch.from_numpy(points)).numpy()
            np.testing.assert_array_equal(found, np.searchsorted(sums, points, side="right"))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([1.0, 1e-300, 1e300, 1e-5]))
def test_never_finds_a_weight_of_zero(seed: int, scale: float) -> None:
    draws = np.random.default_rng(seed)
    weights = draws.random(5000) ** 20 * scale * (draws.random(5000) < 0.1)
    weights[draws.integers(5000)] = scale
    tree = SumTree(5000)
    tree.update(torch.arange(5000), torch.from_numpy(weights))
    fractions = torch.cat((torch.rand(500, dtype=torch.float64), torch.tensor([0.0, 1 - 2**-53, 1.0])))
    found = tree.find(fractions * tree.total).numpy()
    assert (weights[found] > 0).all()


def test_sums_do_not_drift() -> None:
    tree = SumTree(1000)
    tree.update(torch.tensor([5, 700]), torch.tensor([1e17, 1.0]))
    tree.update(torch.tensor([5]), torch.tensor([0.0]))
    assert tree.total.item() == 1.0


def test_size_must_be_positive() -> None:
    with pytest.raises(SettingError, match="SumTree: size = 0"):
        SumTree(0)
