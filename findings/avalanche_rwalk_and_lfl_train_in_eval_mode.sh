#!/usr/bin/env bash
# Package: avalanche-lib 0.6.0 (RWalkPlugin, LFLPlugin and the LFL strategy), with torch 2.14.1
# Expected: Training is in training mode: dropout drops, BatchNorm normalises by the batch and learns its statistics.
# Observed: Both plugins call model.eval() in each iteration, for the gradients or features that they need, and never
# go back. With RWalk all of the training is in evaluation mode: BatchNorm sees no batch at all, its statistics
# stay 0 and 1, and dropout does nothing. With LFL it is so from the second mini-batch of the second experience on. A
# comparison with other strategies compares networks without dropout and normalisation to networks with them.
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
from avalanche.models.base_model import BaseModel
from avalanche.training import Naive
from avalanche.training.plugins import LFLPlugin, RWalkPlugin, SupervisedPlugin
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


class Network(nn.Module, BaseModel):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5))
        self.classifier = nn.Linear(16, 4)

    def get_features(self, x):
        return self.features(x)

    def forward(self, x):
        return self.classifier(self.features(x))


class Modes(SupervisedPlugin):
    """Notes the mode of the network at each forward pass of the training."""

    def before_forward(self, strategy, **kwargs):
        modes.append("train" if strategy.model.training else "eval")


found = {}
for name, plugins in {"naive": [], "RWalk": [RWalkPlugin()], "LFL": [LFLPlugin(lambda_e=0.1)]}.items():
    torch.manual_seed(0)
    network = Network()
    strategy = Naive(model=network, optimizer=torch.optim.SGD(network.parameters(), lr=0.1), criterion=nn.CrossEntropyLoss(),
                     train_mb_size=25, train_epochs=2, plugins=[*plugins, Modes()], evaluator=None)
    data = nc_benchmark(Blobs(200, 0, 3.0), Blobs(200, 7, 3.0), n_experiences=2, task_labels=False, shuffle=False)
    found[name] = []
    for experience in data.train_stream:
        modes = []
        strategy.train(experience)
        batches = network.features[1].num_batches_tracked.item()
        found[name].append((modes.count("train"), modes.count("eval"), batches))
        print(f"{name}, experience {experience.current_experience}: {modes.count('train')} forward passes in training mode, "
              f"{modes.count('eval')} in evaluation mode; BatchNorm has seen {batches} batches")
if found["naive"] != [(8, 0, 8), (8, 0, 16)]:
    sys.exit("not as described")
if found["RWalk"] != [(0, 8, 0), (0, 8, 0)]:
    sys.exit("changed: RWalk trains in training mode")
if found["LFL"] != [(8, 0, 8), (1, 7, 9)]:
    sys.exit("changed: LFL trains in training mode")
EOF
