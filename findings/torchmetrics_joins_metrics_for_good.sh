#!/usr/bin/env bash
# Package: torchmetrics 1.9.0 (MetricCollection), with torch 2.13.0
# Expected: A collection of two metrics with different settings gives what the two metrics give alone.
# Observed: Metrics whose states are equal after the first batch are joined for good, and only the first of them is
# updated from then on. In class-incremental learning the first batches have no class of a later experience, so that the
# accuracy that ignores such a class (ignore_index) is joined with the accuracy of all classes, and equals it for ever,
# after a reset, too. With the same batches in another order, or with compute_groups=False, the two are right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torchmetrics==1.9.0 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy


def accuracies(batches, groups):
    collection = MetricCollection(
        {
            "all classes": MulticlassAccuracy(5, average="micro"),
            "without class 4": MulticlassAccuracy(5, average="micro", ignore_index=4),
        },
        compute_groups=groups,
    )
    for _ in range(2):  # the second time after a reset
        collection.reset()
        for predicted, target in batches:
            collection.update(predicted, target)
    return {name: value.item() for name, value in collection.compute().items()}


old = torch.arange(100) % 4, torch.arange(100) % 4  # all right
new = torch.zeros(100, dtype=torch.long), torch.full((100,), 4)  # all wrong
right = accuracies((old, new), groups=False)
seen, turned = accuracies((old, new), groups=True), accuracies((new, old), groups=True)
print(f"compute_groups=False: {right}")
print(f"old classes first: {seen}")
print(f"new class first: {turned}")
if right != {"all classes": 0.5, "without class 4": 1.0} or turned != right:
    sys.exit("not as described: it is wrong in another case, too")
if seen == right:
    sys.exit("changed: the two metrics are kept apart")
EOF
