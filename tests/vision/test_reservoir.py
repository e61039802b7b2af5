"""The buffer is a uniform sample of everything seen, and holds nothing that it could not have kept."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ht_ray.mechanisms import SettingError
from ht_ray.vision import Reservoir


@given(st.integers(1, 30), st.lists(st.integers(0, 25), min_size=1, max_size=8), st.integers(0, 5))
def test_it_holds_what_was_held_or_arrived_and_is_as_full_as_it_can_be(size, arrivals, seed) -> None:
    memory, start = Reservoir(size, seed=seed), 0
    for count in arrivals:
        before = set(memory.items.tolist())
        arriving = torch.arange(start, start + count)
        memory.add(arriving)
        start += count
        held = memory.items.tolist()
        assert len(held) == len(set(held)) == min(size, start)
        assert set(held) <= before | set(arriving.tolist())
        assert held == sorted(held)  # in order of arrival
    assert memory.rounds == len(arrivals)


def test_every_item_is_held_equally_often() -> None:
    counts = torch.zeros(60)
    draws = 3000
    for seed in range(draws):
        memory = Reservoir(12, seed=seed)
        for chunk in torch.arange(60).split([10, 25, 5, 20]):
            memory.add(chunk)
        counts[memory.items] += 1
    expected = draws * 12 / 60
    # Without replacement the counts vary less than independent ones, by 1 - 12/60.
    statistic = ((counts - expected) ** 2 / expected).sum().item() / (1 - 12 / 60)
    assert 0.001 < stats.chi2.sf(statistic, df=59) < 0.999


def test_the_same_seed_keeps_the_same_items_and_a_restored_one_goes_on() -> None:
    chunks = torch.randperm(200, generator=torch.Generator().manual_seed(0)).split(40)
    whole, other = Reservoir(25, seed=1), Reservoir(25, seed=2)
    half = Reservoir(25, seed=1)
    for index, chunk in enumerate(chunks):
        whole.add(chunk)
        other.add(chunk)
        if index == 2:
            file = io.BytesIO()
            torch.save(half.state_dict(), file)
            file.seek(0)
            half = Reservoir(25, seed=1)
            half.load_state_dict(torch.load(file, weights_only=True))
        half.add(chunk)
    assert torch.equal(whole.items, half.items)
    assert not torch.equal(whole.items, other.items)


def test_no_places_are_refused() -> None:
    with pytest.raises(SettingError, match="Reservoir: size = 0"):
        Reservoir(0)
