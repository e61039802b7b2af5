"""What the replay holds of games that were played, against what the agent saw and did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.training.collector import make_collector

N, GAMMA = 4, 0.9


class Log:
    """Every step of a game: what was seen, what was done, what the emulator gave."""

    def __init__(self, env: Any) -> None:
        self.seen: list[np.ndarray] = []
        self.epsilons: list[float] = []
        self.after: list[np.ndarray] = []
        self.steps: list[tuple[int, float, bool, bool]] = []
        #: The frame in the replay from which each step was taken: each start of an episode adds one.
        self.frames: list[int] = []
        self._draws = np.random.default_rng(0)
        self._actions = env.actions
        self._step = env.step
        env.step = self.step

    def act(self, observations: torch.Tensor, epsilon: float) -> torch.Tensor:
        self.seen.append(observations[0].numpy().copy())
        self.epsilons.append(epsilon)
        return torch.tensor([self._draws.integers(self._actions)])

    def step(self, action: int) -> Any:
        observation, reward, terminated, truncated, info = self._step(action)
        started = not self.steps or any(self.steps[-1][2:])
        self.frames.append(0 if not self.frames else self.frames[-1] + 1 + started)
        self.after.append(observation.copy())
        self.steps.append((action, float(np.sign(info["reward"])), terminated, truncated))
        return observation, reward, terminated, truncated, info

    def transition(self, t: int) -> tuple[float, float, np.ndarray]:
        """Return the sum of rewards, the discount, and what was seen after N steps or at the episode's end."""
        total, discount = 0.0, 1.0
        for k in range(t, t + N):
            _, reward, terminated, truncated = self.steps[k]
            total, discount = total + discount * reward, discount * GAMMA
            if terminated:
                return total, 0.0, self.after[k]
            if truncated:
                break
        return total, discount, self.after[k]


def test_the_replay_gives_back_what_was_seen_and_done() -> None:
    """Games of several lives, cut off after 130 steps, in a ring that is written several times over."""
    config = DrQConfig(n_step=N, discount=GAMMA, replay_capacity=150, learning_starts=40, epsilon_decay_steps=100)
    collector = make_collector("Breakout", config, seed=3, env=AtariConfig(max_steps=130))
    log = Log(collector.env)
    sampled = set()
    ends = []
    for t in range(600):
        game = collector.step(log.act)
        ends.append(game is not None)
        assert collector.ready_to_learn(config) == (t >= 40)
        if t % 20 != 19:
            continue
        batch = collector.replay.sample(48)
        where = {frame % 150: k for k, frame in enumerate(log.frames)}  # the latest step in each slot
        for i, slot in enumerate(batch.indices.tolist()):
            k = where[slot]
            sampled.add(k)
            returns, discount, following = log.transition(k)
            assert batch.actions[i] == log.steps[k][0]
            assert batch.returns[i].item() == pytest.approx(returns, abs=1e-6)
            assert batch.discounts[i].item() == pytest.approx(discount, rel=1e-6)
            np.testing.assert_array_equal(batch.observations[i], log.seen[k])
            np.testing.assert_array_equal(batch.next_observations[i], following)
    lives = [terminated for _, _, terminated, _ in log.steps]
    cut = [truncated for _, _, _, truncated in log.steps]
    assert sum(lives) > 5 and sum(cut) > 1 and len(sampled) > 300
    assert all(end == stop for end, stop in zip(ends, cut, strict=True) if stop)
    # An episode starts with the frame that ended the one before, unless a game was cut off or is over.
    goes_on = 0
    for t, (life, over) in enumerate(zip(lives[:-1], ends[:-1], strict=True)):
        if life or cut[t]:
            assert not log.seen[t + 1][:3].any()
            if not over:
                goes_on += 1
                np.testing.assert_array_equal(log.seen[t + 1][3], log.after[t][3])
        else:
            np.testing.assert_array_equal(log.seen[t + 1], log.after[t])
    assert goes_on > 5
    assert log.epsilons[:41] == [1.0] * 41 and log.epsilons[41] == pytest.approx(1 - 0.99 / 100)
    assert log.epsilons[140:] == [0.01] * 460
