"""Hare & Tortoise in any Avalanche strategy."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Literal

from avalanche.benchmarks import OnlineCLExperience
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from ht_ray._checks import check_number
from ht_ray.mechanisms import SettingError
from ht_ray.mechanisms.weights.buffers import check_patterns
from ht_ray.methods import Tortoise

from ._early_stopping import BestTortoise
from .ordered import OrderedPlugin

__all__ = ["EMAPlugin", "HareTortoisePlugin", "find_tortoise"]


class HareTortoisePlugin(OrderedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Hare & Tortoise (arXiv 2406.02596): a slow average of the model, which the model is set back to.

    The strategy's model is the hare. The tortoise follows it after every optimiser step; after every `reset_interval`
    epochs or steps the hare is set back to it; ``strategy.eval`` evaluates the tortoise. The tortoise starts at the
    model's weights before the first experience, and grows with the model.

    Evaluation exchanges the two networks' values in place and puts them back after. If evaluation raises, they are
    put back when training or evaluation starts again (or by `restore`).

    Avalanche's ``EarlyStoppingPlugin`` sees the tortoise's metrics and restores the hare of the best moment; the
    tortoise is then set to its own values of that moment. In online streams count resets in steps: each sub-experience
    counts its epochs anew.

    Parameters
    ----------
    momentum, half_life, reset_interval, reset_unit, optimizer_state, reset_at_phase_end, average_buffers
        As in `ht_ray.methods.Tortoise`, with the authors' values as defaults: momentum 0.999, a reset every 10
        epochs. Epochs are counted from 1 in each experience.
    recalibrate_batchnorm
        From how many of an epoch's last batches the tortoise's BatchNorm statistics are recomputed after the epoch; 0
        (default) averages them like parameters.

    Raises
    ------
    SettingError
        If a setting is out of its range.
    """

    def __init__(
        self,
        *,
        momentum: float | None = None,
        half_life: float | None = None,
        reset_interval: int | None = 10,
        reset_unit: Literal["epochs", "steps"] = "epochs",
        optimizer_state: Literal["keep", "clear"] = "keep",
        reset_at_phase_end: bool = True,
        recalibrate_batchnorm: int = 0,
        average_buffers: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "momentum": momentum,
            "half_life": half_life,
            "reset_interval": reset_interval,
            "reset_unit": reset_unit,
            "optimizer_state": optimizer_state,
            "reset_at_phase_end": reset_at_phase_end,
        }
        check_number(f"{type(self).__name__}: recalibrate_batchnorm", recalibrate_batchnorm, low=0, integer=True)
        Tortoise(nn.Identity(), **self.settings)  # wrong settings are refused here, not at the first experience
        self.settings["average_buffers"] = check_patterns(f"{type(self).__name__}: average_buffers", average_buffers)
        self.recalibrate_batchnorm = recalibrate_batchnorm
        #: The tortoise; None before the first experience.
        self.tortoise: Tortoise | None = None
        self._inputs: deque[Tensor | tuple[Tensor, ...]] = deque(maxlen=recalibrate_batchnorm)
        self._best = BestTortoise()

    def trained_tortoise(self) -> nn.Module:
        """Return the slow network as a plain module of its own, in evaluation mode.

        Raises
        ------
        RuntimeError
            Before the first experience.
        """
        if self.tortoise is None:
            raise RuntimeError("there is no tortoise before the first experience")
        return self.tortoise.trained_tortoise()

    def attach(self, model: nn.Module) -> Tortoise:
        """Return the tortoise of `model`, made now if there is none yet; its values are not in the model after."""
        if self.tortoise is None:
            self.tortoise = Tortoise(model, **self.settings)
        self.tortoise.stop_predicting()
        self.tortoise.hare = model
        return self.tortoise

    def restore(self) -> None:
        """Put the hare's values back into the model, if an exception in evaluation left the tortoise's there."""
        if self.tortoise is not None:
            self.tortoise.stop_predicting()

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        self.restore()
        others = [p for p in strategy.plugins if isinstance(p, HareTortoisePlugin) and p is not self]
        if others:
            raise SettingError(
                "plugins: a strategy takes one tortoise; it has "
                + " and ".join(type(plugin).__name__ for plugin in [self, *others])
            )

    def begin(self, strategy: Any) -> None:
        tortoise = self.attach(strategy.model)
        self._best.begin(strategy)
        steps = None
        # A sub-experience of an online stream is no phase whose size says anything.
        if not isinstance(strategy.experience, OnlineCLExperience):
            with suppress(TypeError):  # a user's loader without a length: only the warnings need it
                steps = len(strategy.dataloader)
        tortoise.begin_phase(steps_per_epoch=steps, epochs=strategy.train_epochs)

    def begun(self, strategy: Any) -> None:
        assert self.tortoise is not None
        self.tortoise.weights.sync(strategy.model)

    def enter_network(self, strategy: Any) -> None:
        assert self.tortoise is not None
        self._best.watch(strategy, self.tortoise)

    def follow_step(self, strategy: Any) -> None:
        assert self.tortoise is not None
        self.tortoise.step(strategy.optimizer)
        if self.recalibrate_batchnorm:
            several = is_multi_task_module(strategy.model)
            self._inputs.append((strategy.mb_x, strategy.mb_task_id) if several else strategy.mb_x)

    def end_epoch(self, strategy: Any) -> None:
        assert self.tortoise is not None
        if self._inputs:
            self.tortoise.recalibrate_batchnorm(self._inputs)
            self._inputs.clear()
        # Avalanche's clock counts the epoch after all plugins have seen its end.
        last = strategy.clock.train_exp_epochs + 1 >= strategy.train_epochs
        self.tortoise.end_epoch(strategy.optimizer, last=last)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        assert self.tortoise is not None
        self._best.restore(self.tortoise)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        if self.tortoise is not None:
            self.attach(strategy.model).start_predicting()

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.restore()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from; empty before the first experience."""
        return self.tortoise.state_dict() if self.tortoise is not None else {}

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Continue from `state` as the tortoise of `model`."""
        if state:
            self.attach(model).load_state_dict(state)


class EMAPlugin(HareTortoisePlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Exponential moving average: Hare & Tortoise whose hare is never set back. The average predicts.

    Parameters
    ----------
    momentum, half_life, recalibrate_batchnorm, average_buffers
        As in `HareTortoisePlugin`.
    """

    def __init__(
        self,
        *,
        momentum: float | None = None,
        half_life: float | None = None,
        recalibrate_batchnorm: int = 0,
        average_buffers: Collection[str] = (),
    ) -> None:
        super().__init__(
            momentum=momentum,
            half_life=half_life,
            reset_interval=None,
            recalibrate_batchnorm=recalibrate_batchnorm,
            average_buffers=average_buffers,
        )


def find_tortoise(strategy: Any) -> HareTortoisePlugin | None:
    """Return the strategy's Hare & Tortoise or EMA plugin, if it has one."""
    return next((p for p in strategy.plugins if isinstance(p, HareTortoisePlugin)), None)
