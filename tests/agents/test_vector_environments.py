"""Vector environments of ale-py and gymnasium: what surprises in them touches neither training nor evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import Tensor

from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.training.collector import Collector
from ht_ray.agents.training.evaluate import evaluate
from ht_ray.agents.training.train import TrainingRun

SMALL = {"n_step": 3, "hidden": 8, "batch_size": 2, "learning_starts": 10_000}


def at_random(actions: int, seed: int = 0) -> Any:
    draws = np.random.default_rng(seed)
    return lambda observations, *_: torch.from_numpy(draws.integers(actions, size=len(observations)))


def collector(game: str, config: AtariConfig) -> Collector:
    """Return what the plain loop and the algorithms for RLlib play with."""
    return TrainingRun(game, DrQConfig(**SMALL), seed=3, env=config).collector


def test_a_lost_life_does_not_start_a_new_game() -> None:
    theirs = AtariVectorEnv("breakout", num_envs=1, episodic_life=True, noop_max=0)
    theirs.reset(seed=0)
    draws, lives = np.random.default_rng(0), []
    while len(lives) < 4:
        *_, terminated, _, _ = theirs.step(draws.integers(4, size=1))
        if terminated[0]:
            *_, info = theirs.step(draws.integers(4, size=1))
            lives.append((int(info["lives"][0]), int(info["episode_frame_number"][0])))
    theirs.close()
    assert lives == [(5, 1)] * 4  # ale-py: the first frame of another game

    ours = collector("Breakout", AtariConfig(noops=0))
    act, left, game = at_random(4), [], None
    while game is None:
        game = ours.step(act)
        left.append(ours.env.get_state()["lives"])
    assert sorted(set(left[:-1]), reverse=True) == [5, 4, 3, 2, 1]
    assert game["steps"] == len(left)  # of all five lives


def test_scores_are_not_clipped() -> None:
    theirs = AtariVectorEnv("alien", num_envs=1)
    theirs.reset(seed=0)
    draws = np.random.default_rng(0)
    rewards = {float(theirs.step(draws.integers(18, size=1))[1][0]) for _ in range(300)}
    theirs.close()
    assert rewards == {0.0, 1.0}  # ale-py: where Alien gives tens

    whole = AtariConfig(max_steps=300)
    ours, act, game = collector("Alien", whole), at_random(18), None
    while game is None:
        game = ours.step(act)
    assert game["score"] >= 10 and game["score"] % 10 == 0
    table = ours.replay.sample(200, n_step=1)
    assert set(table.returns.tolist()) <= {0.0, 1.0}  # what is learned from is clipped, as published
    scores = evaluate(at_random(18), "Alien", episodes=2, epsilon=0.0, config=whole).scores
    assert (scores >= 10).all() and (scores % 10 == 0).all()


def test_first_stacks_hold_zeros_alike_when_acting_and_when_learning() -> None:
    theirs = AtariVectorEnv("breakout", num_envs=1, noop_max=0)
    first, _ = theirs.reset(seed=0)
    theirs.close()
    assert first[0, -1].any() and not first[0, :-1].any()

    ours, seen = collector("Breakout", AtariConfig(noops=0)), []
    act = at_random(4)

    def noted(observations: Tensor, epsilon: float) -> Any:
        seen.append(observations[0].clone())
        return act(observations)

    for _ in range(60):
        ours.step(noted)
    assert seen[0][-1].any() and not seen[0][:-1].any()
    sample = ours.replay.sample(300, n_step=1)
    for index, observation in zip(sample.indices.tolist(), sample.observations, strict=True):
        if index < 3:  # before the first life is lost, slots are steps
            assert torch.equal(observation, seen[index])
    assert {0, 1, 2} <= set(sample.indices.tolist())


class FourSteps(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(0, 9, (), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> Any:
        self.step_number = 0
        return np.float32(0), {}

    def step(self, action: Any) -> Any:
        self.step_number += 1
        return np.float32(self.step_number), 1.0, self.step_number == 4, False, {}


def test_every_game_counts_all_of_its_steps() -> None:
    theirs = RecordEpisodeStatistics(SyncVectorEnv([FourSteps], autoreset_mode=AutoresetMode.SAME_STEP))
    theirs.reset()
    lengths = []
    for _ in range(16):
        *_, terminated, _, info = theirs.step(np.zeros(1, int))
        if terminated[0]:
            lengths.append(int(info["episode"]["l"][0]))
    assert lengths == [4, 3, 3, 3]  # gymnasium: each later episode's first step is lost

    whole = AtariConfig(max_steps=40)
    assert evaluate(at_random(6), "Pong", episodes=3, envs=1, epsilon=0.0, config=whole).lengths.tolist() == [40] * 3
    ours, act = collector("Pong", whole), at_random(6)
    games = [game for _ in range(120) if (game := ours.step(act)) is not None]
    assert [game["steps"] for game in games] == [40, 40, 40]


def test_every_row_of_the_docs_has_its_test() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "atari.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\| `(test_\w+)` \|$", page, re.MULTILINE)
    assert sorted(rows) == sorted(name for name in globals() if name.startswith("test_") and "docs" not in name)
