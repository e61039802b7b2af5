#!/usr/bin/env bash
# Package: avalanche-lib 0.6.0 (EarlyStoppingPlugin), with torch 2.14.1
# Expected: "After training, the best model's checkpoint is loaded", as its docstring says.
# Observed: The best weights are loaded only where the plugin stops the training. If the epochs end first, within the
# patience, the network keeps its last weights, however poor. The plugin looks at the start of an epoch, so that the
# last evaluation never counts, either, and a patience that runs out at the last epoch does nothing. In a stream some
# experiences thus end with their best weights, others with their last.
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
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin
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


def trained(epochs, patience):
    torch.manual_seed(0)
    network = nn.Linear(8, 4)
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    stopping = EarlyStoppingPlugin(patience=patience, val_stream_name="test_stream")
    strategy = Naive(model=network, optimizer=torch.optim.SGD(network.parameters(), lr=3.0), criterion=nn.CrossEntropyLoss(),
                     train_mb_size=20, train_epochs=epochs, eval_every=1, plugins=[stopping], evaluator=evaluator)
    data = nc_benchmark(Blobs(200, 0, 0.5), Blobs(200, 7, 0.5), n_experiences=1, task_labels=False, shuffle=False)
    strategy.train(data.train_stream[0], eval_streams=[data.test_stream])
    name = "Top1_Acc_Stream/eval_phase/test_stream/Task000"
    seen = list(evaluator.get_all_metrics()[name][1])
    final = strategy.eval(data.test_stream)[name]
    print(f"{epochs} epochs, patience {patience}: accuracies {' '.join(f'{a:.3f}' for a in seen)}; "
          f"best {max(seen):.3f}, after training {final:.3f}")
    return seen, final


seen, final = trained(epochs=40, patience=3)
if len(seen) > 30 or final != max(seen) or seen[-1] == max(seen):
    sys.exit("not as described: it is not the best if the plugin stops the training")
last = len(seen) - 1
for epochs, patience in ((last, 3), (last, 100)):
    seen, final = trained(epochs, patience)
    if final == max(seen):
        sys.exit("changed: the best weights are loaded after the training")
    if final != seen[-1]:
        sys.exit("not as described: it is not the last, either")
EOF
