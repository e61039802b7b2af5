"""Settings of BBF, and its variants in the paper's table 1 and in its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Literal

from ht_ray._checks import check_choice, check_number
from ht_ray._deprecated import renamed
from ht_ray.agents.base_config import OLD_NAMES, AgentConfig
from ht_ray.agents.bbf.horizon import HorizonSchedule
from ht_ray.agents.networks.bbf_network import BBFNetworkConfig
from ht_ray.agents.replay.config import ReplayConfig
from ht_ray.errors import SettingError

__all__ = ["BBF_VARIANTS", "BBFConfig"]


@renamed(**OLD_NAMES)
@dataclass(frozen=True)
class BBFConfig(AgentConfig):
    """BBF with two updates per step, on Atari-100k.

    Two things take the network back, at intervals of their own. A *restart* is BBF's: every `restart_interval`
    gradient steps the encoder and the transition model are shrunk and perturbed, the head is drawn afresh, and the
    schedules of n-step and discount begin again. A *reset* is Hare & Tortoise's: every `reset_interval` gradient steps
    the online network is set to its target.

    Raises
    ------
    SettingError
        If a setting is not accepted.

    References
    ----------
    Schwarzer et al. (2023). Bigger, better, faster: human-level Atari with human-level efficiency. arXiv:2305.19452.
    Where the paper is silent, defaults are those of ``BBF.gin`` in the code published with it.

    Examples
    --------
    >>> config = BBFConfig()
    >>> config.total_updates, [update for update in range(196_001) if config.restart_is_due(update)]
    (196000, [40000, 80000, 120000])
    >>> BBFConfig(updates_per_step=3)
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: BBFConfig.updates_per_step = 3: accepted are multiples of batches_per_sample = 2.
    """

    owner: ClassVar[str] = "BBFConfig"
    own_methods: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(("shrink_perturb", "head_reset"), "a restart does both: set restart_interval")
    )

    #: Products in float32 without TF32 bound BBF's updates there: see docs/gpu.md.
    gpu_precision: ClassVar[Literal["fp32", "bf16"]] = "bf16"

    #: AdamW's weight decay, of parameters that are not 1-D; a step takes ``learning_rate * weight_decay`` of them.
    weight_decay: float = 0.1
    #: Gradient steps after each step of the agent, once learning has started: its replay ratio.
    updates_per_step: int = 2
    #: Batches that are drawn from the replay together; priorities are set when all of them were learned from.
    batches_per_sample: int = 2
    #: Steps whose rewards are summed before the value of what follows is taken: at a restart, and in the end.
    n_step_start: int = 10
    n_step: int = 3
    #: Discount of one step: at a restart, and in the end.
    discount_start: float = 0.97
    discount: float = 0.997
    #: Gradient steps from the first n-step and discount to the last.
    cycle_updates: int = 10_000
    #: Steps before the first update; the actions are random until then.
    learning_starts: int = 2000
    #: Probability of a random action in training, in the end.
    epsilon: float = 0.0
    #: Steps from a probability of 1 to `epsilon`, after `learning_starts`.
    epsilon_decay_steps: int = 2001
    #: Factor of the channels of the encoder: 16, 32, 32.
    width: float = 4.0
    #: Units of the head's hidden layer.
    hidden: int = 2048
    #: Frames held by the replay.
    replay_capacity: int = 200_000
    #: Whether transitions are drawn by their loss instead of uniformly.
    prioritized: bool = True
    #: Whether values are bootstrapped one step early with the discount of all n, and where the n-th step terminates the
    #: episode, as in the published code.
    published_n_step: bool = False
    #: "published": of a sample's transitions only the first get a priority, one for each batch: its mean loss, as in
    #: the published code, where draws stay close to uniform. None: each has its own loss.
    priorities: Literal["published"] | None = None
    #: Weight of SPR's loss; 0: there is no SPR.
    spr_weight: float = 5.0
    #: Steps that SPR looks ahead.
    spr_steps: int = 5
    #: Momentum of the target network's average: ``1 - tau``.
    momentum: float = 0.995
    #: Gradient steps from one restart to the next.
    restart_interval: int | None = 40_000
    #: The gradient steps after which there are restarts, in place of `restart_interval` and its rule.
    restarts: tuple[int, ...] | None = None
    #: The share of encoder and transition model that a restart takes from new weights.
    shrink_perturb_ratio: float = 0.5
    #: What a restart does to AdamW's state of encoder and transition model: "keep" or "clear"; the head's is cleared.
    #: The published code means to keep it, and clears it when it is run: "clear" in the variant "bbf".
    restart_optimizer_state: Literal["keep", "clear"] = "keep"
    #: Steps of the agent in the whole of training. There is no restart from which less than an interval is left.
    training_steps: int = 100_000
    #: Whether the target network chooses the actions, in training and in evaluation.
    act_with_tortoise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("batches_per_sample", "n_step_start", "cycle_updates", "spr_steps", "training_steps",
                    low=1, integer=True)  # fmt: skip
        self._check("restart_interval", low=1, integer=True, optional=True)
        self._check("discount_start", "discount", "momentum", low=0, high=1, high_open=True)
        self._check("weight_decay", "spr_weight", low=0)
        check_choice("BBFConfig.restart_optimizer_state", self.restart_optimizer_state, ["keep", "clear"])
        if self.priorities is not None:
            check_choice("BBFConfig.priorities", self.priorities, ["published"])
        if self.restarts is not None:
            object.__setattr__(self, "restarts", tuple(self.restarts))
            for update in self.restarts:
                check_number("BBFConfig.restarts", update, low=1, integer=True)
        if self.updates_per_step % self.batches_per_sample:
            raise SettingError(
                f"BBFConfig.updates_per_step = {self.updates_per_step}: accepted are multiples of batches_per_sample = "
                f"{self.batches_per_sample}."
            )
        _ = self.network_config

    @property
    def total_updates(self) -> int:
        """Gradient steps in the whole of training."""
        return max(0, self.training_steps - self.learning_starts) * self.updates_per_step

    def since_restart(self, updates: int) -> int:
        """Return how many of the first `updates` gradient steps were made since the latest restart, or the start."""
        if self.restarts is not None:
            return updates - max((update for update in self.restarts if update <= updates), default=0)
        interval = self.restart_interval
        if interval is None:
            return updates
        return updates - interval * min(updates // interval, max(0, self.total_updates // interval - 1))

    def restart_is_due(self, updates: int) -> bool:
        """Return whether a restart follows the gradient step number `updates`, counted from 1."""
        return updates > 0 and self.since_restart(updates) == 0

    @property
    def network_config(self) -> BBFNetworkConfig:
        """The shape of the network."""
        return BBFNetworkConfig(self.width, self.hidden, self.dueling, self_prediction=self.spr_weight > 0)

    @property
    def horizon(self) -> HorizonSchedule:
        """How n-step and discount go after a restart."""
        return HorizonSchedule(self.n_step_start, self.n_step, self.discount_start, self.discount, self.cycle_updates)

    def replay_config(
        self, *, stack: int, device: str = "cpu", graph: Literal["auto", "on", "off"] = "auto"
    ) -> ReplayConfig:
        """Return the settings of the replay, of observations of `stack` frames; see `BBFAgent.sampling` for draws."""
        return replace(
            super().replay_config(stack=stack, device=device, graph=graph),
            # The longest that is ever drawn, which has to fit into the capacity.
            n_step=max(self.n_step_start, self.n_step, self.spr_steps if self.spr_weight > 0 else 1),
            discount=self.discount_start,
            published_n_step=self.published_n_step,
        )


def _variants() -> dict[str, BBFConfig]:
    made = {
        # As the published code, which clears all of AdamW's state, does when it is run.
        "bbf": BBFConfig(restart_optimizer_state="clear"),
        "bbf-spr0": BBFConfig(spr_weight=0.0),
        "bbf-spr0+ht": BBFConfig(spr_weight=0.0, reset_interval=4000),
    }
    fast = {f"{name}@rr8": replace(config, updates_per_step=8) for name, config in made.items()}
    published = BBFConfig(
        restart_optimizer_state="clear", published_n_step=True, published_shift=True, priorities="published"
    )
    return {
        **made,
        **fast,
        # Restarts follow steps 20 000, 40 000, 60 000 and 80 000 of the agent, and two gradient steps each from the
        # 2001st step on.
        "bbf-published-2023": replace(published, restarts=(36_000, 76_000, 116_000, 156_000)),
        # Steps 20 001, 40 002, 60 003: the next would leave less than an interval.
        "bbf-published-2025": replace(published, restarts=(36_002, 76_004, 116_006)),
    }


#: BBF with and without SPR, and the latter with Hare & Tortoise: the agents of the paper's table 1 (arXiv 2406.02596).
#: Those called "@rr8" make 8 updates per step instead of 2 and count the same gradient steps from one restart to the
#: next: one every 5000 steps of the agent instead of every 20 000.
BBF_VARIANTS: Mapping[str, BBFConfig] = MappingProxyType(_variants())
