#!/usr/bin/env bash
# Package: avalanche-lib 0.6.0 (SynapticIntelligence and its plugin)
# Expected: With si_lambda=1000 the second experience ends at other weights than plain fine-tuning does.
# Observed: On the CPU the strategy is plain fine-tuning, bit for bit. It keeps
# `param.detach().cpu().flatten()` as the old weights, which on the CPU is a view of the live ones: each
# step's movement is measured as 0, all importances are 0, and the penalty is 0. With a copy in its place they
# end 0.18 away. No error, no warning; SI's numbers from a CPU run are those of Naive.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 avalanche-lib==0.6.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import torch
from torch import nn
from torch.utils.data import Dataset
from avalanche.benchmarks import nc_benchmark


class Blobs(Dataset):
    """Gaussian blobs, one for each of four classes."""

    def __init__(self, n, seed, spread=3.0):
        centres = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)) * spread
        labels = torch.arange(n) % 4
        self.targets = labels.tolist()
        self.x = centres[labels] + torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.x[index], self.targets[index]


def benchmark(**blobs):
    order = dict(fixed_class_order=[0, 1, 2, 3], shuffle=False)
    return nc_benchmark(Blobs(200, 0, **blobs), Blobs(200, 7, **blobs), n_experiences=2, task_labels=False, **order)

import sys

from avalanche.training import Naive, SynapticIntelligence
from avalanche.training.plugins import EvaluationPlugin


def trained(cls, **settings):
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    strategy = cls(model=model, optimizer=optimiser, criterion=nn.CrossEntropyLoss(), train_mb_size=10,
                   train_epochs=2, evaluator=EvaluationPlugin(loggers=[]), **settings)
    torch.manual_seed(1)
    for experience in benchmark().train_stream:
        strategy.train(experience)
    return model.weight.detach(), strategy


naive, _ = trained(Naive)
weight, strategy = trained(SynapticIntelligence, si_lambda=1e3)
plugin = next(p for p in strategy.plugins if hasattr(p, "ewc_data"))
largest = {name: data.data.abs().max().item() for name, data in plugin.ewc_data[1].items()}
print("largest importances after two experiences:", largest)
print("weights with si_lambda=1e3 against Naive, largest difference:", (weight - naive).abs().max().item())
if any(largest.values()) or not torch.equal(weight, naive):
    sys.exit("changed: SI has an effect on the CPU")
EOF
