"""DrQ(eps) on Atari-100k as an algorithm of RLlib."""

from __future__ import annotations

from typing import ClassVar

from ht_ray.rllib.agents.algorithm import AgentAlgorithm, AgentAlgorithmConfig

__all__ = ["DrQ", "DrQAlgorithmConfig"]


class DrQAlgorithmConfig(AgentAlgorithmConfig):
    """Settings of `DrQ`: a game of Atari-100k, and in ``training`` those of `ht_ray.agents.drq.config.DrQConfig`.

    The rest is as in `AgentAlgorithmConfig`.

    Examples
    --------
    >>> config = DrQAlgorithmConfig().environment("Pong").training(variant="drq+ht", momentum=0.99)
    >>> config.validate()
    >>> config.agent_config.momentum, config.agent_config.reset_interval
    (0.99, 4000)
    >>> config.training(momentun=0.99)
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: DrQAlgorithmConfig.training has no setting 'momentun'. Did you mean 'momentum'?
    """

    kind: ClassVar[str] = "drq"

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or DrQ)


class DrQ(AgentAlgorithm):
    """DrQ(eps), with Hare & Tortoise, Shrink & Perturb or Head Reset where they are set; see `AgentAlgorithm`."""

    @classmethod
    def get_default_config(cls) -> DrQAlgorithmConfig:
        """Return the default config."""
        return DrQAlgorithmConfig()
