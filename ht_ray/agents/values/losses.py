"""Temporal-difference targets and losses of Q-learning."""

from __future__ import annotations

import torch
from torch import Tensor

from ht_ray.agents.values.value import Value

__all__ = ["bootstrap_targets", "td_loss"]


@torch.no_grad()
def bootstrap_targets(
    rewards: Tensor, discounts: Tensor, next_values: Tensor, choosing_values: Tensor | None = None
) -> Tensor:
    """Return ``reward + discount * next_values[argmax of choosing_values]``.

    Parameters
    ----------
    rewards : Tensor
        ``(B,)``: the discounted sum of the rewards of n steps.
    discounts : Tensor
        ``(B,)``: what the state after them counts, ``gamma ** n``; 0 where the episode terminated within them.
    next_values : Tensor
        ``(B, actions)``: values in that state, as the target network has them.
    choosing_values : Tensor or None, default None
        ``(B, actions)``: values by which the next action is chosen: the online network's for double Q-learning. None
        takes `next_values`, which is plain Q-learning.

    Returns
    -------
    Tensor
        ``(B,)``, without gradient.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    References
    ----------
    van Hasselt et al. (2016). Deep reinforcement learning with double Q-learning. arXiv:1509.06461.

    Examples
    --------
    >>> target, online = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 4.0]])
    >>> bootstrap_targets(torch.tensor([0.5]), torch.tensor([0.9]), target, online)
    tensor([1.4000])
    >>> bootstrap_targets(torch.tensor([0.5]), torch.tensor([0.9]), target)
    tensor([2.3000])
    """
    choosing = next_values if choosing_values is None else choosing_values
    batch = len(next_values)
    if not (rewards.shape == discounts.shape == (batch,) and next_values.shape == choosing.shape):
        raise ValueError(
            f"bootstrap_targets: rewards {tuple(rewards.shape)}, discounts {tuple(discounts.shape)}, next_values "
            f"{tuple(next_values.shape)}, choosing_values {tuple(choosing.shape)}: expected (B,), (B,), (B, actions)"
        )
    best = choosing.argmax(1, keepdim=True)
    return rewards + discounts * next_values.gather(1, best).squeeze(1)


def td_loss(value: Value, outputs: Tensor, actions: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each sample: of the outputs for the actions taken, against the targets.

    Parameters
    ----------
    value : Value
        How outputs are values.
    outputs : Tensor
        ``(B, actions, bins)``, as `QNetwork` gives them.
    actions : Tensor
        ``(B,)``, whole numbers.
    targets : Tensor
        ``(B,)``.

    Returns
    -------
    Tensor
        ``(B,)``: not averaged, for importance weights and priorities.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    batch = len(outputs)
    if outputs.ndim != 3 or outputs.shape[2] != value.bins or not actions.shape == targets.shape == (batch,):
        raise ValueError(
            f"td_loss: outputs {tuple(outputs.shape)}, actions {tuple(actions.shape)}, targets {tuple(targets.shape)}: "
            f"expected (B, actions, {value.bins}), (B,), (B,)"
        )
    taken = outputs[torch.arange(batch, device=outputs.device), actions]
    return value.loss(taken, targets)
