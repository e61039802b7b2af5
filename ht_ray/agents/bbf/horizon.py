"""Schedules of n-step and discount: how far BBF looks ahead, over the gradient steps since its latest restart."""

from __future__ import annotations

from dataclasses import dataclass

from ht_ray._checks import check_fields

__all__ = ["HorizonSchedule"]


@dataclass(frozen=True)
class HorizonSchedule:
    """BBF's schedules of n-step and discount: from their first values to their last within `updates` gradient steps.

    The n-step falls exponentially and is rounded; the discount rises as ``1 - discount`` falls exponentially. Both keep
    their last value afterwards, until a restart. The defaults are BBF's.

    Raises
    ------
    SettingError
        If a setting is out of its range.

    References
    ----------
    Schwarzer et al. (2023). Bigger, better, faster. arXiv:2305.19452. As ``exponential_decay_scheduler`` in the code
    published with it.

    Examples
    --------
    >>> schedule = HorizonSchedule()
    >>> [schedule.n_step_at(update) for update in (0, 2500, 5000, 10_000, 50_000)]
    [10, 7, 5, 3, 3]
    >>> [round(schedule.discount_at(update), 5) for update in (0, 5000, 10_000, 50_000)]
    [0.97, 0.99051, 0.997, 0.997]
    """

    #: The n-step at the start and at the end.
    n_step_start: int = 10
    n_step: int = 3
    #: The discount at the start and at the end.
    discount_start: float = 0.97
    discount: float = 0.997
    #: Gradient steps from the start to the end.
    updates: int = 10_000

    def __post_init__(self) -> None:
        check_fields(self, "n_step_start", "n_step", "updates", low=1, integer=True)
        check_fields(self, "discount_start", "discount", low=0, high=1, high_open=True)

    def n_step_at(self, update: int) -> int:
        """Return the n-step when `update` gradient steps have been made since the restart."""
        return round(self._between(self.n_step_start, self.n_step, update))

    def discount_at(self, update: int) -> float:
        """Return the discount when `update` gradient steps have been made since the restart."""
        return 1 - self._between(1 - self.discount_start, 1 - self.discount, update)

    def _between(self, start: float, end: float, update: int) -> float:
        share = min(update / self.updates, 1.0)
        return float(start * (end / start) ** share)
