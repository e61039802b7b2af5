#!/usr/bin/env bash
# Package: avalanche-lib 0.6.0 (avalanche.models.batch_renorm.BatchRenorm2D, used by AR1's MobileNet)
# Expected: Saved and loaded, a network with batch renormalisation predicts as before: running mean and
# deviation are buffers, as in BatchNorm.
# Observed: They are plain attributes. The state dict holds gamma and beta only, loading says that all keys
# match, and the loaded layer divides by a deviation of 0: every prediction is infinite. Averages over buffers
# (EMA, SWA) miss them too.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 avalanche-lib==0.6.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from avalanche.models.batch_renorm import BatchRenorm2D

torch.manual_seed(0)
trained = BatchRenorm2D(3)
for _ in range(300):
    trained(torch.randn(64, 3, 4, 4) * 5 + 10)
trained.eval()
x = torch.randn(64, 3, 4, 4) * 5 + 10

loaded = BatchRenorm2D(3)
message = loaded.load_state_dict(trained.state_dict())
loaded.eval()
print("state dict:", list(trained.state_dict()), "| buffers:", [name for name, _ in trained.named_buffers()])
print("loading:", message)
with torch.no_grad():
    print("mean size of an output before:", trained(x).abs().mean().item(), "after loading:", loaded(x).abs().mean().item())
    if list(trained.state_dict()) != ["gamma", "beta"] or not loaded(x).isinf().all():
        sys.exit("changed")
EOF
