"""Figure of bit flipping at its published size: plain SGD and a network drawn anew for each task, eight seeds each.

    python benchmarks/bit_flipping.py bit_flipping.png

As Dohare et al. (2024) have it: 10 000 examples of a task, each seen once and alone, and one hidden layer of 5 ReLU
units; 100 tasks and a learning rate of 0.01. All networks take each step together, written out in NumPy: a million
steps take half a minute of a core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from ht_ray.vision import BitFlippingConfig

SEEDS, HIDDEN, RATE = 8, 5, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tasks", type=int, default=100)
    given = parser.parse_args()
    config = BitFlippingConfig(tasks=given.tasks)
    bits = [config.bits(seed) for seed in range(SEEDS)]
    targets = np.stack([config.targets(own, seed).numpy() for seed, own in enumerate(bits)], 1)
    inputs = np.stack([own.numpy() for own in bits], 1)
    width, samples = inputs.shape[2], config.value("task_samples")
    draw = np.random.default_rng(0)

    def drawn() -> list[np.ndarray]:
        shapes = [(SEEDS, HIDDEN, width), (SEEDS, HIDDEN), (SEEDS, HIDDEN), (SEEDS,)]
        fans = [width, width, HIDDEN, HIDDEN]
        return [draw.uniform(-1, 1, shape) / np.sqrt(fan) for shape, fan in zip(shapes, fans, strict=True)]

    errors = np.zeros((given.tasks, 2, SEEDS))
    weights = [np.stack(pair) for pair in zip(drawn(), drawn(), strict=True)]  # plain, fresh
    for step, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        task, begun = divmod(step, samples)
        if task and not begun:
            for weight, fresh in zip(weights, drawn(), strict=True):
                weight[1] = fresh
        first, bias, last, offset = weights
        before = (first @ x[:, :, None].astype(float))[..., 0] + bias
        hidden = np.maximum(before, 0)
        error = (hidden * last).sum(-1) + offset - y
        errors[task] += error**2 / samples
        change = 2 * RATE * error[..., None]
        back = change * last * (before > 0)
        first -= back[..., None] * x[:, None, :]
        bias -= back
        last -= change * hidden
        offset -= change[..., 0]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    wide = max(1, given.tasks // 20)
    smooth = np.apply_along_axis(lambda one: np.convolve(one, np.ones(wide) / wide, "valid"), 0, errors)
    for member, (name, style) in enumerate([("plain", "-"), ("fresh", "k--")]):
        axes.plot(np.arange(wide, given.tasks + 1), smooth[:, member].mean(1), style, label=name)
        print(f"{name}: first {wide} tasks {smooth[0, member].mean():.3f}, last {smooth[-1, member].mean():.3f}")
    axes.set(xlabel="Task", ylabel=f"Online squared error (mean of {wide} tasks)")
    axes.set_title(f"bit_flipping, 5 units and SGD, example by example: mean of seeds 0 to {SEEDS - 1}")
    axes.legend()
    figure.savefig(given.out, dpi=80)


if __name__ == "__main__":
    main()
