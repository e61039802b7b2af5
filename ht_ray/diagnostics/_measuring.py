"""Measuring context and batch helpers: no trace is left in the network, and a batch runs in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ht_ray.mechanisms.modes import evaluation_mode
from ht_ray.mechanisms.weights.rng import isolated_rng
from ht_ray.methods.method import Inputs

__all__ = [
    "Loss",
    "accumulator",
    "call",
    "chunks",
    "count",
    "isolated",
    "measuring",
    "run",
    "take",
    "trainable",
    "widened",
]

#: Maps outputs ``(B, ...)`` and labels ``(B, ...)`` to the mean loss of the batch, shape ``()``.
Loss = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def isolated(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Run a block as if it stood alone, wherever it is entered.

    Gradients can be taken, autocast is off on the devices of `tensors`, and torch's global generators are put back.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(isolated_rng())
        for device in {tensor.device.type for tensor in tensors}:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def measuring(module: nn.Module) -> Iterator[None]:
    """Put every part of `module` into evaluation mode inside a block; afterwards all is as before, errors included.

    Restored are each part's own mode, the buffers and torch's global generators (see `isolated`).
    """
    buffers = [(part, dict(part._buffers)) for part in module.modules()]
    contents = [(buffer, buffer.clone(), buffer._version) for buffer in module.buffers()]
    with isolated([*module.parameters(), *module.buffers()]), evaluation_mode(module):
        try:
            yield
        finally:
            for part, held in buffers:
                part._buffers.clear()
                part._buffers.update(held)
            with torch.no_grad():
                for buffer, content, version in contents:
                    if buffer._version != version:
                        buffer.copy_(content)


def call(module: nn.Module, inputs: Inputs) -> Tensor:
    """Return ``module(inputs)``, or ``module(*inputs)`` for a tuple."""
    outputs: Tensor = module(*inputs) if isinstance(inputs, tuple) else module(inputs)
    return outputs


def count(inputs: Inputs) -> int:
    """Return the number of samples."""
    return len(inputs[0]) if isinstance(inputs, tuple) else len(inputs)


def take(inputs: Inputs, index: slice | Tensor) -> Inputs:
    """Return the samples at `index`."""
    if isinstance(inputs, tuple):
        return tuple(tensor[index] for tensor in inputs)
    return inputs[index]


def chunks(inputs: Inputs, size: int) -> Iterator[tuple[Inputs, slice]]:
    """Yield at most `size` samples at a time, and where they are in the batch."""
    total = count(inputs)
    for start in range(0, total, size):
        part = slice(start, min(start + size, total))
        yield take(inputs, part), part


@torch.no_grad()
def run(module: nn.Module, inputs: Inputs, chunk_size: int) -> None:
    """Compute the batch without gradients, for what hooks see of it."""
    for chunk, _ in chunks(inputs, chunk_size):
        call(module, chunk)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name; tied ones once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def widened(tensor: Tensor) -> Tensor:
    """Return `tensor` in at least 32 bits."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def accumulator(device: torch.device) -> torch.dtype:
    """Return the widest floating-point type of `device`."""
    return torch.float32 if device.type == "mps" else torch.float64
