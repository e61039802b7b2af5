"""Draining of a node that is about to go: its trials checkpoint and leave, and go on elsewhere.

    python -m ht_ray.sweep.leave --grace 100

is what a pre-emption notice should run (the ``preStop`` hook of a pod, a cloud's spot notice, Slurm's ``--signal``).
The node is drained first, so that Ray starts nothing more on it; then every trial's worker gets SIGTERM, and is waited
for. A trial is saved at its next safe point: the end of an epoch, a step of a game.

Exit codes: 0 when no trial is left, 1 when some did not leave in time (their last checkpoints count), 2 where no Ray
node runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ht_ray.sweep.worker.processes import process_ids, process_texts

__all__ = ["TRIAL_WORKER", "Raylet", "drain_node", "main", "raylets", "trial_workers"]

#: How Ray's workers call themselves while they run a study's trials.
TRIAL_WORKER = "HTRayTrial"

_LOOPBACK = "127.0.0.1:"


@dataclass(frozen=True)
class Raylet:
    """A Ray node that runs on this machine."""

    pid: int
    node_id: str
    address: str
    """Of its cluster, as HOST:PORT."""


def raylets() -> list[Raylet]:
    """Return the Ray nodes of this machine; more than one only where a cluster is simulated."""
    found = []
    for pid in process_ids():
        arguments = process_texts(pid, "cmdline")
        if Path(arguments[0]).name != "raylet":
            continue
        flags = dict(text.removeprefix("--").partition("=")[::2] for text in arguments[1:] if "=" in text)
        if "node_id" in flags and "gcs-address" in flags:
            found.append(Raylet(pid, flags["node_id"], flags["gcs-address"]))
    return found


def trial_workers(raylet: Raylet) -> list[int]:
    """Return the process ids of the workers that run trials on a node."""
    return [
        pid
        for pid in process_ids()
        if process_texts(pid, "cmdline")[0].startswith(f"ray::{TRIAL_WORKER}")
        and f"RAY_RAYLET_PID={raylet.pid}" in process_texts(pid, "environ")
    ]


def drain_node(nodes: Sequence[Raylet], *, grace: float) -> list[int]:
    """Drain `nodes`, send their trials away, and return the workers that have not left after `grace` seconds."""
    end = time.monotonic() + grace
    # Both at once: there may be few seconds. What is started on the node before it is drained is told to leave, too.
    draining = [_drain(node, grace) for node in nodes]
    notified: set[int] = set()
    while True:
        workers = [pid for node in nodes for pid in trial_workers(node)]
        for pid in workers:
            if pid not in notified:
                notified.add(pid)
                _signal(pid)
        drained = all(process.poll() is not None for process in draining)
        if (drained and not workers) or time.monotonic() > end:
            break
        time.sleep(0.2)
    for process in draining:
        if process.poll() is None:
            process.kill()
        out, _ = process.communicate()
        if process.returncode:
            lines = out.strip().splitlines()
            print(f"The node could not be drained ({lines[-1] if lines else process.returncode}).", file=sys.stderr)
    print(f"{len(notified)} trials were told to leave, {len(workers)} are still there")
    return workers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m ht_ray.sweep.leave", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grace", type=float, default=100.0, help="seconds to wait for the trials (default: 100)")
    parser.add_argument("--raylet", type=int, help="the process of the Ray node, where this machine runs several")
    given = parser.parse_args(arguments)
    if given.grace < 0:
        parser.error(f"--grace = {given.grace:g}: accepted is a number from 0 on.")
    nodes = [node for node in raylets() if given.raylet in (None, node.pid)]
    if not nodes:
        parser.error("no Ray node runs on this machine" + (f" as process {given.raylet}." if given.raylet else "."))
    return int(bool(drain_node(nodes, grace=given.grace)))


def _drain(node: Raylet, grace: float) -> subprocess.Popen[str]:
    """Have Ray start nothing more on the node; without that, its trials would be started here again."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", _outside(node.address)),
        *("--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", "told to leave", "--deadline-remaining-seconds", str(max(1, round(grace)))),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _outside(address: str) -> str:
    """Return `address` as another process may give it to Ray, which makes this machine's own of 127.0.0.1 (2.60)."""
    return f"[::ffff:127.0.0.1]:{address.removeprefix(_LOOPBACK)}" if address.startswith(_LOOPBACK) else address


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
