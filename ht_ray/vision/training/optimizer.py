"""The paper's optimiser: AdamW, linear warm-up in each phase, clipped gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from ht_ray._checks import check_choice, check_fields, refused
from ht_ray._parts import is_path_of_part
from ht_ray.errors import SettingError
from ht_ray.vision.data.augment import AUGMENTATIONS
from ht_ray.vision.training.objective import Objective

__all__ = ["AUGMENTATIONS", "TrainingConfig", "fitting", "make_optimizer", "set_learning_rate", "warmup_factor"]


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained in each phase (arXiv 2406.02596, table 3).

    Attributes
    ----------
    batch_size
        Samples per optimiser step.
    learning_rate
        Of AdamW, after the warm-up.
    weight_decay
        Of AdamW, decoupled.
    betas, eps
        Of AdamW.
    warmup_ratio
        Share of each phase's steps over which the learning rate rises linearly from 0.
    clip
        Largest gradient norm; None for no clipping.
    fresh_optimizer
        Whether the optimiser starts afresh at each phase.
    augment
        ``"none"``, ``"crop"`` (pad, crop) or ``"crop_flip"`` (and mirror).
    precision
        ``"fp32"``, or ``"bf16"`` for autocast with float32 weights.
    channels_last
        Whether convolutions run in that memory format.
    loss
        A loss of your own, my_package.my_module:loss, which is called with outputs (B, K) and labels (B,) and returns
        its mean; None is cross-entropy, or the squared error of a regression.
    measure
        What results are measured by, my_package.my_module:measure, which is called with outputs and labels of a whole
        set and returns a number, larger for a better network; None is accuracy, or R2 of a regression.
    """

    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    warmup_ratio: float = 0.1
    clip: float | None = 0.5
    fresh_optimizer: bool = True
    augment: str = "none"
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    loss: str | None = None
    measure: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "batch_size", low=2, integer=True)
        check_fields(self, "learning_rate", "clip", low=0, low_open=True)
        check_fields(self, "weight_decay", "eps", low=0)
        check_fields(self, "betas", low=0, high=1, high_open=True)
        if len(self.betas) != 2:
            raise refused("TrainingConfig.betas", self.betas, ": accepted are two numbers.")
        check_fields(self, "warmup_ratio", low=0, high=1)
        check_choice("TrainingConfig.augment", self.augment, AUGMENTATIONS)
        check_choice("TrainingConfig.precision", self.precision, ["fp32", "bf16"])
        for field in ("loss", "measure"):
            value = getattr(self, field)
            if value is not None and not is_path_of_part(value):
                accepted = "a function of yours, as 'package.module:name'"
                raise SettingError(owner="TrainingConfig", field=field, value=value, accepted=accepted)
        if self.measure is not None and self.measure_name in ("loss", "accuracy", "r2"):
            why = ": that is what another measure is called; give it another name."
            raise refused("TrainingConfig.measure", self.measure, why)

    @property
    def measure_name(self) -> str | None:
        """What the user's own measure is called; None if there is none."""
        return None if self.measure is None else self.measure.rpartition(":")[2].lower()

    @property
    def autocast(self) -> torch.dtype | None:
        """The type in which networks compute under autocast; None: float32, without it."""
        return torch.bfloat16 if self.precision == "bf16" else None

    @property
    def objective(self) -> Objective:
        """Loss and measure."""
        return Objective(self.loss, self.measure)

    def described(self) -> dict[str, Any]:
        """Return all settings as plain data, without a loss and a measure that are not given: runs had neither once."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in ("loss", "measure") or value is not None}


def fitting(config: TrainingConfig, shape: Sequence[int]) -> TrainingConfig:
    """Return `config`, if samples of this shape can be trained on like that.

    Raises
    ------
    SettingError
        If it is about images, and the samples are those of a table.
    """
    if len(shape) == 3:
        return config
    for field, off in (("augment", "none"), ("channels_last", False)):
        if getattr(config, field) != off:
            why = f": the data are a table, not images; accepted is {off!r}."
            raise refused(f"TrainingConfig.{field}", getattr(config, field), why)
    return config


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> AdamW:
    """Return AdamW over the trainable ones of `parameters`."""
    return AdamW(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def warmup_factor(step: int, total: int, ratio: float) -> float:
    """Return what the learning rate is multiplied with at `step` (from 0) of a phase of `total` steps.

    Linear from 0 over the first ``ratio * total`` steps, 1 from there (arXiv 2406.02596, appendix A.3).

    Examples
    --------
    >>> [warmup_factor(step, 20, 0.2) for step in (0, 1, 4, 19)]
    [0.0, 0.25, 1.0, 1.0]
    """
    warm = ratio * total
    return 1.0 if step >= warm else step / warm


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set each parameter group's learning rate to `factor` times its initial one.

    The initial one is kept in the group as ``initial_lr``, as torch's schedulers do.
    """
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
