"""Tensor cache on disk, whose files know what they were made from.

One file holds a header (JSON: format, fingerprint of the source, where each tensor lies, a digest of the tensors) and
the tensors' bytes, ready to be mapped into memory. It is plain data, never pickle. Readers trust nothing: the header
and the bytes carry digests, and a file that does not match is built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ht_ray._files import atomic_path

__all__ = ["CacheError", "Contents", "cached", "read", "write"]

_MAGIC = b"ht-ray\x00\x01"
_FORMAT = 1
_PREFIX = len(_MAGIC) + 8 + 32
_ALIGNMENT = 64

Contents = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors by name, and notes: plain data that survive JSON."""


class CacheError(Exception):
    """A cache file that cannot be used; the message says why."""


def cached(path: Path, fingerprint: Mapping[str, Any], build: Callable[[], Contents], stacklevel: int = 2) -> Contents:
    """Return what `path` holds if it was made from `fingerprint`; otherwise build it and leave it there.

    A file that is stale or damaged is replaced, and a cache that cannot be written is done without; both with a
    ``RuntimeWarning`` that says why.

    Parameters
    ----------
    path
        The cache file. Its folder is created.
    fingerprint
        What identifies the state of the source: plain data that survive JSON.
    build
        Makes the contents.
    stacklevel
        Whose line the warnings point at, counted as in `warnings.warn` (1 is this function).
    """
    try:
        return read(path, fingerprint)
    except OSError:
        pass  # None there, or none that can be read: then writing either replaces it or warns.
    except CacheError as error:
        warnings.warn(f"{path}: {error}; decoding again.", RuntimeWarning, stacklevel=stacklevel)
    tensors, notes = build()
    try:
        write(path, fingerprint, tensors, notes)
    except OSError as error:
        warnings.warn(
            f"No cache of decoded images: {path.parent} cannot be written ({error}). Every start decodes the images "
            "again; set DataConfig.cache to a folder that can be written.",
            RuntimeWarning,
            stacklevel=stacklevel,
        )
    return tensors, notes


def write(
    path: Path, fingerprint: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], notes: Mapping[str, Any]
) -> None:
    """Write a cache file under a temporary name, then rename it: readers and other writers never see half of it.

    Raises
    ------
    OSError
        If the folder cannot be written. Nothing is left behind.
    """
    # The widest first: then every tensor starts at a multiple of its own element size.
    arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    digest = hashlib.blake2b(digest_size=32)
    table: dict[str, dict[str, Any]] = {}
    offset = 0
    for name, array in ordered:
        digest.update(array.data)
        table[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": offset}
        offset += array.nbytes
    header = json.dumps(
        {
            "format": _FORMAT,
            "fingerprint": dict(fingerprint),
            "notes": dict(notes),
            "tensors": table,
            "bytes": offset,
            "digest": digest.hexdigest(),
        }
    ).encode()
    header += b" " * (-(_PREFIX + len(header)) % _ALIGNMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("xb") as file:
        file.write(_MAGIC + len(header).to_bytes(8, "little") + _digest(header))
        file.write(header)
        for _, array in ordered:
            file.write(array.data)


def read(path: Path, fingerprint: Mapping[str, Any]) -> Contents:
    """Return the tensors and notes of a cache file, after checking every byte of it.

    The tensors lie in the mapped file, so that processes on one machine share its pages; writing to them changes a
    private copy, never the file.

    Raises
    ------
    CacheError
        If the file is damaged, of another format, or made from something else.
    OSError
        If it cannot be read; ``FileNotFoundError`` if there is none.
    """
    with path.open("rb") as file:
        prefix = file.read(_PREFIX)
        length = int.from_bytes(prefix[8:16], "little")
        size = file.seek(0, os.SEEK_END)
        if len(prefix) < _PREFIX or prefix[:8] != _MAGIC or length > size - _PREFIX:
            raise CacheError("the cache file is damaged (its first bytes are wrong)")
        file.seek(_PREFIX)
        encoded = file.read(length)
        if _digest(encoded) != prefix[16:]:
            raise CacheError("the cache file is damaged (its header does not match its checksum)")
        header = json.loads(encoded)
        if header["format"] != _FORMAT:
            raise CacheError(f"the cache file has format {header['format']}, this version reads {_FORMAT}")
        if header["fingerprint"] != fingerprint:
            raise CacheError("the images have changed since they were cached")
        if size != _PREFIX + length + header["bytes"]:
            raise CacheError("the cache file is damaged (its length is wrong)")
        # Copy-on-write, because torch has no read-only tensors.
        content = np.memmap(file, dtype=np.uint8, mode="c", offset=_PREFIX + length)
    if _digest(content.data) != bytes.fromhex(header["digest"]):
        raise CacheError("the cache file is damaged (its contents do not match their checksum)")
    tensors = {}
    for name, place in header["tensors"].items():
        array = np.ndarray(place["shape"], place["dtype"], buffer=content.data, offset=place["offset"])
        tensors[name] = torch.from_numpy(array)
    return tensors, header["notes"]


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()
