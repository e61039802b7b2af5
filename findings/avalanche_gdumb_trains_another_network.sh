#!/usr/bin/env bash
# Package: avalanche-lib 0.6.0 (the GDumb strategy and GDumbPlugin), with torch 2.14.1
# Expected: As with each other strategy, the network that was given to the strategy is the one that is trained, and the
# optimizer that was given moves its weights.
# Observed: From the second experience on the strategy puts a copy of the first network in its place and trains that.
# The caller's network stays as it was after the first experience: a checkpoint, a probe, or an evaluation of it after
# the whole stream shows the first experience alone, without a word. Only strategy.model is the trained one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 avalanche-lib==0.6.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training import GDumb, Naive
from torch import nn
from torch.utils.data import Dataset


class Blobs(Dataset):
    """Gaussian blobs, one for each of four classes."""

    def __init__(self, n, seed, spread):
        centres = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)) * spread
        labels = torch.arange(n) % 4
        self.targets = labels.tolist()
        self.x = centres[labels] + torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.x[index], self.targets[index]


def accuracy(network, data):
    return (network(data.x).argmax(1) == torch.tensor(data.targets)).float().mean().item()


found = {}
for kind, settings in ((Naive, {}), (GDumb, {"mem_size": 100})):
    torch.manual_seed(0)
    network = nn.Linear(8, 4)
    strategy = kind(model=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.1), criterion=nn.CrossEntropyLoss(),
                    train_mb_size=25, train_epochs=10, evaluator=None, **settings)
    data = nc_benchmark(Blobs(200, 0, 3.0), Blobs(200, 7, 3.0), n_experiences=2, task_labels=False, shuffle=False)
    weights = []
    for experience in data.train_stream:
        strategy.train(experience)
        weights.append(network.weight.detach().clone())
    found[kind.__name__] = same, own, given = (torch.equal(*weights), accuracy(strategy.model, Blobs(200, 7, 3.0)),
                                               accuracy(network, Blobs(200, 7, 3.0)))
    print(f"{kind.__name__}: the network given {'is unchanged' if same else 'has changed'} in the second experience; accuracy "
          f"on all classes {own:.2f} with strategy.model, {given:.2f} with the network given")
if found["Naive"][0] or found["Naive"][1] != found["Naive"][2] or found["GDumb"][1] < 0.9:
    sys.exit("not as described")
if not found["GDumb"][0] or found["GDumb"][2] > 0.7:
    sys.exit("changed: GDumb trains the network given")
EOF
