"""BBF: distributional Q-learning with self-prediction and restarts."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ht_ray.agents.base import Agent, Sampling
from ht_ray.agents.bbf.config import BBFConfig
from ht_ray.agents.bbf.restart import Restart
from ht_ray.agents.bbf.spr import spr_loss
from ht_ray.agents.networks.bbf_network import BBFNetwork
from ht_ray.agents.replay.batch import Batch
from ht_ray.agents.values import C51Value
from ht_ray.methods import Method, Tortoise

__all__ = ["BBFAgent"]


def _followed(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    future, actions, mask = batch.future_observations, batch.future_actions, batch.future_mask
    if future is None or actions is None or mask is None:
        raise ValueError("BBFAgent.update: SPR needs batches with the observations that follow; see sampling()")
    return future, actions, mask


class BBFAgent(Agent):
    """Distributional Q-learning on augmented frames with a model of its own latents, restarted now and then.

    At an update, in this order: AdamW's step; the tortoise, which is the target network, follows; Hare & Tortoise's
    reset that is due; the restart that is due (see `BBFConfig`), after which the schedules of n-step and discount begin
    again; what `BBFConfig.methods` adds. All are counted in gradient steps, from 1. The loss of a sample is the
    cross-entropy of its value's distribution, which is its priority, plus `BBFConfig.spr_weight` times its SPR loss,
    times its importance weight. Parameters are those of `Agent`.

    The replay is to be sampled as `sampling` says. The published code draws ``batches_per_sample`` batches at once,
    learns from one after the other, and sets their priorities then; that is not the same as drawing each batch when its
    turn comes, as what is learned from one changes what the next is drawn from. (The published code also draws two such
    samples ahead, so that priorities and schedules come late by as much. And it hands the replay the indices of both
    batches with one number for each batch, its mean loss: only the first two indices, from the oldest strata of the
    replay, get a priority, and what it draws stays close to uniform. Neither is done here; the paper describes a
    priority for each sample.)

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
    config_class: ClassVar[type[BBFConfig]] = BBFConfig
    network: BBFNetwork
    target: BBFNetwork
    value: C51Value

    def __init__(self, config: BBFConfig | None = None, **given: Any) -> None:
        super().__init__(config, **given)
        self._predict = self._compiled(self.network.predict)
        self._judge_target = self._compiled(self.target.judge)

    @classmethod
    def _make_network(cls, config: BBFConfig, shape: tuple[int, int, int], num_actions: int) -> BBFNetwork:
        return BBFNetwork(num_actions, bins=config.bins, config=config.network_config, observation_shape=shape)

    def _make_value(self) -> C51Value:
        return C51Value(bins=self.config.bins, limit=self.config.value_limit)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        decayed = [parameter for parameter in self.network.parameters() if parameter.ndim != 1]
        others = [parameter for parameter in self.network.parameters() if parameter.ndim == 1]
        return torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate,
            eps=config.adam_eps,
            fused=True,
            capturable=self.graph,
        )

    def _own_methods(self) -> list[Method]:
        config = self.config
        # A restart leaves frozen parameters alone. The target network only ever computes without gradients.
        self.target.requires_grad_()
        restart = Restart(
            self.network,
            target=self.target if config.reinitialize_tortoise else None,
            due=config.restart_is_due,
            ratio=config.shrink_perturb_ratio,
            optimizer_state=config.restart_optimizer_state,
            seed=self.seed,
        )
        return [restart]

    @property
    def tortoise(self) -> Tortoise:
        """What averages the target network, and sets the online network back to it."""
        assert self.method.tortoise is not None  # there is always a momentum
        return self.method.tortoise

    @property
    def restart(self) -> Restart:
        """What happens at a restart."""
        found = self.method.by_name["restart"]
        assert isinstance(found, Restart)
        return found

    def sampling(self) -> Sampling:
        """Return how the replay is to be sampled now: n-step and discount follow their schedules."""
        since, horizon = self.config.since_restart(self.updates), self.config.horizon
        return Sampling(
            n_step=horizon.n_step_at(since),
            discount=horizon.discount_at(since),
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
            with self._training_pass(observations):
                outputs, expected = self._predict(observations, actions)
            spr = spr_loss(expected, found.view_as(expected), mask)
        else:
            with self._training_pass(observations):
                outputs = self._forward(observations)
            spr = torch.zeros_like(batch.weights)
        losses = value.cross_entropy(outputs[rows, batch.actions], goals)
        loss = ((losses + config.spr_weight * spr) * batch.weights).mean()
        return {
            "loss": self.method.loss(loss, outputs),
            "target": (goals @ value.centres).mean(),
            "losses": losses,
            "spr_loss": spr.mean(),
        }
