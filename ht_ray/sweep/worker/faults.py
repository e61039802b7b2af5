"""Faults around the trials: why a worker died, and which nodes came and went. Importing this module imports Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

from ht_ray.records import EventKind, FaultKind

__all__ = ["Failure", "NodeWatch", "classify_failure", "node_name"]

#: The kind of a fault, and what Ray said.
Failure = tuple[FaultKind, str]

_NODES_EVERY = 5.0


def classify_failure(trial: Any) -> Failure:
    """Return why the worker of a Tune trial died, as Tune noted it a moment ago."""
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return FaultKind.WORKER_DIED, "no reason is known"
    error = cloudpickle.loads(Path(path).read_bytes())  # written by this process
    # Not to be taken for the reason of the next one.
    Path(path).unlink()
    if isinstance(error, RayTaskError):
        cause = error.as_instanceof_cause()
        return (FaultKind.NODE_LOST if isinstance(cause, RayActorError) else FaultKind.WORKER_DIED), str(cause)
    text = str(error)
    if isinstance(error, ActorUnavailableError):
        return FaultKind.LOST_CONTACT, text
    if isinstance(error, RayActorError) and error.preempted:
        return FaultKind.PREEMPTED, text
    lower = text.lower()
    # Ray has no type for these; tests hold its wording.
    if "running low on memory" in lower:
        return FaultKind.OUT_OF_MEMORY, text.partition("\nObject store memory usage")[0]
    if "node has died" in lower or "node died" in lower:
        return FaultKind.NODE_LOST, text
    return FaultKind.WORKER_DIED, text


def node_name(host: str, node_id: str) -> str:
    """Return what a node is called: several may be of one host."""
    return f"{host} ({node_id[:8]})"


class NodeWatch:
    """Watches which nodes join the cluster and which are lost.

    Parameters
    ----------
    on_change
        Called with "node joined" or "node lost", and the node's address and first digits of its id.
    """

    def __init__(self, on_change: Callable[[EventKind, str], None]) -> None:
        self._on_change = on_change
        self._alive = self._look()
        self._looked = time.monotonic()

    @property
    def nodes(self) -> list[str]:
        """The nodes there were at the last look."""
        return sorted(self._alive.values())

    def look(self) -> None:
        """Look whether something has changed, if the last look was a while ago."""
        if time.monotonic() - self._looked < _NODES_EVERY:
            return
        alive = self._look()
        self._looked = time.monotonic()
        for node in alive.keys() - self._alive.keys():
            self._on_change(EventKind.NODE_JOINED, alive[node])
        for node in self._alive.keys() - alive.keys():
            self._on_change(EventKind.NODE_LOST, self._alive[node])
        self._alive = alive

    @staticmethod
    def _look() -> dict[str, str]:
        return {
            node["NodeID"]: node_name(node["NodeManagerHostname"], node["NodeID"])
            for node in ray.nodes()
            if node["Alive"]
        }
