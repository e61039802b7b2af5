"""Recycled units under Adam: how many are dormant again, by what becomes of the step count.

``python benchmarks/recycled_steps.py [--seeds 10]`` trains an MLP 64-100-100-10 on digits with Adam (1e-3, batches of
64) for 1000 steps, recycles ten units of its first layer, trains it for 200 steps more, and prints for each policy how
many of the ten are dormant again (a score of at most 0.025), and the test accuracy 20 and 200 steps after.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import Tensor, nn
from torch.nn import functional

from ht_ray.mechanisms import find_units, fresh_weights, generator
from ht_ray.mechanisms.units.recycle import recycle
from ht_ray.mechanisms.units.step_counts import STEP_COUNTS, RecycledSteps
from ht_ray.vision import DataConfig, load_data

STEPS, AFTER, UNITS = 1000, 200, 10


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    print("| step_count | dormant again, of 10 | mean | accuracy after 20 steps (%) | after 200 |")
    print("| --- | --- | ---: | ---: | ---: |")
    for policy in STEP_COUNTS:
        outcomes = [train(policy, seed) for seed in range(given.seeds)]
        dormant = [outcome[0] for outcome in outcomes]
        shown = []
        for place in (1, 2):
            reached = [100 * outcome[place] for outcome in outcomes]
            shown.append(f"{statistics.mean(reached):.2f} ± {statistics.stdev(reached):.2f}")
        print(f"| `{policy}` | {' '.join(map(str, dormant))} | {statistics.mean(dormant):.1f} | {' | '.join(shown)} |")


def train(policy: str, seed: int) -> tuple[int, float, float]:
    """Return how many units are dormant again, and the test accuracy soon after and at the end."""
    data = load_data(DataConfig("digits"))
    images, labels = inputs(data.train_images), data.train_labels
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer, steps = torch.optim.Adam(net.parameters(), lr=1e-3), RecycledSteps(policy)
    draw = generator(seed, "batches")
    accuracies = []
    for step in range(1, STEPS + AFTER + 1):
        chosen = torch.randint(len(images), (64,), generator=draw)
        optimizer.zero_grad()
        functional.cross_entropy(net(images[chosen]), labels[chosen]).backward()
        steps.before_step(net, optimizer)
        optimizer.step()
        if step == STEPS:
            fresh = fresh_weights(net[0], seed=seed)
            recycle(net, find_units(net).hidden[0], torch.arange(UNITS), fresh, None, optimizer, steps)
        if step in (STEPS + 20, STEPS + AFTER):
            with torch.no_grad():
                right = net(inputs(data.test_images)).argmax(1) == data.test_labels
            accuracies.append(right.float().mean().item())
    with torch.no_grad():
        magnitude = net[1](net[0](images)).abs().mean(0)
    dormant = magnitude[:UNITS] <= 0.025 * magnitude.mean()
    return int(dormant.sum()), accuracies[0], accuracies[1]


def inputs(images: Tensor) -> Tensor:
    """Return images as vectors from -1 to 1."""
    return images.float().flatten(1) / 255 * 2 - 1


if __name__ == "__main__":
    main()
