"""Features that a backbone returns: how many are zero, and how many directions they use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ht_ray._checks import check_number, did_you_mean
from ht_ray.diagnostics._measuring import accumulator, measuring, run, widened
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.fresh import find_head
from ht_ray.methods.method import Inputs

__all__ = [
    "FeatureRecord",
    "Ranks",
    "effective_rank",
    "feature_matrix",
    "feature_recorder",
    "ranks",
    "srank",
    "stable_rank",
    "zero_activation_ratio",
]


class FeatureRecord:
    """The features of each forward pass inside `feature_recorder`."""

    def __init__(self) -> None:
        #: Of the last pass, as they are in the graph: for their gradient.
        self.latest: Tensor | None = None
        self._rows: list[Tensor] = []

    def matrix(self) -> Tensor:
        """Return the features of all passes, ``(N, d)``, detached.

        Raises
        ------
        RuntimeError
            If the backbone was not called.
        """
        if not self._rows:
            raise RuntimeError("no features were recorded: the network's forward does not call its backbone or head")
        return torch.cat(self._rows)

    def _take(self, features: object) -> Tensor:
        if not isinstance(features, Tensor):
            raise TypeError(f"features are {type(features).__name__}: accepted is a tensor, batch first")
        self._rows.append(features.detach().flatten(1))
        if torch.is_grad_enabled() and not features.requires_grad:
            # The backbone is frozen; the gradient with respect to its output exists all the same.
            features = features.detach().requires_grad_()
        self.latest = features
        return features.clone()  # an activation that works in place must not change what is recorded


@contextmanager
def feature_recorder(module: nn.Module, backbone: nn.Module | str | None = None) -> Iterator[FeatureRecord]:
    """Record what the backbone of `module` returns while the block runs.

    Parameters
    ----------
    module
        The network.
    backbone
        The sub-module whose output are the features, or its name. None: ``module.backbone`` if there is one, otherwise
        the features are the input of the head (see `ht_ray.mechanisms.find_head`).

    Raises
    ------
    SettingError
        If there is no such part, or neither backbone nor head is found.
    """
    record = FeatureRecord()
    if isinstance(backbone, str):
        parts = dict(module.named_modules(remove_duplicate=False))
        if backbone not in parts:
            children = ", ".join(repr(name) for name, _ in module.named_children())
            raise SettingError(
                f"backbone = {backbone!r}: the network has no such part; it has {children}."
                f"{did_you_mean(backbone, parts)}"
            )
        source: nn.Module | None = parts[backbone]
    elif backbone is None:
        own = getattr(module, "backbone", None)
        source = own if isinstance(own, nn.Module) else None
    elif any(part is backbone for part in module.modules()):
        source = backbone
    else:
        raise SettingError("backbone: the given module is no part of the network.")

    if source is not None:

        def output_hook(part: nn.Module, arguments: Any, output: Any) -> Tensor:
            return record._take(output)

        handle = source.register_forward_hook(output_hook)
    else:
        try:
            head = module.get_submodule(find_head(module))
        except ValueError as error:
            raise SettingError(f"the network has no attribute 'backbone', and {error}; or name the backbone") from error

        def input_hook(part: nn.Module, arguments: Any) -> tuple[Any, ...]:
            return record._take(arguments[0] if arguments else None), *arguments[1:]

        handle = head.register_forward_pre_hook(input_hook)
    try:
        yield record
    finally:
        handle.remove()


def feature_matrix(
    module: nn.Module, inputs: Inputs, *, backbone: nn.Module | str | None = None, chunk_size: int = 256
) -> Tensor:
    """Return the features of a batch, ``(N, d)``, in evaluation mode; maps are flattened.

    Parameters
    ----------
    module, backbone
        As of `feature_recorder`.
    inputs
        The batch.
    chunk_size
        Samples computed at a time.
    """
    check_number("feature_matrix: chunk_size", chunk_size, low=1, integer=True)
    with measuring(module), feature_recorder(module, backbone) as record:
        run(module, inputs, chunk_size)
    return record.matrix()


def zero_activation_ratio(features: Tensor) -> Tensor:
    """Return the share of exact zeros among `features`, shape ``()``; NaN if one is not finite.

    References
    ----------
    Lee et al. (2024), appendix C. arXiv:2406.02596.

    Examples
    --------
    >>> zero_activation_ratio(torch.tensor([[0.0, 1.0], [0.0, 0.0]])).item()
    0.75
    """
    features = features.detach()
    ratio = (features == 0).to(accumulator(features.device)).mean()
    return torch.where(torch.isfinite(features).all(), ratio, float("nan"))


class Ranks(NamedTuple):
    """Three measures of how many directions features use, each a tensor of shape ``()``.

    It always holds that ``1 <= stable_rank <= effective_rank <= min(N, d)`` and ``1 <= srank <= min(N, d)``, but for
    features that are all zero, where each is 0, and for features that are not finite, where each is NaN.
    """

    srank: Tensor
    """The smallest k whose k largest singular values hold ``1 - delta`` of the sum of all (Kumar et al. 2020)."""
    effective_rank: Tensor
    """The exponential of the entropy of the singular values divided by their sum (Roy and Vetterli 2007)."""
    stable_rank: Tensor
    """The squared Frobenius norm over the squared spectral norm (Rudelson and Vershynin 2007)."""


def ranks(features: Tensor, delta: float = 0.01) -> Ranks:
    """Return all ranks of a feature matrix from one singular value decomposition.

    Parameters
    ----------
    features
        ``(N, d)``, of any floating-point type: 16-bit ones are widened.
    delta
        Of `srank`.

    Raises
    ------
    SettingError
        If `delta` is not between 0 and 1, or `features` no non-empty matrix.

    References
    ----------
    Kumar et al. (2020). Implicit under-parameterization inhibits data-efficient deep RL. arXiv:2010.14498.
    Roy and Vetterli (2007). The effective rank: a measure of effective dimensionality. EUSIPCO.
    Rudelson and Vershynin (2007). Sampling from large matrices. Journal of the ACM 54 (4).

    Examples
    --------
    >>> [round(rank.item(), 2) for rank in ranks(torch.diag(torch.tensor([2.0, 1.0, 1.0])))]
    [3.0, 2.83, 1.5]
    """
    check_number("ranks: delta", delta, low=0, high=1, low_open=True, high_open=True)
    if features.dim() != 2 or features.numel() == 0:
        raise SettingError(f"ranks: features of shape {tuple(features.shape)}: accepted is a non-empty matrix (N, d).")
    features = widened(features.detach())
    finite = torch.isfinite(features).all()
    # Divided by its largest entry, no matrix overflows when it is squared inside the decomposition.
    largest = features.abs().amax()
    usable = finite & (largest > 0)
    values = torch.linalg.svdvals(torch.where(usable, features / largest, 0.0)).to(accumulator(features.device))
    share = values / values.sum()
    reached = (share.cumsum(0) < 1 - delta).sum() + 1
    by_name = {
        "srank": reached.clamp(max=len(values)).to(values.dtype),
        "effective_rank": torch.special.entr(share).sum().exp(),
        "stable_rank": (values / values[0]).square().sum(),
    }
    unusable = torch.where(finite, 0.0, float("nan")).to(values.dtype)
    return Ranks(**{name: torch.where(usable, rank, unusable) for name, rank in by_name.items()})


def srank(features: Tensor, delta: float = 0.01) -> Tensor:
    """Return the srank of features ``(N, d)``, shape ``()``: see `Ranks`."""
    return ranks(features, delta).srank


def effective_rank(features: Tensor) -> Tensor:
    """Return the effective rank of features ``(N, d)``, shape ``()``: see `Ranks`."""
    return ranks(features).effective_rank


def stable_rank(features: Tensor) -> Tensor:
    """Return the stable rank of features ``(N, d)``, shape ``()``: see `Ranks`."""
    return ranks(features).stable_rank
