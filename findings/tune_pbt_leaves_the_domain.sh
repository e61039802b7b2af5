#!/usr/bin/env bash
# Package: ray 2.60.0 (ray.tune.schedulers.PopulationBasedTraining)
# Expected: Mutations given as tune.uniform(0.8, 0.99) and tune.randint(1, 10) stay in these ranges, and an
# integer can move.
# Observed: A mutation that does not resample multiplies by 1.2 or 0.8 and asks the domain nothing: a momentum
# of 0.95 becomes 1.14, and 0.39 to 1.97 in four mutations. Integers are rounded, so 1 and 2 are mapped to
# themselves by both factors and never move again (two layers, n-step 2). Seen in the function that the
# scheduler calls, so no cluster is started; a Tuner run behaves the same.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "ray[tune]==2.60.0"
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import random
import sys

from ray import tune
from ray.tune.schedulers.pbt import _explore

random.seed(0)
mutations = {"momentum": tune.uniform(0.8, 0.99), "layers": tune.randint(1, 10)}
seen = {"momentum": set(), "layers": set()}
for _ in range(200):
    config = {"momentum": 0.95, "layers": 2}
    for _ in range(4):
        config, _ = _explore(config, mutations, 0.0, (1.2, 0.8), None)
        for name, value in config.items():
            seen[name].add(round(value, 2))
print("momentum, drawn from 0.8 to 0.99, in four mutations:", min(seen["momentum"]), "to", max(seen["momentum"]))
print("layers, drawn from 1 to 9, starting at 2:", sorted(seen["layers"]))
if max(seen["momentum"]) <= 0.99 or seen["layers"] != {2}:
    sys.exit("changed")
EOF
