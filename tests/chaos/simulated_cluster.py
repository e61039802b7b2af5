"""A Ray cluster of several nodes on this machine, whose nodes and workers can be killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ht_ray.sweep.driver.local_ray import start_ray
from ht_ray.sweep.worker.drain_node import Raylet, raylets, trial_workers


class SimulatedCluster:
    """Nodes of one CPU each, and a head without.

    Parameters
    ----------
    nodes
        How many.
    """

    def __init__(self, nodes: int = 3, **node: Any) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False}
        self._cluster = start_ray(lambda: Cluster(initialize_head=True, head_node_args=head))
        self._settings = {"num_cpus": 1, **node}
        self._nodes: list[Any] = []
        for _ in range(nodes):
            self.add_node()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def raylets(self) -> list[Raylet]:
        """Of the nodes with CPUs."""
        own = {node.all_processes["raylet"][0].process.pid for node in self._nodes}
        return [raylet for raylet in raylets() if raylet.pid in own]

    @property
    def workers(self) -> list[int]:
        """The processes that run trials."""
        return [pid for raylet in self.raylets for pid in trial_workers(raylet)]

    def kill_worker(self, draw: random.Random) -> bool:
        """Kill a worker that runs a trial; False if there is none."""
        workers = sorted(self.workers)
        return bool(workers) and _kill(draw.choice(workers))

    def stop_worker(self, draw: random.Random, seconds: float) -> bool:
        """Let a worker that runs a trial stand still for so many seconds; False if there is none."""
        workers = sorted(self.workers)
        if not workers or not _kill(pid := draw.choice(workers), signal.SIGSTOP):
            return False
        timer = threading.Timer(seconds, _kill, (pid, signal.SIGCONT))
        timer.daemon = True
        timer.start()
        return True

    def kill_node(self, draw: random.Random, *, replace: bool = True) -> None:
        """Kill a node with all that runs on it, as a power cut would, and start another instead."""
        self._kill_raylet(draw, _children, replace)

    def kill_raylet(self, draw: random.Random, *, replace: bool = True) -> None:
        """Kill a node's raylet alone, and start another instead: what the raylet ran has to notice."""
        self._kill_raylet(draw, lambda raylet: [], replace)

    def _kill_raylet(self, draw: random.Random, also: Callable[[int], list[int]], replace: bool) -> None:
        node = draw.choice(self._nodes)
        raylet = node.all_processes["raylet"][0].process.pid
        for pid in [raylet, *also(raylet)]:
            _kill(pid)
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        if replace:
            self.add_node()

    def add_node(self) -> None:
        self._nodes.append(start_ray(lambda: self._cluster.add_node(**self._settings)))

    def close(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def memory_taken_until(gone: Any, *, most: int, seconds: float) -> Iterator[None]:
    """Take memory, a little at a time and never more than `most` bytes, until ``gone()``; then give it back."""
    taken = []
    block = 128 << 20
    end = time.monotonic() + seconds
    try:
        while not gone() and time.monotonic() < end:
            if (len(taken) + 1) * block <= most:
                taken.append(bytearray(os.urandom(1 << 20) * (block >> 20)))
            time.sleep(0.05)
        taken.clear()
        yield
    finally:
        taken.clear()


def memory() -> tuple[int, int]:
    """The memory in use and that of the machine, in bytes, as Ray counts them."""
    values = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    whole, free = (int(values[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    return whole - free, whole


def _kill(pid: int, number: int = signal.SIGKILL) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return found
