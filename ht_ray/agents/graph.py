"""CUDA graphs: what an update does on the GPU, launched at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ht_ray._checks import SettingError, check_choice
from ht_ray.mechanisms.weight_copy import copy_all

__all__ = ["Captured", "Graph", "use_graph"]

# Calls that run as they are before one is captured: libraries choose their algorithms and take their memory then.
_WARM_UP = 3


def use_graph(where: str, graph: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """Return whether to capture CUDA graphs on `device`: ``"auto"`` does so on a GPU.

    Parameters
    ----------
    where
        What is being set, as the user knows it.

    Raises
    ------
    SettingError
        If there is no such setting, or it is ``"on"`` and `device` is no GPU.

    Examples
    --------
    >>> use_graph("DrQAgent: graph", "auto", torch.device("cpu"))
    False
    >>> use_graph("DrQAgent: graph", "on", torch.device("cpu"))
    Traceback (most recent call last):
    ...
    ht_ray._checks.SettingError: DrQAgent: graph = 'on': CUDA graphs need a GPU, and the device is 'cpu'; accepted \
there are 'auto' and 'off'.
    """
    check_choice(where, graph, ["auto", "on", "off"])
    possible = device.type == "cuda" and torch.cuda.is_available()
    if graph == "on" and not possible:
        raise SettingError(
            f"{where} = 'on': CUDA graphs need a GPU, and the device is {str(device)!r}; accepted there are 'auto' "
            "and 'off'."
        )
    return possible and graph != "off"


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
    """

    def __init__(
        self,
        function: Callable[..., Mapping[str, Tensor]],
        *,
        on: bool,
        held: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        self._function = function
        self._on = on
        self._held = held
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
            self._graph = Graph(next(iter(inputs.values())).device)
        if known != self._known:
            self._known, self._calls = known, 0
            self._graph.forget()
        if self._calls < _WARM_UP:
            self._calls += 1
            return self._graph.warm_up(lambda: self._function(*fixed, **inputs))
        return self._graph.run(lambda **static: self._function(*fixed, **static), inputs)


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
