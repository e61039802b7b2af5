"""The strategy that trains as the plain loop does: what the studies run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from ht_ray.diagnostics import IndicatorConfig, Indicators
from ht_ray.errors import SettingError
from ht_ray.mechanisms import load_optimizer_state
from ht_ray.methods import MethodConfig
from ht_ray.vision.data.dataset import ImageData
from ht_ray.vision.data.loader import Normalise
from ht_ray.vision.training.fit import Row
from ht_ray.vision.training.indicators import make_indicators
from ht_ray.vision.training.optimizer import TrainingConfig, fitting, make_optimizer

from .interruption import Interruptible
from .plugins import MeasurePlugin, MethodPlugin, PhaseTrainingPlugin
from .ready import Plain

__all__ = ["MethodStrategy", "make_strategy"]


class MethodStrategy(Interruptible, Plain):
    """What `make_strategy` returns: a strategy whose state is tensors and plain data, without pickled objects.

    It can be saved between experiences, and where `interrupt` has made ``train`` raise `Interrupted`. Training goes on
    from there, in this object or one that loaded the state, as if it had not been interrupted, bit for bit on a CPU.
    """

    optimizer: Any

    @property
    def measured(self) -> list[Row]:
        """A row for each epoch so far that was measured, see `ht_ray.vision.fit`."""
        return self._measuring.rows

    @property
    def samples(self) -> int:
        """How many images have been trained on in the last experience, counted in each epoch."""
        return self._measuring.samples

    @property
    def _measuring(self) -> MeasurePlugin:
        return next(plugin for plugin in self.plugins if isinstance(plugin, MeasurePlugin))

    @property
    def _indicators(self) -> Indicators | None:
        return self._measuring.indicators

    def training_state(self) -> dict[str, Any]:
        """Return what is needed to continue, for ``torch.save`` and ``weights_only`` loading.

        To be called between experiences, or after `Interrupted`.
        """
        names, groups = {p: name for name, p in self.model.named_parameters()}, self.optimizer.param_groups
        return {
            "experiences": self.clock.train_exp_counter,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "parameters": [[names[parameter] for parameter in group["params"]] for group in groups],
            "plugins": [plugin.state_dict() for plugin in MethodPlugin.all_in(self)],
            "indicators": self._indicators.state_dict() if self._indicators is not None else {},
            "rows": list(self.measured),
            "position": self.position(),
            "epochs": self._measuring.epochs,
            "samples": self._measuring.samples,
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `training_state`, on a strategy made with the same settings that has not trained yet."""
        methods = MethodPlugin.all_in(self)
        for plugin, saved in zip(methods, state["plugins"], strict=True):
            plugin.rebuild(saved, self.model)
            for method in plugin.methods.values():
                self.optimizer = method.configure_optimizer(self.optimizer)
        self.model.load_state_dict(state["model"])
        # The order in which the optimiser met its parameters, some of which may have been added in training.
        parameters = dict(self.model.named_parameters())
        for group, names in zip(self.optimizer.param_groups, state["parameters"], strict=True):
            group["params"] = [parameters[name] for name in names]
        # Avalanche clears the optimiser's state the first time it looks at it: let it look before.
        self.make_optimizer(reset_optimizer_state=True)
        load_optimizer_state(self.optimizer, state["optimizer"])
        for plugin, saved in zip(methods, state["plugins"], strict=True):
            plugin.load_state_dict(saved, self.model)
        if self._indicators is not None:
            self._indicators.load_state_dict(state["indicators"])
        self.clock.train_exp_counter = int(state["experiences"])
        # Earlier versions saved between experiences only.
        self.load_position(state.get("position", {}))
        self._measuring.continue_from(state["rows"], epochs=state.get("epochs"), samples=state.get("samples", 0))


def make_strategy(
    model: nn.Module,
    data: ImageData,
    *,
    method: MethodConfig | None = None,
    training: TrainingConfig | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    epochs: int = 1,
    indicators: IndicatorConfig | None = None,
    evaluate_every: int = 1,
    on_epoch: Callable[[Row], None] | None = None,
    plugins: Sequence[SupervisedPlugin] = (),
    **kwargs: Any,
) -> MethodStrategy:
    """Return an Avalanche strategy that trains as `ht_ray.vision.fit` does, bit for bit, and measures the same.

    Train it on the experiences of ``stream_benchmark(data, stream)``; the rows are its ``measured``.

    Parameters
    ----------
    model, method, training, seed, device, indicators, evaluate_every, on_epoch
        As in `ht_ray.vision.fit`.
    data
        With the test set.
    epochs
        Epochs of each experience; set ``strategy.train_epochs`` where phases differ.
    plugins
        More plugins, which act after the method's. Their state is not in the strategy's ``training_state``, and an
        experience that goes on after an interruption does not begin for them.
    **kwargs
        Of Avalanche's template.
    """
    method = method or MethodConfig("plain")
    config = fitting(method.training(training or TrainingConfig(), data.shape), data.shape)
    if config.objective.own:
        raise SettingError(
            "make_strategy: training: accepted is one without a loss and a measure of your own, see `fit`."
        )
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    normalise = Normalise(data.mean, data.std, device, table=data.is_table)
    measuring = make_indicators(
        indicators, model.to(device), data, training=config, normalise=normalise, seed=seed, device=device
    )
    acting = [
        PhaseTrainingPlugin(
            warmup_ratio=config.warmup_ratio,
            clip=config.clip,
            fresh_optimizer=config.fresh_optimizer,
            seed=seed,
        ),
        MethodPlugin(method, seed=seed, configured=True),
        *plugins,
        MeasurePlugin(
            data,
            autocast=config.autocast,
            channels_last=config.channels_last,
            indicators=measuring,
            evaluate_every=evaluate_every,
            on_epoch=on_epoch,
        ),
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
        augment=config.augment if "augment" in method.parts else None,
        precision=config.precision,
        channels_last=config.channels_last,
        **kwargs,
    )
