"""All agents, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ht_ray.agents.base_config import changed_variant
from ht_ray.agents.bbf.config import BBF_VARIANTS, BBFConfig
from ht_ray.agents.drq.config import VARIANTS, DrQConfig
from ht_ray.errors import SettingError

__all__ = ["AGENTS", "AGENT_VARIANTS", "AgentConfig", "AgentKind", "agent_from_dict", "agent_variant"]

#: Settings of an agent.
AgentConfig = DrQConfig | BBFConfig


class AgentKind(NamedTuple):
    """An agent: the class of its settings, and its variants by name, the first of which is the default."""

    config: type[Any]
    variants: Mapping[str, Any]


#: DrQ(eps) and BBF.
AGENTS: Mapping[str, AgentKind] = MappingProxyType(
    {"drq": AgentKind(DrQConfig, VARIANTS), "bbf": AgentKind(BBFConfig, BBF_VARIANTS)}
)

#: The variants of both.
AGENT_VARIANTS: Mapping[str, AgentConfig] = MappingProxyType({**VARIANTS, **BBF_VARIANTS})


def agent_from_dict(settings: Mapping[str, Any]) -> AgentConfig:
    """Return the settings that ``dataclasses.asdict`` made into `settings`.

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
    for kind in AGENTS.values():
        if settings.keys() <= kind.config.__dataclass_fields__.keys():
            config: AgentConfig = kind.config(**settings)
            return config
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
