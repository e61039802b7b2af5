"""Frames on a device, written one by one and read in stacks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.transfer import upload

__all__ = ["FrameStore"]


class FrameStore:
    """Frames by slot; memory is touched as slots are first written.

    Parameters
    ----------
    slots : int
        How many frames.
    frame_shape, dtype
        Shape and type of one frame.
    device : torch.device
        Where they are kept.
    staged : int, default 0
        How many written frames may wait on the host to be sent together, their slots all different; 0 for none, which
        only the CPU can do.

    Raises
    ------
    SettingError
        If torch has no such type.
    """

    def __init__(
        self,
        slots: int,
        frame_shape: tuple[int, ...],
        dtype: DTypeLike,
        *,
        device: torch.device,
        staged: int = 0,
    ) -> None:
        self.shape, self.dtype, self.device = frame_shape, np.dtype(dtype), device
        try:
            kind = torch.from_numpy(np.empty(0, self.dtype)).dtype
        except TypeError as error:
            raise SettingError(f"FrameReplay: frame_dtype = {self.dtype}: torch has no such type.") from error
        self.slots = slots
        # One more, of zeros, for stacks that begin before their episode.
        self._frames = torch.empty((slots + 1, *frame_shape), dtype=kind, device=device)
        self._frames[slots] = 0
        self._stage = np.empty((staged, *frame_shape), dtype=self.dtype)
        self._host = None if staged else self._frames.numpy()
        self._waiting: list[int] = []

    def write(self, slot: int, frame: NDArray[np.generic]) -> None:
        """Write one frame."""
        if self._host is not None:
            self._host[slot] = frame
            return
        if len(self._waiting) == len(self._stage):
            self.flush()
        self._stage[len(self._waiting)] = frame
        self._waiting.append(slot)

    def flush(self) -> None:
        """Send the frames that wait to the device."""
        if self._waiting:
            frames = upload(torch.from_numpy(self._stage[: len(self._waiting)]), self.device)
            self._frames.index_copy_(0, upload(torch.tensor(self._waiting), self.device), frames)
            self._waiting.clear()

    def stacks(self, slots: Tensor) -> Tensor:
        """Return the frames at `slots` (int64, any shape; the slot past the last is a frame of zeros)."""
        return self._frames.index_select(0, slots.reshape(-1)).view(*slots.shape, *self.shape)

    def read(self, slots: NDArray[np.int64]) -> NDArray[np.generic]:
        """Return a copy of the frames at `slots` on the host."""
        self.flush()
        frames: NDArray[np.generic] = self._frames[torch.from_numpy(slots).to(self.device)].cpu().numpy()
        return frames

    def fill(self, slots: NDArray[np.int64], frames: NDArray[np.generic]) -> None:
        """Write many frames, of shape ``(len(slots), *frame_shape)``, at different slots."""
        self._frames.index_copy_(0, torch.from_numpy(slots).to(self.device), torch.from_numpy(frames).to(self.device))
