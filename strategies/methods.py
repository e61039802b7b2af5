"""Methods by name, as plugins: what the studies run, and what the plain loop is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from ht_ray.vision.data import ImageData
from ht_ray.vision.fit import Row
from ht_ray.vision.method import MethodConfig
from ht_ray.vision.optimizer import TrainingConfig, make_optimizer
from strategies.plugins import (
    EMAPlugin,
    HareTortoisePlugin,
    HeadResetPlugin,
    MeasurePlugin,
    PhaseTrainingPlugin,
    ShrinkPerturbPlugin,
)
from strategies.ready import Plain

__all__ = ["MethodStrategy", "make_strategy", "method_plugins"]


class MethodStrategy(Plain):
    """What `make_strategy` returns: a strategy whose state is tensors and plain data, without pickled objects."""

    @property
    def measured(self) -> list[Row]:
        """A row for each epoch so far, see `ht_ray.vision.fit`."""
        return next(plugin for plugin in self.plugins if isinstance(plugin, MeasurePlugin)).rows

    def training_state(self) -> dict[str, Any]:
        """Return what is needed to continue after an experience, for ``torch.save`` and ``weights_only`` loading."""
        return {
            "experiences": self.clock.train_exp_counter,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "plugins": [plugin.state_dict() for plugin in self.plugins if isinstance(plugin, _STATEFUL)],
            "rows": list(self.measured),
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `training_state`, on a strategy made with the same settings that has not trained yet."""
        self.model.load_state_dict(state["model"])
        # Avalanche clears the optimiser's state the first time it looks at it: let it look before.
        self.make_optimizer(reset_optimizer_state=True)
        self.optimizer.load_state_dict(state["optimizer"])
        stateful = [plugin for plugin in self.plugins if isinstance(plugin, _STATEFUL)]
        for plugin, saved in zip(stateful, state["plugins"], strict=True):
            plugin.load_state_dict(saved, self.model)
        self.clock.train_exp_counter = int(state["experiences"])
        self.measured.extend(state["rows"])


_STATEFUL = (HareTortoisePlugin, ShrinkPerturbPlugin, HeadResetPlugin)


def method_plugins(config: MethodConfig, *, seed: int = 0) -> list[SupervisedPlugin]:
    """Return the plugins of a method."""
    plugins: list[SupervisedPlugin] = []
    if "hare_tortoise" in config.parts:
        plugins.append(
            HareTortoisePlugin(
                momentum=config.momentum,
                reset_interval=config.reset_interval,
                reset_unit=config.reset_unit,
                optimizer_state=config.optimizer_state,
                reset_at_phase_end=config.reset_at_phase_end,
                recalibrate_batchnorm=config.recalibrate_batchnorm,
            )
        )
    if "ema" in config.parts:
        plugins.append(EMAPlugin(momentum=config.momentum, recalibrate_batchnorm=config.recalibrate_batchnorm))
    if "shrink_perturb" in config.parts:
        plugins.append(
            ShrinkPerturbPlugin(
                ratio=config.ratio,
                noise=config.noise,
                toward=config.toward,
                seed=seed,
                reinitialise_tortoise=config.reinitialise_tortoise,
            )
        )
    if "head_reset" in config.parts:
        plugins.append(
            HeadResetPlugin(toward=config.toward, seed=seed, reinitialise_tortoise=config.reinitialise_tortoise)
        )
    return plugins


def make_strategy(
    model: nn.Module,
    data: ImageData,
    *,
    method: MethodConfig | None = None,
    training: TrainingConfig | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    epochs: int = 1,
    on_epoch: Callable[[Row], None] | None = None,
    plugins: Sequence[SupervisedPlugin] = (),
    **kwargs: Any,
) -> MethodStrategy:
    """Return an Avalanche strategy that trains as `ht_ray.vision.fit` does, bit for bit, and measures the same.

    Train it on the experiences of ``stream_benchmark(data, stream)``; the rows are its ``measured``.

    Parameters
    ----------
    model, method, training, seed, device, on_epoch
        As in `ht_ray.vision.fit`.
    data
        With the test set.
    epochs
        Epochs of each experience; set ``strategy.train_epochs`` where phases differ.
    plugins
        More plugins, which act after the method's. Their state is not in the strategy's ``training_state``.
    **kwargs
        Of Avalanche's template.
    """
    config = training or TrainingConfig()
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    autocast = torch.bfloat16 if config.precision == "bf16" else None
    acting = [
        PhaseTrainingPlugin(
            warmup_ratio=config.warmup_ratio,
            clip=config.clip,
            fresh_optimizer=config.fresh_optimizer,
            seed=seed,
        ),
        *method_plugins(method or MethodConfig("plain"), seed=seed),
        *plugins,
        MeasurePlugin(data, autocast=autocast, channels_last=config.channels_last, on_epoch=on_epoch),
    ]
    return MethodStrategy(
        model=model,
        optimizer=make_optimizer(model.parameters(), config),
        train_mb_size=config.batch_size,
        eval_mb_size=kwargs.pop("eval_mb_size", 1000),
        train_epochs=epochs,
        device=device,
        plugins=acting,
        evaluator=kwargs.pop("evaluator", None),
        in_memory=True,
        seed=seed,
        precision=config.precision,
        channels_last=config.channels_last,
        **kwargs,
    )
