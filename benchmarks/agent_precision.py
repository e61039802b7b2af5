"""What a step of DrQ and of BBF costs in fp32 and bf16, with weights laid out as usual and with their channels last.

    python benchmarks/agent_precision.py [--steps 60] [--threads 1] [--agents drq+ht bbf-spr0+ht]

All play Freeway and learn in every step. The four take turns of a few steps each, so that what else the machine does
hits all of them; printed are medians over the turns of the time per step, and of its ratio to fp32's in the same turn.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from ht_ray.agents.registry import agent_variant
from ht_ray.agents.training.train import TrainingRun

STARTS, TURN = 100, 5


def learning_run(variant: str, precision: str, *, channels_last: bool) -> TrainingRun:
    """Return a run that has made its first updates."""
    run = TrainingRun("Freeway", agent_variant(variant, learning_starts=STARTS), precision=precision)
    if channels_last:  # which agents have on a GPU
        agent = run.agent
        agent._memory_format = torch.channels_last
        for network in filter(None, (agent.network, agent.target)):
            network.to(memory_format=torch.channels_last)
    run.advance(STARTS + 2)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a step by precision and memory format, on the CPU.")
    parser.add_argument("--steps", type=int, default=60, help="of each (default: 60)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--agents", nargs="+", default=["drq+ht", "bbf-spr0+ht"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for variant in given.agents:
        runs = {
            f"{precision}{', channels last' if last else ''}": learning_run(variant, precision, channels_last=last)
            for precision in ("fp32", "bf16")
            for last in (False, True)
        }
        turns: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(max(1, given.steps // TURN)):
            for name, run in runs.items():
                start = time.perf_counter()
                run.advance(run.record.steps + TURN)
                turns[name].append((time.perf_counter() - start) / TURN * 1e3)
        for name, taken in turns.items():
            ratio = statistics.median(a / b for a, b in zip(taken, turns["fp32"], strict=True))
            print(f"{variant:>12}, {name:<19}: {statistics.median(taken):8.1f} ms per step, {ratio:5.2f} x fp32")


if __name__ == "__main__":
    main()
