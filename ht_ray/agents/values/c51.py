"""C51: values as distributions over a fixed support, learned from distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from ht_ray.agents.values.categorical import TwoHotValue

__all__ = ["C51Value"]


class C51Value(TwoHotValue):
    """Logits over a support of points, from ``-limit`` to ``limit``; their distribution's mean is the value.

    A target is the distribution of the next state, moved by the return and shrunk by the discount; each of its points
    is clipped to the support and shared out between the two nearest. A target that is a number is a distribution of
    one point: what `TwoHotValue` does with it.

    Parameters
    ----------
    bins : int, default 51
        Points of the support.
    limit : float, default 10.0
        The support reaches from ``-limit`` to ``limit``.

    References
    ----------
    Bellemare, Dabney and Munos (2017). A distributional perspective on reinforcement learning. arXiv:1707.06887.

    Examples
    --------
    >>> value = C51Value(bins=5, limit=2.0)
    >>> sure = torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]])
    >>> value.move(sure, torch.tensor([0.5]), torch.tensor([0.5]))
    tensor([[0., 0., 0., 1., 0.]])
    >>> value.move(sure, torch.tensor([-9.0]), torch.tensor([0.5]))
    tensor([[1., 0., 0., 0., 0.]])
    """

    positions: Tensor

    def __init__(self, *, bins: int = 51, limit: float = 10.0) -> None:
        super().__init__(bins=bins, limit=limit)
        self.register_buffer("positions", torch.arange(bins, dtype=torch.float32), persistent=False)

    def project(self, targets: Tensor) -> Tensor:
        """Return the distribution of each target, clipped to the support, over the two nearest points."""
        # Counted in points, which are whole numbers: what lies on a point, or beyond the last, is exactly there.
        places = (targets.clamp(-self.limit, self.limit) + self.limit) * ((self.bins - 1) / (2 * self.limit))
        return (1 - (places.unsqueeze(-1) - self.positions).abs()).clamp(min=0)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the distributions of logits ``(..., bins)``: the same shape, float32."""
        return outputs.float().softmax(-1)

    @torch.no_grad()
    def move(self, probabilities: Tensor, returns: Tensor, discounts: Tensor) -> Tensor:
        """Return the distributions of ``return + discount * value``, projected to the support.

        Parameters
        ----------
        probabilities : Tensor
            ``(B, bins)``: of the values of the states that are bootstrapped from.
        returns : Tensor
            ``(B,)``: the discounted sums of the rewards of n steps.
        discounts : Tensor
            ``(B,)``: ``gamma ** n``; 0 where the episode terminated within them.

        Returns
        -------
        Tensor
            ``(B, bins)``, without gradient.

        Raises
        ------
        ValueError
            If the shapes do not fit.
        """
        batch = len(probabilities)
        if probabilities.shape != (batch, self.bins) or not returns.shape == discounts.shape == (batch,):
            raise ValueError(
                f"C51Value.move: probabilities {tuple(probabilities.shape)}, returns {tuple(returns.shape)}, discounts "
                f"{tuple(discounts.shape)}: expected (B, {self.bins}), (B,), (B,)"
            )
        moved = returns.unsqueeze(1) + discounts.unsqueeze(1) * self.centres
        shares = self.project(moved)
        return (probabilities.unsqueeze(2) * shares).sum(1)

    def cross_entropy(self, outputs: Tensor, distributions: Tensor) -> Tensor:
        """Return the cross-entropy in nats of each sample, ``(B,)``, of logits to distributions, both ``(B, bins)``."""
        return -(distributions * outputs.float().log_softmax(-1)).sum(-1)
