"""Batches: what a replay hands to an agent's update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from torch import Tensor

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """Transitions o_t, a_t, ..., o_{t+m}, on the replay's device; B is the batch size and C the stack.

    The number of steps m is the replay's n, or what was left of the episode: fewer at its end.
    """

    #: (B, C, *frame_shape), the frames' type, newest last: what the agent saw when it acted. Frames from before the
    #: episode's first are zero.
    observations: Tensor
    #: (B,) int64: a_t.
    actions: Tensor
    #: (B,) float32: sum over k < m of discount^k r_{t+k+1}.
    returns: Tensor
    #: As `observations`, at t + m.
    next_observations: Tensor
    #: (B,) float32: what the value of `next_observations` counts: discount^m, or 0 when step m terminated.
    discounts: Tensor
    #: (B,) int64: where each transition lies, for `FrameReplay.update_priorities`.
    indices: Tensor
    #: (B,) float32: importance weights, their largest 1; all 1 when sampling is uniform.
    weights: Tensor
    #: With ``sequence=K``: (B, K, C, *frame_shape), o_{t+1} to o_{t+K}; past the episode's end its last one again.
    future_observations: Tensor | None = None
    #: With ``sequence=K``: (B, K) int64, a_t to a_{t+K-1}, the actions that led there; 0 past the episode's end.
    future_actions: Tensor | None = None
    #: With ``sequence=K``: (B, K) float32, 1 where the future observation is of the same episode (its last one
    #: included), 0 past its end.
    future_mask: Tensor | None = None
    #: (B,) int64: the number of steps m, which is below n at an episode's end.
    steps: Tensor | None = None

    def split(self, size: int) -> Iterator[Batch]:
        """Yield the transitions in batches of `size`, in their order; weights are left as they are."""
        columns = self.columns()
        for start in range(0, len(self.actions), size):
            yield Batch(**{name: column[start : start + size] for name, column in columns.items()})

    def columns(self) -> dict[str, Tensor]:
        """Return the tensors that there are, by name: ``Batch(**batch.columns())`` is the same batch."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in columns.items() if column is not None}
