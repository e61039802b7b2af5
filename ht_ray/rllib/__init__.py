"""Hare & Tortoise, Shrink & Perturb and Head Reset for DQN-style algorithms of RLlib (new API stack).

`HTDQNConfig` and `HTSACConfig` are ready; `with_hare_tortoise` is the one line for an own algorithm's config. Learner
mixins decide when, counted in optimiser steps; what is done is in `ht_ray.mechanisms`. `DrQ` and `BBF` are the agents
of `ht_ray.agents` on Atari-100k.
"""

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.rllib.agents.bbf import BBF, BBFAlgorithmConfig
from ht_ray.rllib.agents.drq import DrQ, DrQAlgorithmConfig
from ht_ray.rllib.hare_tortoise.config import (
    HTDQN,
    HTSAC,
    HareTortoiseConfig,
    HeadResetConfig,
    HTDQNConfig,
    HTSACConfig,
    ShrinkPerturbConfig,
    with_hare_tortoise,
)
from ht_ray.rllib.hare_tortoise.learner import HareTortoiseLearner, HeadResetLearner, PairLearner, ShrinkPerturbLearner
from ht_ray.rllib.hare_tortoise.module import ActWithTortoise
from ht_ray.rllib.hare_tortoise.network_pair import network_pair
from ht_ray.rllib.replay import NStepEpisodeReplayBuffer, ReplayAlgorithm

__all__ = [
    "BBF",
    "HTDQN",
    "HTSAC",
    "ActWithTortoise",
    "BBFAlgorithmConfig",
    "DrQ",
    "DrQAlgorithmConfig",
    "HTDQNConfig",
    "HTSACConfig",
    "HareTortoiseConfig",
    "HareTortoiseLearner",
    "HeadResetConfig",
    "HeadResetLearner",
    "NStepEpisodeReplayBuffer",
    "PairLearner",
    "ReplayAlgorithm",
    "SettingError",
    "SettingWarning",
    "ShrinkPerturbConfig",
    "ShrinkPerturbLearner",
    "network_pair",
    "with_hare_tortoise",
]
