"""Kernels that a step launches, and what it waits for, counted on the simulated device of the tests: no GPU needed.

Run, in the repository's root: ``python benchmarks/step_kernels.py``. Networks are narrow, as their width changes no
count; steps are launched one by one: as a CUDA graph, all of a step's kernels are one launch.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from simulated_cuda import Counts, simulated_cuda
from small_runs import train

from ht_ray.agents import agent_variant
from ht_ray.agents.base_config import AgentConfig, Precision
from ht_ray.agents.registry import make_agent
from ht_ray.agents.replay import make_replay
from ht_ray.vision import MethodConfig

SHAPE = (4, 84, 84)
AGENTS = {
    "DrQ": agent_variant("drq", batch_size=4, hidden=16),
    "DrQ + H&T": agent_variant("drq+ht", batch_size=4, hidden=16),
    "BBF": agent_variant("bbf", batch_size=2, hidden=16, width=0.25),
    "BBF without SPR + H&T": agent_variant("bbf-spr0+ht", batch_size=2, hidden=16, width=0.25),
}


def vision(network: str, method: str) -> tuple[float, float]:
    """Return kernels and waits of a step: what a run of eight steps has more than one of four."""
    found = []
    for count in (64, 128):
        with simulated_cuda() as counts:
            settings = {"batch_size": 16, "augment": "crop_flip"}
            config = MethodConfig(method, momentum=0.9)
            train("cuda", config, network, phases=1, epochs=1, count=count, training=settings, plain_steps=True)
        found.append((counts.kernels, counts.waits.total()))
    (few, waited), (more, waits) = found
    return (more - few) / 4, (waits - waited) / 4


def agent(config: AgentConfig, precision: Precision) -> tuple[float, float, float]:
    """Return kernels of an update, kernels of it with its share of sampling and priorities, and waits of the latter."""
    with simulated_cuda() as counts:
        learner = make_agent(config, shape=SHAPE, num_actions=6, device="cuda", graph="off", precision=precision)
        replay = make_replay(config.replay_config(stack=4, device="cuda", graph="off"), frame_shape=SHAPE[1:], seed=0)
        draw = np.random.default_rng(0)

        def frame() -> np.ndarray:
            return draw.integers(0, 255, SHAPE[1:], dtype=np.uint8)

        replay.start(frame())
        for _ in range(40):
            replay.add(int(draw.integers(6)), 0.5, frame(), terminated=False, truncated=False)
        updates = config.batches_per_sample
        for first in (True, False):  # what is made once is made in the first
            forget(counts)
            how = learner.sampling()
            size = config.batch_size * updates
            batches = replay.sample(size, n_step=how.n_step, discount=how.discount, sequence=how.sequence)
            losses, alone = [], 0
            for batch in batches.split(config.batch_size):
                before = counts.kernels
                losses.append(learner.update(batch)["losses"])
                alone += counts.kernels - before
            if config.prioritized:
                replay.update_priorities(batches.indices, torch.cat(losses).nan_to_num())
            if not first:
                return alone / updates, counts.kernels / updates, counts.waits.total() / updates
    raise AssertionError


def forget(counts: Counts) -> None:
    """Count from here."""
    for counter in (counts.waits, counts.unpinned, counts.operations):
        counter.clear()


def main() -> None:
    """Print both tables."""
    warnings.simplefilter("ignore")
    print("| network, method | kernels a step | waits a step |\n| --- | ---: | ---: |")
    for network in ("mlp", "resnet18", "vgg16", "vit_tiny"):
        for method in ("plain", "hare_tortoise"):
            kernels, waits = vision(network, method)
            print(f"| {network}, {method} | {kernels:g} | {waits:g} |", flush=True)
    print("\n| agent | kernels an update | with sampling and priorities | waits |\n| --- | ---: | ---: | ---: |")
    for name, config in AGENTS.items():
        for precision in ("fp32", "bf16"):
            alone, whole, waits = agent(config, precision)
            print(f"| {name}, {precision} | {alone:g} | {whole:g} | {waits:g} |", flush=True)


if __name__ == "__main__":
    main()
