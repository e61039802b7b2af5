"""Ready strategies: an Avalanche template with one of the plugins."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.optim import Optimizer

from .loading import InMemoryLoading
from .plugins import (
    EMAPlugin,
    HareTortoisePlugin,
    HeadResetPlugin,
    LimitedBufferPlugin,
    ShrinkPerturbPlugin,
)

__all__ = ["EMA", "HareTortoise", "HeadReset", "LimitedBuffer", "Plain", "ShrinkPerturb"]


class Plain(InMemoryLoading, SupervisedTemplate):
    """Training on the experiences one after the other, nothing else; base of the ready strategies.

    Parameters
    ----------
    model, optimizer, criterion, train_mb_size, train_epochs, eval_mb_size, device, plugins
        As in every Avalanche strategy.
    in_memory
        Whether to load as `InMemoryLoading` does. Default False: Avalanche's own loader.
    **kwargs
        Of `InMemoryLoading` (``seed``, ``augment``, ``max_bytes``, ``precision``, ``channels_last``), and of
        Avalanche's template (``evaluator``, ``eval_every``, ...).
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Any = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = None,
        device: str | torch.device = "cpu",
        plugins: Sequence[SupervisedPlugin] = (),
        in_memory: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=criterion if criterion is not None else nn.CrossEntropyLoss(),
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=list(plugins),
            in_memory=in_memory,
            **kwargs,
        )
        if "evaluator" in kwargs and kwargs["evaluator"] is None:
            # Avalanche puts an evaluator without metrics in its place, which costs 3 % of a small network's iteration.
            self.plugins.remove(self.evaluator)


class HareTortoise(Plain):
    """Hare & Tortoise (arXiv 2406.02596); settings as in `HareTortoisePlugin`, the rest as in `Plain`.

    Examples
    --------
    >>> import torch
    >>> from avalanche.models import SimpleMLP
    >>> from strategies import HareTortoise
    >>> model = SimpleMLP(num_classes=10)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    >>> strategy = HareTortoise(model=model, optimizer=optimizer, momentum=0.99, reset_interval=5, evaluator=None)
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        momentum: float | None = None,
        half_life: float | None = None,
        reset_interval: int | None = 10,
        reset_unit: Literal["epochs", "steps"] = "epochs",
        optimizer_state: Literal["keep", "clear"] = "keep",
        reset_at_phase_end: bool = True,
        recalibrate_batchnorm: int = 0,
        average_buffers: Collection[str] = (),
        plugins: Sequence[SupervisedPlugin] = (),
        **kwargs: Any,
    ) -> None:
        plugin = HareTortoisePlugin(
            momentum=momentum,
            half_life=half_life,
            reset_interval=reset_interval,
            reset_unit=reset_unit,
            optimizer_state=optimizer_state,
            reset_at_phase_end=reset_at_phase_end,
            recalibrate_batchnorm=recalibrate_batchnorm,
            average_buffers=average_buffers,
        )
        super().__init__(model=model, optimizer=optimizer, plugins=[plugin, *plugins], **kwargs)
        self._tortoise_plugin = plugin

    def trained_tortoise(self) -> nn.Module:
        """Return the slow network as a plain module of its own, in evaluation mode."""
        return self._tortoise_plugin.trained_tortoise()


class EMA(Plain):
    """Exponential moving average of the weights predicts; settings as in `EMAPlugin`, the rest as in `Plain`."""

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        momentum: float | None = None,
        half_life: float | None = None,
        recalibrate_batchnorm: int = 0,
        average_buffers: Collection[str] = (),
        plugins: Sequence[SupervisedPlugin] = (),
        **kwargs: Any,
    ) -> None:
        plugin = EMAPlugin(
            momentum=momentum,
            half_life=half_life,
            recalibrate_batchnorm=recalibrate_batchnorm,
            average_buffers=average_buffers,
        )
        super().__init__(model=model, optimizer=optimizer, plugins=[plugin, *plugins], **kwargs)
        self._tortoise_plugin = plugin

    def trained_tortoise(self) -> nn.Module:
        """Return the averaged network as a plain module of its own, in evaluation mode."""
        return self._tortoise_plugin.trained_tortoise()


class ShrinkPerturb(Plain):
    """Shrink & Perturb before each new experience; settings as in `ShrinkPerturbPlugin`, the rest as in `Plain`."""

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        ratio: float = 0.8,
        noise: float = 0.0,
        toward: Literal["initial", "fresh", "zero"] = "initial",
        perturb: float = 0.0,
        optimizer_state: Literal["clear", "keep"] = "clear",
        seed: int = 0,
        factory: Callable[[], nn.Module] | None = None,
        reinitialise_tortoise: bool = True,
        plugins: Sequence[SupervisedPlugin] = (),
        **kwargs: Any,
    ) -> None:
        plugin = ShrinkPerturbPlugin(
            ratio=ratio,
            noise=noise,
            toward=toward,
            perturb=perturb,
            optimizer_state=optimizer_state,
            seed=seed,
            factory=factory,
            reinitialise_tortoise=reinitialise_tortoise,
        )
        super().__init__(model=model, optimizer=optimizer, plugins=[plugin, *plugins], seed=seed, **kwargs)


class HeadReset(Plain):
    """Head Reset before each new experience; settings as in `HeadResetPlugin`, the rest as in `Plain`."""

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        head: str | None = None,
        toward: Literal["initial", "fresh"] = "initial",
        seed: int = 0,
        factory: Callable[[], nn.Module] | None = None,
        reinitialise_tortoise: bool = True,
        plugins: Sequence[SupervisedPlugin] = (),
        **kwargs: Any,
    ) -> None:
        plugin = HeadResetPlugin(
            head=head, toward=toward, seed=seed, factory=factory, reinitialise_tortoise=reinitialise_tortoise
        )
        super().__init__(model=model, optimizer=optimizer, plugins=[plugin, *plugins], seed=seed, **kwargs)


class LimitedBuffer(Plain):
    """Each experience with `buffer_size` older samples, see `LimitedBufferPlugin`; the rest as in `Plain`."""

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        buffer_size: int = 5000,
        seed: int = 0,
        plugins: Sequence[SupervisedPlugin] = (),
        **kwargs: Any,
    ) -> None:
        plugin = LimitedBufferPlugin(buffer_size, seed=seed)
        super().__init__(model=model, optimizer=optimizer, plugins=[plugin, *plugins], seed=seed, **kwargs)
