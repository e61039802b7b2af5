"""Numerics of a GPU: TF32, the choice of convolution kernels, and determinism, said instead of inherited."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from ht_ray._checks import check_choice
from ht_ray.errors import SettingError

__all__ = ["TF32", "numerics"]

TF32 = Literal["none", "convolutions", "all"]


@contextmanager
def numerics(*, tf32: TF32 = "convolutions", benchmark: bool = False, deterministic: bool = False) -> Iterator[None]:
    """Compute a block with these settings of torch, and put back those that were there before.

    The defaults are torch's own. They change float32 results on an NVIDIA GPU only; a CPU computes as without.

    Parameters
    ----------
    tf32 : {"none", "convolutions", "all"}, default "convolutions"
        Where float32 products may be rounded to TF32 (10 bits of mantissa) before they are summed in float32: nowhere,
        in convolutions, or in matrix products too. Operations in bfloat16 are not concerned.
    benchmark : bool, default False
        Whether cuDNN times its kernels for each new shape and keeps the fastest. Costs seconds at the start, and which
        kernel wins, and so the rounding, may differ between runs.
    deterministic : bool, default False
        Whether only operations are accepted whose results are the same in every run on the same GPU; others raise a
        ``RuntimeError`` of torch that names them. Wants the environment variable ``CUBLAS_WORKSPACE_CONFIG=:4096:8``
        before the process first uses CUDA.

    Raises
    ------
    SettingError
        If `tf32` is none of the three, `benchmark` and `deterministic` are both wanted, or the environment variable is
        missing.

    Examples
    --------
    >>> with numerics(tf32="none"):
    ...     torch.backends.cudnn.allow_tf32
    False
    """
    check_choice("numerics: tf32", tf32, ["none", "convolutions", "all"])
    if benchmark and deterministic:
        raise SettingError("numerics: benchmark = True with deterministic = True: accepted is one of the two.")
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if deterministic and torch.cuda.is_available() and workspace not in (":4096:8", ":16:8"):
        raise SettingError(
            f"numerics: deterministic = True with CUBLAS_WORKSPACE_CONFIG = {workspace!r} in the environment: accepted "
            "is ':4096:8' (or ':16:8', slower), set before the process starts."
        )
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark
    determined = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark = tf32 != "none", tf32 == "all", benchmark
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark = before
        torch.use_deterministic_algorithms(determined[0], warn_only=determined[1])
