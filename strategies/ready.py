"""Ready strategies: an Avalanche template with one of the plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

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
    MethodPlugin,
    ShrinkPerturbPlugin,
)
from .plugins.method import RENAMED, method_settings, signature_of

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


class _WithMethod(Plain):
    """Base of the strategies with one method: settings as in its plugin, the rest as in `Plain`."""

    plugin: ClassVar[type[MethodPlugin]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "plugin" in vars(cls) and "__init__" not in vars(cls):
            # Avalanche, which wraps constructors in here, refuses what none of them names.
            def init(self: Any, **kwargs: Any) -> None:
                self._begin(**kwargs)

            init.__signature__ = signature_of(cls.plugin, _WithMethod._begin)  # type: ignore[attr-defined]
            cls.__init__ = init  # type: ignore[method-assign]
        super().__init_subclass__(**kwargs)

    def _begin(
        self, *, model: nn.Module, optimizer: Optimizer, plugins: Sequence[SupervisedPlugin] = (), **kwargs: Any
    ) -> None:
        assert self.plugin.kind is not None
        known = (*method_settings(self.plugin.kind), *RENAMED)
        own = {name: kwargs.pop(name) for name in known if name in kwargs}
        #: The method's plugin.
        self.method = self.plugin(seed=kwargs.get("seed", 0), **own)
        Plain.__init__(self, model=model, optimizer=optimizer, plugins=[self.method, *plugins], **kwargs)


class _WithTortoise(_WithMethod):
    def trained_tortoise(self) -> nn.Module:
        """Return the slow network as a plain module of its own, in evaluation mode.

        Raises
        ------
        RuntimeError
            Before the first experience.
        """
        return self.method.trained_tortoise()


class HareTortoise(_WithTortoise):
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

    plugin = HareTortoisePlugin


class EMA(_WithTortoise):
    """Exponential moving average of the weights predicts; settings as in `EMAPlugin`, the rest as in `Plain`."""

    plugin = EMAPlugin


class ShrinkPerturb(_WithMethod):
    """Shrink & Perturb before each new experience; settings as in `ShrinkPerturbPlugin`, the rest as in `Plain`."""

    plugin = ShrinkPerturbPlugin


class HeadReset(_WithMethod):
    """Head Reset before each new experience; settings as in `HeadResetPlugin`, the rest as in `Plain`."""

    plugin = HeadResetPlugin


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
