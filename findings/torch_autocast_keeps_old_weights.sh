#!/usr/bin/env bash
# Package: torch 2.13.0, torch.autocast (the same in 2.11 and 2.15)
# Expected: A forward pass uses the weights as they are now, in mixed precision too.
# Observed: autocast keeps the low-precision copy of each weight that needs a gradient until the region ends,
# and does not look at the weight's version. Weights exchanged in place between two passes of one region (an
# average swapped in for evaluation, a reset, a pruning mask) are not seen by the second pass, under no_grad
# too. One region per pass, or cache_enabled=False, gives the right values.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch

x = torch.ones(1, 4)


@torch.no_grad()
def outputs(**autocast):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 1)
    with torch.autocast("cpu", torch.bfloat16, **autocast):
        first = layer(x).item()
        for parameter in layer.parameters():
            parameter.zero_()
        second = layer(x).item()
    with torch.autocast("cpu", torch.bfloat16, **autocast):
        third = layer(x).item()
    return first, second, third


print("                     before, weights set to 0, in a new region")
cached, plain = outputs(), outputs(cache_enabled=False)
print("as it comes:        ", cached)
print("cache_enabled=False:", plain)
if plain[1:] != (0.0, 0.0):
    sys.exit("not as described")
if not (cached[1] == cached[0] != 0.0 and cached[2] == 0.0):
    sys.exit("changed: the second pass sees the new weights")
EOF
