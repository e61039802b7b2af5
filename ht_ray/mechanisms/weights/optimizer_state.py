"""An optimiser's state: forgotten at a re-initialisation, or loaded to continue from."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import ASGD, LBFGS, Adagrad, Optimizer, Rprop

__all__ = ["Optimizers", "clear_optimizer_state", "each_optimizer", "forget_entries", "load_optimizer_state"]

#: A network's optimiser, or several, each with a share of its parameters.
Optimizers = Optimizer | Sequence[Optimizer]

# Settings of a parameter group that say how it is computed, which depends on the device.
_IMPLEMENTATION = ("foreach", "fused", "capturable")


def clear_optimizer_state(optimizer: Optimizers, parameters: Iterable[nn.Parameter] | None = None) -> None:
    """Forget what `optimizer` remembers of `parameters` (moments, momentum buffers, step counts).

    The next step builds the state again, as at the first step. Parameter groups, learning rates and schedules stay.
    ``LBFGS`` has one memory for all its parameters, and forgets all of it if it has any of these.

    Parameters
    ----------
    optimizer
        One optimiser or several.
    parameters
        Whose state to forget; all of the optimiser's by default. Parameters that it does not know are passed over.
    """
    chosen = None if parameters is None else list(parameters)
    for one in each_optimizer(optimizer):
        if chosen is None or (isinstance(one, LBFGS) and any(_group_of(one, parameter) for parameter in chosen)):
            one.state.clear()
        for parameter in chosen or ():
            one.state.pop(parameter, None)


def forget_entries(optimizer: Optimizers, parameter: Tensor, index: tuple[slice | Tensor, ...]) -> None:
    """Forget what `optimizer` remembers of some entries of `parameter`, whose new values are set already.

    What it holds for these entries alone becomes what it is at first: 0 for moments, momentum buffers and the factors
    of ``Adafactor``; the learning rate for the step sizes of ``Rprop``; the initial value for the sums of ``Adagrad``;
    the weights themselves for the average of ``ASGD``. What all entries share, step counts above all, stays. ``LBFGS``
    has one memory for all its parameters and forgets all of it. Of optimisers that are not torch's, state of the
    parameter's shape becomes 0.

    Parameters
    ----------
    optimizer
        One optimiser or several; those that do not know the parameter are passed over.
    parameter
        The whole of it.
    index
        Which entries: slices, and as the last one, indices along its dimension.
    """
    dim = len(index) - 1
    for one in each_optimizer(optimizer):
        group = _group_of(one, parameter)
        if group is None:
            continue
        if isinstance(one, LBFGS):
            one.state.clear()
        for name, state in one.state.get(parameter, {}).items():
            if isinstance(state, Tensor) and _is_of_entries(state, parameter, dim):
                state[index] = _first_value(one, group, name, parameter[index])


@torch.no_grad()
def load_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Continue from `state`, which ``optimizer.state_dict()`` gave, on whatever device and in whatever memory format.

    ``optimizer.load_state_dict`` keeps the strides of what it is given, and its very tensors where device and type
    fit. Fused optimisers need moments that lie in memory as their parameters do: on a GPU they refuse others, on the
    CPU they pair them with the wrong weights and say nothing. Here the optimiser gets tensors of its own, laid out as
    their parameters. How it computes (``foreach``, ``fused``, ``capturable``) is its own matter, not that of the
    state; numbers that it holds as tensors, such as a learning rate, keep their tensors and take the state's values.

    Parameters
    ----------
    optimizer
        Over parameters as those of the optimiser that was saved, in the same order.
    state
        Is left alone, and shares nothing with the optimiser afterwards.

    Raises
    ------
    ValueError
        If the parameter groups differ in number or size.

    Examples
    --------
    >>> layer = nn.Conv2d(2, 2, 2)
    >>> optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    >>> layer(torch.ones(1, 2, 2, 2)).sum().backward()
    >>> optimizer.step()
    >>> last = nn.Conv2d(2, 2, 2).to(memory_format=torch.channels_last)
    >>> other = torch.optim.Adam(last.parameters(), fused=True)
    >>> load_optimizer_state(other, optimizer.state_dict())
    >>> other.state[last.weight]["exp_avg"].stride() == last.weight.stride()
    True
    """
    own = optimizer.param_groups
    groups = [
        {**saved, **{name: kept[name] for name in _IMPLEMENTATION if name in kept}}
        for saved, kept in zip(state["param_groups"], own, strict=False)
    ]
    groups += state["param_groups"][len(own) :]  # too many: torch says so
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, before in zip(optimizer.param_groups, own, strict=True):
        for name, value in group.items():
            kept = before.get(name)
            if isinstance(kept, Tensor):
                group[name] = kept.copy_(torch.as_tensor(value))
            elif isinstance(value, Tensor) and kept is not None:
                group[name] = value.item()
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            values[name] = _laid_out(value, parameter) if isinstance(value, Tensor) else copy.deepcopy(value)


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    if value.shape != parameter.shape or value.layout != torch.strided:
        return value.clone()
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)


def each_optimizer(optimizer: Optimizers) -> Sequence[Optimizer]:
    """Return one optimiser or several as a sequence."""
    return optimizer if isinstance(optimizer, Sequence) else [optimizer]


def _group_of(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any] | None:
    for group in optimizer.param_groups:
        if any(known is parameter for known in group["params"]):
            return group
    return None


def _is_of_entries(state: Tensor, parameter: Tensor, dim: int) -> bool:
    # Of the parameter's shape, or a factor of it that has the indexed dimension.
    return (
        state.dim() == parameter.dim()
        and state.shape[dim] == parameter.shape[dim]
        and all(own in (1, whole) for own, whole in zip(state.shape, parameter.shape, strict=True))
    )


def _first_value(optimizer: Optimizer, group: Mapping[str, Any], name: str, weights: Tensor) -> Any:
    if isinstance(optimizer, Rprop) and name == "step_size":
        return group["lr"]
    if isinstance(optimizer, Adagrad) and name == "sum":
        return group["initial_accumulator_value"]
    if isinstance(optimizer, ASGD) and name == "ax":
        return weights
    return 0.0
