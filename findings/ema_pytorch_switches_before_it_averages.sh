#!/usr/bin/env bash
# Package: ema-pytorch 0.8.3 (EMA with update_model_with_ema_every), with numpy 2.4.6 and torch 2.13.0
# Expected: The average starts "only after this number" of calls (update_after_step, 100 by default); until then there
# is none, and putting it into the network (update_model_with_ema_every) changes nothing.
# Observed: Until then the average is a copy of the network that is renewed at each update_every-th call (10 by
# default), and a switch in between puts the network back to that copy. With a switch at each fifth call, each second
# one takes back five steps: after 100 steps of training the network is where it was after 50.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ema-pytorch==0.8.3 numpy==2.4.6 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from ema_pytorch import EMA


def steps_left(every):
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    ema = EMA(network, update_model_with_ema_every=every)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        (-network(torch.ones(1, 1)).sum()).backward()
        optimizer.step()  # adds 1 to the weight
        ema.update()
    return network.weight.item()


seen = {every: steps_left(every) for every in (None, 10, 5, 15)}
for every, weight in seen.items():
    print(f"100 steps of size 1, a switch every {every} calls: weight {weight:.0f}")
if seen[None] != 100 or seen[10] != 100:
    sys.exit("not as described: steps are lost without a switch, or with one at each renewal")
if seen[5] == 100 and seen[15] == 100:
    sys.exit("changed: a switch before the average starts changes nothing")
if seen[5] > 55:
    sys.exit("not as described: fewer steps are lost")
EOF
