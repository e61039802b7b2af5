#!/usr/bin/env bash
# Package: torch 2.13.0 (the same in 2.11, 2.14 and 2.15), on a CPU with avx512_bf16 and no AMX
# Expected: The weight gradient of a 3x3 convolution (stride 2, padding 1) on a 1x1 image is zero wherever the
# kernel sees padding only: everywhere but in the middle.
# Observed: In bfloat16, kernel positions [1, 0] and [1, 2] are never written: they hold what was in that
# memory before. NaN left there by freed tensors comes back as a gradient in nearly every call. A ResNet-18
# with its ImageNet stem has two such layers on images of 8x8. float32 is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import pathlib
import sys

import torch

flags = pathlib.Path("/proc/cpuinfo").read_text() if pathlib.Path("/proc/cpuinfo").exists() else ""
if "avx512_bf16" not in flags or "amx_bf16" in flags:
    print("not this CPU: seen with avx512_bf16 and without AMX")
    sys.exit(0)


def leave_nan_in_free_memory():
    sizes = (4 * 4 * 9, 16 * 16 * 9, 1024, 4096, 65536)
    _ = [torch.full((n,), float("nan"), dtype=d) for n in sizes for d in (torch.bfloat16, torch.float32) for _ in range(4)]


def gradient(dtype):
    conv = torch.nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False).to(dtype)
    x = torch.ones(8, 16, 1, 1, dtype=dtype)
    leave_nan_in_free_memory()
    conv(x).sum().backward()
    return conv.weight.grad.float()


for dtype in (torch.float32, torch.bfloat16):
    right = torch.zeros(3, 3)
    right[1, 1] = 8.0
    wrong = torch.zeros(3, 3, dtype=torch.long)
    for _ in range(40):
        wrong += ~torch.isclose(gradient(dtype), right).all(0).all(0)
    print(f"{dtype}: wrong in 40 calls, by kernel position: {wrong.tolist()}")
    if bool(wrong.any()) != (dtype is torch.bfloat16):
        sys.exit("changed")
EOF
