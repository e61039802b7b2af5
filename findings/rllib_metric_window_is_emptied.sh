#!/usr/bin/env bash
# Package: ray 2.60.0 (ray.rllib.utils.metrics.metrics_logger.MetricsLogger)
# Expected: log_value(key, value, window=4) gives the mean of the last four values. Its docstring says that a reduction
# shortens the list to the window's size and keeps the most recent values.
# Observed: A reduction empties the list, whatever the window. RLlib reduces once per iteration, so a window never
# reaches back into earlier iterations: the metric is the mean of what was logged since the last reduction, and NaN where
# nothing was. A window longer than one iteration smooths nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "ray[rllib]==2.60.0" torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - 2>/dev/null <<'EOF'
import math
import sys

from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

changed = False
for root in (False, True):
    logger = MetricsLogger(root=root)
    for value in (1, 2, 3, 4, 5, 6):
        logger.log_value("return", value, window=4)
    before = logger.peek("return")
    logger.reduce()
    after = logger.peek("return")
    logger.log_value("return", 100, window=4)
    later = logger.peek("return")
    name = "root" if root else "other"
    print(f"{name} logger, window=4: 1 to 6 logged: {before:g}; after reduce(): {after:g};", end=" ")
    print(f"100 logged: {later:g} (the last four values' mean is {(4 + 5 + 6 + 100) / 4:g})")
    if before != 4.5:
        sys.exit("not as described: the window does not work before the reduction")
    changed = changed or not math.isnan(after) or later != 100
if changed:
    sys.exit("changed: the window outlives a reduction")
EOF
