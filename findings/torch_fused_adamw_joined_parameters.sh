#!/usr/bin/env bash
# Package: torch 2.13.0 on a CPU (torch.optim.AdamW with fused=True)
# Expected: AdamW works element by element, so it makes no difference how weights are cut into parameters: two
# parameters of 18 elements end with the bits of one parameter of 36 that holds both.
# Observed: The last few elements of each parameter take another path than those before them, which rounds the
# second moment otherwise: joined and separate parameters have different moments after one step. The
# single-tensor and foreach forms give the same bits either way.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch


def moments(parts, **form):
    """Return the second moments after three steps of weights that are cut into as many parameters."""
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(36, generator=draw)
    parameters = [torch.nn.Parameter(part.clone()) for part in weights.chunk(parts)]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, **form)
    for _ in range(3):
        gradients = torch.randn(36, generator=draw).chunk(parts)
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.clone()
        optimizer.step()
    return torch.cat([optimizer.state[parameter]["exp_avg_sq"] for parameter in parameters])


forms = {"fused": dict(fused=True), "foreach": dict(foreach=True), "single-tensor": dict(foreach=False)}
differ = {}
for name, form in forms.items():
    differ[name] = int((moments(1, **form) != moments(2, **form)).sum())
    print(f"{name}: {differ[name]} of 36 second moments differ between one parameter and two halves of it")
if not differ["fused"]:
    sys.exit("changed: fused AdamW no longer depends on how weights are cut")
if differ["foreach"] or differ["single-tensor"]:
    sys.exit("not as described: the other forms depend on it, too")
EOF
