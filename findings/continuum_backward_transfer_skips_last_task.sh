#!/usr/bin/env bash
# Package: continuum 1.2.7 (continuum.metrics.Logger)
# Expected: Accuracy on task 0 falls from 0.9 to 0.5 when task 1 is learned: forgetting 0.4, backward transfer
# -0.4 by the cited papers (Chaudhry et al. 2018; Lopez-Paz & Ranzato 2017).
# Observed: Both are 0. The sums stop one task too early: backward transfer leaves out the task just before
# the current one, forgetting that task and the accuracies measured just before the current one, while the
# divisors count all. With two tasks both are always 0; with three tasks backward transfer is -0.23 where the
# mean over all pairs is -0.53, and forgetting 0.35 instead of 0.60.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 continuum==1.2.7 six==1.17.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import numpy as np
from continuum.metrics import Logger

logger = Logger(list_subsets=["test"])
right = []  # right[i][j]: accuracy on task j after task i
for row in ([0.9], [0.5, 0.8], [0.2, 0.3, 0.9]):
    for task, accuracy in enumerate(row):
        targets = np.zeros(10, dtype=int)
        predictions = np.where(np.arange(10) < round(10 * accuracy), 0, 1)
        logger.add([predictions, targets, np.full(10, task)], subset="test")
    right.append(row)
    n = len(right)
    pairs = [right[i][j] - right[j][j] for i in range(n) for j in range(i)]
    lost = [max(right[i][j] for i in range(j, n - 1)) - right[-1][j] for j in range(n - 1)]
    got = logger.backward_transfer, logger.forgetting
    print(f"{n} tasks: backward transfer {got[0]:.3f} (by definition {np.mean(pairs or [0]):.3f}), "
          f"forgetting {got[1]:.3f} (by definition {np.mean(lost or [0]):.3f})")
    if n == 2 and got != (0.0, 0.0):
        sys.exit("changed: two tasks have a backward transfer")
    logger.end_epoch()
    logger.end_task()
EOF
