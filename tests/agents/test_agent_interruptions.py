"""A run that is interrupted at any moment, also between the games of an evaluation, is the run that is not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.envs.catch import CatchConfig
from ht_ray.agents.replay.packing import read_file
from ht_ray.agents.training.train import Diverged, TrainingRun
from ht_ray.errors import Interrupted

GAME = CatchConfig(balls=1)
CONFIG = DrQConfig(
    learning_starts=10,
    epsilon_decay_steps=20,
    n_step=3,
    hidden=4,
    batch_size=2,
    replay_capacity=60,
    momentum=0.9,
    reset_interval=4,
    prioritized=True,
    evaluation_epsilon=0.3,
)
PARTS = (15, 24)


def new_run() -> TrainingRun:
    return TrainingRun("Catch", CONFIG, seed=2, env=GAME, indicators_interval=5)


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def state_after(directory: Path, interruptions: set[int], moves: list[bool]) -> tuple[dict[str, Any], int]:
    """Return what a run leaves that was interrupted when the agent had acted so often, and how often it acted."""
    acted = 0

    def counted(run: TrainingRun) -> TrainingRun:
        act = run.agent.act

        def counting(*arguments: Any) -> Any:
            nonlocal acted
            acted += 1
            if acted in interruptions:
                run.interrupt()
            return act(*arguments)

        run.agent.act = counting  # type: ignore[method-assign]
        return run

    run, moves = counted(new_run()), list(moves)
    for end in PARTS:
        while run.record.steps < end or not any(done.step == end for done in run.record.evaluations):
            try:
                if run.record.steps < end:
                    run.advance(end)
                run.evaluate(11)
            except Interrupted:
                if moves.pop(0):
                    run.save(directory / "run.bin")
                    run = counted(new_run())
                    run.load(directory / "run.bin")
    run.save(directory / "whole.bin")
    return read_file(directory / "whole.bin")["state"], acted


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], int]:
    return state_after(tmp_path_factory.mktemp("whole"), set(), [])


@settings(max_examples=25, deadline=None)
@given(interruptions=st.sets(st.integers(1, 60), max_size=10), moves=st.lists(st.booleans(), min_size=10, max_size=10))
def test_interrupted_at_random_again_and_again(
    interruptions: set[int],
    moves: list[bool],
    whole: tuple[dict[str, Any], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    state, acted = state_after(tmp_path_factory.mktemp("run"), interruptions, moves)
    assert acted == whole[1] > 60
    for part in whole[0]:
        assert equal(state[part], whole[0][part]), part


def test_training_that_goes_on_gives_an_evaluation_up() -> None:
    run = new_run()
    run.interrupt()
    with pytest.raises(Interrupted, match="after step 0 of Catch"):
        run.evaluate(3)
    assert run.evaluating
    run.advance(2)
    assert not run.evaluating
    assert run.record.evaluations == []


def test_an_evaluation_of_other_games_begins_anew() -> None:
    run = new_run()
    run.interrupt()
    with pytest.raises(Interrupted):
        run.evaluate(3)
    other = run.evaluate(4)
    assert asdict(other) == asdict(new_run().evaluate(4))


def test_the_last_step_of_a_call_is_its_end() -> None:
    run = new_run()
    run.interrupt()
    assert run.advance(1) == 1
    with pytest.raises(Interrupted, match="after step 2 of Catch"):
        run.advance(5)
    assert run.advance(5) == 5


def test_a_run_that_has_diverged_is_not_left_to_be_saved() -> None:
    run = new_run()
    run.advance(20)
    with torch.no_grad():
        next(run.agent.network.head.parameters()).fill_(float("nan"))
    run.interrupt()
    with pytest.raises(Diverged):
        run.advance(30)
