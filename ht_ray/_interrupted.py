"""Long computations that can be left in the middle, and taken up again."""

from __future__ import annotations

__all__ = ["Interrupted"]


class Interrupted(RuntimeError):
    """Raised where training stops because it was asked to, in the middle of a part, at a point where it can be saved.

    Nothing is reported then. Called again on this object, or on one that loaded what was saved, it goes on with the
    same part, and gives what it would have given without the interruption.
    """
