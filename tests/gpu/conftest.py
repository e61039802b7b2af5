"""Tests of the GPU path: that a GPU computes what the CPU computes, wherever results are to agree.

On a machine with a GPU and torch, torchvision, numpy and pytest: ``pytest -m gpu``. Without a GPU they are skipped;
``HT_RAY_TEST_DEVICE=cpu pytest -m gpu tests/gpu`` runs those that need no CUDA on the CPU, which shows only that they
work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products need, before CUDA starts


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests compute: a GPU, unless HT_RAY_TEST_DEVICE names another device."""
    return torch.device(os.environ.get("HT_RAY_TEST_DEVICE", "cuda"))


@pytest.fixture(autouse=True)
def _float32_as_on_the_cpu() -> Iterator[None]:
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    yield
    convolutions.allow_tf32, products.allow_tf32 = before
