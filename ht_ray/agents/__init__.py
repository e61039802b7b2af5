"""Agents on Atari-100k, without Ray: DrQ(eps) and BBF, their networks, replay, environments and plain loop.

Names are imported when they are first used: the package alone imports neither torch nor gymnasium.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ht_ray.agents.augmentation import augment, shift, to_unit
    from ht_ray.agents.base import Agent
    from ht_ray.agents.base_config import AgentConfig
    from ht_ray.agents.bbf.agent import BBFAgent
    from ht_ray.agents.bbf.config import BBFConfig
    from ht_ray.agents.bbf.horizon import HorizonSchedule
    from ht_ray.agents.bbf.spr import spr_loss
    from ht_ray.agents.drq.agent import DrQAgent
    from ht_ray.agents.drq.config import DrQConfig
    from ht_ray.agents.envs.atari import AtariConfig
    from ht_ray.agents.envs.games import ATARI_100K_GAMES, game_name
    from ht_ray.agents.epsilon import EpsilonSchedule
    from ht_ray.agents.networks.bbf_network import BBFNetwork, BBFNetworkConfig
    from ht_ray.agents.networks.q_network import NetworkConfig, QNetwork
    from ht_ray.agents.registry import AGENT_VARIANTS, AGENTS, agent_variant, make_agent, register_agent
    from ht_ray.agents.training.train import TrainingRun, train
    from ht_ray.agents.values import (
        C51Value,
        HLGaussValue,
        ScalarValue,
        TwoHotValue,
        Value,
        ValueConfig,
        bootstrap_targets,
        make_value,
        td_loss,
    )

# Where each name is.
_MODULES = {
    "augmentation": "augment shift to_unit",
    "base": "Agent",
    "base_config": "AgentConfig",
    "bbf.agent": "BBFAgent",
    "bbf.config": "BBFConfig",
    "bbf.horizon": "HorizonSchedule",
    "bbf.spr": "spr_loss",
    "drq.agent": "DrQAgent",
    "drq.config": "DrQConfig",
    "envs.atari": "AtariConfig",
    "envs.games": "ATARI_100K_GAMES game_name",
    "epsilon": "EpsilonSchedule",
    "networks.bbf_network": "BBFNetwork BBFNetworkConfig",
    "networks.q_network": "NetworkConfig QNetwork",
    "registry": "AGENTS AGENT_VARIANTS agent_variant make_agent register_agent",
    "training.train": "TrainingRun",
    "values": "C51Value HLGaussValue ScalarValue TwoHotValue Value ValueConfig bootstrap_targets make_value td_loss",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = [
    "AGENTS",
    "AGENT_VARIANTS",
    "ATARI_100K_GAMES",
    "Agent",
    "AgentConfig",
    "AtariConfig",
    "BBFAgent",
    "BBFConfig",
    "BBFNetwork",
    "BBFNetworkConfig",
    "C51Value",
    "DrQAgent",
    "DrQConfig",
    "EpsilonSchedule",
    "HLGaussValue",
    "HorizonSchedule",
    "NetworkConfig",
    "QNetwork",
    "ScalarValue",
    "TrainingRun",
    "TwoHotValue",
    "Value",
    "ValueConfig",
    "agent_variant",
    "augment",
    "bootstrap_targets",
    "game_name",
    "make_agent",
    "make_value",
    "register_agent",
    "shift",
    "spr_loss",
    "td_loss",
    "to_unit",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "train":  # a module that can be called, since there is a command of this name
        return import_module(f"{__name__}.train")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
