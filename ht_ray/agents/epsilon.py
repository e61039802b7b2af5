"""Epsilon: how often an agent acts at random, over its steps."""

from __future__ import annotations

from dataclasses import dataclass

from ht_ray._checks import check_number

__all__ = ["EpsilonSchedule"]


@dataclass(frozen=True)
class EpsilonSchedule:
    """1 until learning starts, then linearly down to the final value (Dopamine's ``linearly_decaying_epsilon``).

    The defaults are DrQ(eps)'s.

    Raises
    ------
    SettingError
        If a setting is out of its range.

    Examples
    --------
    >>> epsilon = EpsilonSchedule()
    >>> epsilon(0), epsilon(1600), round(epsilon(4100), 6), epsilon(6600), epsilon(100_000)
    (1.0, 1.0, 0.505, 0.01, 0.01)
    """

    #: What it ends at.
    final: float = 0.01
    #: Steps from 1 to there.
    decay_steps: int = 5000
    #: Steps before, with 1.
    warmup_steps: int = 1600

    def __post_init__(self) -> None:
        check_number("EpsilonSchedule.final", self.final, low=0, high=1)
        check_number("EpsilonSchedule.decay_steps", self.decay_steps, low=1, integer=True)
        check_number("EpsilonSchedule.warmup_steps", self.warmup_steps, low=0, integer=True)

    def __call__(self, step: int) -> float:
        """Return the probability of a random action when `step` steps have been made."""
        left = (self.warmup_steps + self.decay_steps - step) / self.decay_steps
        return self.final + (1 - self.final) * min(max(left, 0.0), 1.0)
