"""Numerics of a trial: a GPU's, as its study sets them, while the trial trains."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar

from ht_ray.numerics import numerics

__all__ = ["computed_as_set"]


class _Trial(Protocol):
    config: dict[str, Any]


_T = TypeVar("_T", bound=_Trial)
_R = TypeVar("_R")


def computed_as_set(advance: Callable[[_T], _R]) -> Callable[[_T], _R]:
    """Let `advance` of a trial compute as its configuration's ``numerics`` say; without any, as torch does."""

    @wraps(advance)
    def wrapped(trial: _T) -> _R:
        chosen = trial.config.get("numerics")
        if chosen is None:
            return advance(trial)
        if chosen["deterministic"]:
            # Read when the process first multiplies matrices on a GPU, which is in `advance`.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        with numerics(**chosen):
            return advance(trial)

    return wrapped
