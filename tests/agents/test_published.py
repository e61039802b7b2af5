"""Presets "as published": each against the number or the rule of the published code, which was read.

DrQ(eps): google/dopamine, ``labs/atari_100k`` (``DrQ_eps.gin``, ``atari_100k_rainbow_agent.py``,
``eval_run_experiment.py``). BBF: google-research/google-research, ``bigger_better_faster`` (``BBF.gin``,
``spr_agent.py``), of 2023 and of 2025.
"""

from __future__ import annotations

from typing import Any

import ale_py
import numpy as np
import pytest
import torch

from ht_ray.agents import BBFConfig, agent_variant
from ht_ray.agents.augmentation import draw_augmentation
from ht_ray.agents.base import Sampling
from ht_ray.agents.envs.atari import PUBLISHED_PROTOCOLS, AtariConfig, AtariGame
from ht_ray.agents.networks.q_network import QNetwork
from ht_ray.agents.registry import AGENT_VARIANTS
from ht_ray.agents.replay import FrameReplay
from ht_ray.agents.training.collector import Collector

BBF = ("bbf-published-2023", "bbf-published-2025")
ALL = ("drq-published", *BBF)


def published_restarts(*, later: bool) -> list[int]:
    """Return the gradient steps before each restart, by the rules of ``_train_step`` and ``reset_weights``."""
    reset_every, no_resets_after, offset = 20_000, 100_000, 1 if later else 0
    updates, next_reset, found = 0, reset_every, []
    for step in range(100_000):  # training_steps
        if step > 2000:  # add_count > min_replay_history
            updates += 2
        if step > next_reset if later else step >= next_reset:
            next_reset = reset_every + step
            if next_reset <= no_resets_after + offset:
                found.append(updates)
    return found


@pytest.mark.parametrize("name, later, number", [(BBF[0], False, 4), (BBF[1], True, 3)])
def test_restarts_of_bbf_are_those_of_its_version(name: str, later: bool, number: int) -> None:
    config: Any = agent_variant(name)
    expected = published_restarts(later=later)
    assert len(expected) == number and list(config.restarts) == expected
    due = [update for update in range(config.total_updates + 1) if config.restart_is_due(update)]
    assert due == expected
    assert config.since_restart(expected[1] + 7) == 7 and config.since_restart(5) == 5


@pytest.mark.parametrize("name", BBF)
def test_settings_of_bbf_are_those_of_its_gin(name: str) -> None:
    config: Any = agent_variant(name)
    assert config.restart_optimizer_state == "clear" and config.published_n_step and config.published_shift
    assert (config.discount, config.discount_start, config.n_step, config.n_step_start) == (0.997, 0.97, 3, 10)
    assert (config.learning_starts, config.epsilon, config.evaluation_epsilon) == (2000, 0.0, 0.001)
    assert (config.epsilon_decay_steps, config.cycle_updates, config.spr_weight, config.spr_steps) == (
        2001,
        10_000,
        5,
        5,
    )
    assert (config.batch_size, config.batches_per_sample, config.updates_per_step) == (32, 2, 64 // 32)
    assert (config.learning_rate, config.adam_eps, config.weight_decay) == (1e-4, 1.5e-4, 0.1)
    assert (config.width, config.hidden, config.bins, config.momentum) == (4, 2048, 51, 1 - 0.005)
    assert config.act_with_tortoise and config.double and config.dueling and config.replay_capacity == 200_000
    assert config.shrink_perturb_ratio == 0.5


def test_settings_of_drq_are_those_of_its_gin() -> None:
    config: Any = agent_variant("drq-published")
    assert config.padding == "same" and config.published_shift and config.momentum is None
    assert (config.discount, config.n_step, config.learning_starts, config.updates_per_step) == (0.99, 10, 1600, 1)
    assert (config.epsilon, config.evaluation_epsilon, config.epsilon_decay_steps) == (0.01, 0.001, 5000)
    assert (config.learning_rate, config.adam_eps, config.batch_size) == (1e-4, 1.5e-4, 32)
    assert config.dueling and config.double and not config.prioritized and config.value == "scalar"
    # SAME padding: 21, 11 and 11 pixels along a side.
    assert QNetwork(4, config=config.network_config).head.hidden.in_features == 64 * 11 * 11


def test_published_shifts_leave_out_the_last_row_and_column() -> None:
    drawn = draw_augmentation(
        20_000, generator=torch.Generator().manual_seed(0), padding=4, intensity=0, inclusive=False
    )
    rows, columns = drawn[0].long() // 9, drawn[0].long() % 9
    assert rows.unique().tolist() == columns.unique().tolist() == list(range(8))  # randint(0, 92 - 84)
    usual = draw_augmentation(20_000, generator=torch.Generator().manual_seed(0), padding=4, intensity=0)
    assert (usual[0].long() // 9).unique().tolist() == list(range(9))


def test_published_priorities_are_means_and_go_to_the_first_indices() -> None:
    config = BBFConfig(
        priorities="published", batch_size=3, n_step=1, n_step_start=1, spr_weight=0.0, learning_starts=0
    )
    replay = FrameReplay(100, frame_shape=(2, 2), n_step=1, prioritized=True)
    replay.start(np.zeros((2, 2), np.uint8))
    for _ in range(20):
        replay.add(0, 0.0, np.zeros((2, 2), np.uint8), terminated=False, truncated=False)
    collector = Collector(AtariConfig().make("Pong"), replay, config.epsilon_schedule)
    collector.steps = 20
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    replay.update_priorities = lambda indices, priorities: given.append((indices, priorities))  # type: ignore[method-assign]
    seen: list[torch.Tensor] = []

    def update(batch: Any) -> torch.Tensor:
        seen.append(batch.indices)
        return torch.tensor([1.0, 2.0, 6.0]) * len(seen)

    collector.learn(config, lambda: Sampling(n_step=1), update)
    (indices, priorities), *more = given
    assert not more and torch.equal(indices, seen[0][:2]) and priorities.tolist() == [3.0, 6.0]


@pytest.mark.parametrize("name", ALL)
def test_published_no_ops_are_29_at_most(name: str) -> None:
    protocol = PUBLISHED_PROTOCOLS[name]
    assert name in AGENT_VARIANTS
    assert protocol.noops == 30 - 1  # randint(0, 30) leaves out 30
    assert (protocol.max_steps, protocol.frame_skip, protocol.sticky, protocol.stack) == (27_000, 4, 0.0, 4)


class Counting:
    """An emulator that counts the frames that are played."""

    def __init__(self, game: AtariGame) -> None:
        self.ale, self.frames = game._ale, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ale, name)

    def act(self, action: Any) -> Any:
        self.frames += 1
        return self.ale.act(action)


def test_no_ops_are_steps_in_bbf_and_frames_that_nobody_sees_in_drq() -> None:
    frames, first = {}, {}
    for kind in (None, "steps", "stale"):
        game = AtariGame("Pong", AtariConfig(noops=29, noop_kind=kind))
        counting: Any = Counting(game)
        game._ale = counting
        first[kind] = game.reset(seed=3)[0][-1]
        frames[kind] = counting.frames
    assert frames[None] == frames["stale"] > 0 and frames["steps"] == 4 * frames[None]
    fresh = AtariGame("Pong", AtariConfig(noops=0)).reset(seed=3)[0][-1]
    assert np.array_equal(first["stale"], fresh)


def lose_a_life(config: AtariConfig) -> tuple[np.ndarray[Any, Any], bool, AtariGame]:
    game = AtariGame("Breakout", config.evaluation())
    observation, info = game.reset(seed=0)
    lives = info["lives"]
    while True:
        observation, _, terminated, _, info = game.step(1)  # FIRE, and never catch the ball
        if info["lives"] < lives:
            return observation, terminated, game


def test_a_lost_life_empties_the_stack_in_evaluation_as_published() -> None:
    observation, terminated, _ = lose_a_life(AtariConfig())
    assert not terminated and observation[:-1].any(axis=(1, 2)).all()
    observation, terminated, game = lose_a_life(AtariConfig(evaluated_lives="clear"))
    assert not terminated and not observation[:-1].any() and observation[-1].any()
    observation, *_ = game.step(0)
    assert not observation[:-2].any() and observation[-2:].any(axis=(1, 2)).all()


def test_games_have_modes_and_all_actions() -> None:
    game = AtariGame("Freeway", AtariConfig(mode=1, difficulty=1, action_set="full"))
    assert game.actions == len(ale_py.Action.__members__) == 18
    other = AtariGame("Freeway", AtariConfig(action_set="full"))
    frames = []
    for each in (game, other):
        each.reset(seed=0)
        frames.append([each.step(0)[0][-1] for _ in range(30)][-1])
    assert not np.array_equal(*frames)
    with pytest.raises(ValueError, match=r"AtariConfig.mode = 77: accepted is one of 0, 1"):
        AtariGame("Freeway", AtariConfig(mode=77))


def test_states_of_earlier_versions_are_read() -> None:
    game = AtariGame("Pong")
    game.reset(seed=0)
    state = game.get_state()
    for name in ("action_set", "mode", "difficulty", "noop_kind", "evaluated_lives"):
        del state["config"][name]
    other = AtariGame("Pong")
    other.set_state(state)
    assert np.array_equal(other.step(2)[0], game.step(2)[0])
