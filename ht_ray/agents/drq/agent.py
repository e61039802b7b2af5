"""The DrQ(eps) agent: it acts, and learns from a batch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from ht_ray.agents.base import Agent
from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.networks.q_network import QNetwork
from ht_ray.agents.replay.batch import Batch
from ht_ray.agents.values.losses import bootstrap_targets, td_loss
from ht_ray.agents.values.value import make_value
from ht_ray.mechanisms import derive_seed, isolated_rng
from ht_ray.methods import HeadReset, ShrinkPerturb, Tortoise

__all__ = ["DrQAgent", "make_network"]


def make_network(config: DrQConfig, *, shape: tuple[int, int, int], num_actions: int, seed: int) -> QNetwork:
    """Return a new network of an agent with `config`, the same for the same seed; the rest is as in `DrQAgent`."""
    with isolated_rng(derive_seed(seed, "network")):
        return QNetwork(
            num_actions,
            bins=make_value(config.value_config).bins,
            config=config.network_config,
            observation_shape=shape,
        )


class DrQAgent(Agent):
    """Deep Q-learning on augmented frames, and Hare & Tortoise, Shrink & Perturb and Head Reset where they are set.

    At an update, in this order: Adam's step; the tortoise, which is the target network, follows; the reset that is
    due; Shrink & Perturb; Head Reset. All are counted in gradient steps, from 1. Without a momentum there is no
    tortoise, and the online network values its own next states.

    Weights, augmentation and random actions are drawn from generators of their own, by `seed` and what was done so far.
    Acting and evaluating leave no trace in training.

    Parameters
    ----------
    config
        Default: `DrQConfig`'s.
    shape
        Of an observation: ``(C, H, W)``.
    num_actions
        How many there are.
    seed
        Of every draw.
    device
        Where the networks are; batches have to be there.
    precision
        ``"fp32"``, or ``"bf16"`` for autocast; weights, average and losses stay in 32 bits.
    compile
        Whether the networks run through ``torch.compile``.
    graph
        ``"auto"``, ``"on"`` or ``"off"``: see `Agent`.
    network
        What is trained, in place of a new one: as `make_network` makes it. It is moved to the device.
    average_buffers
        Which of its buffers the target network averages besides running statistics; see `Tortoise`.

    Raises
    ------
    SettingError
        If a setting is not accepted, or the device is not there.

    Examples
    --------
    >>> agent = DrQAgent(DrQConfig(momentum=0.995, reset_interval=4000), shape=(4, 84, 84), num_actions=6)
    >>> agent.act(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape
    torch.Size([2])
    """

    config: DrQConfig

    def __init__(
        self,
        config: DrQConfig | None = None,
        *,
        shape: tuple[int, int, int],
        num_actions: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        compile: bool = False,
        graph: Literal["auto", "on", "off"] = "auto",
        network: QNetwork | None = None,
        average_buffers: Collection[str] = (),
    ) -> None:
        config = config or DrQConfig()
        super().__init__(config, num_actions=num_actions, seed=seed, device=device, precision=precision, graph=graph)
        self.value = make_value(config.value_config).to(self.device)
        if network is None:
            network = make_network(config, shape=shape, num_actions=num_actions, seed=seed)
        self._take(network, compile=compile, average_buffers=average_buffers)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=config.lr, eps=config.adam_epsilon, fused=True, capturable=self.graph
        )
        self.shrink_perturb: ShrinkPerturb | None = None
        if config.shrink_perturb_interval is not None:
            self.shrink_perturb = ShrinkPerturb(
                self.network, ratio=config.shrink_perturb_ratio, toward=config.toward, seed=seed
            )
        self.head_reset: HeadReset | None = None
        if config.head_reset_interval is not None:
            self.head_reset = HeadReset(self.network, toward=config.toward, seed=seed)

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
        with self._autocast():
            outputs = self._forward(observations)
        targets = bootstrap_targets(batch.returns, batch.discounts, values, choosing)
        losses = td_loss(self.value, outputs, batch.actions, targets)
        return {"loss": (losses * batch.weights).mean(), "target": targets.mean(), "losses": losses}

    def _after_update(self) -> None:
        config = self.config
        reinitialised = self.tortoise if config.reinitialise_tortoise else None
        for method, interval in (
            (self.shrink_perturb, config.shrink_perturb_interval),
            (self.head_reset, config.head_reset_interval),
        ):
            if method is not None and interval is not None and self.updates % interval == 0:
                method.apply(reinitialised, self.optimizer)

    def _methods(self) -> dict[str, Tortoise | ShrinkPerturb | HeadReset]:
        methods = {"tortoise": self.tortoise, "shrink_perturb": self.shrink_perturb, "head_reset": self.head_reset}
        return {name: method for name, method in methods.items() if method is not None}
