"""DASH in a stock Avalanche strategy: it reads the coming experience and leaves training's draws alone."""

from __future__ import annotations

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.training import Naive
from torch import nn
from torch.utils.data import TensorDataset

from strategies import DASHPlugin, FIREPlugin

X = torch.randn(2, 6, 2, 5, 5, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 4, (2, 6), generator=torch.Generator().manual_seed(2))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))


def test_with_avalanches_own_loader() -> None:
    sets = []
    for inputs, labels in zip(X, Y, strict=True):
        targets = DataAttribute(labels.tolist(), "targets", use_in_getitem=False)
        tasks = DataAttribute([0] * len(labels), "targets_task_labels", use_in_getitem=True)
        sets.append(AvalancheDataset([TensorDataset(inputs, labels)], data_attributes=[targets, tasks]))
    stream = benchmark_from_datasets(train=sets).train_stream
    ends = []
    for plugins in ([DASHPlugin(floor=1.0)], [], [DASHPlugin()], [DASHPlugin(), FIREPlugin()]):
        net = network()
        torch.manual_seed(5)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        Naive(model=net, optimizer=optimizer, train_mb_size=3, plugins=plugins, evaluator=None).train(stream)
        ends.append(net[4].weight.detach().clone())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2]) and not torch.equal(ends[2], ends[3])
