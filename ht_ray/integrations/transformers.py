"""Hare & Tortoise as a callback of Hugging Face's `Trainer` (``pip install 'ht-ray[transformers]'``)."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import torch

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise ImportError("ht_ray.integrations.transformers needs them: pip install 'ht-ray[transformers]'") from error

from ht_ray._checks import refused
from ht_ray._files import atomic_path
from ht_ray.errors import SettingError
from ht_ray.integrations._settings import settings_of
from ht_ray.methods import Tortoise

__all__ = ["HareTortoiseCallback"]

_FILE = "tortoise.pt"


class HareTortoiseCallback(TrainerCallback):
    """Trains the model of a `Trainer` with Hare & Tortoise; its ``evaluate`` and ``predict`` use the tortoise.

    The tortoise follows after each step of the optimizer: once for all accumulated batches, with gradients that are
    clipped as `Trainer` does. A step that a gradient scaler skips counts as one. Epochs are counted over the whole run.

    Checkpoints have the hare's weights as the model's, and the tortoise in ``tortoise.pt``. A run that is resumed goes
    on with it. With ``load_best_model_at_end`` both are those of the best checkpoint. `Trainer.save_model` saves the
    hare; inside of ``with callback.tortoise.predict():`` it saves the tortoise.

    Runs on one device, or with DDP or DataParallel. What shards weights (FSDP, DeepSpeed) is refused, as is evaluation
    that casts the weights in place (``bf16_full_eval``, ``fp16_full_eval``).

    Parameters
    ----------
    resume_from : path, optional
        The checkpoint whose tortoise a resumed run goes on with; by default that of the step at which it goes on, in
        the trainer's ``output_dir``.
    **settings
        Those of `ht_ray.methods.Tortoise.Settings`: ``momentum=0.999``, ``reset_interval=None`` (which is EMA),
        ``reset_unit="epochs"`` and others, but for `momenta` and `recalibrate_batchnorm`.

    Attributes
    ----------
    tortoise : Tortoise or None
        There once training has begun.

    Raises
    ------
    SettingError
        If a setting is unknown or not accepted.

    Examples
    --------
    >>> callback = HareTortoiseCallback(momentum=0.99, reset_interval=100, reset_unit="steps")

    ``callback.attach(trainer)`` adds it to a `Trainer`.
    """

    def __init__(self, resume_from: str | Path | None = None, **settings: Any) -> None:
        self.resume_from = resume_from
        self.settings = settings_of(type(self).__name__, settings)
        self.tortoise: Tortoise | None = None
        self._attached = False

    def attach(self, trainer: Trainer) -> Trainer:
        """Add this callback to `trainer`, let its evaluation loop use the tortoise, and return it.

        A callback alone would not do: a `Trainer` tells its callbacks that an evaluation has ended, not that one
        begins.

        Raises
        ------
        SettingError
            If the trainer shards weights, or casts them for evaluation.
        """
        cast = ": the weights would be cast in place while the tortoise's are among them; leave it out."
        legacy = ": the tortoise predicts in the present evaluation loop alone; leave it out."
        for name, why in {"bf16_full_eval": cast, "fp16_full_eval": cast, "use_legacy_prediction_loop": legacy}.items():
            if getattr(trainer.args, name, False):
                raise refused(f"TrainingArguments: {name}", True, why)
        for name in ("is_fsdp_enabled", "is_deepspeed_enabled"):
            if getattr(trainer, name, False):
                why = ": a tortoise follows whole weights; accepted are one device, DDP and DataParallel."
                raise refused(f"Trainer: {name}", True, why)
        loop = trainer.evaluation_loop

        @wraps(loop)
        def evaluation_loop(*arguments: Any, **keywords: Any) -> Any:
            if self.tortoise is None:  # nothing is trained yet
                return loop(*arguments, **keywords)
            with self.tortoise.predict():
                return loop(*arguments, **keywords)

        trainer.evaluation_loop = evaluation_loop
        trainer.add_callback(self)
        self._attached = True
        return trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        if not self._attached:
            raise SettingError(
                "HareTortoiseCallback: give it to the trainer by callback.attach(trainer), not by callbacks=[...]: "
                "evaluation would be with the hare."
            )
        if self.tortoise is None or self.tortoise.hare is not model:
            self.tortoise = Tortoise(model, self.settings)
        if state.global_step:
            self._load(self.resume_from or _checkpoint(args, state))

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **others: Any) -> None:
        self._own.step(_plain(optimizer))

    def on_epoch_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **others: Any) -> None:
        self._own.end_epoch(_plain(optimizer))

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if args.should_save:
            with atomic_path(_checkpoint(args, state) / _FILE) as file:
                torch.save(self._own.state_dict(), file)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load(state.best_model_checkpoint)

    @property
    def _own(self) -> Tortoise:
        assert self.tortoise is not None  # training has begun
        return self.tortoise

    def _load(self, checkpoint: str | Path) -> None:
        file = Path(checkpoint) / _FILE
        if not file.exists():
            why = f": there is no {_FILE}; accepted is a checkpoint that was saved with this callback."
            raise refused("HareTortoiseCallback: resume_from", str(checkpoint), why)
        self._own.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _plain(optimizer: Any) -> Any:
    """Return the optimizer that Accelerate has wrapped, if it has."""
    return getattr(optimizer, "optimizer", optimizer)
