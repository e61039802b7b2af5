#!/usr/bin/env bash
# Package: tianshou 2.0.1 (tianshou.utils.RunningMeanStd)
# Expected: RunningMeanStd(mean=5, std=10) begins with mean 5 and standard deviation 10, and norm(15) is 1.
# Observed: The number given as std is kept as the variance: norm(15) is 3.16. With the default std=1 one does not see
# it. The first update throws both given numbers away, so that a statistic that was started from known numbers is wrong
# first, and then starts from nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tianshou==2.0.1 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import numpy as np
from tianshou.utils import RunningMeanStd

data = np.random.default_rng(0).normal(5, 10, 100_000)
learned, given = RunningMeanStd(), RunningMeanStd(mean=5.0, std=10.0)
learned.update(data)
of_learned, of_given = float(learned.norm(15.0)), float(given.norm(15.0))
print(f"15 normalised, mean and deviation learned from 100000 values around 5: {of_learned:.2f}")
print(f"15 normalised, mean 5 and std 10 given: {of_given:.2f}; its variance: {given.var:g}")
given.update(np.array([0.0, 2.0]))
print(f"the latter after an update with 0 and 2: mean {given.mean:g}, variance {given.var:g}")
if abs(of_learned - 1) > 0.02 or (given.mean, given.var) != (1, 1):
    sys.exit("not as described: another value after an update")
if abs(of_given - 10 / 10**0.5) > 1e-3:
    sys.exit("changed: std is taken as the standard deviation")
EOF
