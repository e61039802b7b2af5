"""AID: activation by interval-wise dropout, which passes negative values on now and then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.rng import generator
from ht_ray.methods.method import Method
from ht_ray.methods.packed import PackedMethod
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting

__all__ = ["AID", "IntervalDropout"]


class IntervalDropout(nn.ReLU):
    """ReLU with probability `keep` for each value, otherwise what ReLU drops: ``x`` where that is negative.

    With `draws` None, as in evaluation, it is the mean of the two: ``keep * x`` or, below zero, ``(1 - keep) * x``.

    Examples
    --------
    >>> IntervalDropout(0.75)(torch.tensor([4.0, -4.0])).tolist()
    [3.0, -1.0]
    """

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep
        #: Where the draws of a training batch come from.
        self.draws: torch.Generator | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return the activation, of the input's shape."""
        positive = input > 0
        if self.draws is None:
            return torch.where(positive, self.keep * input, (1 - self.keep) * input)
        relu = torch.rand(input.shape, generator=self.draws, device=input.device) < self.keep
        return torch.where(relu == positive, input, 0.0)

    def extra_repr(self) -> str:
        """Name the probability in the module's representation."""
        return f"keep={self.keep}"


@register
class AID(Method):
    """Activation by interval-wise dropout (Park et al. 2025, arXiv 2502.01342).

    Every ``nn.ReLU`` of the network becomes an `IntervalDropout`: in training a positive value is passed on with
    probability `keep`, a negative one with ``1 - keep``, and otherwise it is 0; when the network predicts, values are
    multiplied by these. At 1/2 the network is linear but for the draws.

    Draws depend on the seed and the number of the step alone, and are made for the training batch inside `watch`: for
    whatever else the network computes, in whatever mode, it computes the mean.

    Parameters
    ----------
    module
        The network, whose activations are replaced.
    settings, seed, **changes
        As in `Method`; the seed is that of the draws.

    Raises
    ------
    SettingError
        If a setting is out of its range, or the network has no ``nn.ReLU``.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> method = AID(net, keep=0.9)
    >>> net[1]
    IntervalDropout(keep=0.9)
    """

    name = "aid"
    title = "AID"
    rank = -4
    tried = grid(keep=(0.99, 0.95, 0.9, 0.8))
    counters = ("steps",)
    packed = PackedMethod
    not_for_agents = "it replaces activations of the network, and the target network has its own"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings."""

        keep: float = setting(
            0.9,
            "Probability with which a positive value is passed on, and a negative one is not; 1 is ReLU.",
            low=0.5,
            high=1,
        )

    settings: Settings

    def _begin(self) -> None:
        #: Training batches so far.
        self.steps = 0
        self.grown()
        if not self._parts and self.settings.keep < 1:
            raise SettingError(
                owner="MethodConfig",
                field="name",
                value=self.name,
                reason=f": {type(self.module).__name__} has no nn.ReLU, which alone it replaces.",
            )

    def not_packed(self) -> str:
        """Return why it cannot be packed."""
        return "aid draws within every layer, for one network at a time" if self.settings.keep < 1 else ""

    def grown(self) -> None:
        """Replace the activations that are not."""
        if self.settings.keep < 1:
            made: dict[nn.Module, IntervalDropout] = {}
            for parent in list(self.module.modules()):
                for name, part in parent._modules.items():
                    if type(part) is nn.ReLU:
                        parent._modules[name] = made.setdefault(part, IntervalDropout(self.settings.keep))
        self._parts = [part for part in self.module.modules() if isinstance(part, IntervalDropout)]

    def watch(self) -> AbstractContextManager[Any]:
        """Return a context around the training forward pass, in which values are dropped."""
        return self._drawing() if self.settings.keep < 1 else nullcontext()

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        device = next(self.module.parameters()).device
        draws = generator(self.seed, "aid", self.steps, device=device)
        self.steps += 1
        try:
            for part in self._parts:
                part.draws = draws
            yield
        finally:
            for part in self._parts:
                part.draws = None
