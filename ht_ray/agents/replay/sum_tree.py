"""Sum tree: draws in proportion to weights that change, a whole batch at a time."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ht_ray._checks import check_number

__all__ = ["SumTree"]

# 100,000 leaves lie 3 levels deep; one gather per level costs less than the 17 of a binary tree.
_CHILDREN = 64


class SumTree:
    """Weights by index, and the index at which their running sum passes a point.

    Sums are float64 and always computed from the level below, so they do not drift.

    Parameters
    ----------
    size : int
        How many weights; all are 0 at first.
    device : torch.device or str, default "cpu"
        Where they are kept. Nothing here waits for it.

    Raises
    ------
    SettingError
        If `size` is below 1.

    Examples
    --------
    >>> tree = SumTree(4)
    >>> tree.update(torch.tensor([1, 3]), torch.tensor([2.0, 6.0]))
    >>> tree.find(torch.tensor([0.0, 1.9, 2.0, 7.9], dtype=torch.float64))
    tensor([1, 1, 3, 3])
    """

    def __init__(self, size: int, *, device: torch.device | str = "cpu") -> None:
        check_number("SumTree: size", size, low=1, integer=True)
        self.size = size
        #: Weights by leaf, and the sums of each further level; they are changed in place.
        self.levels: list[Tensor] = []
        nodes = size
        while not self.levels or nodes > 1:
            nodes = -(-nodes // _CHILDREN)
            self.levels.append(torch.zeros(nodes, _CHILDREN, dtype=torch.float64, device=device))

    @property
    def total(self) -> Tensor:
        """The sum of all weights, a float64 scalar on the device."""
        return self.levels[-1][0].cumsum(0)[-1]

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return the weights at `indices` (int64, any shape), float64."""
        return self.levels[0].view(-1)[indices]

    def update(self, indices: Tensor, weights: Tensor) -> None:
        """Set the weights at `indices`.

        Parameters
        ----------
        indices : Tensor
            int64, shape ``(n,)``. An index may come repeatedly if its weight does.
        weights : Tensor
            At least 0, finite; shape ``(n,)``.
        """
        self.levels[0].view(-1)[indices] = weights.to(torch.float64)
        for lower, upper in pairwise(self.levels):
            indices = indices.div(_CHILDREN, rounding_mode="floor")
            # The last of the running sums that `find` will look at, not a sum in another order.
            upper.view(-1)[indices] = lower[indices].cumsum(1)[:, -1]

    def find(self, points: Tensor) -> Tensor:
        """Return for each point the index i with ``sum(weights[:i]) <= point < sum(weights[:i + 1])``, up to rounding.

        Parameters
        ----------
        points : Tensor
            float64, shape ``(n,)``, in [0, `total`). Whatever the rounding, no index of weight 0 is returned, unless
            all weights are 0.

        Returns
        -------
        Tensor
            int64, shape ``(n,)``.
        """
        nodes = torch.zeros_like(points, dtype=torch.int64)
        zero = points.new_zeros(())
        for level in reversed(self.levels):
            sums = level[nodes].cumsum(1)
            # Strictly below the node's sum, the child found has a weight of its own.
            points = torch.minimum(points, torch.nextafter(sums[:, -1], zero))
            child = (sums <= points.unsqueeze(1)).sum(1)
            passed = sums.gather(1, (child - 1).clamp_(min=0).unsqueeze(1)).squeeze(1)
            points = torch.where(child > 0, points - passed, points)
            nodes = nodes * _CHILDREN + child
        return nodes
