"""The optimiser step of the plain loop: on a GPU captured once as a CUDA graph, then replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ht_ray.cuda_graph import Captured
from ht_ray.mechanisms.weights.structure import HeldParameters
from ht_ray.methods import Composition
from ht_ray.vision.data.loader import EpochDraws, InMemoryLoader
from ht_ray.vision.training.epoch_sums import EpochSums
from ht_ray.vision.training.objective import counted
from ht_ray.vision.training.optimizer import TrainingConfig, set_learning_rate, warmup_factor
from ht_ray.vision.training.precision import autocast

__all__ = ["TrainingStep", "obstacle"]

#: The type of device on which steps can be captured.
_CAPTURING = "cuda"


def obstacle(method: Composition, forward: object, config: TrainingConfig) -> str:
    """Return what stands against capturing the steps of `method` as a CUDA graph; `forward` is as in `fit`."""
    if method.not_capturable:
        return f"{' and '.join(method.not_capturable)} decides or draws on the host within a step"
    if config.objective.own:
        return "its loss or measure is a user's own"
    return "`forward` is called in place of the network" if forward is not None else ""


class TrainingStep:
    """Optimiser steps over one phase: a batch, the loss, its gradient, the update, and what the method does in it.

    On a GPU everything that is launched for a step costs the host some 10 microseconds, however small; a small network
    then waits for the host. So the step is captured as a CUDA graph, one for each size of batch, and replayed: which
    samples, which crops and which learning rate are read from tensors that are written once per epoch. What decides on
    the host stays outside of it: resets, recycling, evaluation. The first steps of a size are launched as without a
    graph. When the network, the optimiser or the tortoise has other tensors than the graph writes to, it is captured
    again.

    Results with and without a graph are the same, bit for bit, where the kernels are deterministic.

    Parameters
    ----------
    model : nn.Module
        The network, on the loader's device.
    loader : InMemoryLoader
        Of the phase, at the epoch that comes next.
    optimizer : Optimizer
        Over `model`.
    method : Composition
        Over `model`.
    config : TrainingConfig
        Learning rate and warm-up, clipping, precision.
    epochs : int
        Of the phase, for the warm-up.
    forward : callable, optional
        Called in place of `model`.
    graph : bool, default False
        Whether to capture (see `ht_ray.cuda_graph`).
    outputs : Tensor, optional
        Which of the network's outputs count in the phase: a mask, bool ``(K,)``. Default: all.
    optional : bool, default False
        Whether a step that torch cannot capture is launched as without a graph, with a warning.

    Attributes
    ----------
    loss_sum : Tensor
        ``()``, the sum over the epoch's samples of the loss, without what the method adds to it.
    correct : Tensor
        ``()``, int64: how many of them were classified correctly as they were trained on.
    seen : int
        How many there were.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: InMemoryLoader,
        optimizer: Optimizer,
        method: Composition,
        config: TrainingConfig,
        *,
        epochs: int,
        forward: Callable[[Tensor], Tensor] | None = None,
        graph: bool = False,
        optional: bool = False,
        outputs: Tensor | None = None,
    ) -> None:
        self.model = model
        self.loader = loader
        self.optimizer = optimizer
        self.method = method
        self.config = config
        self.forward = model if forward is None else forward
        device = loader.images.device
        self._device = device
        self._outputs = None if outputs is None else outputs.to(device)
        self._autocast = config.autocast
        self._total = len(loader) * epochs
        self._steps = len(loader) * (loader.epoch - 1)
        self._parameters = HeldParameters()
        self.loss_sum = torch.zeros((), device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.seen = 0
        self._sums = EpochSums()
        self._objective = config.objective
        self._kept: list[tuple[Tensor, Tensor]] = []  # for a measure of a user's own
        self._draws: EpochDraws | None = None
        # A method that may be captured reads the learning rate from the device in every step, captured or not, so that
        # both compute alike.
        self._on_device = device.type == _CAPTURING and not method.not_capturable
        rates_on_device(optimizer, device if self._on_device else None)
        if self._on_device:
            factors = [warmup_factor(step, self._total, config.warmup_ratio) for step in range(self._total)]
            self._rates = [
                torch.tensor([group["initial_lr"] * factor for factor in factors], device=device)
                for group in optimizer.param_groups
            ]
            self._position = torch.zeros(1, dtype=torch.int64, device=device)
            self._step = torch.full((1,), self._steps, device=device)
        self._graph = graph
        self._optional = optional
        self._captured: dict[int, Captured] = {}

    def begin_epoch(self) -> None:
        """Draw the order and the augmentation of the next epoch, and count from zero."""
        draws = self.loader.draw_epoch()
        if self._draws is None or not self._on_device:
            self._draws = draws
        else:
            self._draws.copy_(draws)  # where the graph reads them
        if self._on_device:
            self._position.zero_()
        self.loss_sum.zero_()
        self.correct.zero_()
        self.seen = 0
        self._kept.clear()

    def measured(self) -> float:
        """Return the measure of the epoch's batches as they were trained on: accuracy, or a user's own."""
        if not self._objective.own:
            return self.correct.item() / self.seen
        outputs, labels = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        return self._objective.measure_of(outputs, labels)

    def run(self) -> None:
        """Make one step with each batch of the epoch."""
        for start, size in self.loader.batches():
            if self._on_device:
                captured = self._captured.get(size) or self._captured.setdefault(size, self._capturing())
                batch = captured(size)["batch"]
            else:
                factor = warmup_factor(self._steps, self._total, self.config.warmup_ratio)
                set_learning_rate(self.optimizer, factor)
                batch = self._compute(size, start)["batch"]
            self.method.after_update(self.optimizer, batch)
            self.seen += size
            self._steps += 1
        if not self._on_device:
            loss_sum, correct, _ = self._sums.total()
            self.loss_sum.fill_(loss_sum)
            self.correct.fill_(correct)

    def _capturing(self) -> Captured:
        return Captured(self._compute, on=self._graph, held=self._tensors, device=self._device, optional=self._optional)

    def _tensors(self) -> list[Tensor]:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        tensors += [value for state in self.optimizer.state.values() for value in state.values()]
        if self.method.tortoise is not None:
            tensors += self.method.tortoise.weights.tensors.values()
        return tensors

    def _batch(self, start: int, size: int) -> tuple[Tensor, Tensor]:
        assert self._draws is not None
        if not self._on_device:
            return self.loader.batch(self._draws, slice(start, start + size))
        rows = torch.arange(size, device=self._device) + self._position
        self._position += size
        return self.loader.batch(self._draws, rows)

    def _compute(self, size: int, start: int = 0) -> dict[str, Tensor]:
        """Launch one step, and return its batch. Nothing in here may wait for the device.

        On the device `start` is not looked at: where the next batch starts is counted there.
        """
        if self._on_device:
            for group, rates in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"].copy_(rates.index_select(0, self._step).squeeze(0))
            self._step += 1
        batch, labels = self._batch(start, size)
        # What `Optimizer.zero_grad` does, without its entry in a profile.
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        with autocast(self._device, self._autocast):
            self.method.before_forward(batch)
            with self.method.watch():
                logits = self.forward(batch)
        outputs = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = self._objective.loss_of(counted(outputs, self._outputs), labels)
        if self._objective.own:
            self._kept.append((counted(outputs.detach(), self._outputs), labels))
        self.method.loss(loss, outputs).backward()  # type: ignore[no-untyped-call,unused-ignore]
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self._parameters(self.model), self.config.clip)
        self.method.before_step(self.optimizer)
        self.optimizer.step()
        self.method.update(self.optimizer)
        if self._on_device:
            with torch.no_grad():
                self.loss_sum += loss.detach() * size
                self.correct += (counted(logits.detach(), self._outputs).argmax(1) == labels).sum()
        else:
            self._sums.add(loss, counted(logits, self._outputs), labels)
        return {"batch": batch.detach()}


def rates_on_device(optimizer: Optimizer, device: torch.device | None) -> None:
    """Hold the learning rate of each parameter group in a tensor on `device`, or as a number with None.

    Whatever the optimiser was loaded from; its initial rate is kept in the group as ``initial_lr``.
    """
    for group in optimizer.param_groups:
        rate = float(group.setdefault("initial_lr", group["lr"]))
        group["initial_lr"] = rate
        group["lr"] = rate if device is None else torch.tensor(rate, device=device)
        group["capturable"] = device is not None
