#!/usr/bin/env bash
# Package: tianshou 2.0.1 (tianshou.utils.MovAvg, which its trainers average losses and returns with)
# Expected: MovAvg leaves out infinities and NaN; its docstring says so.
# Observed: It looks each number up in the list [inf, nan, -inf]. NaN equals nothing, so only the very object np.nan
# is found. float("nan"), an element of an array, and a NaN of torch's all get in. From then on the average is NaN until
# they have left the window, 100 values by default. Infinities are left out.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tianshou==2.0.1 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import math
import sys

import numpy as np
import torch
from tianshou.utils import MovAvg

cases = {
    'float("inf")': (float("inf"), False),
    "np.nan": (np.nan, False),
    'float("nan")': (float("nan"), True),
    "0-d tensor of NaN": (torch.tensor(float("nan")), True),
    "np.array([nan])": (np.array([np.nan]), True),
    "np.log of -1": (np.log(np.float64(-1)), True),
}
taken = {}
for name, (value, _) in cases.items():
    average = MovAvg(size=100)
    average.add([1.0, 3.0])
    taken[name] = math.isnan(average.add(value))
    for _ in range(97):
        average.add(2.0)
    print(f"1, 3 and {name}, then 97 times 2: average {average.get():g}")
if taken["np.nan"] or taken['float("inf")']:
    sys.exit("not as described: np.nan or infinity gets in")
if taken != {name: expected for name, (_, expected) in cases.items()}:
    sys.exit("changed: MovAvg leaves out other NaN, too")
EOF
