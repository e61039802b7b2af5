"""The agents for RLlib: the env runner, which plays a game of Atari-100k itself, without connectors or episodes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.framework import get_device
from ray.rllib.utils.metrics import (
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
)
from torch import Tensor

from ht_ray.agents.envs.atari import AtariGame
from ht_ray.agents.training.collector import Game, make_collector

__all__ = ["COMPONENT_COLLECTOR", "AgentEnvRunner", "log_game"]

#: The part of an env runner's state that holds emulator, wrappers, counters and replay.
COMPONENT_COLLECTOR = "collector"


def log_game(metrics: Any, game: Game, window: int) -> None:
    """Log a game that ended, by its unclipped score, under RLlib's names for episodes."""
    metrics.log_value(EPISODE_RETURN_MEAN, game["score"], window=window)
    metrics.log_value(EPISODE_LEN_MEAN, game["steps"], window=window)
    metrics.log_value(EPISODE_RETURN_MIN, game["score"], reduce="min", window=window)
    metrics.log_value(EPISODE_RETURN_MAX, game["score"], reduce="max", window=window)
    metrics.log_value(NUM_EPISODES, 1, reduce="sum")
    metrics.log_value(NUM_EPISODES_LIFETIME, 1, reduce="lifetime_sum")


class AgentEnvRunner(EnvRunner, Checkpointable):
    """Steps one game and fills its replay. The algorithm lends it the learner's agent, so nothing is synchronised."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.collector = make_collector(
            self.config.env,
            self.config.agent_config,
            seed=self.config.agent_seed,
            env=self.config.atari_config,
            device=get_device(self.config, self.config.num_gpus_per_learner),
            graph=self.config.graph,
        )
        #: Chooses actions: `Agent.act`, lent by the algorithm.
        self.act: Callable[[Tensor, float], Tensor] | None = None

    def assert_healthy(self) -> None:
        """Do nothing: there is nothing that could be half made."""

    def get_spaces(self) -> dict[str, Any]:
        """Return the spaces of the game, for the module and for the environment."""
        env = cast(AtariGame, self.collector.env)
        spaces = env.observation_space, env.action_space
        return {INPUT_ENV_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    def sample(self, **kwargs: Any) -> list[Game]:
        """Make one step.

        Returns
        -------
        list of dict
            The game, if it ended.

        Raises
        ------
        RuntimeError
            If no agent was lent.
        """
        if self.act is None:
            raise RuntimeError("AgentEnvRunner.sample: no agent to act; sample through the algorithm")
        game = self.collector.step(self.act)
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED, 1, reduce="sum")
        self.metrics.log_value(NUM_EPISODES, 0, reduce="sum")  # of nothing, RLlib's sum is NaN
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, 1, reduce="lifetime_sum", with_throughput=True)
        if game is None:
            return []
        log_game(self.metrics, game, self.config.metrics_num_episodes_for_smoothing)
        return [game]

    def get_metrics(self) -> Any:
        """Return what was logged since the last call."""
        return self.metrics.reduce()

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return game and replay, in the middle of an episode."""
        if self._check_component(COMPONENT_COLLECTOR, components, not_components):
            return {COMPONENT_COLLECTOR: self.collector.state_dict()}
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`; weights in it are passed over, as the agent is the learner's."""
        if COMPONENT_COLLECTOR in state:
            self.collector.load_state_dict(state[COMPONENT_COLLECTOR])

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what this runner was made of."""
        return (), {"config": self.config}
