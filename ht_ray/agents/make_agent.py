"""The agent of some settings."""

from __future__ import annotations

from typing import Any

from ht_ray.agents.base import Agent
from ht_ray.agents.bbf.agent import BBFAgent
from ht_ray.agents.bbf.config import BBFConfig
from ht_ray.agents.drq.agent import DrQAgent
from ht_ray.agents.variants import AgentConfig

__all__ = ["make_agent"]


def make_agent(config: AgentConfig, **given: Any) -> Agent:
    """Return a `DrQAgent` or a `BBFAgent`, whichever `config` is of.

    Parameters
    ----------
    config
        Its settings.
    **given
        As both take them: ``shape``, ``num_actions``, ``seed``, ``device``, ``precision``, ``compile``,
        ``graph``.

    Examples
    --------
    >>> from ht_ray.agents.variants import agent_variant
    >>> type(make_agent(agent_variant("drq"), shape=(4, 84, 84), num_actions=6)).__name__
    'DrQAgent'
    """
    return BBFAgent(config, **given) if isinstance(config, BBFConfig) else DrQAgent(config, **given)
