"""RLlib's host of methods: config and learner mixins for its algorithms (new API stack, torch), and own algorithms.

`HTDQNConfig` and `HTSACConfig` are ready; `with_hare_tortoise` is the one line for an own algorithm with a target
network, `with_methods` for any other, as PPO. The learner mixin calls the methods of `ht_ray.methods`, counted in
optimizer steps. `DrQ` and `BBF` are the agents of `ht_ray.agents` on Atari-100k.
"""

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.rllib.agents.bbf import BBF, BBFAlgorithmConfig
from ht_ray.rllib.agents.drq import DrQ, DrQAlgorithmConfig
from ht_ray.rllib.continual import TaskCallback, TaskEnv, measure_results, over_stream
from ht_ray.rllib.methods.act_with_tortoise import ActWithTortoise
from ht_ray.rllib.methods.config import (
    HTDQN,
    HTSAC,
    HareTortoiseConfig,
    HeadResetConfig,
    HTDQNConfig,
    HTSACConfig,
    MethodsConfig,
    ShrinkPerturbConfig,
    with_hare_tortoise,
    with_methods,
)
from ht_ray.rllib.methods.learner import HareTortoiseLearner, HeadResetLearner, MethodLearner, ShrinkPerturbLearner
from ht_ray.rllib.networks import OnlineTargetPair, network_pair
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
    "MethodLearner",
    "MethodsConfig",
    "NStepEpisodeReplayBuffer",
    "OnlineTargetPair",
    "ReplayAlgorithm",
    "SettingError",
    "SettingWarning",
    "ShrinkPerturbConfig",
    "ShrinkPerturbLearner",
    "TaskCallback",
    "TaskEnv",
    "measure_results",
    "network_pair",
    "over_stream",
    "with_hare_tortoise",
    "with_methods",
]
