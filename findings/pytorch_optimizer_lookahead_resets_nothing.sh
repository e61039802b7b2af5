#!/usr/bin/env bash
# Package: pytorch-optimizer 4.1.0 (Lookahead), with torch 2.13.0
# Expected: Lookahead(optimizer, pullback_momentum="reset") clears the optimizer's momentum at each interpolation, and
# "pullback" interpolates it, whatever optimizer is wrapped.
# Observed: It writes the entry momentum_buffer, which is SGD's. Adam, AdamW and most others keep theirs as exp_avg:
# with them, all three modes give the same weights, bit for bit, and the unused buffers are added to the state and to
# the checkpoint. Nothing says so, and a comparison of the modes finds that they make no difference.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pytorch-optimizer==4.1.0 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from pytorch_optimizer import Lookahead

modes = ("none", "reset", "pullback")


def trained(mode, kind, **settings):
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    optimizer = Lookahead(kind(network.parameters(), lr=0.05, **settings), k=3, pullback_momentum=mode)
    for _ in range(31):
        optimizer.zero_grad()
        (network(torch.randn(16, 3)) - 2).square().mean().backward()
        optimizer.step()
    return network.weight.detach().flatten(), sorted(optimizer.optimizer.state[network.weight])


different = {}
for kind, settings in ((torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {}), (torch.optim.RMSprop, {"momentum": 0.9})):
    found = {mode: trained(mode, kind, **settings) for mode in modes}
    for mode, (weights, state) in found.items():
        print(f"{kind.__name__}, {mode}: {weights.tolist()}, state {', '.join(state)}")
    different[kind.__name__] = len({tuple(weights.tolist()) for weights, _ in found.values()})
print("different results of three:", different)
if different["SGD"] != 3 or different["RMSprop"] != 3:
    sys.exit("not as described: it does not work for SGD and RMSprop, either")
if different["Adam"] != 1:
    sys.exit("changed: the modes reach Adam's momentum")
EOF
