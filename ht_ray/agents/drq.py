"""The DrQ(eps) agent: it acts, and learns from a batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ht_ray._checks import check_choice, check_number
from ht_ray.agents.augment import augment, to_unit
from ht_ray.agents.device import check_device
from ht_ray.agents.drq_config import DrQConfig
from ht_ray.agents.losses import bootstrap_targets, td_loss
from ht_ray.agents.networks import QNetwork
from ht_ray.agents.replay.batch import Batch
from ht_ray.agents.value import make_value
from ht_ray.mechanisms import HeadReset, ShrinkPerturb, Tortoise, derive_seed, generator, isolated_rng

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


def _on_cpu(state: Any) -> Any:
    """Return nested tensors and plain data as a snapshot on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: _on_cpu(value) for name, value in state.items()}
    return [_on_cpu(value) for value in state] if isinstance(state, list) else state


class DrQAgent:
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
    network
        What is trained, in place of a new one: as `make_network` makes it. It is moved to the device.

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
        network: QNetwork | None = None,
    ) -> None:
        check_number("DrQAgent: seed", seed, integer=True)
        check_choice("DrQAgent: precision", precision, ["fp32", "bf16"])
        self.config = config = config or DrQConfig()
        self.num_actions = num_actions
        self.seed = seed
        self.device = check_device("DrQAgent: device", device)
        self.precision = precision
        self.value = make_value(config.value_config).to(self.device)
        # On a GPU half-precision convolutions want channels last; on a CPU results are compared bit for bit.
        self._memory_format = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        if network is None:
            network = make_network(config, shape=shape, num_actions=num_actions, seed=seed)
        #: The online network, or hare.
        self.network = network.to(self.device, memory_format=self._memory_format)  # type: ignore[call-overload]
        #: The target network, or tortoise, if there is one.
        self.target = copy.deepcopy(self.network).requires_grad_(False) if config.momentum is not None else None
        self._forward = torch.compile(self.network) if compile else self.network
        self._forward_target = torch.compile(self.target) if compile and self.target is not None else self.target
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.lr, eps=config.adam_epsilon, fused=True)
        self.tortoise: Tortoise | None = None
        if self.target is not None:
            self.tortoise = Tortoise(
                self.network,
                momentum=config.momentum,
                reset_interval=config.reset_interval,
                reset_unit="steps",
                optimizer_state=config.optimizer_state,
                twin=self.target,
            )
            self.tortoise.begin_phase(steps_per_epoch=1)  # which warns of an interval too short for the momentum
        self.shrink_perturb: ShrinkPerturb | None = None
        if config.shrink_perturb_interval is not None:
            self.shrink_perturb = ShrinkPerturb(
                self.network, ratio=config.shrink_perturb_ratio, toward=config.toward, seed=seed
            )
        self.head_reset: HeadReset | None = None
        if config.head_reset_interval is not None:
            self.head_reset = HeadReset(self.network, toward=config.toward, seed=seed)
        #: Gradient steps so far.
        self.updates = 0
        #: How often `act` was called with an epsilon above 0.
        self.explorations = 0

    @torch.no_grad()
    def act(self, observations: Tensor, epsilon: float = 0.0) -> Tensor:
        """Choose actions: greedily, or at random with probability `epsilon`.

        Parameters
        ----------
        observations
            ``(B, C, H, W)``, uint8, on any device.
        epsilon
            Default 0: nothing is drawn.

        Returns
        -------
        Tensor
            ``(B,)``, int64, on the CPU.
        """
        if epsilon <= 0:
            return self._greedy(observations)
        draws = np.random.default_rng(derive_seed(self.seed, "exploration", self.explorations))
        self.explorations += 1
        explore = torch.from_numpy(draws.random(len(observations)) < epsilon)
        random = torch.from_numpy(draws.integers(self.num_actions, size=len(observations)))
        return random if bool(explore.all()) else torch.where(explore, random, self._greedy(observations))

    def _greedy(self, observations: Tensor) -> Tensor:
        tortoise = self._forward_target if self.config.act_with_tortoise else None
        with self._autocast():
            outputs = (tortoise or self._forward)(self._ready(to_unit(observations.to(self.device))))
        return self.value.expectation(outputs).argmax(1).cpu()

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Make one gradient step, and what is due after it. Nothing waits for a GPU.

        Parameters
        ----------
        batch
            On the agent's device.

        Returns
        -------
        dict
            Without gradient, on the agent's device: ``loss``, ``()``; ``target``, ``()``, the mean of the values that
            were learned; ``losses``, ``(B,)``, of each sample, for the replay's priorities.
        """
        config = self.config
        draws = generator(self.seed, "augmentation", self.updates)
        observations = self._augmented(batch.observations, draws)
        following = self._augmented(batch.next_observations, draws)
        with torch.no_grad(), self._autocast():
            if self._forward_target is None:
                values, choosing = self.value.expectation(self._forward(following)), None
            else:
                values = self.value.expectation(self._forward_target(following))
                choosing = self.value.expectation(self._forward(following)) if config.double else None
        with self._autocast():
            outputs = self._forward(observations)
        targets = bootstrap_targets(batch.returns, batch.discounts, values, choosing)
        losses = td_loss(self.value, outputs, batch.actions, targets)
        loss = (losses * batch.weights).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        if self.tortoise is not None:
            self.tortoise.step(self.optimizer)
        reinitialised = self.tortoise if config.reinitialise_tortoise else None
        for method, interval in (
            (self.shrink_perturb, config.shrink_perturb_interval),
            (self.head_reset, config.head_reset_interval),
        ):
            if method is not None and interval is not None and self.updates % interval == 0:
                method.apply(reinitialised, self.optimizer)
        return {"loss": loss.detach(), "target": targets.mean(), "losses": losses.detach()}

    def _augmented(self, observations: Tensor, draws: torch.Generator) -> Tensor:
        config = self.config
        return self._ready(augment(observations, generator=draws, padding=config.shift, intensity=config.intensity))

    def _ready(self, observations: Tensor) -> Tensor:
        return observations.contiguous(memory_format=self._memory_format)

    def _autocast(self) -> AbstractContextManager[Any]:
        bf16 = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16 if bf16 else None, enabled=bf16)

    def _methods(self) -> dict[str, Tortoise | ShrinkPerturb | HeadReset]:
        methods = {"tortoise": self.tortoise, "shrink_perturb": self.shrink_perturb, "head_reset": self.head_reset}
        return {name: method for name, method in methods.items() if method is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return a snapshot to continue from, tensors on the CPU and plain data; settings are not part of it."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{name: method.state_dict() for name, method in self._methods().items()},
            "updates": self.updates,
            "explorations": self.explorations,
        }
        return {name: _on_cpu(value) for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, of an agent of the same settings."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # it would keep the very tensors
        for name, method in self._methods().items():
            method.load_state_dict(state[name])
        self.updates, self.explorations = int(state["updates"]), int(state["explorations"])
