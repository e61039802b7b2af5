"""Metrics that keep their last value, for what is not measured in every iteration."""

from __future__ import annotations

from typing import Any

from ray.rllib.utils.metrics.metrics_logger import DEFAULT_STATS_CLS_LOOKUP
from ray.rllib.utils.metrics.stats import MeanStats

__all__ = ["LAST", "LastStats"]

#: The reduction of `LastStats`: ``metrics.log_value(key, value, reduce=LAST)``.
LAST = "ht_ray_last"


class LastStats(MeanStats):
    """The value that was logged last, until there is another one; of several learners, the mean of theirs.

    What RLlib logs with ``window=1`` is NaN in every iteration in which it is not logged, and the mean of all that was
    logged in the others.
    """

    stats_cls_identifier = LAST

    def push(self, value: Any) -> None:
        """Take the place of the value before."""
        self._set_values([])
        super().push(value)

    def merge(self, incoming_stats: list[MeanStats]) -> None:
        """Take the values of the learners in place of those before."""
        self._set_values([])
        super().merge(incoming_stats)

    def reduce(self, compile: bool = True) -> Any:
        """Return the value, and keep it."""
        kept = list(self.values)
        reduced = super().reduce(compile)
        self._set_values(kept)
        return reduced


# Loggers and configs look reductions up in this very dictionary, which RLlib means to be extended.
DEFAULT_STATS_CLS_LOOKUP[LAST] = LastStats
