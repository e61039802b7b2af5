"""Avalanche's SplitMNIST with Hare & Tortoise on any strategy. Run: python examples/split_mnist.py [FOLDER OF MNIST]"""

import os
import sys

import torch
from avalanche.benchmarks import SplitMNIST
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import SimpleMLP
from avalanche.training import Replay
from avalanche.training.plugins import EvaluationPlugin

from ht_ray.avalanche import HareTortoisePlugin


def main(root: str | None) -> float:
    """Train on the five pairs of digits, one after the other, and return the tortoise's accuracy on all of them."""
    torch.manual_seed(0)
    benchmark = SplitMNIST(n_experiences=5, seed=0, dataset_root=root)  # without a folder, it is downloaded
    model = SimpleMLP(num_classes=benchmark.n_classes, drop_rate=0)
    plugin = HareTortoisePlugin(momentum=0.99, reset_interval=1)
    strategy = Replay(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        criterion=torch.nn.CrossEntropyLoss(),
        mem_size=2000,
        train_mb_size=128,
        train_epochs=1,
        eval_mb_size=1000,
        plugins=[plugin],
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    (accuracy,) = strategy.eval(benchmark.test_stream).values()
    print(f"accuracy of the tortoise on all ten digits: {accuracy:.3f}; resets: {plugin.tortoise.resets}")
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("HT_RAY_DATA"))
