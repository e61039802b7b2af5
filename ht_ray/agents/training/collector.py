"""Collector: an agent at play at one game, and a replay that keeps what is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from torch import Tensor

from ht_ray.agents.base import Sampling
from ht_ray.agents.base_config import AgentConfig
from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.envs.base import Environment, EnvironmentConfig
from ht_ray.agents.epsilon import EpsilonSchedule
from ht_ray.agents.replay import Batch, FrameReplay, make_replay
from ht_ray.mechanisms import derive_seed

__all__ = ["Collector", "Game", "make_collector"]

#: A game that ended: ``step`` (of the agent, over all games), ``score`` (unclipped) and ``steps`` (of this game).
Game = dict[str, float]


class Collector:
    """Plays a game step by step, and adds every step to a replay.

    Parameters
    ----------
    env : Environment
        The game. It is started when the first step is made, or continued by `load_state_dict`.
    replay : FrameReplay
        A replay of one environment, for frames and stacks of the game's.
    epsilon : EpsilonSchedule
        The probability of a random action, by the number of steps made.
    """

    def __init__(self, env: Environment, replay: FrameReplay, epsilon: EpsilonSchedule) -> None:
        self.env = env
        self.replay = replay
        self.epsilon = epsilon
        #: Steps so far.
        self.steps = 0
        self._observation: Any = None
        self._thread: ThreadPoolExecutor | None = None

    def step(
        self, act: Callable[[Tensor, float], Tensor], *, meanwhile: Callable[[], None] | None = None
    ) -> Game | None:
        """Make one step; the next episode, if it ended this one, is started at once.

        Parameters
        ----------
        act : callable
            From observations ``(1, stack, size, size)``, uint8, and the probability of a random action to an action,
            ``(1,)``.
        meanwhile : callable or None, default None
            Called while the game makes the step in a thread of its own; what it samples has not got the step yet, and
            `steps` counts it already.

        Returns
        -------
        dict or None
            The game, if it is over or was cut off.
        """
        if self._observation is None:
            self._start()
        action = int(act(torch.from_numpy(self._observation).unsqueeze(0), self.epsilon(self.steps)))
        self.steps += 1
        if meanwhile is None:
            made = self.env.step(action)
        else:
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="game")
            stepping = self._thread.submit(self.env.step, action)
            try:
                meanwhile()
            finally:
                made = stepping.result()
        self._observation, reward, terminated, truncated, info = made
        self.replay.add(action, reward, self._observation[-1], terminated=terminated, truncated=truncated)
        if terminated or truncated:
            self._start()
        if "score" not in info:
            return None
        return {"step": self.steps, "score": info["score"], "steps": info["steps"]}

    def ready_to_learn(self, config: AgentConfig, sampling: Sampling | None = None) -> bool:
        """Return whether updates follow the step that was made last, the replay being sampled as `sampling` says."""
        sampling = sampling or Sampling()
        drawn = self.replay.can_sample(n_step=sampling.n_step, sequence=sampling.sequence)
        return self.steps > config.learning_starts and drawn

    def learn(self, config: AgentConfig, sampling: Callable[[], Sampling], update: Callable[[Batch], Tensor]) -> None:
        """Make the updates that follow the step that was made last, if any do.

        Parameters
        ----------
        config : AgentConfig
            The agent's settings.
        sampling : callable
            Says how the replay is to be sampled now: `Agent.sampling`.
        update : callable
            Learns from a batch and returns the losses of its samples, ``(B,)``.
        """
        if not self.ready_to_learn(config, sampling()):
            return
        for _ in range(config.updates_per_step // config.batches_per_sample):
            now = sampling()
            sample = self.replay.sample(
                config.batch_size * config.batches_per_sample,
                n_step=now.n_step,
                discount=now.discount,
                sequence=now.sequence,
            )
            losses = [update(batch) for batch in sample.split(config.batch_size)]
            if config.prioritized and getattr(config, "priorities", None) == "published":
                # As the published code, which hands over all indices and one number for each batch, does.
                means = torch.stack([own.mean() for own in losses])
                self.replay.update_priorities(sample.indices[: len(means)], means)
            elif config.prioritized:
                self.replay.update_priorities(sample.indices, torch.cat(losses))

    def _start(self) -> None:
        self._observation, _ = self.env.reset()
        self.replay.start(self._observation[-1])

    def state_dict(self) -> dict[str, Any]:
        """Return game, replay and counter to continue from, in the middle of an episode."""
        return {
            "env": self.env.get_state() if self._observation is not None else {},
            "replay": self.replay.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, of the same game and replay.

        Raises
        ------
        ValueError
            If it is of another game, or of a replay with other settings.
        """
        self._observation = None
        if state["env"]:
            self.env.set_state(state["env"])
            self._observation = self.env.observation
        self.replay.load_state_dict(state["replay"])
        self.steps = state["steps"]


def make_collector(
    game: str,
    config: AgentConfig,
    *,
    seed: int,
    env: EnvironmentConfig | None = None,
    device: torch.device | str = "cpu",
    graph: Literal["auto", "on", "off"] = "auto",
) -> Collector:
    """Return the collector of an agent with `config`, at `game` under `env`, with its replay on `device`.

    `graph` is as in `FrameReplay`.

    Raises
    ------
    SettingError
        If there is no such game, or the replay is too small.
    """
    env = env or AtariConfig()
    return Collector(
        env.make(game, seed=derive_seed(seed, "training games")),
        make_replay(
            config.replay_config(stack=env.stack, device=str(device), graph=graph),
            frame_shape=(env.size, env.size),
            seed=seed,
        ),
        config.epsilon_schedule,
    )
