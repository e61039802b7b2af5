"""Agents on Atari-100k, without Ray: DrQ(eps) and BBF, their networks, replay, environments and plain loop.

Names are imported when they are first used: the package alone imports neither torch nor gymnasium.
"""

# ruff: isort: skip_file

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a name as itself: it is public
    from ht_ray.agents.augmentation import augment as augment, shift as shift, to_unit as to_unit
    from ht_ray.agents.base import Agent as Agent
    from ht_ray.agents.base_config import AgentConfig as AgentConfig
    from ht_ray.agents.bbf.agent import BBFAgent as BBFAgent
    from ht_ray.agents.bbf.config import BBFConfig as BBFConfig
    from ht_ray.agents.bbf.horizon import HorizonSchedule as HorizonSchedule
    from ht_ray.agents.bbf.spr import spr_loss as spr_loss
    from ht_ray.agents.dqn.agent import DQNAgent as DQNAgent
    from ht_ray.agents.dqn.config import DQNConfig as DQNConfig
    from ht_ray.agents.drq.agent import DrQAgent as DrQAgent
    from ht_ray.agents.drq.config import DrQConfig as DrQConfig
    from ht_ray.agents.envs.atari import AtariConfig as AtariConfig
    from ht_ray.agents.envs.games import ATARI_100K_GAMES as ATARI_100K_GAMES, game_name as game_name
    from ht_ray.agents.epsilon import EpsilonSchedule as EpsilonSchedule
    from ht_ray.agents.networks.bbf_network import BBFNetwork as BBFNetwork, BBFNetworkConfig as BBFNetworkConfig
    from ht_ray.agents.networks.q_network import NetworkConfig as NetworkConfig, QNetwork as QNetwork
    from ht_ray.agents.registry import (
        AGENT_VARIANTS as AGENT_VARIANTS,
        AGENTS as AGENTS,
        agent_variant as agent_variant,
        make_agent as make_agent,
        register_agent as register_agent,
    )
    from ht_ray.agents.training.train import TrainingRun as TrainingRun, train as train
    from ht_ray.agents.values import (
        C51Value as C51Value,
        HLGaussValue as HLGaussValue,
        ScalarValue as ScalarValue,
        TwoHotValue as TwoHotValue,
        Value as Value,
        ValueConfig as ValueConfig,
        bootstrap_targets as bootstrap_targets,
        make_value as make_value,
        td_loss as td_loss,
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
    "dqn.agent": "DQNAgent",
    "dqn.config": "DQNConfig",
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

__all__ = [*_HOMES, "train"]


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
