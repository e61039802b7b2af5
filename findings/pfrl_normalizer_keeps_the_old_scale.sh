#!/usr/bin/env bash
# Package: pfrl 0.4.0 (EmpiricalNormalization, the observation normaliser of its PPO and TRPO), with torch 2.13.0
# Expected: After load_state_dict a normaliser gives what the saved one gives.
# Observed: It keeps the inverse of the standard deviation from its last use, outside of the state dict, and loading
# does not clear it: the mean is the loaded one, the scale still the old one. A normaliser that has not been used before
# is right. An agent that is evaluated with one checkpoint after the other sees wrongly scaled observations from the
# second one on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pfrl==0.4.0 packaging==25.0 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from pfrl.nn import EmpiricalNormalization

torch.manual_seed(0)
saved, used, unused = (EmpiricalNormalization(1) for _ in range(3))
saved.experience(500 + 100 * torch.randn(1000, 1))
used(torch.zeros(1, 1), update=False)
for loaded in (used, unused):
    loaded.load_state_dict(saved.state_dict())

observations = torch.tensor([[500.0], [700.0]])
names = {"saved": saved, "loaded into an unused one": unused, "loaded into a used one": used}
seen = {name: module(observations, update=False).flatten() for name, module in names.items()}
for name, values in seen.items():
    print(f"500 and 700 normalised, {name}: {values[0]:.3f} and {values[1]:.3f}")
right, fresh, stale = seen.values()
if not torch.equal(right, fresh):
    sys.exit("not as described: an unused one is wrong, too")
if torch.allclose(right, stale):
    sys.exit("changed: loading clears the scale")
EOF
