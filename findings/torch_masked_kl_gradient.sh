#!/usr/bin/env bash
# Package: torch 2.13.0, torch.distributions (the same in 2.11 and 2.15)
# Expected: Actions masked with logits of -inf are out of the game: entropy and KL divergence of two policies
# with the same mask are finite, and so are their gradients.
# Observed: Entropy is right in value and gradient. The KL divergence is finite in value, but its gradient is
# NaN for every logit, the allowed ones too: -inf minus -inf is overwritten with 0 only after the graph has
# been recorded. A KL penalty in PPO with an action mask destroys the policy in one step. Masking with a large
# finite number is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from torch.distributions import Categorical, kl_divergence


def gradients(mask):
    logits = torch.tensor([1.0, 2.0, mask], requires_grad=True)
    old = Categorical(logits=torch.tensor([1.5, 1.0, mask]))
    entropy = Categorical(logits=logits).entropy()
    (of_entropy,) = torch.autograd.grad(entropy, logits)
    kl = kl_divergence(Categorical(logits=logits), old)
    (of_kl,) = torch.autograd.grad(kl, logits)
    print(f"mask {mask}: entropy {entropy:.4f}, gradient {of_entropy.tolist()}")
    print(f"mask {mask}: KL      {kl:.4f}, gradient {of_kl.tolist()}")
    return kl, of_entropy, of_kl


_, _, finite = gradients(-1e8)
value, entropy, kl = gradients(float("-inf"))
if finite.isnan().any() or entropy.isnan().any() or not value.isfinite():
    sys.exit("not as described")
if not kl.isnan().all():
    sys.exit("changed: the gradient of the masked KL is a number")
EOF
