"""CUDA graphs: what a step does on the GPU, launched at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ht_ray._checks import check_choice
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms.weights.weight_copy import copy_all

__all__ = ["Captured", "Graph", "GraphMode", "use_graph"]

GraphMode = Literal["auto", "on", "off"]

# Calls that run as they are before one is captured: libraries choose their algorithms and take their memory then.
_WARM_UP = 3


def use_graph(where: str, graph: str, device: torch.device, *, obstacle: str = "") -> bool:
    """Return whether to capture CUDA graphs on `device`: ``"auto"`` does so on a GPU.

    Parameters
    ----------
    where : str
        What is being set, as the user knows it.
    graph : {"auto", "on", "off"}
        The setting.
    device : torch.device
        Where the work is done.
    obstacle : str, default ""
        What else stands against it, if anything.

    Raises
    ------
    SettingError
        If there is no such setting, or it is ``"on"`` and `device` is no GPU, or there is an obstacle.

    Examples
    --------
    >>> use_graph("DrQAgent: graph", "auto", torch.device("cpu"))
    False
    >>> use_graph("DrQAgent: graph", "on", torch.device("cpu"))
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: DrQAgent: graph = 'on': CUDA graphs need a GPU, and the device is 'cpu'; accepted \
there are 'auto' and 'off'.
    """
    check_choice(where, graph, ["auto", "on", "off"])
    if device.type != "cuda" or not torch.cuda.is_available():
        obstacle = f"CUDA graphs need a GPU, and the device is {str(device)!r}"
    if graph == "on" and obstacle:
        raise SettingError(f"{where} = 'on': {obstacle}; accepted there are 'auto' and 'off'.")
    return graph != "off" and not obstacle


class Captured:
    """A function of tensors that runs as a CUDA graph: hundreds of kernels for the price of one launch.

    The first calls run as they are, on a stream of their own; then one is captured, and from there on replayed. With
    other shapes, other `fixed` arguments, or when a tensor that it works on was replaced, it starts over. Results are
    the same in all cases, and those of a replay new tensors each time.

    Parameters
    ----------
    function
        Takes hashable arguments by position and tensors on the device by name, and returns tensors without gradient by
        name. It may change tensors in place, but must not wait for the GPU, draw random numbers, or do anything else
        (count, say) that a replay would leave out.
    on
        Whether there are graphs at all; otherwise every call runs as it is.
    held
        Returns the tensors, besides its arguments, that the function works on and that may be replaced by others.
    device
        A GPU; by default that of the tensors it is called with.
    optional
        Whether a function that cannot be captured runs as it is, with a warning; otherwise torch's error is raised.
    """

    def __init__(
        self,
        function: Callable[..., Mapping[str, Tensor]],
        *,
        on: bool,
        held: Callable[[], Iterable[Tensor]] = tuple,
        device: torch.device | None = None,
        optional: bool = False,
    ) -> None:
        self._function = function
        self._on = on
        self._held = held
        self._device = device
        self._optional = optional
        self._known: tuple[Any, ...] = ()
        self._calls = 0
        self._graph: Graph | None = None

    def __call__(self, *fixed: Hashable, **inputs: Tensor) -> dict[str, Tensor]:
        """Return what the function returns."""
        if not self._on:
            return dict(self._function(*fixed, **inputs))
        # A graph knows addresses only. One that was freed and given out again for the same purpose is as good.
        addresses = tuple(map(Tensor.data_ptr, self._held()))
        known = (fixed, tuple((name, x.shape, x.dtype) for name, x in inputs.items()), addresses)
        if self._graph is None:
            self._graph = Graph(self._device or next(iter(inputs.values())).device)
        if known != self._known:
            self._known, self._calls = known, 0
            self._graph.forget()
        if self._calls < _WARM_UP:
            self._calls += 1
            return self._graph.warm_up(lambda: self._function(*fixed, **inputs))
        try:
            return self._graph.run(lambda **static: self._function(*fixed, **static), inputs)
        except RuntimeError as error:
            if not self._optional or self._graph.captured:
                raise
            reason = str(error).partition("\n")[0]
            name = getattr(self._function, "__qualname__", "a function")
            message = f"{name} cannot be captured as a CUDA graph and is launched kernel by kernel: {reason}"
            warnings.warn(message, SettingWarning, stacklevel=3)
            self._on, self._graph = False, None
            return dict(self._function(*fixed, **inputs))


class Graph:
    """One CUDA graph, captured at the first `run`, and at the first one after `forget`.

    Parameters
    ----------
    device
        A GPU.
    """

    def __init__(self, device: torch.device) -> None:
        # Warm-up and capture share a stream, so that what libraries keep for each stream is not made in the capture.
        self._stream = torch.cuda.Stream(device)
        self.forget()

    def forget(self) -> None:
        """Give up what was captured, and its memory."""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: dict[str, Tensor] = {}
        self._outputs: Mapping[str, Tensor] = {}

    @property
    def captured(self) -> bool:
        """Whether there is something to replay."""
        return self._graph is not None

    def warm_up(self, function: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Call `function` on the stream that will capture it."""
        present = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream):
            outputs = dict(function())
        present.wait_stream(self._stream)
        return outputs

    def run(self, function: Callable[..., Mapping[str, Tensor]], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Do what ``function(**inputs)`` did when it was captured, which is now if this is the first run."""
        if self._graph is None:
            self._inputs = {name: x.clone() for name, x in inputs.items()}
            graph = torch.cuda.CUDAGraph()
            # Other threads, of Ray or of other trials, may do as they like meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._outputs = function(**self._inputs)
            self._graph = graph  # what was captured has not happened yet
        else:
            copy_all([self._inputs[name] for name in inputs], list(inputs.values()))
        self._graph.replay()
        # The next run overwrites them.
        return {name: output.clone() for name, output in self._outputs.items()}
