#!/usr/bin/env bash
# Package: pytorch-ignite 0.5.5 (EMAHandler with handle_buffers="copy", as it comes), with torch 2.13.0
# Expected: At each update the averaged network gets a copy of the buffers (BatchNorm's running statistics), and is a
# network of its own.
# Observed: It gets the trained network's memory (`ema_b.data = model_b.data`). After the first update there is one set
# of statistics for both. With updates at every hundredth step the averaged weights are of then, the statistics of
# now; averaged weights that are loaded for a comparison (an earlier checkpoint) put their statistics into the network
# in training; and so does a pass of the averaged network in training mode.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pytorch-ignite==0.5.5 torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import copy
import sys

import torch
from ignite.engine import Engine
from ignite.handlers import EMAHandler

torch.manual_seed(0)
network = torch.nn.BatchNorm1d(1)
handler = EMAHandler(network, momentum=0.1)


def means(when):
    seen = network.running_mean.item(), handler.ema_model.running_mean.item()
    print(f"{when}: running mean {seen[0]:.2f} in the network, {seen[1]:.2f} in the average")
    return seen


trainer = Engine(lambda engine, batch: network(batch))
handler.attach(trainer)
before = means("before the first update")
trainer.run([5 + torch.randn(32, 1) for _ in range(50)], max_epochs=1)
checkpoint = copy.deepcopy(handler.ema_model.state_dict())
updated = means("after 50 updates with data around 5")
network(1000 + torch.randn(32, 1))
trained = means("after a batch around 1000 without an update")
handler.ema_model.load_state_dict(checkpoint)
loaded = means("after the average has loaded what it was after the 50 updates")
if not updated[0] == updated[1] < 10 or trained[0] < 50:
    sys.exit("not as described")
if trained[0] != trained[1] or loaded[0] != updated[0]:
    sys.exit("changed: the average has buffers of its own")
EOF
