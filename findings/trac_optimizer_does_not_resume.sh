#!/usr/bin/env bash
# Package: trac-optimizer 0.0.2 (start_trac), with torch 2.13.0
# Expected: As with any torch optimizer, state_dict() saved in one run and loaded in another lets training go on.
# Observed: The wrapper keeps its reference point under the parameter tensors themselves, inside an entry of the state
# that torch takes for no parameter's and so does not rename. After a load the keys are the tensors of the run that
# saved: load_state_dict() says nothing, and the first step() of the new run raises KeyError. TRAC runs of hours
# cannot be gone on with.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet trac-optimizer==0.0.2 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import io
import sys

import torch
from trac_optimizer import start_trac


def fresh():
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1)
    return network, start_trac("trac.log", torch.optim.AdamW)(network.parameters(), lr=0.01)


def step(network, optimizer):
    optimizer.zero_grad()
    network(torch.ones(8, 3)).square().mean().backward()
    optimizer.step()


network, optimizer = fresh()
for _ in range(5):
    step(network, optimizer)
file = io.BytesIO()
torch.save([network.state_dict(), optimizer.state_dict()], file)
file.seek(0)
weights, state = torch.load(file, weights_only=False)
step(network, optimizer)  # the run that saved goes on
network, optimizer = fresh()
network.load_state_dict(weights)
optimizer.load_state_dict(state)
print("state loaded without a word")
try:
    step(network, optimizer)
except KeyError as error:
    print(f"first step after it: KeyError for a {type(error.args[0]).__name__}")
else:
    sys.exit("changed: the loaded state can be used")
EOF
