"""Plasticity probe: how well a copy of a network still learns something new."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from ht_ray._checks import check_choice, check_number
from ht_ray.diagnostics._measuring import (
    Loss,
    accumulator,
    call,
    chunks,
    count,
    isolated,
    measuring,
    take,
    trainable,
    widened,
)
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.detached_copy import computes_weight, detached_copy
from ht_ray.mechanisms.weights.fresh import fresh_weights
from ht_ray.mechanisms.weights.rng import derive_seed, generator, isolated_rng
from ht_ray.mechanisms.weights.weight_copy import named_tensors
from ht_ray.methods.method import Inputs

__all__ = ["OptimizerMaker", "Probe", "plasticity_probe", "probe_loss", "refresh"]

#: Makes an optimiser of given parameters; or an optimiser of the network, to make another one like it.
OptimizerMaker = Callable[[Iterable[nn.Parameter]], Optimizer] | Optimizer


class Probe(NamedTuple):
    """The loss that a network reached on new targets, next to that of a fresh one; tensors of shape ``()``."""

    loss: Tensor
    """Mean loss of the copy on the inputs after its training, in evaluation mode."""
    baseline: Tensor
    """The same of a freshly initialised network."""
    gap: Tensor
    """``loss - baseline``: above 0, the network learns less well than a fresh one."""


def plasticity_probe(
    module: nn.Module,
    make_optimizer: OptimizerMaker,
    inputs: Inputs,
    *,
    num_classes: int,
    steps: int = 100,
    batch_size: int = 256,
    targets: str | Tensor = "random_labels",
    seed: int = 0,
    fresh: nn.Module | Callable[[], nn.Module] | None = None,
    loss: Loss = cross_entropy,
    chunk_size: int = 256,
) -> Probe:
    """Train copies of a network and of a fresh one on new targets for a fixed budget, and compare what they reach.

    Parameters
    ----------
    module
        The network, which itself is left alone; its hooks are not copied.
    make_optimizer
        Makes the optimiser from the copy's trainable parameters; or an optimiser of `module`, of which one of the same
        class with the same settings is made, without its state. A learning rate that a schedule has changed is
        taken from before the schedule (``initial_lr``).
    inputs
        The fixed batch that is learned.
    num_classes
        Of the random labels; at most the network's number of outputs.
    steps
        Of training.
    batch_size
        Samples of each step; all, if there are fewer.
    targets
        ``"random_labels"``, uniform ones drawn with `seed`; or the targets themselves, ``(N, ...)``.
    seed
        Of labels, order, dropout and fresh weights: the same seed sets the same task, so results can be compared over
        time and between networks.
    fresh
        A freshly initialised network, or what makes one. None: `module`'s layers initialise themselves again (see
        `ht_ray.mechanisms.fresh_weights`).
    loss
        Maps outputs and targets to the mean loss of a batch.
    chunk_size
        Samples evaluated at a time.

    Raises
    ------
    SettingError
        If a setting is not accepted.
    ValueError
        If the layers cannot initialise themselves again, and there is no `fresh`.

    References
    ----------
    Lyle et al. (2023). Understanding plasticity in neural networks. arXiv:2303.01486.
    """
    settings: dict[str, Any] = {
        "num_classes": num_classes,
        "steps": steps,
        "batch_size": batch_size,
        "targets": targets,
        "seed": seed,
        "loss": loss,
        "chunk_size": chunk_size,
    }
    reached = probe_loss(module, make_optimizer, inputs, **settings)
    baseline = probe_loss(module, make_optimizer, inputs, fresh=fresh if fresh is not None else True, **settings)
    return Probe(reached, baseline, reached - baseline)


def probe_loss(
    module: nn.Module,
    make_optimizer: OptimizerMaker,
    inputs: Inputs,
    *,
    num_classes: int,
    steps: int = 100,
    batch_size: int = 256,
    targets: str | Tensor = "random_labels",
    seed: int = 0,
    fresh: nn.Module | Callable[[], nn.Module] | bool = False,
    loss: Loss = cross_entropy,
    chunk_size: int = 256,
) -> Tensor:
    """Return the loss that a copy of one network reaches, shape ``()``.

    Parameters
    ----------
    fresh
        False (default) for the weights of `module`; True for fresh ones; or where to take these from, as of
        `plasticity_probe`, as are the other parameters.
    """
    check_number("plasticity_probe: num_classes", num_classes, low=1, integer=True)
    check_number("plasticity_probe: steps", steps, low=1, integer=True)
    check_number("plasticity_probe: batch_size", batch_size, low=1, integer=True)
    check_number("plasticity_probe: chunk_size", chunk_size, low=1, integer=True)
    number = count(inputs)
    labels = _targets(targets, inputs, num_classes, seed)
    with isolated(module.parameters()), isolated_rng(derive_seed(seed, "probe: training")):
        copied = _copy_of(module)
        if fresh is not False:
            given = None if isinstance(fresh, bool) else fresh
            refresh(copied, given, derive_seed(seed, "probe: fresh weights"))
        optimizer = _optimizer(make_optimizer, module, copied)
        size = min(batch_size, number)
        draws = generator(seed, "probe: order")
        # Batches are cut across the ends of the permutations: each has the full size, as BatchNorm needs.
        rounds = -(-steps * size // number)
        order = torch.cat([torch.randperm(number, generator=draws) for _ in range(rounds)]).to(labels.device)
        copied.train()
        for step in range(steps):
            index = order[step * size : (step + 1) * size]
            optimizer.zero_grad()
            loss(widened(call(copied, take(inputs, index))), labels[index]).backward()  # type: ignore[no-untyped-call,unused-ignore]
            optimizer.step()
        total = torch.zeros((), dtype=accumulator(labels.device), device=labels.device)
        with measuring(copied), torch.no_grad():
            for chunk, part in chunks(inputs, chunk_size):
                total += loss(widened(call(copied, chunk)), labels[part]) * len(labels[part])
    return total / number


def _targets(targets: str | Tensor, inputs: Inputs, num_classes: int, seed: int) -> Tensor:
    number = count(inputs)
    if isinstance(targets, Tensor):
        if len(targets) != number:
            raise SettingError(f"plasticity_probe: {len(targets)} targets for {number} inputs: accepted is one each.")
        return targets
    check_choice("plasticity_probe: targets", targets, ["random_labels"])
    device = (inputs[0] if isinstance(inputs, tuple) else inputs).device
    return torch.randint(num_classes, (number,), generator=generator(seed, "probe: labels")).to(device)


def _copy_of(module: nn.Module) -> nn.Module:
    # Hooks belong to those who watch the original: the copy gets none, and what they refer to is not copied either.
    # Those by which torch computes a layer's weight are part of the layer.
    memo: dict[int, Any] = {
        id(value): type(value)((key, hook) for key, hook in value.items() if computes_weight(hook))
        for part in module.modules()
        for name, value in vars(part).items()
        if name.endswith("_hooks") and isinstance(value, dict)
    }
    copied = detached_copy(module, memo)
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


@torch.no_grad()
def refresh(copied: nn.Module, fresh: nn.Module | Callable[[], nn.Module] | None, seed: int) -> None:
    """Give a network fresh weights: those of `fresh`, of what it makes, or (None) of its own layers' initialisation."""
    factory = (lambda: fresh) if isinstance(fresh, nn.Module) else fresh
    new = fresh_weights(copied, seed=seed, factory=factory)
    for name, tensor in named_tensors(copied):
        tensor.copy_(new[name])


def _optimizer(make_optimizer: OptimizerMaker, module: nn.Module, copied: nn.Module) -> Optimizer:
    if not isinstance(make_optimizer, Optimizer):
        return make_optimizer(trainable(copied).values())
    copies = dict(zip(map(id, module.parameters()), copied.parameters(), strict=True))
    groups = []
    for group in make_optimizer.param_groups:
        parameters = [copies[id(parameter)] for parameter in group["params"] if id(parameter) in copies]
        if parameters:
            settings = {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
            if "initial_lr" in settings:
                settings["lr"] = settings["initial_lr"]
            groups.append({**settings, "params": parameters})
    if not groups:
        raise SettingError("plasticity_probe: the optimiser holds no parameter of the network.")
    kind = type(make_optimizer)
    accepted = inspect.signature(kind).parameters
    defaults = {key: value for key, value in make_optimizer.defaults.items() if key in accepted}
    return kind(groups, **defaults)
