"""Catch: its rules, and that a game goes on from a saved state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ht_ray.agents.envs.base import Environment, EnvironmentConfig
from ht_ray.agents.envs.catch import CatchConfig, CatchGame
from ht_ray.agents.training.evaluate import evaluate
from ht_ray.errors import SettingError


def follow(observations: torch.Tensor) -> torch.Tensor:
    """Return the actions that go under the ball as it is now, from 3 pixels per cell."""
    cells = observations[:, -1, ::3, ::3]
    ball = (cells == 255).flatten(1).float().argmax(1) % cells.shape[-1]
    paddle = (cells[:, -1] == 128).float().argmax(1)
    return (ball > paddle).long() - (ball < paddle).long() + 1


def test_a_ball_can_be_followed_and_games_are_repeated_by_their_seed() -> None:
    config = CatchConfig()
    scores = [
        evaluate(follow, "Catch", episodes=30, epsilon=0.0, seed=seed, config=config).scores for seed in (0, 0, 1)
    ]
    assert np.array_equal(scores[0], scores[1]) and not np.array_equal(scores[0], scores[2])
    assert set(scores[0]) <= {-5.0, -3.0, -1.0, 1.0, 3.0, 5.0}
    random = evaluate(follow, "Catch", episodes=30, epsilon=1.0, config=config).score
    assert scores[0].mean() > 1.5 > -1 > random


def test_a_game_has_its_balls_and_its_length() -> None:
    game: Environment = CatchGame(CatchConfig(cells=6, balls=3, pixels=2))
    for number in range(3):
        observation, _ = game.reset()
        assert observation.shape == (2, 12, 12) and not observation[0].any()
        rewards = []
        while True:
            observation, reward, ended, truncated, info = game.step(number)
            rewards.append(reward)
            assert not truncated
            if ended:
                break
        assert [step for step, reward in enumerate(rewards) if reward] == [4, 9, 14]
        assert info == {"score": sum(rewards), "steps": 15}
        with pytest.raises(RuntimeError, match="reset"):
            game.step(0)


def test_it_goes_on_from_a_state() -> None:
    config: EnvironmentConfig = CatchConfig()
    game = config.make("catch", seed=3)
    game.reset()
    for _ in range(17):
        game.step(0)
    other = CatchConfig().make("Catch")
    other.set_state(game.get_state())
    assert np.array_equal(game.observation, other.observation)
    for _ in range(2):
        ended = False
        while not ended:
            one, two = game.step(2), other.step(2)
            assert np.array_equal(one[0], two[0]) and one[1:] == two[1:]
            ended = one[2]
        assert np.array_equal(game.reset()[0], other.reset()[0])
    with pytest.raises(ValueError, match="this is Catch"):
        CatchGame(CatchConfig(balls=2)).set_state(game.get_state())


def test_settings_are_checked() -> None:
    with pytest.raises(SettingError, match=r"CatchConfig\.cells"):
        CatchConfig(cells=2)
    with pytest.raises(SettingError, match="Did you mean 'Catch'"):
        CatchConfig().make("Cach")
