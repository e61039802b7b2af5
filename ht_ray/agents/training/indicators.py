"""Plasticity indicators of an agent, at an interval of gradient steps."""

from __future__ import annotations

import torch

from ht_ray._checks import check_number
from ht_ray.agents.base import Agent
from ht_ray.agents.replay import FrameReplay
from ht_ray.diagnostics import UNLABELLED_GROUPS, IndicatorConfig, Indicators
from ht_ray.mechanisms import derive_seed

__all__ = ["AgentIndicators"]

_CONFIG = IndicatorConfig(names=UNLABELLED_GROUPS)


class AgentIndicators:
    """Measures the online network's weights, features and units (`ht_ray.diagnostics`) as training goes on.

    They are measured just before every gradient step whose number is a multiple of the interval, so that a reset which
    follows that step is not in them yet. The observations are 512, drawn uniformly from the replay with draws of their
    own, and not augmented. Training is the same with and without.

    Parameters
    ----------
    agent : Agent
        As it starts: the weights' distance is from here, also when it continues from a state that it loads later.
    replay : FrameReplay
        What it learns from.
    interval : int
        Gradient steps from one measurement to the next.

    Raises
    ------
    SettingError
        If the interval is not accepted.
    """

    def __init__(self, agent: Agent, replay: FrameReplay, interval: int) -> None:
        check_number("indicators_interval", interval, low=1, integer=True)
        self._agent, self._interval = agent, interval
        #: What it learns from; may be exchanged for another.
        self.replay = replay
        # Of the batch only the shape is looked at before a measurement brings its own.
        self._indicators = Indicators(
            _CONFIG, agent.network, torch.empty(2, 0), torch.zeros(2), num_classes=1, seed=agent.seed
        )

    @property
    def due(self) -> bool:
        """Whether they are to be measured before the next gradient step."""
        return (self._agent.updates + 1) % self._interval == 0

    def measure(self) -> dict[str, float]:
        """Return the indicators of now, by name (`ht_ray.diagnostics.INDICATORS`)."""
        seed = derive_seed(self._agent.seed, "indicators", self._agent.updates)
        indicators = self._indicators
        indicators.inputs = self._agent.inputs(self.replay.observations(_CONFIG.samples, seed=seed))
        # Of labels these indicators know nothing.
        indicators.labels = torch.zeros(_CONFIG.samples, device=self._agent.device)
        values = indicators.measure()
        indicators.inputs = torch.empty(2, 0)
        return values
