#!/usr/bin/env bash
# Package: avalanche-lib 0.6.0 (LRSchedulerPlugin with reset_lr and reset_scheduler, as it comes), torch
# 2.14.1
# Expected: With a linear warm-up from 0.1 to 1, each experience warms up from 0.1 to 1.
# Observed: The plugin resets the rate to the base value 1, not to the warm-up's start, and sets last_epoch to
# 0. torch's LinearLR and ConstantLR multiply the present rate, so the second experience runs from 1 to 10 and
# stays there. Cosine and one-cycle schedules, which start at their base or compute their value afresh, are
# reset as expected.
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

from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, SupervisedPlugin
from torch.optim import lr_scheduler


class Rates(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.seen = []

    def before_training_epoch(self, strategy, **kwargs):
        self.seen.append(round(strategy.optimizer.param_groups[0]["lr"], 3))


def rates(name, schedule):
    model = nn.Linear(8, 4)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    recorder = Rates()
    strategy = Naive(model=model, optimizer=optimiser, criterion=nn.CrossEntropyLoss(), train_mb_size=50, train_epochs=8,
                     evaluator=EvaluationPlugin(loggers=[]), plugins=[LRSchedulerPlugin(schedule(optimiser)), recorder])
    for experience in benchmark().train_stream:
        strategy.train(experience)
    first, second = recorder.seen[:8], recorder.seen[8:]
    print(f"{name}: experience 0 {first}\n{' ' * len(name)}  experience 1 {second}")
    return first, second


first, second = rates("linear", lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 5))
cosine = rates("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, 8))
if cosine[0] != cosine[1]:
    sys.exit("not as described")
if not (max(first) == 1.0 and second[0] == 1.0 and second[-1] == 10.0):
    sys.exit("changed: the warm-up is reset")
EOF
