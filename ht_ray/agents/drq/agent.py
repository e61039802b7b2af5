"""DrQ(eps): deep Q-learning on augmented frames."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ht_ray.agents.base import Agent
from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.networks.q_network import QNetwork
from ht_ray.agents.replay.batch import Batch
from ht_ray.agents.values import Value, bootstrap_targets, make_value, td_loss
from ht_ray.methods import HeadReset, Method, ShrinkPerturb

__all__ = ["DrQAgent"]


class DrQAgent(Agent):
    """Deep Q-learning on augmented frames, and Hare & Tortoise, Shrink & Perturb and Head Reset where they are set.

    At an update, in this order: Adam's step; the tortoise, which is the target network, follows; the reset that is
    due; Shrink & Perturb; Head Reset; what `DrQConfig.methods` adds. Without a momentum there is no tortoise, and the
    online network values its own next states. Parameters are those of `Agent`.

    Examples
    --------
    >>> agent = DrQAgent(DrQConfig(momentum=0.995, reset_interval=4000), shape=(4, 84, 84), num_actions=6)
    >>> agent.act(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape
    torch.Size([2])
    """

    config: DrQConfig
    config_class: ClassVar[type[DrQConfig]] = DrQConfig

    @classmethod
    def _make_network(cls, config: DrQConfig, shape: tuple[int, int, int], num_actions: int) -> QNetwork:
        bins = make_value(config.value_config).bins
        return QNetwork(num_actions, bins=bins, config=config.network_config, observation_shape=shape)

    def _make_value(self) -> Value:
        return make_value(self.config.value_config)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        return torch.optim.Adam(
            self.network.parameters(),
            lr=config.learning_rate,
            eps=config.adam_eps,
            fused=True,
            capturable=self.graph,
        )

    def _own_methods(self) -> list[Method]:
        config, own = self.config, list[Method]()
        shared: dict[str, Any] = {"toward": config.toward, "reinitialize_tortoise": config.reinitialize_tortoise}
        if config.shrink_perturb_interval is not None:
            own.append(
                ShrinkPerturb(
                    self.network,
                    interval=config.shrink_perturb_interval,
                    ratio=config.shrink_perturb_ratio,
                    seed=self.seed,
                    **shared,
                )
            )
        if config.head_reset_interval is not None:
            own.append(HeadReset(self.network, interval=config.head_reset_interval, seed=self.seed, **shared))
        return own

    @property
    def shrink_perturb(self) -> ShrinkPerturb | None:
        """Shrink & Perturb, where it is set."""
        found = self.method.by_name.get("shrink_perturb")
        return found if isinstance(found, ShrinkPerturb) else None

    @property
    def head_reset(self) -> HeadReset | None:
        """Head Reset, where it is set."""
        found = self.method.by_name.get("head_reset")
        return found if isinstance(found, HeadReset) else None

    def _measure(self, batch: Batch, draws: Tensor) -> dict[str, Tensor]:
        size = len(batch.observations)
        observations = self._augmented(batch.observations, draws[:, :size])
        following = self._augmented(batch.next_observations, draws[:, size : 2 * size])
        with torch.no_grad(), self._autocast():
            if self._forward_target is None:
                values, choosing = self.value.expectation(self._forward(following)), None
            else:
                values = self.value.expectation(self._forward_target(following))
                choosing = self.value.expectation(self._forward(following)) if self.config.double else None
        with self._training_pass(observations):
            outputs = self._forward(observations)
        targets = bootstrap_targets(batch.returns, batch.discounts, values, choosing)
        losses = td_loss(self.value, outputs, batch.actions, targets)
        loss = self.method.loss((losses * batch.weights).mean(), outputs)
        return {"loss": loss, "target": targets.mean(), "losses": losses}
