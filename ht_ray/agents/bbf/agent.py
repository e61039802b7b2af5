"""The BBF agent: it acts, and learns from a batch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor

from ht_ray.agents.base import Agent, Sampling
from ht_ray.agents.bbf.config import BBFConfig
from ht_ray.agents.bbf.restart import Restart
from ht_ray.agents.bbf.spr import spr_loss
from ht_ray.agents.networks.bbf_network import BBFNetwork
from ht_ray.agents.replay.batch import Batch
from ht_ray.agents.values.c51 import C51Value
from ht_ray.mechanisms import derive_seed, isolated_rng
from ht_ray.methods import Tortoise

__all__ = ["BBFAgent", "make_network"]


def make_network(config: BBFConfig, *, shape: tuple[int, int, int], num_actions: int, seed: int) -> BBFNetwork:
    """Return a new network of an agent with `config`, the same for the same seed; the rest is as in `BBFAgent`."""
    with isolated_rng(derive_seed(seed, "network")):
        return BBFNetwork(num_actions, bins=config.bins, config=config.network_config, observation_shape=shape)


def _followed(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    future, actions, mask = batch.future_observations, batch.future_actions, batch.future_mask
    if future is None or actions is None or mask is None:
        raise ValueError("BBFAgent.update: SPR needs batches with the observations that follow; see sampling()")
    return future, actions, mask


class BBFAgent(Agent):
    """Distributional Q-learning on augmented frames with a model of its own latents, restarted now and then.

    At an update, in this order: AdamW's step; the tortoise, which is the target network, follows; Hare & Tortoise's
    reset that is due; the restart that is due (see `BBFConfig`), after which the schedules of n-step and discount begin
    again. All are counted in gradient steps, from 1. The loss of a sample is the cross-entropy of its value's
    distribution, which is its priority, plus `BBFConfig.spr_weight` times its SPR loss, times its importance weight.

    The replay is to be sampled as `sampling` says. The published code draws ``batches_per_sample`` batches at once,
    learns from one after the other, and sets their priorities then; that is not the same as drawing each batch when its
    turn comes, as what is learned from one changes what the next is drawn from. (The published code also draws two such
    samples ahead, so that priorities and schedules come late by as much. And it hands the replay the indices of both
    batches with one number for each batch, its mean loss: only the first two indices, from the oldest strata of the
    replay, get a priority, and what it draws stays close to uniform. Neither is done here; the paper describes a
    priority for each sample.)

    Parameters
    ----------
    config
        Default: `BBFConfig`'s.
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
        If a setting is not accepted.

    References
    ----------
    Schwarzer et al. (2023). Bigger, better, faster: human-level Atari with human-level efficiency. arXiv:2305.19452.

    Examples
    --------
    >>> agent = BBFAgent(BBFConfig(width=0.25, hidden=16), shape=(4, 84, 84), num_actions=6)
    >>> agent.act(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape
    torch.Size([2])
    >>> agent.sampling()
    Sampling(n_step=10, discount=0.97, sequence=5)
    """

    config: BBFConfig
    network: BBFNetwork
    target: BBFNetwork
    tortoise: Tortoise
    value: C51Value

    def __init__(
        self,
        config: BBFConfig | None = None,
        *,
        shape: tuple[int, int, int],
        num_actions: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        compile: bool = False,
        graph: Literal["auto", "on", "off"] = "auto",
        network: BBFNetwork | None = None,
        average_buffers: Collection[str] = (),
    ) -> None:
        config = config or BBFConfig()
        super().__init__(config, num_actions=num_actions, seed=seed, device=device, precision=precision, graph=graph)
        self.value = C51Value(bins=config.bins, limit=config.value_limit).to(self.device)
        if network is None:
            network = make_network(config, shape=shape, num_actions=num_actions, seed=seed)
        self._take(network, compile=compile, average_buffers=average_buffers)
        # A restart leaves frozen parameters alone. The target network only ever computes without gradients.
        self.target.requires_grad_()
        self._predict = torch.compile(self.network.predict) if compile else self.network.predict
        self._judge_target = torch.compile(self.target.judge) if compile else self.target.judge
        decayed = [parameter for parameter in self.network.parameters() if parameter.ndim != 1]
        others = [parameter for parameter in self.network.parameters() if parameter.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.lr,
            eps=config.adam_epsilon,
            fused=True,
            capturable=self.graph,
        )
        #: What happens at a restart.
        self.restart = Restart(
            self.network,
            self.target if config.reinitialise_tortoise else None,
            ratio=config.shrink_perturb_ratio,
            optimizer_state=config.restart_optimizer_state,
            seed=seed,
        )
        self._horizon = config.horizon

    def sampling(self) -> Sampling:
        """Return how the replay is to be sampled now: n-step and discount follow their schedules."""
        since = self.config.since_restart(self.updates)
        return Sampling(
            n_step=self._horizon.n_step_at(since),
            discount=self._horizon.discount_at(since),
            sequence=self.config.spr_steps if self.config.spr_weight > 0 else 0,
        )

    def _measure(self, batch: Batch, draws: Tensor) -> dict[str, Tensor]:
        config, value, size = self.config, self.value, len(batch.observations)
        rows = torch.arange(size, device=self.device)
        observations = self._augmented(batch.observations, draws[:, :size])
        # The target network sees the next observations and those that SPR predicts in one pass.
        later = [batch.next_observations]
        if config.spr_weight > 0:
            future, actions, mask = _followed(batch)
            later.append(future.flatten(0, 1))
        judged = torch.cat(later)
        judged = self._augmented(judged, draws[:, size : size + len(judged)])
        with torch.no_grad(), self._autocast():
            valuing, found = self._judge_target(judged, size)
            choosing = self._forward(judged[:size]) if config.double else valuing
        best = value.expectation(choosing).argmax(1)
        goals = value.move(value.probabilities(valuing[rows, best]), batch.returns, batch.discounts)
        if config.spr_weight > 0:
            with self._autocast():
                outputs, expected = self._predict(observations, actions)
            spr = spr_loss(expected, found.view_as(expected), mask)
        else:
            with self._autocast():
                outputs = self._forward(observations)
            spr = torch.zeros_like(batch.weights)
        losses = value.cross_entropy(outputs[rows, batch.actions], goals)
        return {
            "loss": ((losses + config.spr_weight * spr) * batch.weights).mean(),
            "target": (goals @ value.centres).mean(),
            "losses": losses,
            "spr_loss": spr.mean(),
        }

    def _after_update(self) -> None:
        if self.config.restart_is_due(self.updates):
            self.restart.apply(self.optimizer)

    def _methods(self) -> dict[str, Tortoise | Restart]:
        return {"tortoise": self.tortoise, "restart": self.restart}
