"""What all agents have in common: acting, augmenting, precision, and their state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ht_ray._checks import check_choice, check_number
from ht_ray.agents.augment import augment_with, draw_augmentation, to_unit
from ht_ray.agents.device import check_device
from ht_ray.agents.replay.batch import Batch
from ht_ray.agents.values.value import Value
from ht_ray.agents.variants import AgentConfig
from ht_ray.cuda_graph import Captured, use_graph
from ht_ray.mechanisms import derive_seed, generator, load_optimizer_state
from ht_ray.mechanisms.weights.detached_copy import detached_copy
from ht_ray.mechanisms.weights.transfer import upload
from ht_ray.methods import Tortoise

__all__ = ["Agent", "Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How the replay is to be sampled for an agent's next updates: what `FrameReplay.sample` takes."""

    #: None: the replay's own.
    n_step: int | None = None
    #: None: the replay's own.
    discount: float | None = None
    #: How many of the observations that follow are needed too.
    sequence: int = 0


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def _on_cpu(state: Any) -> Any:
    """Return nested tensors and plain data as a snapshot on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: _on_cpu(value) for name, value in state.items()}
    return [_on_cpu(value) for value in state] if isinstance(state, list) else state


class Agent(ABC):
    """An agent that learns the values of actions: it acts, and learns from a batch.

    Weights, augmentation and random actions are drawn from generators of their own, by `seed` and what was done so far.
    Acting and evaluating leave no trace in training.

    Parameters
    ----------
    config
        Its settings.
    num_actions
        How many there are.
    seed
        Of every draw.
    device
        Where the networks are; batches have to be there.
    precision
        ``"fp32"``, or ``"bf16"`` for autocast; weights, average and losses stay in 32 bits.
    graph
        ``"auto"``, ``"on"`` or ``"off"``: whether what an update does on the GPU runs as one CUDA graph, and so does
        the choice of actions. Results are the same; the few updates that capture one wait for the GPU. ``"auto"``: on a
        GPU. See `ht_ray.cuda_graph.Captured`.

    Raises
    ------
    SettingError
        If a setting is not accepted.
    """

    #: The online network, or hare.
    network: nn.Module
    #: The target network, or tortoise, if there is one.
    target: nn.Module | None
    #: Averages the target network, and sets the online network back to it.
    tortoise: Tortoise | None
    #: How the network's outputs are values.
    value: Value
    optimizer: torch.optim.Optimizer
    # What computes, which may be compiled.
    _forward: Callable[[Tensor], Tensor]
    _forward_target: Callable[[Tensor], Tensor] | None

    def __init__(
        self,
        config: AgentConfig,
        *,
        num_actions: int,
        seed: int,
        device: torch.device | str,
        precision: Literal["fp32", "bf16"],
        graph: Literal["auto", "on", "off"],
    ) -> None:
        name = type(self).__name__
        check_number(f"{name}: seed", seed, integer=True)
        check_choice(f"{name}: precision", precision, ["fp32", "bf16"])
        self.config = config
        self.num_actions = num_actions
        self.seed = seed
        self.device = check_device(f"{name}: device", device)
        self.precision = precision
        #: Whether there are CUDA graphs.
        self.graph = use_graph(f"{name}: graph", graph, self.device)
        self._graph_optional = graph == "auto"
        # On a GPU half-precision convolutions want channels last; on a CPU results are compared bit for bit.
        self._memory_format = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        #: Gradient steps so far.
        self.updates = 0
        #: How often `act` was called with an epsilon above 0.
        self.explorations = 0

    def _take(self, network: nn.Module, *, compile: bool, average_buffers: Collection[str]) -> None:
        """Train `network`, and make its target and what averages it, if the settings have a momentum."""
        config = self.config
        self.network = network.to(self.device, memory_format=self._memory_format)  # type: ignore[call-overload]
        self.target = detached_copy(self.network).requires_grad_(False) if config.momentum is not None else None
        self._forward = torch.compile(self.network) if compile else self.network
        self._forward_target = torch.compile(self.target) if compile and self.target is not None else self.target
        self.tortoise = None
        if self.target is not None:
            self.tortoise = Tortoise(
                self.network,
                momentum=config.momentum,
                reset_interval=config.reset_interval,
                reset_unit="steps",
                optimizer_state=config.optimizer_state,
                average_buffers=average_buffers,
                twin=self.target,
            )
            self.tortoise.begin_phase(steps_per_epoch=1)  # which warns of an interval too short for the momentum
        networks = (self.network,) if self.target is None else (self.network, self.target)
        self._tensors = [tensor for each in networks for tensor in chain(each.parameters(), each.buffers())]
        self._choose = Captured(self._choices, on=self.graph, held=self._networks, optional=self._graph_optional)
        self._step = Captured(self._gradient_step, on=self.graph, held=self._trained, optional=self._graph_optional)

    def _networks(self) -> list[Tensor]:
        return self._tensors

    def _trained(self) -> list[Tensor]:
        return [*self._tensors, *chain.from_iterable(state.values() for state in self.optimizer.state.values())]

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Make one gradient step, and what is due after it. Nothing waits for a GPU.

        Parameters
        ----------
        batch
            On the agent's device, drawn as `sampling` says.

        Returns
        -------
        dict
            Without gradient, on the agent's device: ``loss``, ``()``; ``target``, ``()``, the mean of the values that
            were learned; ``losses``, ``(B,)``, of each sample's value, for the replay's priorities. BBF adds
            ``spr_loss``, ``()``: the mean, before its weight.

        Raises
        ------
        ValueError
            If the batch lacks the observations that follow, and SPR needs them.
        """
        rates = (group["lr"] for group in self.optimizer.param_groups)
        measured = self._step(*rates, **batch.columns(), draws=upload(self._draws(batch), self.device))
        self.updates += 1
        if self.tortoise is not None:
            self.tortoise.count_step(self.optimizer)
        self._after_update()
        return measured

    def _draws(self, batch: Batch) -> Tensor:
        """Draw the augmentation of all observations: those of `batch`, the next ones, those that follow."""
        draws = generator(self.seed, "augmentation", self.updates)
        counts = [len(batch.observations), len(batch.next_observations)]
        if batch.future_actions is not None:
            counts.append(batch.future_actions.numel())
        config = self.config
        drawn = (
            draw_augmentation(n, generator=draws, padding=config.shift, intensity=config.intensity) for n in counts
        )
        return torch.cat(list(drawn), dim=1)

    def _gradient_step(self, *_rates: float, draws: Tensor, **columns: Tensor) -> dict[str, Tensor]:
        # All that an update does on the device. By the learning rates one captured step is told from another.
        measured = self._measure(Batch(**columns), draws)
        self.optimizer.zero_grad()
        measured["loss"].backward()
        self.optimizer.step()
        if self.tortoise is not None:
            self.tortoise.average()
        return {name: value.detach() for name, value in measured.items()}

    @abstractmethod
    def _measure(self, batch: Batch, draws: Tensor) -> dict[str, Tensor]:
        """Return what `update` does, on a batch that is augmented as `draws` say; ``loss`` with its gradient."""

    @abstractmethod
    def _after_update(self) -> None:
        """Do what is due after gradient step number `updates`, the tortoise's reset having been done."""

    def sampling(self) -> Sampling:
        """Return how the replay is to be sampled for the next updates."""
        return Sampling()

    @abstractmethod
    def _methods(self) -> Mapping[str, _Stateful]:
        """Return what has a state besides network and optimiser, by name."""

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
        return self._choose(observations=upload(observations, self.device))["actions"].cpu()

    def _choices(self, *, observations: Tensor) -> dict[str, Tensor]:
        forward = self._forward
        if self.config.act_with_tortoise and self._forward_target is not None:
            forward = self._forward_target
        with self._autocast():
            outputs = forward(self._ready(to_unit(observations)))
        return {"actions": self.value.expectation(outputs).argmax(1)}

    def _augmented(self, observations: Tensor, draws: Tensor) -> Tensor:
        return self._ready(augment_with(observations, draws, padding=self.config.shift))

    def _ready(self, observations: Tensor) -> Tensor:
        return observations.contiguous(memory_format=self._memory_format)

    def _autocast(self) -> AbstractContextManager[Any]:
        bf16 = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16 if bf16 else None, enabled=bf16)

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
        load_optimizer_state(self.optimizer, state["optimizer"])
        for name, method in self._methods().items():
            method.load_state_dict(state[name])
        self.updates, self.explorations = int(state["updates"]), int(state["explorations"])
