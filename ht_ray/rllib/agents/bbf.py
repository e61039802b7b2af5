"""BBF on Atari-100k as an algorithm of RLlib."""

from __future__ import annotations

from typing import ClassVar

from ht_ray.rllib.agents.algorithm import AgentAlgorithm, AgentAlgorithmConfig

__all__ = ["BBF", "BBFAlgorithmConfig"]


class BBFAlgorithmConfig(AgentAlgorithmConfig):
    """Settings of `BBF`: a game of Atari-100k, and in ``training`` those of `ht_ray.agents.bbf.config.BBFConfig`.

    Who trains for more or fewer than 100 000 steps sets ``training_steps``, which decides on the last restart. The rest
    is as in `AgentAlgorithmConfig`.

    Examples
    --------
    >>> config = BBFAlgorithmConfig().environment("Pong").training(variant="bbf-spr0+ht", momentum=0.99)
    >>> config.validate()
    >>> config.agent_config.spr_weight, config.agent_config.reset_interval, config.agent_config.restart_interval
    (0.0, 4000, 40000)
    >>> config.training(spr_weigth=5)
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: BBFAlgorithmConfig.training has no setting 'spr_weigth'. Did you mean 'spr_weight'?
    """

    kind: ClassVar[str] = "bbf"

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or BBF)


class BBF(AgentAlgorithm):
    """BBF, with Hare & Tortoise where it is set; see `AgentAlgorithm`."""

    @classmethod
    def get_default_config(cls) -> BBFAlgorithmConfig:
        """Return the default config."""
        return BBFAlgorithmConfig()
