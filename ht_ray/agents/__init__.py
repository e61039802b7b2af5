"""DQN-style agents on Atari-100k, without Ray.

Environments (`ht_ray.agents.envs.atari`, `ht_ray.agents.training.evaluate`: gymnasium, ale_py, OpenCV) and the replay
(`ht_ray.agents.replay`) are imported by name.
"""

from ht_ray.agents.augment import augment, shift, to_unit
from ht_ray.agents.bbf.horizon import HorizonCycle
from ht_ray.agents.bbf.spr import spr_loss
from ht_ray.agents.envs.games import ATARI_100K_GAMES, game_name
from ht_ray.agents.epsilon import EpsilonSchedule
from ht_ray.agents.networks.bbf_network import BBFNetwork, BBFNetworkConfig
from ht_ray.agents.networks.q_network import NetworkConfig, QNetwork
from ht_ray.agents.values.c51 import C51Value
from ht_ray.agents.values.losses import bootstrap_targets, td_loss
from ht_ray.agents.values.value import HLGaussValue, ScalarValue, TwoHotValue, Value, ValueConfig, make_value

__all__ = [
    "ATARI_100K_GAMES",
    "BBFNetwork",
    "BBFNetworkConfig",
    "C51Value",
    "EpsilonSchedule",
    "HLGaussValue",
    "HorizonCycle",
    "NetworkConfig",
    "QNetwork",
    "ScalarValue",
    "TwoHotValue",
    "Value",
    "ValueConfig",
    "augment",
    "bootstrap_targets",
    "game_name",
    "make_value",
    "shift",
    "spr_loss",
    "td_loss",
    "to_unit",
]
