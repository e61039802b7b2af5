#!/usr/bin/env bash
# Package: torch 2.13.0 on a CPU (torch.bmm, with MKL)
# Expected: Each product of a batch is one of its own: the same two matrices give the same bits, wherever in the
# batch they stand. Batch members share nothing.
# Observed: With one thread and the same batch size, some products differ in the last bits when the batch is
# reversed. What changes is where each matrix begins in memory: with rows of memory that begin at multiples of
# 64 bytes, for both factors and for the result (`out=`), all places give the same bits. Aligning the factors alone
# is not enough. Which sizes differ depends on the processor, so several are tried.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.3.5
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import itertools
import sys

import torch

torch.set_num_threads(1)
torch.manual_seed(0)
BATCH = 12


def rows(*shape):
    """Return an empty batch of matrices, each of which begins at a multiple of 64 bytes."""
    size = shape[0] * shape[1]
    return torch.empty(BATCH, size + -size % 16)[:, :size].view(BATCH, *shape)


def product(left, right, aligned):
    if not aligned:
        return torch.bmm(left, right)
    left, right = rows(*left.shape[1:]).copy_(left), rows(*right.shape[1:]).copy_(right)
    return torch.bmm(left, right, out=rows(left.shape[1], right.shape[2]))


sizes = list(itertools.product((3, 7, 9, 10, 17, 33), (12, 36, 37, 100), (5, 7, 13, 29)))
found = {}
for aligned in (False, True):
    differ = []
    for m, k, n in sizes:
        left, right = torch.randn(BATCH, m, k), torch.randn(BATCH, k, n)
        forwards = product(left, right, aligned)
        backwards = product(left.flip(0).contiguous(), right.flip(0).contiguous(), aligned).flip(0)
        if not torch.equal(forwards, backwards):
            differ.append((m, k, n))
    found[aligned] = differ
    print(f"{'aligned to 64 bytes' if aligned else 'contiguous'}: {len(differ)} of {len(sizes)} sizes depend on the place")
    if differ:
        print("  such as", differ[:4])
if not found[False]:
    sys.exit("changed: products no longer depend on their place in the batch")
if found[True]:
    sys.exit("not as described: aligned products depend on their place, too")
EOF
