"""Tensors on their way to a device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["upload"]


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` on `device`, without waiting for a GPU; itself, if it is there.

    What is done with `tensor` on the CPU afterwards does not change what arrives.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        # Pinned memory comes from an allocator that knows when the copy is done.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")
