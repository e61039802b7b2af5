"""Hare & Tortoise as a callback of Lightning (``pip install 'ht-ray[lightning]'``)."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
except ImportError as error:
    raise ImportError("ht_ray.integrations.lightning needs Lightning: pip install 'ht-ray[lightning]'") from error

from ht_ray._checks import refused
from ht_ray.integrations._settings import settings_of
from ht_ray.methods import Tortoise

__all__ = ["HareTortoiseCallback"]


class HareTortoiseCallback(Callback):
    """Trains a `LightningModule` with Hare & Tortoise; validation, test and prediction use the tortoise.

    The tortoise follows after each batch in which an optimizer stepped: once for all accumulated batches, and once
    where several optimizers step. A step that a gradient scaler skips counts as one. Epochs are counted over the whole
    run, and end after the validation in them, which sees the same tortoise as after the reset.

    Checkpoints have the hare's weights as the module's, and the tortoise as the state of this callback, so that a run
    that is resumed with ``ckpt_path`` goes on as if it had not been interrupted, and `Trainer.predict` with
    ``ckpt_path`` predicts with the tortoise.

    Runs on one device, or with DDP, where each process keeps a tortoise of its own, the same in all of them but for
    BatchNorm statistics that are not synchronised. Strategies that shard weights are refused.

    Parameters
    ----------
    part : str, optional
        The submodule that is hare and tortoise, by its name; by default the whole module.
    **settings
        Those of `ht_ray.methods.Tortoise.Settings`: ``momentum=0.999``, ``reset_interval=None`` (which is EMA),
        ``reset_unit="epochs"`` and others, but for `momenta` and `recalibrate_batchnorm`.

    Attributes
    ----------
    tortoise : Tortoise or None
        There once training, or evaluation of a checkpoint, has begun.

    Raises
    ------
    SettingError
        If a setting is unknown or not accepted; when training begins, also if there is no such part or the strategy
        shards weights.

    Examples
    --------
    >>> callback = HareTortoiseCallback(momentum=0.99, reset_interval=5)
    >>> HareTortoiseCallback(momentum=2.0)
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: Tortoise: momentum = 2.0: accepted is a number with 0 <= momentum < 1.
    """

    def __init__(self, part: str | None = None, **settings: Any) -> None:
        self.part = part
        self.settings = settings_of(type(self).__name__, settings)
        self.tortoise: Tortoise | None = None
        self._loaded: dict[str, Any] | None = None
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        if self.tortoise is None:
            return self._loaded or {}
        if self.tortoise.predicting:
            raise RuntimeError(
                "HareTortoiseCallback: a checkpoint cannot be saved inside of validation, test or prediction, where "
                "the module holds the tortoise"
            )
        return self.tortoise.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded, self.tortoise = state_dict, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = trainer.strategy
        # DeepSpeed's is derived from DDP's, and shards.
        if not isinstance(strategy, SingleDeviceStrategy) and type(strategy) is not DDPStrategy:
            why = ": a tortoise follows whole weights; accepted are a single device and DDP."
            raise refused("HareTortoiseCallback: strategy", type(strategy).__name__, why)
        self._begin(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # It counts the steps of all optimizers; batches that are accumulated leave it as it is.
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._own.step(trainer.optimizers)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._own.end_epoch(trainer.optimizers)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded is not None:
            self._begin(pl_module)
        if self.tortoise is not None:  # without one there is nothing trained to evaluate
            self.tortoise.start_predicting()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.tortoise is not None:
            self.tortoise.stop_predicting()

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_validation_end(trainer, pl_module)

    @property
    def _own(self) -> Tortoise:
        assert self.tortoise is not None  # training has begun
        return self.tortoise

    def _begin(self, pl_module: LightningModule) -> None:
        try:
            hare = pl_module if self.part is None else pl_module.get_submodule(self.part)
        except AttributeError as error:
            names = [name for name, _ in pl_module.named_children()]
            why = ": the module has no such part; accepted are {names} and parts of them."
            raise refused("HareTortoiseCallback: part", self.part, why, names=", ".join(names)) from error
        if self.tortoise is None or self.tortoise.hare is not hare:
            self.tortoise = Tortoise(hare, self.settings)
        if self._loaded:
            self.tortoise.load_state_dict(self._loaded)
        self._loaded = None
