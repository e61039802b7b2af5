#!/usr/bin/env bash
# Package: skrl 2.1.1 (RandomMemory.save and load), with torch 2.13.0
# Expected: A replay memory that loads a file of its own `save` samples what was saved.
# Observed: `load` puts the tensors into attributes that nothing reads: neither sampling nor get_tensor_by_name sees
# them. A new memory still has length 0 and samples nothing, a filled one goes on with its own samples. Nothing is said,
# in either format.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet skrl==2.1.1 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys
from pathlib import Path

import torch
from skrl.memories.torch import RandomMemory


def memory(values=()):
    made = RandomMemory(memory_size=4, device="cpu")
    made.create_tensor("rewards", size=1)
    for value in values:
        made.add_samples(rewards=torch.tensor([[float(value)]]))
    return made


def sampled(made):
    return sorted(made.sample(["rewards"], batch_size=4)[0][0].flatten().tolist())


changed = False
for kind in ("pt", "npz"):
    memory([1, 2, 3, 4]).save(kind, format=kind)
    (path,) = Path(kind, "memories").iterdir()
    new, filled = memory(), memory([5, 6, 7, 8])
    new.load(str(path)), filled.load(str(path))
    print(f"{kind}: 1 to 4 saved; a new memory has length {len(new)} and samples {sampled(new)} after the load,")
    print(f"    one that was filled with 5 to 8 samples {sampled(filled)}")
    changed = changed or len(new) > 0 or sampled(filled) != [5, 6, 7, 8]
if changed:
    sys.exit("changed: a memory samples what it loads")
EOF
