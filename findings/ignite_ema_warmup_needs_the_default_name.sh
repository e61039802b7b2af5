#!/usr/bin/env bash
# Package: pytorch-ignite 0.5.5 (EMAHandler), with torch 2.13.0
# Expected: An EMAHandler with a warm-up moves its momentum from momentum_warmup to momentum, under whatever name it is
# attached. Two handlers of one trainer need two names, so one of them has another name than the default one.
# Observed: The warm-up always writes the default name, ema_momentum, while the average reads its own name. Under any
# other name the momentum is the final one from the first step: no warm-up, and no warning. If another handler has the
# default name, that one's momentum is overwritten by this handler's warm-up and ends at this handler's momentum.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pytorch-ignite==0.5.5 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import math
import sys

import torch
from ignite.engine import Engine
from ignite.handlers import EMAHandler

network = torch.nn.Linear(1, 1, bias=False)


def averages(**names):
    """The averages of a weight that goes from 0 to 1 at the first of 20 steps, and the momenta at the end."""
    network.weight.data.zero_()
    handlers = {
        "warm": EMAHandler(network, momentum=0.01, momentum_warmup=0.5, warmup_iters=10),
        "plain": EMAHandler(network, momentum=0.2),
    }
    trainer = Engine(lambda engine, batch: network.weight.data.fill_(1.0))
    for which, name in names.items():
        handlers[which].attach(trainer, name=name)
    trainer.run(range(20), max_epochs=1)
    found = {which: (handlers[which].ema_model.weight.item(), getattr(trainer.state, names[which])) for which in names}
    print(", ".join(f"{which} handler as {names[which]}: average {found[which][0]:.3f}, momentum {found[which][1]:g}"
                    for which in names))
    return found


default = averages(warm="ema_momentum")["warm"][0]
named = averages(warm="critic_momentum")["warm"][0]
alone = averages(plain="ema_momentum")["plain"]
both = averages(warm="critic_momentum", plain="ema_momentum")["plain"]
cold = 1 - 0.99**20
print(f"momentum 0.01 in all 20 steps would give {cold:.3f}")
if default < 0.9 or not math.isclose(alone[1], 0.2):
    sys.exit("not as described")
if not math.isclose(named, cold, rel_tol=1e-4):
    sys.exit("changed: the warm-up works under other names")
if math.isclose(both[1], 0.2) or not math.isclose(both[1], 0.01):
    sys.exit("changed: the warm-up leaves the other handler's momentum alone")
EOF
