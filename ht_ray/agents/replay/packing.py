"""Arrays and frames as compressed tensors, and files of them that are whole or refused."""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from ht_ray._files import atomic_path

__all__ = ["ReplayFileError", "pack", "read_file", "unpack", "write_file"]

_MAGIC = b"HTREPLAY"
# The magic, then length and checksum of what follows: torch.load checks no sums.
_HEADER = struct.Struct("<8sQI")


class ReplayFileError(ValueError):
    """A saved replay that is damaged, or that is none."""


def _row_bytes(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    return math.prod(shape[1:]) * np.dtype(dtype).itemsize


def pack(array: NDArray[np.generic]) -> Tensor:
    """Return `array` compressed, as uint8 of shape ``(n,)``.

    Each row is stored as what differs from the row before: of a game's frames little does, so they become several
    times smaller and faster to compress.
    """
    rows = np.frombuffer(array.tobytes(), dtype=np.uint8).reshape(len(array), _row_bytes(array.shape, array.dtype))
    changes = rows.copy()
    changes[1:] ^= rows[:-1]
    return torch.frombuffer(bytearray(zlib.compress(changes.tobytes(), 1)), dtype=torch.uint8)


def unpack(packed: Tensor, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return the array that `pack` was given, of `shape` and `dtype`.

    Raises
    ------
    ReplayFileError
        If it is not such an array, whole.
    """
    try:
        data = bytearray(zlib.decompress(packed.numpy().tobytes()))
        rows = np.frombuffer(data, dtype=np.uint8).reshape(shape[0], _row_bytes(shape, dtype))
        for before, row in pairwise(rows):  # much faster than numpy's accumulate
            row ^= before
        return rows.view(dtype).reshape(shape)
    except (zlib.error, ValueError) as error:
        raise ReplayFileError(f"a part of the saved replay is damaged: {error}") from error


def write_file(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain data to `path` at once: to a temporary name, then renamed."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, len(content), zlib.crc32(content)))
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # or a machine that fails has the new name without the new content


def read_file(path: Path) -> dict[str, Any]:
    """Read what `write_file` wrote; nothing but tensors and plain data is accepted.

    Raises
    ------
    ReplayFileError
        If the file is cut off, damaged, or not one of these.
    """
    with path.open("rb") as file:
        header, content = file.read(_HEADER.size), file.read()
    if len(header) < _HEADER.size or header[: len(_MAGIC)] != _MAGIC:
        raise ReplayFileError(f"{path} is no saved replay, or cut off")
    _, length, checksum = _HEADER.unpack(header)
    if len(content) != length or zlib.crc32(content) != checksum:
        what = "damaged" if len(content) == length else f"cut off: {len(content)} bytes where {length} were written"
        raise ReplayFileError(f"{path} is {what}; restore another copy, or go on without it")
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state
