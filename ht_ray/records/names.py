"""Names of metrics as people read them, in progress lines and reports."""

from __future__ import annotations

import re

__all__ = ["humanize"]


def humanize(metric: str) -> str:
    """Return ``"average accuracy"`` for ``"average_accuracy"``; ``val`` is ``validation``, and ``r2`` R2."""
    words = metric.replace("_val_", "_validation_").replace("_", " ")
    return re.sub(r"\br2\b", "R2", words)
