#!/usr/bin/env bash
# Package: schedulefree 1.4.1 (AdamWScheduleFree, RAdamScheduleFree), with torch 2.13.0
# Expected: step() reads the gradients and leaves them as they are, as each optimizer of torch does. What is logged after
# the step (gradient norms, gradient noise, how many are near zero) is about the gradients of the loss.
# Observed: Both divide them in place by the root of the second moment, and add the weight decay to them. Gradients that
# stay the same are all 1 or -1 afterwards, whatever their size, and the norm of all is about the root of their
# number. RAdamScheduleFree begins with it some steps later. SGDScheduleFree only adds the weight decay.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet schedulefree==1.4.1 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import schedulefree
import torch

gradient = torch.tensor([0.001, -1.0, 100.0])
after = {}
for kind in (torch.optim.AdamW, schedulefree.SGDScheduleFree, schedulefree.RAdamScheduleFree, schedulefree.AdamWScheduleFree):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([weight], lr=0.01, weight_decay=0.0)
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(20):
        weight.grad = gradient.clone()
        optimizer.step()
    after[kind.__name__] = weight.grad
    print(f"{kind.__name__}: gradients 0.001, -1, 100 at each step, {', '.join(f'{g:.4g}' for g in weight.grad)} after it")
if not all(torch.equal(after[name], gradient) for name in ("AdamW", "SGDScheduleFree")):
    sys.exit("not as described: the others overwrite theirs, too")
if not all(torch.allclose(after[name], gradient.sign(), atol=1e-3) for name in ("AdamWScheduleFree", "RAdamScheduleFree")):
    sys.exit("changed: the gradients stay")
EOF
