"""Registry of agents: their classes, settings and variants, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ht_ray._deprecated import old_names
from ht_ray.agents.base import Agent
from ht_ray.agents.base_config import AgentConfig, changed_variant
from ht_ray.agents.bbf.agent import BBFAgent
from ht_ray.agents.bbf.config import BBF_VARIANTS
from ht_ray.agents.dqn.agent import DQNAgent
from ht_ray.agents.dqn.config import DQN_VARIANTS
from ht_ray.agents.drq.agent import DrQAgent
from ht_ray.agents.drq.config import VARIANTS
from ht_ray.errors import SettingError

__all__ = [
    "AGENTS",
    "AGENT_VARIANTS",
    "AgentConfig",
    "AgentKind",
    "agent_from_dict",
    "agent_variant",
    "make_agent",
    "register_agent",
]


class AgentKind(NamedTuple):
    """An agent: its class, and its variants by name, the first of which is the default."""

    agent: type[Agent]
    variants: Mapping[str, AgentConfig]

    @property
    def config(self) -> type[AgentConfig]:
        """The class of its settings."""
        return self.agent.config_class


_agents: dict[str, AgentKind] = {}
_variants: dict[str, AgentConfig] = {}

AGENTS: Mapping[str, AgentKind] = MappingProxyType(_agents)
"""All agents, by name."""

AGENT_VARIANTS: Mapping[str, AgentConfig] = MappingProxyType(_variants)
"""The variants of all agents, by name."""


def register_agent(name: str, agent: type[Agent], variants: Mapping[str, AgentConfig]) -> None:
    """Make an agent known by a name, and its variants by theirs.

    Raises
    ------
    SettingError
        If one of the names is taken.
    """
    for taken in sorted({name} & _agents.keys() | variants.keys() & _variants.keys()):
        raise SettingError(f"register_agent({name!r}): there is an agent or a variant called {taken!r} already.")
    _agents[name] = AgentKind(agent, MappingProxyType(dict(variants)))
    _variants.update(variants)


register_agent("drq", DrQAgent, VARIANTS)
register_agent("bbf", BBFAgent, BBF_VARIANTS)
register_agent("dqn", DQNAgent, DQN_VARIANTS)


def agent_from_dict(settings: Mapping[str, Any]) -> AgentConfig:
    """Return the settings that ``dataclasses.asdict`` made into `settings`, in an earlier version too.

    Raises
    ------
    SettingError
        If they are of no agent.

    Examples
    --------
    >>> from dataclasses import asdict
    >>> type(agent_from_dict(asdict(agent_variant("bbf-spr0")))).__name__
    'BBFConfig'
    """
    for kind in _agents.values():
        if settings.keys() <= kind.config.__dataclass_fields__.keys() | old_names(kind.config).keys():
            return kind.config(**settings)
    raise SettingError(f"There is no agent with the settings {', '.join(settings)}.")


def agent_variant(name: str, **changes: Any) -> AgentConfig:
    """Return one of `AGENT_VARIANTS`, with `changes`.

    Raises
    ------
    SettingError
        If there is no such variant or setting, or a setting is not accepted.

    Examples
    --------
    >>> agent_variant("bbf-spr0").spr_weight, agent_variant("drq+ht").momentum
    (0.0, 0.995)
    """
    return changed_variant(AGENT_VARIANTS, name, changes)


def make_agent(config: AgentConfig, **given: Any) -> Agent:
    """Return the agent that `config` is of.

    Parameters
    ----------
    config : AgentConfig
        Its settings.
    **given
        As in `Agent`: ``shape``, ``num_actions``, ``seed``, ``device``, ``precision``, ``compile``, ``graph``.

    Raises
    ------
    SettingError
        If no agent has such settings.

    Examples
    --------
    >>> type(make_agent(agent_variant("drq"), shape=(4, 84, 84), num_actions=6)).__name__
    'DrQAgent'
    """
    kinds = {kind.config: kind for kind in _agents.values()}
    # Of settings that are derived from another agent's, the nearest class is the agent's own.
    for cls in type(config).__mro__:
        if cls in kinds:
            return kinds[cls].agent(config, **given)
    raise SettingError(f"make_agent: {type(config).__name__}: accepted are settings of {', '.join(AGENTS)}.")
