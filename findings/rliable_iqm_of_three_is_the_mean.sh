#!/usr/bin/env bash
# Package: rliable 1.2.0 (metrics.aggregate_iqm), with scipy 1.16.3
# Expected: The interquartile mean leaves out the best and the worst quarter of the scores, so that one very good
# run does not decide it.
# Observed: Of n scores, floor(n / 4) are cut at each end: of three or fewer none, and the number reported as IQM is
# the plain mean. Three seeds of one game, or one seed of three games, have no protection from an outlier. From four
# scores on it is trimmed, of seven scores by one at each end, which is a seventh and no quarter.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet rliable==1.2.0 scipy==1.16.3 numpy==2.3.4
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import numpy as np
from rliable.metrics import aggregate_iqm

seen = {}
for scores in ([0.1, 0.2, 9.0], [0.1, 0.2, 0.3, 9.0], [0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 9.0]):
    values = np.array(scores)[:, None]  # runs x games
    seen[len(scores)] = float(aggregate_iqm(values))
    print(f"{len(scores)} runs of one game: IQM {seen[len(scores)]:.3f}, mean {values.mean():.3f}")
if not np.isclose(seen[4], 0.25) or not np.isclose(seen[7], np.mean([0.2, 0.2, 0.3, 0.3, 0.4])):
    sys.exit("not as described")
if not np.isclose(seen[3], 3.1):
    sys.exit("changed: three scores are trimmed")
EOF
