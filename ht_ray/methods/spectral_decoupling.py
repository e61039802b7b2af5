"""Spectral decoupling: a penalty on the logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ht_ray.methods.method import Method, check_logits
from ht_ray.methods.packed import PackedMethod
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting

__all__ = ["SpectralDecoupling"]


class _PackedSpectralDecoupling(PackedMethod):
    def _begin(self) -> None:
        self._strengths = self.per_row([method.settings.strength / 2 for method in self.methods])

    def loss(self, outputs: Tensor) -> Tensor | None:
        return self._strengths * outputs.square().sum(2).mean(1)


@register
class SpectralDecoupling(Method):
    """Spectral decoupling: an L2 penalty on the logits, against gradient starvation.

    Adds ``strength / 2`` times the squared norm of a sample's logits (the sum over its classes), averaged over the
    batch. The paper writes ``lambda / 2 * ||y||^2`` for the single logits of binary classification, next to a loss that
    is likewise summed over samples; that is ours times the number of samples, in both terms. Code that averages over
    classes as well has a penalty smaller by their number.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`.

    Raises
    ------
    SettingError
        If the strength is negative; on a batch, if the outputs are no logits.

    References
    ----------
    Pezeshki et al. (2021). Gradient starvation: a learning proclivity in neural networks. arXiv:2011.09468.

    Examples
    --------
    >>> method = SpectralDecoupling(torch.nn.Linear(1, 2), strength=0.1)
    >>> round(method.loss(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).item(), 6)
    0.65
    """

    name = "spectral_decoupling"
    title = "Spectral Decoupling"
    rank = -9
    tried = grid(strength=(1e-3, 1e-2, 3e-2, 1e-1))
    capturable = True
    packed = _PackedSpectralDecoupling
    not_for_agents = "it is a penalty on the logits of classes, and an agent's outputs are values"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the default is ours, as the paper tunes it for each data set."""

        strength: float = setting(
            0.01, "Factor of the penalty on the logits, the paper's lambda; 0 is off.", was="spectral_strength", low=0
        )

    settings: Settings
    #: What heads put in place of the logits of unknown classes, a large constant: such logits take no part.
    masked: tuple[float, ...] = ()

    def not_packed(self) -> str:
        """Return why it cannot be packed."""
        return "spectral_decoupling leaves out the logits that a head masks" if self.masked else ""

    def loss(self, outputs: Tensor) -> Tensor | None:
        """Return the penalty on logits ``(B, K)``."""
        if not self.settings.strength:
            return None
        check_logits(self.title, outputs)
        for value in self.masked:
            outputs = outputs.masked_fill(outputs == value, 0.0)
        wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return self.settings.strength / 2 * wide.square().flatten(1).sum(1).mean()
