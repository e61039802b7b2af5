"""Sections of a replay: where the frames of one environment lie, and which of its transitions may be sampled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ACTION",
    "COLUMNS",
    "INSIDE",
    "NO_STEP",
    "OUTCOME",
    "POSITION",
    "REWARD",
    "TERMINATED",
    "TRUNCATED",
    "Section",
]

#: Columns of the table that has a row per slot: the step taken from the slot's frame, and the frame's number in its
#: episode. float64 holds all of them exactly.
ACTION, REWARD, OUTCOME, POSITION = range(4)
COLUMNS = 4
#: Outcomes of a step. A frame without a step is the newest, or its episode's last.
INSIDE, TRUNCATED, TERMINATED, NO_STEP = range(4)


class Section:
    """A ring of frames of one environment.

    Frames are numbered from 0 on, and frame f lies in slot ``base + f % size``. Transitions (frames from which a step
    was taken) are numbered likewise. Those that may be sampled are always consecutive: not the oldest, whose stack is
    overwritten, and not the newest of a running episode, whose next steps have yet to come.

    Parameters
    ----------
    table : NDArray[np.float64]
        The rows of this section, float64 of shape ``(size, COLUMNS)``, written here.
    base : int
        Slot of its first row.
    stack : int
        Frames in an observation.
    """

    def __init__(self, table: NDArray[np.float64], *, base: int, stack: int) -> None:
        self.table = table
        self.base = base
        self.size = len(table)
        self.stack = stack
        #: Frames and transitions so far, those overwritten since included.
        self.frames = 0
        self.transitions = 0
        #: Steps of the episode that runs, and whether one does.
        self.steps = 0
        self.running = False
        #: The oldest transition whose stack is whole.
        self.first = 0
        #: Frames so far when the device and the sum tree were last updated.
        self.uploaded = 0
        self.weighed = 0
        # The frame of transition t, at t % size.
        self._frame_of = np.zeros(self.size, dtype=np.int64)

    @property
    def oldest(self) -> int:
        """The oldest frame held."""
        return max(0, self.frames - self.size)

    def slots(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the slots of `frames`."""
        return self.base + frames % self.size

    def slots_since(self, frame: int) -> NDArray[np.int64]:
        """Return the slots of all frames held from `frame` on."""
        return self.slots(np.arange(max(frame, self.oldest), self.frames))

    def begin(self) -> int:
        """Start an episode, cutting one that runs; return the slot of its first frame."""
        if self.running and self.steps:
            self.table[(self.frames - 2) % self.size, OUTCOME] = TRUNCATED
        self.running = True
        self.steps = 0
        return self._append()

    def step(self, action: int, reward: float, outcome: int) -> int:
        """Record the step from the newest frame; return the slot of the frame that follows."""
        row = (self.frames - 1) % self.size
        self.table[row, :POSITION] = (action, reward, outcome)
        self._frame_of[self.transitions % self.size] = self.frames - 1
        self.transitions += 1
        self.steps += 1
        self.running = outcome == INSIDE
        return self._append()

    def _append(self) -> int:
        row = self.frames % self.size
        self.table[row] = (0, 0, NO_STEP, self.steps)
        self.frames += 1
        oldest = self.frames - self.size
        while oldest > 0 and self.first < self.transitions:
            frame = int(self._frame_of[self.first % self.size])
            if frame >= oldest + self.stack - 1:
                break
            if frame >= oldest and frame - self.table[frame % self.size, POSITION] >= oldest:
                break
            self.first += 1
        return self.base + row

    def ready(self, window: int) -> tuple[int, int]:
        """Return the range of transitions that may be sampled when `window` steps from each must be known."""
        waiting = min(self.steps, window - 1) if self.running else 0
        return self.first, max(self.first, self.transitions - waiting)

    def frames_of(self, transitions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the frames of `transitions`."""
        frames: NDArray[np.int64] = self._frame_of[transitions % self.size]
        return frames

    def changed(self, window: int, before: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the slots whose right to be sampled may have changed since `weighed`, and whether they have it.

        Parameters
        ----------
        window, before : int
            The steps that must be known from now on, and until now.
        """
        recent = max(self.oldest, self.weighed - max(window, before))
        tail = np.arange(self.oldest, min(self.oldest + self.stack, recent))
        frames = np.concatenate((tail, np.arange(recent, self.frames)))
        low, high = self.ready(window)
        if low == high:
            return self.slots(frames), np.zeros(len(frames), dtype=np.bool_)
        ends = self.frames_of(np.array((low, high - 1)))
        acted = self.table[frames % self.size, OUTCOME] != NO_STEP
        return self.slots(frames), acted & (frames >= ends[0]) & (frames <= ends[1])

    def state_dict(self) -> dict[str, int]:
        """Return the counts; the rows are saved with the table."""
        return {name: int(getattr(self, name)) for name in ("frames", "transitions", "steps", "running", "first")}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take the counts of `state_dict`, the table's rows being in place."""
        self.frames, self.transitions, self.steps = state["frames"], state["transitions"], state["steps"]
        self.running, self.first = bool(state["running"]), state["first"]
        self.uploaded = self.weighed = 0
        held = np.arange(self.oldest, self.frames)
        acted = held[self.table[held % self.size, OUTCOME] != NO_STEP]
        self._frame_of[np.arange(self.transitions - len(acted), self.transitions) % self.size] = acted
