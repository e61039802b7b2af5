"""Evaluation: whole games and their unclipped scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ht_ray._checks import check_number
from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.envs.base import EnvironmentConfig
from ht_ray.mechanisms.weights.rng import derive_seed

__all__ = ["EvaluationResult", "EvaluationRun", "evaluate", "play_random"]


@dataclass(frozen=True)
class EvaluationResult:
    """What games were worth, in the order in which they were started."""

    #: Unclipped score of each game, ``(episodes,)``.
    scores: NDArray[np.float64]
    #: Steps of the agent in each game, ``(episodes,)``.
    lengths: NDArray[np.int64]

    @property
    def score(self) -> float:
        """The mean score."""
        return float(self.scores.mean())


class _Player:
    """One emulator, and the game that it is at."""

    def __init__(self, game: str, config: EnvironmentConfig) -> None:
        self.env = config.make(game)

    def start(self, episode: int, seed: int) -> None:
        self.episode = episode
        self.observation, _ = self.env.reset(seed=derive_seed(seed, "evaluation game", episode))
        self.generator = np.random.default_rng(derive_seed(seed, "evaluation epsilon", episode))

    def explore(self, epsilon: float) -> int | None:
        if self.generator.random() < epsilon:
            return int(self.generator.integers(self.env.actions))
        return None

    def state_dict(self) -> dict[str, Any]:
        return {"episode": self.episode, "env": self.env.get_state(), "generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.episode = state["episode"]
        self.env.set_state(state["env"])
        self.observation = self.env.observation
        self.generator.bit_generator.state = state["generator"]


class EvaluationRun:
    """An evaluation in progress: it can be left between two steps, saved, and taken up again, with the same result.

    Parameters
    ----------
    game, episodes, epsilon, seed, envs, config
        See `evaluate`.

    Raises
    ------
    SettingError
        If a setting is out of its range or there is no such game.
    """

    def __init__(
        self,
        game: str,
        *,
        episodes: int = 100,
        epsilon: float = 0.001,
        seed: int = 0,
        envs: int = 8,
        config: EnvironmentConfig | None = None,
    ) -> None:
        check_number("evaluate: episodes", episodes, low=1, integer=True)
        check_number("evaluate: envs", envs, low=1, integer=True)
        check_number("evaluate: epsilon", epsilon, low=0, high=1)
        config = (config or AtariConfig()).evaluation()
        self.episodes = episodes
        self.epsilon = epsilon
        self.seed = seed
        self._playing = [_Player(game, config) for _ in range(min(envs, episodes))]
        for episode, player in enumerate(self._playing):
            player.start(episode, seed)
        self._started = len(self._playing)
        self._scores, self._lengths = np.zeros(episodes), np.zeros(episodes, np.int64)

    @property
    def done(self) -> bool:
        """Whether all games have been played."""
        return not self._playing

    def step(self, act: Callable[[Tensor], Tensor]) -> None:
        """Make a step in each of the games that are played side by side; `act` as in `evaluate`.

        Raises
        ------
        ValueError
            If `act` does not return one action for each observation.
        """
        explored = [player.explore(self.epsilon) for player in self._playing]
        waiting = [p.observation for p, action in zip(self._playing, explored, strict=True) if action is None]
        chosen = act(torch.from_numpy(np.stack(waiting))).tolist() if waiting else []
        if len(chosen) != len(waiting):
            raise ValueError(f"evaluate: act returned {len(chosen)} actions for {len(waiting)} observations")
        greedy = iter(chosen)
        still: list[_Player] = []
        for player, action in zip(self._playing, explored, strict=True):
            player.observation, _, terminated, truncated, info = player.env.step(
                next(greedy) if action is None else action
            )
            if terminated or truncated:
                self._scores[player.episode], self._lengths[player.episode] = info["score"], info["steps"]
                if self._started == self.episodes:
                    continue
                player.start(self._started, self.seed)
                self._started += 1
            still.append(player)
        self._playing = still

    def result(self) -> EvaluationResult:
        """Return what the games were worth, once they are `done`."""
        return EvaluationResult(self._scores, self._lengths)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, bytes and plain data to continue from."""
        return {
            "playing": [player.state_dict() for player in self._playing],
            "started": self._started,
            "scores": self._scores.tolist(),
            "lengths": self._lengths.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, of an evaluation with the same settings."""
        del self._playing[len(state["playing"]) :]
        for player, saved in zip(self._playing, state["playing"], strict=True):
            player.load_state_dict(saved)
        self._started = state["started"]
        self._scores[:], self._lengths[:] = state["scores"], state["lengths"]


def evaluate(
    act: Callable[[Tensor], Tensor],
    game: str,
    *,
    episodes: int = 100,
    epsilon: float = 0.001,
    seed: int = 0,
    envs: int = 8,
    config: EnvironmentConfig | None = None,
) -> EvaluationResult:
    """Play `episodes` whole games and return their scores.

    A lost life does not end a game, and rewards are not clipped. Exactly the first `episodes` games that are started
    count, and each is played to its end: long games are not left out. A game starts as if the console were switched on,
    and depends on `seed` and its own number alone: not on `envs`, as long as `act` gives an observation the same action
    in batches of any size. Training's environments and generators are not touched; `act` has to see to its own
    (``torch.no_grad``, evaluation mode).

    Parameters
    ----------
    act : callable
        From observations ``(B, stack, size, size)``, uint8 on the CPU, to actions ``(B,)``, on any device. It is called
        with the games whose next action is not random, at most `envs` of them.
    game : str
        Its name.
    episodes : int, default 100
        Whole games to play.
    epsilon : float, default 0.001
        Probability of a random action.
    seed : int, default 0
        Seed of no-ops and random actions.
    envs : int, default 8
        Games that are played side by side, so that one forward pass serves all of them.
    config : EnvironmentConfig or None, default None
        The protocol, or another game's settings; lost lives and clipped rewards are off in any case. Default:
        `AtariConfig`'s.

    Raises
    ------
    SettingError
        If a setting is out of its range or there is no such game.
    ValueError
        If `act` does not return one action for each observation.

    Examples
    --------
    >>> result = evaluate(
    ...     lambda observations: torch.zeros(len(observations), dtype=torch.int64),
    ...     "Pong", episodes=2, envs=2, config=AtariConfig(max_steps=100),
    ... )
    >>> result.scores.shape, result.lengths.tolist()
    ((2,), [100, 100])
    """
    games = EvaluationRun(game, episodes=episodes, epsilon=epsilon, seed=seed, envs=envs, config=config)
    while not games.done:
        games.step(act)
    return games.result()


def play_random(
    game: str, *, episodes: int = 100, seed: int = 0, config: EnvironmentConfig | None = None
) -> EvaluationResult:
    """Play whole games with actions drawn uniformly: the random baseline.

    Examples
    --------
    >>> play_random("Freeway", episodes=1, config=AtariConfig(max_steps=200)).score
    0.0
    """

    def never(observations: Tensor) -> Tensor:
        raise AssertionError("all actions are random")

    return evaluate(never, game, episodes=episodes, epsilon=1.0, seed=seed, envs=1, config=config)
