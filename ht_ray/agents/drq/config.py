"""Settings of DrQ(eps), and the agents of the paper's table 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from ht_ray._checks import check_choice, check_number
from ht_ray.agents.base_config import MOST, changed_variant
from ht_ray.agents.epsilon import EpsilonSchedule
from ht_ray.agents.networks.q_network import NetworkConfig
from ht_ray.agents.replay.config import ReplayConfig
from ht_ray.agents.values.value import ValueConfig
from ht_ray.errors import SettingError

__all__ = ["VARIANTS", "DrQConfig", "drq_variant"]


@dataclass(frozen=True)
class DrQConfig:
    """DrQ(eps) and what is done to keep it plastic. The defaults are Atari-100k's, and nothing is done.

    Raises
    ------
    SettingError
        If a setting is not accepted.

    References
    ----------
    Kostrikov et al. (2021). Image augmentation is all you need. arXiv:2004.13649.
    Agarwal et al. (2021). Deep reinforcement learning at the edge of the statistical precipice. arXiv:2108.13264.

    Examples
    --------
    >>> DrQConfig(reset_interval=4000)
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: DrQConfig.reset_interval = 4000 without momentum: there is no tortoise to reset to.
    """

    #: Adam's learning rate.
    lr: float = 1e-4
    #: Adam's epsilon.
    adam_epsilon: float = 1.5e-4
    #: Transitions in an update.
    batch_size: int = 32
    #: Gradient steps after each step of the agent, once learning has started.
    updates_per_step: int = 1
    #: Steps whose rewards are summed before the value of what follows is taken.
    n_step: int = 10
    #: Of one step.
    discount: float = 0.99
    #: Steps before the first update; the actions are random until then.
    learning_starts: int = 1600
    #: Probability of a random action in training, in the end.
    epsilon: float = 0.01
    #: Steps from a probability of 1 to `epsilon`, after `learning_starts`.
    epsilon_decay_steps: int = 5000
    #: Probability of a random action in evaluation.
    evaluation_epsilon: float = 0.001
    #: How values are represented: "scalar", "two_hot" or "hl_gauss".
    value: Literal["scalar", "two_hot", "hl_gauss"] = "scalar"
    #: Size of the support of a categorical value, which reaches from ``-value_limit`` to ``value_limit``.
    bins: int = 51
    #: See `bins`.
    value_limit: float = 10.0
    #: Units of the head's hidden layer.
    hidden: int = 512
    #: Whether the head adds a state's value and its actions' advantages.
    dueling: bool = True
    #: Whether the next action is chosen by the online network and valued by the target network.
    double: bool = True
    #: Whether hidden layers are normalised.
    layer_norm: bool = False
    #: Padding of the convolutions: "valid" or, as Dopamine has it, "same".
    padding: Literal["valid", "same"] = "valid"
    #: Largest random shift of the frames, in pixels.
    shift: int = 4
    #: Standard deviation of the random factor of their brightness.
    intensity: float = 0.05
    #: Frames held by the replay. The default holds every step of Atari-100k, and the episodes' first frames.
    replay_capacity: int = 120_000
    #: Whether transitions are drawn by their loss instead of uniformly.
    prioritised: bool = False
    #: Of the target network's average: ``1 - tau``. None: there is none, the online network is its own target.
    momentum: float | None = None
    #: Gradient steps from one reset of the online network (the hare) to its target (the tortoise) to the next.
    reset_interval: int | None = None
    #: What a reset does to Adam's state: "keep" or "clear".
    optimizer_state: Literal["keep", "clear"] = "keep"
    #: Gradient steps from one Shrink & Perturb to the next.
    shrink_perturb_interval: int | None = None
    #: The share of Shrink & Perturb that is taken from new weights.
    shrink_perturb_ratio: float = 0.8
    #: Gradient steps from one Head Reset to the next.
    head_reset_interval: int | None = None
    #: What Shrink & Perturb and Head Reset go to: "fresh" weights or the "initial" ones.
    toward: Literal["fresh", "initial"] = "fresh"
    #: Whether they act on the target network as on the online one.
    reinitialise_tortoise: bool = True
    #: Whether the target network chooses the actions, in training and in evaluation.
    act_with_tortoise: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "adam_epsilon"):
            check_number(f"DrQConfig.{name}", getattr(self, name), low=0, low_open=True)
        for name in ("batch_size", "updates_per_step", "n_step", "epsilon_decay_steps", "hidden", "replay_capacity"):
            check_number(f"DrQConfig.{name}", getattr(self, name), low=1, high=MOST.get(name, math.inf), integer=True)
        for name in ("discount", "epsilon", "evaluation_epsilon", "shrink_perturb_ratio"):
            check_number(f"DrQConfig.{name}", getattr(self, name), low=0, high=1)
        for name in ("learning_starts", "shift"):
            check_number(f"DrQConfig.{name}", getattr(self, name), low=0, high=MOST.get(name, math.inf), integer=True)
        check_number("DrQConfig.intensity", self.intensity, low=0)
        check_number("DrQConfig.bins", self.bins, low=2, high=MOST["bins"], integer=True)
        check_number("DrQConfig.value_limit", self.value_limit, low=0, low_open=True)
        check_choice("DrQConfig.value", self.value, ["scalar", "two_hot", "hl_gauss"])
        check_choice("DrQConfig.padding", self.padding, ["valid", "same"])
        check_choice("DrQConfig.optimizer_state", self.optimizer_state, ["keep", "clear"])
        check_choice("DrQConfig.toward", self.toward, ["fresh", "initial"])
        for name in ("reset_interval", "shrink_perturb_interval", "head_reset_interval"):
            if getattr(self, name) is not None:
                check_number(f"DrQConfig.{name}", getattr(self, name), low=1, integer=True)
        if self.momentum is not None:
            check_number("DrQConfig.momentum", self.momentum, low=0, high=1, high_open=True)
        elif self.reset_interval is not None:
            raise SettingError(
                f"DrQConfig.reset_interval = {self.reset_interval} without momentum: there is no tortoise to reset to."
            )
        elif self.act_with_tortoise:
            raise SettingError("DrQConfig.act_with_tortoise = True without momentum: there is no tortoise to act.")

    @property
    def batches_per_sample(self) -> int:
        """Batches that are drawn from the replay together."""
        return 1

    @property
    def network_config(self) -> NetworkConfig:
        """The shape of the network."""
        return NetworkConfig(hidden=self.hidden, dueling=self.dueling, layer_norm=self.layer_norm, padding=self.padding)

    @property
    def value_config(self) -> ValueConfig:
        """How values are represented."""
        return ValueConfig(self.value, bins=self.bins, limit=self.value_limit)

    @property
    def epsilon_schedule(self) -> EpsilonSchedule:
        """How often actions are random, over the steps of training."""
        return EpsilonSchedule(self.epsilon, self.epsilon_decay_steps, self.learning_starts)

    def replay_config(
        self, *, stack: int, device: str = "cpu", graph: Literal["auto", "on", "off"] = "auto"
    ) -> ReplayConfig:
        """Return the settings of the replay, of observations of `stack` frames."""
        return ReplayConfig(
            capacity=self.replay_capacity,
            batch_size=self.batch_size,
            n_step=self.n_step,
            discount=self.discount,
            stack=stack,
            prioritised=self.prioritised,
            device=device,
            graph=graph,
        )


_HARE_TORTOISE: dict[str, Any] = {"momentum": 0.995, "reset_interval": 4000}

#: The agents of the paper's table 1 (arXiv 2406.02596). How often Shrink & Perturb acts is not stated there: every
#: 20 000 gradient steps, as its more frequent Head Reset.
VARIANTS: Mapping[str, DrQConfig] = MappingProxyType(
    {
        "drq": DrQConfig(),
        "drq+sp": DrQConfig(shrink_perturb_interval=20_000),
        "drq+ht": DrQConfig(**_HARE_TORTOISE),
        "drq+hr20k": DrQConfig(head_reset_interval=20_000),
        "drq+hr40k": DrQConfig(head_reset_interval=40_000),
        "drq+hr40k+ht": DrQConfig(head_reset_interval=40_000, **_HARE_TORTOISE),
    }
)


def drq_variant(name: str, **changes: Any) -> DrQConfig:
    """Return one of `VARIANTS`, with `changes`.

    Raises
    ------
    SettingError
        If there is no such variant or setting, or a setting is not accepted.

    Examples
    --------
    >>> drq_variant("drq+ht", momentum=0.99).reset_interval
    4000
    >>> drq_variant("drq-ht")
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: variant = 'drq-ht': accepted are 'drq', 'drq+sp', 'drq+ht', 'drq+hr20k', 'drq+hr40k', \
'drq+hr40k+ht'. Did you mean 'drq+ht'?
    """
    return changed_variant(VARIANTS, name, changes)
