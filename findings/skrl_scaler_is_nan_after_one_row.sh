#!/usr/bin/env bash
# Package: skrl 2.1.1 (RunningStandardScaler, the preprocessor of observations and values), with torch 2.13.0
# Expected: A batch of one row moves the running mean and variance a little, like any other batch.
# Observed: The variance of one row is computed with Bessel's correction, so it is NaN (torch warns once). It enters the
# running variance, and from then on all output is NaN, however many good batches follow. DQN or SAC with
# batch_size=1, or PPO with as many mini-batches as rows, gets there at its first update.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet skrl==2.1.1 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from skrl.resources.preprocessors.torch import RunningStandardScaler


def scaled(sizes):
    torch.manual_seed(0)
    scaler = RunningStandardScaler(size=1, device="cpu")
    for size in sizes:
        scaler(5 + 3 * torch.randn(size, 1), train=True)
    return scaler.running_mean.item(), scaler(torch.tensor([[5.0], [8.0]])).flatten()


mean, values = scaled([100] * 20)
print(f"twenty batches of 100 rows: mean {mean:.2f}, 5 and 8 become {values.tolist()}")
if not torch.isfinite(values).all():
    sys.exit("not as described: larger batches give NaN, too")
mean, values = scaled([100] * 10 + [1] + [100] * 10)
print(f"with one batch of a single row among them: mean {mean:.2f}, 5 and 8 become {values.tolist()}")
if not values.isnan().all():
    sys.exit("changed: a batch of one row is taken in")
EOF
