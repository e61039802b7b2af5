"""Statuses of trials, kinds of events and of faults: the words of a study's files.

Each member is equal to the text that stands in the files.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["EventKind", "FaultKind", "Outcome", "RunEnd", "TrialStatus"]


class TrialStatus(StrEnum):
    """How a trial stands, as its ``status.json`` has it.

    Examples
    --------
    >>> TrialStatus.FAILED == "failed", TrialStatus.FAILED.ended, TrialStatus.FAILED.complete
    (True, True, False)
    """

    UNFINISHED = "unfinished"
    """It does not run: it waits, or was cut off."""
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    """Its code raised an error, or it was restarted too often; a study that is resumed tries it again."""
    DIVERGED = "diverged"
    """Its loss is no longer finite, which is a result: it would come again."""
    STOPPED = "stopped"
    """The search of its study stopped it because it fell behind."""

    @property
    def ended(self) -> bool:
        """Whether this run of the study does nothing more for the trial."""
        return self not in (TrialStatus.UNFINISHED, TrialStatus.RUNNING)

    @property
    def complete(self) -> bool:
        """Whether no run of the study does anything more for it."""
        return self.ended and self is not TrialStatus.FAILED

    @property
    def measured(self) -> bool:
        """Whether it was run until it ended by itself."""
        return self in (TrialStatus.FINISHED, TrialStatus.DIVERGED)


class Outcome(StrEnum):
    """What came of a step of a trial's worker, which tells the driver."""

    RESUMED = "resumed"
    """The trial goes on from a checkpoint, whose reports the result has."""
    RUNNING = "running"
    """It made a report, and was saved."""
    FINISHED = "finished"
    """It made its last report, and was saved."""
    SAVED = "saved"
    """It was saved inside a part, and goes on."""
    WAITING = "waiting"
    """The storage is full or does not answer; the next step tries again."""
    DIVERGED = "diverged"
    """It ended for good."""
    FAILED = "failed"
    """Its code raised an error, which would come again."""
    FAULT = "fault"
    """Something around the trial failed. Elsewhere or later it may go on."""


class FaultKind(StrEnum):
    """What interrupted a trial."""

    WORKER_DIED = "worker died"
    OUT_OF_MEMORY = "out of memory"
    LOST_CONTACT = "lost contact"
    NODE_LOST = "node lost"
    PREEMPTED = "pre-empted"
    """Its worker was told to leave."""
    STORAGE = "storage"
    """The storage was away for longer than the study waits."""
    ERROR = "error"
    """Its own code raised one."""


class EventKind(StrEnum):
    """What a line of the journal is about."""

    RUN_STARTED = "run started"
    RUN_ENDED = "run ended"
    FAULT = "fault"
    RESUMED = "resumed"
    COPIED = "copied"
    """A member of a population took over another's state."""
    NODE_JOINED = "node joined"
    NODE_LOST = "node lost"
    CHECKPOINT_DAMAGED = "checkpoint damaged"
    FILE_DAMAGED = "file damaged"
    STORAGE = "storage"
    """The storage could not be used, or can be used again."""
    WAITING = "waiting"
    """A trial waits for memory of its GPU."""
    CALLBACK = "callback"
    """A callback of the user's own raised an error, and is called no more."""


class RunEnd(StrEnum):
    """How a run of a study ended."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"
    """It could not go on; the reason follows, after a colon."""
