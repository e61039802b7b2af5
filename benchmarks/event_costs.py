"""What an event of FIRE or DASH costs, next to Shrink & Perturb's: processor time on one thread.

The paper's MLP on MNIST's shape and ResNet-18 on CIFAR-10's; DASH reads an epoch of so many images (``--images``), and
its time grows with them. The least of several rounds is printed.
Run: ``uv run python benchmarks/event_costs.py``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from ht_ray.methods import MethodConfig, Phase
from ht_ray.vision import ModelConfig, make_model

NETWORKS = {"MLP": ("mlp", (1, 28, 28)), "ResNet-18": ("resnet18", (3, 32, 32))}
BATCH = 256


def seconds(method: str, network: str, images: int) -> float:
    """Return the processor time of one event."""
    name, shape = NETWORKS[network]
    draw = torch.Generator().manual_seed(0)
    pictures = torch.randn(images, *shape, generator=draw)
    labels = torch.randint(10, (images,), generator=draw)

    def losses(model: nn.Module) -> Iterator[Tensor]:
        for start in range(0, images, BATCH):
            rows = slice(start, start + BATCH)
            yield functional.cross_entropy(model(pictures[rows]), labels[rows])

    model = make_model(ModelConfig(name), shape=shape, num_classes=10, seed=0)
    acting = MethodConfig(method).build(model)
    begun = time.process_time()
    acting.before_phase(Phase(1, losses=losses))
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512, help="How many images DASH reads (default: %(default)s).")
    parser.add_argument("--rounds", type=int, default=2, help="How often each is measured (default: %(default)s).")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| method | {' | '.join(f'{network}: s' for network in NETWORKS)} |\n| --- | ---: | ---: |")
    for method in ("shrink_perturb", "fire", "dash"):
        least = [min(seconds(method, n, options.images) for _ in range(options.rounds)) for n in NETWORKS]
        print(f"| {method} | {' | '.join(f'{one:.3f}' for one in least)} |", flush=True)


if __name__ == "__main__":
    main()
