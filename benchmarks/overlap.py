"""Time of a step of training with the game beside the updates, and with one after the other.

Both runs take turns, in parts of so many steps, so that what else the machine does meets both; the clock's medians are
printed. ``python benchmarks/overlap.py --variant drq+ht --device cuda``. Each wants a core for the game and one for the
updates.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from ht_ray.agents import AtariConfig, agent_variant
from ht_ray.agents.base_config import PRECISIONS
from ht_ray.agents.training.train import TrainingRun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--game", default="RoadRunner")
    parser.add_argument("--variant", default="drq+ht")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--parts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=25, help="of a part")
    chosen = parser.parse_args()
    starts = 100
    config = agent_variant(chosen.variant, learning_starts=starts, batch_size=chosen.batch_size)
    runs = {
        overlap: TrainingRun(
            chosen.game,
            config,
            env=AtariConfig(),
            device=chosen.device,
            precision=chosen.precision,
            overlap=overlap,
        )
        for overlap in (False, True)
    }
    seconds: dict[bool, list[float]] = {overlap: [] for overlap in runs}
    for run in runs.values():
        run.advance(starts + 20)  # kernels are chosen, graphs captured
    for _ in range(chosen.parts):
        for overlap, run in runs.items():
            started = time.perf_counter()
            run.advance(run.record.steps + chosen.steps)  # which reads the loss, and so waits for a GPU
            seconds[overlap].append((time.perf_counter() - started) / chosen.steps)
    apart, beside = (1e3 * statistics.median(seconds[overlap]) for overlap in (False, True))
    print(f"{chosen.variant}, {chosen.device}, batches of {chosen.batch_size}, torch {torch.__version__}:")
    print(f"{apart:.2f} ms a step one after the other, {beside:.2f} ms beside each other: {beside / apart:.3f} x")


if __name__ == "__main__":
    main()
