"""Draws depend on what they are for and on nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ht_ray.mechanisms import derive_seed, generator, isolated_rng

PURPOSES = st.sampled_from(["shuffle", "augmentation", "dropout", "1", "", "label noise"])
PLACES = st.tuples(st.integers(-5, 2**40), PURPOSES, st.lists(st.integers(0, 300), max_size=4).map(tuple))


@given(st.lists(PLACES, min_size=2, max_size=60, unique=True))
def test_different_places_have_different_seeds(places: list[tuple[int, str, tuple[int, ...]]]) -> None:
    seeds = [derive_seed(seed, purpose, *position) for seed, purpose, position in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_are_the_same_in_every_process_and_version() -> None:
    assert derive_seed(0, "shuffle", 1, 2) == 3913426226846981311
    assert derive_seed(0, "shuffle") != derive_seed(0, "shuffle", 0)
    seeds = {derive_seed(s, "shuffle", p, e) for s in range(10) for p in range(20) for e in range(100)}
    assert len(seeds) == 20_000


def test_generators_repeat_and_leave_the_global_one() -> None:
    state = torch.random.get_rng_state()
    draws = [torch.rand(5, generator=generator(3, "noise", 1)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.rand(5, generator=generator(3, "noise", 2)))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("seed", [None, 0, 2**63 - 1])
def test_isolated_draws_leave_no_trace_also_after_an_exception(seed: int | None) -> None:
    torch.manual_seed(9)
    state = torch.random.get_rng_state()
    with isolated_rng(seed):
        first = torch.rand(3)
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(ZeroDivisionError), isolated_rng(seed):
        second = torch.rand(3)
        with isolated_rng(4):
            torch.rand(1)
        third = torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, second)
    torch.manual_seed(9 if seed is None else seed)
    assert torch.equal(first, torch.rand(3))
    assert torch.equal(third, torch.rand(3))


def test_devices_not_in_use_yet_are_not_seeded() -> None:
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use in this process")
    waiting = torch.cuda._lazy_seed_tracker  # seeds wait here until CUDA starts, past the end of the block
    before = list(waiting.get_calls())
    with isolated_rng(5):
        torch.rand(1)
    assert waiting.get_calls() == before


@pytest.mark.gpu
@pytest.mark.parametrize("in_use", [False, True])
def test_isolated_draws_leave_no_trace_on_a_gpu(in_use: bool) -> None:
    program = f"""
import torch
from ht_ray.mechanisms import isolated_rng
torch.manual_seed(9)
if {in_use}:
    torch.zeros(1, device="cuda")
with isolated_rng(5):
    torch.rand(1)
    first = torch.rand(3, device="cuda") if {in_use} else None
after = torch.rand(3, device="cuda")
torch.manual_seed(9)
assert torch.equal(after, torch.rand(3, device="cuda"))
if {in_use}:
    torch.manual_seed(5)
    assert torch.equal(first, torch.rand(3, device="cuda"))
"""
    subprocess.run([sys.executable, "-c", program], check=True)
