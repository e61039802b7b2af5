#!/usr/bin/env bash
# Package: torch 2.13.0 (the same in 2.11 and 2.15)
# Expected: A compiled module is as true as the module it wraps, so `compiled or module` picks the compiled
# one.
# Observed: bool() of a plain module is True; bool() of the compiled one raises TypeError. The wrapper class
# defines `__len__`, which bool() calls, and forwards it to a module that has none.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch

module = torch.nn.Linear(2, 2)
compiled = torch.compile(module)  # nothing is compiled before the first call
print("plain:   ", bool(module), "has __len__:", hasattr(module, "__len__"))
try:
    print("compiled:", bool(compiled))
except TypeError as error:
    print("compiled: TypeError:", error)
else:
    sys.exit("changed: a compiled module has a truth value")
EOF
