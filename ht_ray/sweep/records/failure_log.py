"""Log of trials that end badly: errors that are alike are printed a few times, and then counted."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["FailureLog", "last_line"]

# Of events that are alike, the first is printed in full, and so many in all by name.
_BY_NAME = 3
# So many tracebacks are printed in full; of later kinds of failure the last line only.
_IN_FULL = 10
_COUNTED = tuple(10**power for power in range(1, 7))


@dataclass
class _Alike:
    trial: str
    what: str
    error: str
    count: int = 0


class FailureLog:
    """Prints which trials end badly or are restarted.

    Errors are alike if their last lines are, but for numbers and the trial's name.

    Parameters
    ----------
    say
        Prints a text that stays.

    Examples
    --------
    >>> failures = FailureLog(print)
    >>> for seed in range(40):
    ...     failures.add(f"plain-seed{seed}", "failed", f"Traceback ...\\nOSError: no space left by seed {seed}")
    trial plain-seed0 failed: Traceback ...
    OSError: no space left by seed 0
    trial plain-seed1 failed: OSError: no space left by seed 1
    trial plain-seed2 failed: OSError: no space left by seed 2
    trial plain-seed9 failed, the 10th like it: OSError: no space left by seed 9
    >>> failures.close()
    trial plain-seed0 failed, and 39 more like it: OSError: no space left by seed 0
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._kinds: dict[str, _Alike] = {}

    def add(self, trial: str, what: str, error: str) -> None:
        """Note that a trial ended or was interrupted: "trial ID WHAT: ERROR"."""
        short = last_line(error)
        kind = re.sub(r"0x[0-9a-f]+|\d+", "#", f"{what}: {short}".replace(trial, "TRIAL"))
        alike = self._kinds.setdefault(kind, _Alike(trial, what, short))
        alike.count += 1
        if alike.count <= _BY_NAME:
            full = alike.count == 1 and len(self._kinds) <= _IN_FULL
            self._say(f"trial {trial} {what}: {error.rstrip() if full else short}")
        elif alike.count in _COUNTED:
            self._say(f"trial {trial} {what}, the {alike.count}th like it: {short}")

    def close(self) -> None:
        """Say how many there were of those that were not all printed."""
        for alike in self._kinds.values():
            if alike.count > _BY_NAME:
                self._say(f"trial {alike.trial} {alike.what}, and {alike.count - 1} more like it: {alike.error}")
        self._kinds.clear()


def last_line(error: str | None) -> str:
    """Return the line of a traceback that says what went wrong."""
    lines = [line.strip() for line in (error or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""
