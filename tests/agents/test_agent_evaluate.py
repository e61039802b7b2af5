"""Evaluation: whole games, exactly so many, whatever is played side by side."""

from __future__ import annotations

import inspect
from typing import Any

import ale_py
import numpy as np
import pytest
import torch
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from torch import Tensor

from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.envs.atari import AtariConfig, AtariGame
from ht_ray.agents.training.evaluate import EvaluationRun, evaluate, play_random
from ht_ray.agents.training.train import TrainingRun
from ht_ray.errors import SettingError

SHORT = AtariConfig(max_steps=80)


def by_pixels(observations: Tensor) -> Tensor:
    """Some deterministic policy that depends on what is seen, row by row."""
    return observations.flatten(1).long().sum(1) % 4


def one_by_one(game: str, episodes: int, seed: int, config: AtariConfig) -> tuple[list[float], list[int]]:
    from ht_ray.mechanisms import derive_seed

    scores, lengths = [], []
    for episode in range(episodes):
        env = AtariGame(game, config)
        observation, _ = env.reset(seed=derive_seed(seed, "evaluation game", episode))
        score, steps, ended = 0.0, 0, False
        while not ended:
            action = by_pixels(torch.from_numpy(observation[None])).item()
            observation, reward, terminated, truncated, _ = env.step(int(action))
            score, steps, ended = score + reward, steps + 1, terminated or truncated
        scores.append(score)
        lengths.append(steps)
    return scores, lengths


@pytest.mark.parametrize("envs", [1, 3])
def test_games_are_those_of_a_loop_over_one_environment(envs: int) -> None:
    whole = AtariConfig(max_steps=250, life_loss=False, clip_rewards=False)
    scores, lengths = one_by_one("Breakout", 4, 5, whole)
    assert len(set(lengths)) > 1  # games of several lengths, so that they end at different times
    result = evaluate(
        by_pixels, "Breakout", episodes=4, epsilon=0.0, seed=5, envs=envs, config=AtariConfig(max_steps=250)
    )
    assert result.scores.tolist() == scores
    assert result.lengths.tolist() == lengths
    assert result.score == np.mean(scores)


def test_left_between_steps_it_goes_on_to_the_same_scores() -> None:
    settings: dict[str, Any] = {
        "episodes": 4,
        "epsilon": 0.1,
        "seed": 5,
        "envs": 3,
        "config": AtariConfig(max_steps=250),
    }
    whole = evaluate(by_pixels, "Breakout", **settings)
    assert len(set(whole.lengths.tolist())) > 1
    games, steps = EvaluationRun("Breakout", **settings), 0
    while not games.done:
        if steps % 60 == 40:
            state = games.state_dict()
            games = EvaluationRun("Breakout", **settings)
            games.load_state_dict(state)
        games.step(by_pixels)
        steps += 1
    assert games.result().scores.tolist() == whole.scores.tolist()
    assert games.result().lengths.tolist() == whole.lengths.tolist()


def test_scores_are_those_of_whole_games_of_gymnasium() -> None:
    """Lives that are lost do not end a game, rewards are not clipped; played by gymnasium's wrappers over ale_py."""
    theirs = FrameStackObservation(
        AtariPreprocessing(ale_py.AtariEnv("qbert", frameskip=1, repeat_action_probability=0.0), noop_max=0),
        4,
        padding_type="zero",
    )
    observation, info = theirs.reset(seed=0)
    score, steps, lives, ended = 0.0, 0, info["lives"], False
    while not ended:
        observation, reward, ended, _, info = theirs.step(int(by_pixels(torch.from_numpy(observation[None])).item()))
        score, steps = score + float(reward), steps + 1
    assert lives > 1 and score % 25 == 0 and score >= 25  # Qbert's squares are worth 25
    result = evaluate(by_pixels, "Qbert", episodes=1, epsilon=0.0, config=AtariConfig(noops=0))
    assert (result.scores.tolist(), result.lengths.tolist()) == ([score], [steps])


def test_a_share_of_epsilon_of_the_actions_is_random() -> None:
    asked = 0

    def act(observations: Tensor) -> Tensor:
        nonlocal asked
        asked += len(observations)
        return torch.zeros(len(observations), dtype=torch.int64)

    result = evaluate(act, "Freeway", episodes=2, epsilon=0.2, config=AtariConfig(max_steps=1000))
    assert result.lengths.sum() == 2000
    assert asked == pytest.approx(0.8 * 2000, abs=4 * (0.2 * 0.8 * 2000) ** 0.5)


def test_atari_100k_is_the_default() -> None:
    defaults = inspect.signature(evaluate).parameters
    assert (defaults["episodes"].default, defaults["epsilon"].default) == (100, 0.001)
    assert inspect.signature(TrainingRun.evaluate).parameters["episodes"].default == 100
    assert DrQConfig().evaluation_epsilon == 0.001
    assert AtariConfig() == AtariConfig(
        frame_skip=4, noops=30, sticky=0.0, life_loss=True, clip_rewards=True, max_steps=27_000, size=84, stack=4
    )


def test_random_actions_do_not_depend_on_envs() -> None:
    results = [evaluate(by_pixels, "Alien", episodes=3, epsilon=0.3, envs=e, config=SHORT) for e in (1, 2)]
    np.testing.assert_array_equal(results[0].scores, results[1].scores)
    other = evaluate(by_pixels, "Alien", episodes=3, epsilon=0.3, seed=1, envs=2, config=SHORT)
    assert other.scores.tolist() != results[0].scores.tolist()


def test_batches_hold_the_games_that_wait() -> None:
    sizes = []

    def act(observations: Tensor) -> Tensor:
        assert observations.dtype == torch.uint8 and observations.shape[1:] == (4, 84, 84)
        sizes.append(len(observations))
        return torch.zeros(len(observations), dtype=torch.int64)

    evaluate(act, "Freeway", episodes=3, epsilon=0.0, envs=2, config=AtariConfig(max_steps=10))
    assert sizes == [2] * 10 + [1] * 10


def test_generators_are_left_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index] # noqa: NPY002
    play_random("Pong", episodes=1, config=AtariConfig(max_steps=20))
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index] # noqa: NPY002


def test_a_policy_of_the_wrong_size_is_named() -> None:
    with pytest.raises(ValueError, match="act returned 1 actions for 2 observations"):
        evaluate(lambda o: torch.zeros(1), "Pong", episodes=2, envs=2, epsilon=0.0, config=SHORT)


@pytest.mark.parametrize("setting", [{"episodes": 0}, {"envs": 0}, {"epsilon": 1.5}])
def test_settings_are_checked(setting: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=next(iter(setting))):
        evaluate(by_pixels, "Pong", **setting)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("game", "episodes", "published", "tolerance"), [("Breakout", 20, 1.7, 1.0), ("Pong", 3, -20.7, 1.0)]
)
def test_random_play_scores_as_published(game: str, episodes: int, published: float, tolerance: float) -> None:
    assert abs(play_random(game, episodes=episodes).score - published) < tolerance
