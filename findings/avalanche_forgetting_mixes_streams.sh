#!/usr/bin/env bash
# Package: avalanche-lib 0.6.0 (forgetting_metrics; bwt_metrics is its negative)
# Expected: Evaluated on the train stream and on the test stream, each stream has its own forgetting. A
# network that never changes (learning rate 0) forgets exactly nothing on both.
# Observed: The first accuracies are kept by experience number only, whatever the stream: the last evaluated
# stream overwrites the others'. Train forgetting is then first test accuracy minus present train accuracy:
# the generalisation gap with its sign turned, reported under the train stream's name. Periodic evaluation on
# a validation stream plus a test stream mixes in the same way.
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

from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin


def forgetting(streams):
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    evaluator = EvaluationPlugin(forgetting_metrics(stream=True), accuracy_metrics(experience=True), loggers=[])
    strategy = Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0), criterion=nn.CrossEntropyLoss(),
                     train_mb_size=50, train_epochs=1, evaluator=evaluator)
    data = benchmark(spread=0.3)
    for experience in data.train_stream:
        strategy.train(experience)
        for stream in streams:
            results = strategy.eval(getattr(data, f"{stream}_stream"))
            accuracy = results[f"Top1_Acc_Exp/eval_phase/{stream}_stream/Task000/Exp000"]
            print(f"  after experience {experience.current_experience}, {stream}: accuracy on experience 0 {accuracy:.2f}, "
                  f"forgetting {results[f'StreamForgetting/eval_phase/{stream}_stream']:.2f}")
    return results


print("train stream alone:")
alone = forgetting(["train"])
print("train and test stream:")
both = forgetting(["train", "test"])
if alone["StreamForgetting/eval_phase/train_stream"] != 0.0:
    sys.exit("not as described")
if both["StreamForgetting/eval_phase/train_stream"] == 0.0:
    sys.exit("changed: each stream has its own first accuracies")
EOF
