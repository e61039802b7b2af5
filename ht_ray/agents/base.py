"""Agents: acting, augmenting, precision, the update with its methods, and their state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ht_ray._checks import check_choice, check_number
from ht_ray._device import check_device
from ht_ray.agents.augmentation import augment_with, draw_augmentation, to_unit
from ht_ray.agents.base_config import PRECISIONS, AgentConfig, Precision
from ht_ray.agents.replay.batch import Batch
from ht_ray.agents.values import Value
from ht_ray.cuda_graph import Captured, use_graph
from ht_ray.errors import SettingError
from ht_ray.mechanisms import derive_seed, generator, isolated_rng, load_optimizer_state
from ht_ray.mechanisms.weights.detached_copy import detached_copy
from ht_ray.mechanisms.weights.transfer import upload
from ht_ray.methods import Composition, HareTortoise, Method, Phase, Tortoise

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


def _on_cpu(state: Any) -> Any:
    """Return nested tensors and plain data as a snapshot on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: _on_cpu(value) for name, value in state.items()}
    return [_on_cpu(value) for value in state] if isinstance(state, list) else state


class Agent(ABC):
    """An agent that learns the values of actions: it acts, and learns from a batch.

    What is done to keep its network plastic is done by `method`: Hare & Tortoise, whose tortoise is the target network,
    where there is a momentum, the methods that the agent has settings of its own for, and those that
    `AgentConfig.methods` names. All count gradient steps, from 1, and act at an update in their fixed order; see
    `ht_ray.methods.Composition`.

    Weights, augmentation and random actions are drawn from generators of their own, by `seed` and what was done so far.
    Acting and evaluating leave no trace in training.

    An agent is one class: `config_class`, `_make_network`, `_make_value`, `_make_optimizer`, `_own_methods` and
    `_measure`; `ht_ray.agents.registry.register_agent` makes it known by a name.

    Parameters
    ----------
    config : AgentConfig or None, default None
        Its settings; None: the defaults of `config_class`.
    shape : tuple of int
        Shape of an observation, ``(C, H, W)``.
    num_actions : int
        Number of actions.
    seed : int, default 0
        Seed of every draw.
    device : torch.device or str, default "cpu"
        Where the networks are; batches have to be there.
    precision : {"auto", "fp32", "bf16"}, default "auto"
        ``"bf16"`` is autocast; weights, average and losses stay in 32 bits. ``"auto"``: on a GPU the config's
        `AgentConfig.gpu_precision` (BBF: bf16), elsewhere fp32; and what a state that is loaded was begun with.
    compile : bool, default False
        Whether the networks run through ``torch.compile``.
    graph : {"auto", "on", "off"}, default "auto"
        Whether what an update does on the GPU runs as one CUDA graph, and so does the choice of actions. Results are
        the same; the few updates that capture one wait for the GPU. ``"auto"``: on a GPU, unless a method cannot be
        captured. See `ht_ray.cuda_graph.Captured`.
    network : nn.Module or None, default None
        What is trained, in place of a new network. It is moved to the device.
    average_buffers : collection of str, default ()
        Which of its buffers the target network averages besides running statistics; see `Tortoise`.

    Raises
    ------
    SettingError
        If a setting is not accepted, the device is not there, or a method cannot act on the network, be compiled
        (``compile=True``) or be captured (``graph="on"``).
    """

    #: The class of its settings.
    config_class: ClassVar[type[AgentConfig]]

    #: The online network, or hare.
    network: nn.Module
    #: The target network, or tortoise, if there is one.
    target: nn.Module | None
    #: How the network's outputs are values.
    value: Value
    #: What keeps the network plastic.
    method: Composition
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        config: AgentConfig | None = None,
        *,
        shape: tuple[int, int, int],
        num_actions: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        precision: Precision = "auto",
        compile: bool = False,
        graph: Literal["auto", "on", "off"] = "auto",
        network: nn.Module | None = None,
        average_buffers: Collection[str] = (),
    ) -> None:
        name = type(self).__name__
        check_number(f"{name}: seed", seed, integer=True)
        check_choice(f"{name}: precision", precision, PRECISIONS)
        config = config or self.config_class()
        self.config = config
        self.num_actions = num_actions
        self.seed = seed
        self.device = check_device(f"{name}: device", device)
        self._any_precision = precision == "auto"
        if precision == "auto":
            precision = config.gpu_precision if self.device.type == "cuda" else "fp32"
        #: In which networks compute: "fp32" or "bf16".
        self.precision: str = precision
        # On a GPU half-precision convolutions want channels last; on a CPU results are compared bit for bit.
        self._memory_format = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        #: Gradient steps so far.
        self.updates = 0
        #: How often `act` was called with an epsilon above 0.
        self.explorations = 0
        self.value = self._make_value().to(self.device)
        if network is None:
            network = self.make_network(config, shape=shape, num_actions=num_actions, seed=seed)
        self.network = network.to(self.device, memory_format=self._memory_format)  # type: ignore[call-overload]
        self.target = detached_copy(self.network).requires_grad_(False) if config.momentum is not None else None
        self.method = Composition(self.network, self._make_methods(average_buffers))
        if compile and self.method.watching:
            raise SettingError(
                f"{name}: compile = True: {' and '.join(self.method.watching)} looks at activations, which a compiled "
                "network does not show; accepted is False."
            )
        #: Whether there are CUDA graphs.
        self.graph = use_graph(f"{name}: graph", graph, self.device, obstacle=self._obstacle())
        self.optimizer = self._make_optimizer()
        # It warns of an interval too short for the momentum.
        self.method.before_phase(Phase(steps_per_epoch=1), self.optimizer)
        self._recent: deque[Tensor] = deque(maxlen=self._remembered())
        self._compile = compile
        self._forward: Callable[[Tensor], Tensor] = self._compiled(self.network)
        self._forward_target: Callable[[Tensor], Tensor] | None = (
            None if self.target is None else self._compiled(self.target)
        )
        networks = (self.network,) if self.target is None else (self.network, self.target)
        self._tensors = [tensor for each in networks for tensor in chain(each.parameters(), each.buffers())]
        optional = graph == "auto"
        self._choose = Captured(self._choices, on=self.graph, held=lambda: self._tensors, optional=optional)
        self._step = Captured(self._gradient_step, on=self.graph, held=self._trained, optional=optional)

    @classmethod
    def make_network(
        cls, config: AgentConfig, *, shape: tuple[int, int, int], num_actions: int, seed: int = 0
    ) -> nn.Module:
        """Return a new network of an agent with `config`, the same for the same seed."""
        with isolated_rng(derive_seed(seed, "network")):
            return cls._make_network(config, shape, num_actions)

    @classmethod
    @abstractmethod
    def _make_network(cls, config: Any, shape: tuple[int, int, int], num_actions: int) -> nn.Module:
        """Return a network with a ``backbone`` and a ``head``."""

    @abstractmethod
    def _make_value(self) -> Value:
        """Return how the network's outputs are values."""

    @abstractmethod
    def _make_optimizer(self) -> torch.optim.Optimizer:
        """Return what trains the network: ``fused``, and ``capturable`` where there are graphs."""

    @abstractmethod
    def _own_methods(self) -> Sequence[Method]:
        """Return the methods that the agent has settings of its own for, besides Hare & Tortoise."""

    def _make_methods(self, average_buffers: Collection[str]) -> list[Method]:
        config, made = self.config, list[Method]()
        if self.target is not None:
            tortoise = HareTortoise(
                self.network,
                target=self.target,
                momentum=config.momentum,
                reset_interval=config.reset_interval,
                reset_unit="steps",
                momentum_warmup=config.momentum_warmup,
                reset_only=config.reset_only,
                reset_schedule=config.reset_schedule,
                optimizer_state=config.optimizer_state,
                average_buffers=tuple(average_buffers),
            )
            made.append(tortoise)
        made += self._own_methods()
        if (added := config.method_config) is not None:
            made += added.build(self.network, seed=self.seed).methods
        return made

    def _obstacle(self) -> str:
        names = self.method.not_capturable
        return f"{' and '.join(names)} decides or draws on the host within an update" if names else ""

    def _remembered(self) -> int:
        # A method asks for the last batches when training goes on; here, for how many.
        counts = [0]

        def count(batches: int) -> tuple[()]:
            counts.append(batches)
            return ()

        self.method.resume(count)
        return max(counts)

    @property
    def tortoise(self) -> Tortoise | None:
        """What averages the target network, and sets the online network back to it."""
        return self.method.tortoise

    def _compiled(self, function: Any) -> Any:
        return torch.compile(function) if self._compile else function

    def _trained(self) -> list[Tensor]:
        return [*self._tensors, *chain.from_iterable(state.values() for state in self.optimizer.state.values())]

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Make one gradient step, and what is due after it. Nothing waits for a GPU.

        Parameters
        ----------
        batch : Batch
            Transitions on the agent's device, drawn as `sampling` says.

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
        measured = self._step(self.precision, *rates, **batch.columns(), draws=upload(self._draws(batch), self.device))
        self.updates += 1
        self.method.after_update(self.optimizer)
        return measured

    def _draws(self, batch: Batch) -> Tensor:
        """Draw the augmentation of all observations: those of `batch`, the next ones, those that follow."""
        draws = generator(self.seed, "augmentation", self.updates)
        counts = [len(batch.observations), len(batch.next_observations)]
        if batch.future_actions is not None:
            counts.append(batch.future_actions.numel())
        config = self.config
        drawn = (
            draw_augmentation(
                n,
                generator=draws,
                padding=config.shift,
                intensity=config.intensity,
                inclusive=not config.published_shift,
            )
            for n in counts
        )
        return torch.cat(list(drawn), dim=1)

    def _gradient_step(self, *_fixed: Hashable, draws: Tensor, **columns: Tensor) -> dict[str, Tensor]:
        # All that an update does on the device. A captured step is known by precision and learning rates.
        measured = self._measure(Batch(**columns), draws)
        self.optimizer.zero_grad()
        measured["loss"].backward()
        self.method.before_step(self.optimizer)
        self.optimizer.step()
        self.method.update(self.optimizer)
        return {name: value.detach() for name, value in measured.items()}

    @abstractmethod
    def _measure(self, batch: Batch, draws: Tensor) -> dict[str, Tensor]:
        """Return what `update` does, on a batch that is augmented as `draws` say; ``loss`` with its gradient.

        The online network learns from the batch inside `_training_pass`, and ``loss`` is what `method` makes of it.
        """

    @contextmanager
    def _training_pass(self, observations: Tensor) -> Iterator[None]:
        """Let the methods see a batch and what the online network computes of it, in the precision of the agent."""
        self.method.before_forward(observations)
        self._recent.append(observations)
        with self._autocast(), self.method.watch():
            yield

    def sampling(self) -> Sampling:
        """Return how the replay is to be sampled for the next updates."""
        return Sampling()

    @torch.no_grad()
    def act(self, observations: Tensor, epsilon: float = 0.0) -> Tensor:
        """Choose actions: greedily, or at random with probability `epsilon`.

        Parameters
        ----------
        observations : Tensor
            Observations ``(B, C, H, W)``, uint8, on any device.
        epsilon : float, default 0.0
            Probability of a random action; with 0 nothing is drawn.

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
        return self._choose(self.precision, observations=upload(observations, self.device))["actions"].cpu()

    def _choices(self, *_fixed: Hashable, observations: Tensor) -> dict[str, Tensor]:
        forward = self._forward
        if self.config.act_with_tortoise and self._forward_target is not None:
            forward = self._forward_target
        with self._autocast():
            outputs = forward(self._ready(self.inputs(observations)))
        return {"actions": self.value.expectation(outputs).argmax(1)}

    def inputs(self, observations: Tensor) -> Tensor:
        """Return observations, as the replay holds them, as the networks take them: frames in [0, 1]."""
        return to_unit(observations)

    def _augmented(self, observations: Tensor, draws: Tensor) -> Tensor:
        return self._ready(augment_with(observations, draws, padding=self.config.shift))

    def _ready(self, observations: Tensor) -> Tensor:
        return observations.contiguous(memory_format=self._memory_format)

    def _autocast(self) -> AbstractContextManager[Any]:
        bf16 = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16 if bf16 else None, enabled=bf16)

    def state_dict(self, *, weights: bool = True) -> dict[str, Any]:
        """Return a snapshot to continue from, tensors on the CPU and plain data; settings are not part of it.

        Parameters
        ----------
        weights : bool, default True
            Whether the weights of both networks are part of it. False: who holds the networks saves and loads them.
        """
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "methods": self.method.state_dict(),
            "recent": list(self._recent),
            "updates": self.updates,
            "explorations": self.explorations,
            "precision": self.precision,
        }
        if not weights:
            del state["network"]
            if self.tortoise is not None:
                del state["methods"][self.tortoise.name]["weights"]
        return {name: _on_cpu(value) for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, of an agent of the same settings; networks that are not part of it stay."""
        methods = dict(state["methods"])
        if "network" in state:
            self.network.load_state_dict(state["network"])
        elif self.tortoise is not None:
            name = self.tortoise.name
            methods[name] = {**methods[name], "weights": self.tortoise.weights.state_dict()}
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.method.end_phase()  # which forgets batches that were seen here
        self.method.load_state_dict(methods)
        self._recent.clear()
        self._recent.extend(observations.to(self.device) for observations in state["recent"])
        self.method.resume(lambda count: list(self._recent)[-count:])
        if self._any_precision:
            self.precision = state.get("precision", "fp32")  # as it was everywhere before it was noted
        self.updates, self.explorations = int(state["updates"]), int(state["explorations"])
