"""Hare & Tortoise, Shrink & Perturb and Head Reset for DQN-style algorithms of RLlib (new API stack).

`HTDQNConfig` and `HTSACConfig` are ready; `with_hare_tortoise` is the one line for an own algorithm's config. Learner
mixins decide when, counted in optimiser steps; what is done is in `ht_ray.mechanisms`. `DrQ` and `BBF` are the agents
of `ht_ray.agents` on Atari-100k.
"""

from ht_ray._checks import SettingError, SettingWarning
from ht_ray.rllib.bbf import BBF, BBFAlgorithmConfig
from ht_ray.rllib.config import (
    HTDQN,
    HTSAC,
    HareTortoiseConfig,
    HeadResetConfig,
    HTDQNConfig,
    HTSACConfig,
    ShrinkPerturbConfig,
    with_hare_tortoise,
)
from ht_ray.rllib.drq import DrQ, DrQAlgorithmConfig
from ht_ray.rllib.learner import HareTortoiseLearner, HeadResetLearner, PairLearner, ShrinkPerturbLearner
from ht_ray.rllib.module import ActWithTortoise
from ht_ray.rllib.pair import network_pair
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
