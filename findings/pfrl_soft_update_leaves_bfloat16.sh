#!/usr/bin/env bash
# Package: pfrl 0.4.0 (pfrl.utils.copy_param.soft_copy_param, the target update of its DDPG, TD3, SAC), torch 2.13.0
# Expected: After soft_copy_param(target, source, tau) each value of the target has moved towards the source, and
# integer buffers are copied.
# Observed: Only float16, float32 and float64 tensors are changed in place. For any other dtype the source's tensor is
# put into the dictionary that state_dict() returned, which changes nothing: a bfloat16 target network stays as it was
# made, also with tau=1, and BatchNorm's num_batches_tracked stays 0. Nothing is said. The hard copy is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pfrl==0.4.0 packaging==25.0 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from pfrl.utils.copy_param import copy_param, soft_copy_param


def moved(dtype, copy):
    networks = []
    for value in (0.0, 1.0):
        network = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1)).to(dtype)
        torch.nn.init.constant_(network[0].weight, value)
        networks.append(network)
    target, source = networks
    source[1].num_batches_tracked += 7
    copy(target, source)
    return target[0].weight.item(), target[1].num_batches_tracked.item()


full = {dtype: moved(dtype, lambda t, s: soft_copy_param(t, s, 1.0)) for dtype in (torch.float32, torch.bfloat16)}
hard = moved(torch.bfloat16, copy_param)
print("source: weight 1, num_batches_tracked 7; target: both 0")
for dtype, (weight, count) in full.items():
    print(f"target after soft_copy_param with tau=1, {dtype}: weight {weight:g}, num_batches_tracked {count}")
print(f"target after copy_param, bfloat16: weight {hard[0]:g}, num_batches_tracked {hard[1]}")
if full[torch.float32][0] != 1 or hard != (1, 7):
    sys.exit("not as described: float32 or the hard copy")
if full[torch.bfloat16] != (0, 0) or full[torch.float32][1] != 0:
    sys.exit("changed: soft_copy_param reaches bfloat16 or integers")
EOF
