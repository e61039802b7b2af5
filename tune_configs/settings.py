"""What the vision studies have in common: their flags, and what a data set's name implies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, get_type_hints

from ht_ray._checks import check_choice, check_number
from ht_ray.diagnostics import IndicatorConfig
from ht_ray.errors import SettingError
from ht_ray.records.checked_json import Damaged, check_form, form_of
from ht_ray.sweep import Search, TrialSpec
from ht_ray.vision import (
    ContinualConfig,
    DataConfig,
    MethodConfig,
    MethodSettings,
    ModelConfig,
    TrainingConfig,
    WarmStartConfig,
    parse_method,
)

__all__ = ["PRESETS", "StudySettings", "VisionSettings", "check_distinct"]

#: What a data set's name implies where no flag says otherwise. Network, learning rate, weight decay and number of seeds
#: are those of arXiv 2406.02596, appendices A.2 and A.3; digits is ours: small, so that it takes minutes.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "model": "mlp",
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "batch_size": 32,
        "augment": "none",
        "buffer_size": 200,  # of 1437 images
        "seeds": 5,
    },
    "mnist": {
        "model": "mlp",
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "batch_size": 256,
        "augment": "none",
        "buffer_size": 5000,
        "seeds": 5,
    },
    "cifar10": {
        "model": "resnet18",
        "learning_rate": 1e-3,
        "weight_decay": 1e-5,
        "batch_size": 256,
        "augment": "crop_flip",
        "buffer_size": 5000,
        "seeds": 5,
    },
    "cifar100": {
        "model": "vit_tiny",
        "learning_rate": 3e-3,
        "weight_decay": 0.05,
        "batch_size": 256,
        "augment": "crop_flip",
        "buffer_size": 5000,
        "seeds": 5,
    },
    "tiny-imagenet": {
        "model": "vgg16",
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "batch_size": 256,
        "augment": "crop_flip",
        "buffer_size": 5000,
        "seeds": 3,
    },
}

#: The most seeds, and the last first one: beyond are typing errors.
MOST_SEEDS, LAST_SEED = 1000, 2**32 - 1

# What has no meaning for the other stream, in any study that has the setting.
_OF_STREAM = {
    "continual": ("phases", "chunk_ratio", "noise", "access", "buffer_size"),
    "warm_start": ("subset_ratio", "label_noise", "warm_epochs"),
}


@dataclass(frozen=True)
class StudySettings(ABC):
    """What the settings of every study have in common."""

    device: str = "auto"
    """Where a trial runs: auto (its GPU, if it has one), cpu or cuda."""

    @abstractmethod
    def resolved(self) -> Self:
        """Return these settings with what they imply written out, as results record them."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """What trials are compared by."""

    def search_of(self, planned: Sequence[TrialSpec]) -> Search | None:
        """Return how the planned trials are searched; None if all run as planned."""
        return None

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Return the settings that an earlier run wrote.

        Raises
        ------
        SettingError
            If they are of another study, or of another version, or damaged.
        """
        known = {field.name for field in fields(cls)}
        if saved.keys() - known:
            raise SettingError(
                f"the study has settings that {cls.__name__} does not know: {', '.join(sorted(saved.keys() - known))}. "
                "It was made by another script, or another version."
            )
        hints = get_type_hints(cls)
        try:
            check_form(saved, {f"{name}?": form_of(hints[name]) for name in known})
        except Damaged as damage:
            raise SettingError(
                f"its config.json is damaged: in the settings, {damage}. Restore it from a copy."
            ) from damage
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in saved.items()}
        return cls(**values)


@dataclass(frozen=True)
class _StudyFields(StudySettings):
    # Apart from the methods' own settings, so that these flags come first in ``--help``.
    data: str = "digits"
    """Data set: digits (embedded), mnist, cifar10, cifar100 or tiny-imagenet."""
    data_root: str | None = None
    """Folder or archive with the images; by default they are downloaded once."""
    download: bool = True
    """Whether missing images may be downloaded."""
    train_limit: int | None = None
    """Use so many training images only, balanced over the classes."""
    test_limit: int | None = None
    """Use so many test images only, balanced over the classes."""

    model: str | None = None
    """Network: mlp, resnet18, vit_tiny or vgg16."""
    hidden: tuple[int, ...] = (100, 100)
    """Widths of the hidden layers of the mlp."""
    width: float = 1.0
    """Multiplies the width of every hidden layer."""

    head_hidden: tuple[int, ...] | None = None
    """Widths of the hidden layers of the head; by default 1024 1024 for vgg16, and a linear head for the others."""

    stream: str = "continual"
    """continual, or warm_start (appendix D of the paper)."""
    phases: int = 10
    """Continual: number of phases."""
    epochs: int = 20
    """Epochs of each phase; warm_start: of the second phase. The paper's number is 100."""
    chunk_ratio: float | None = None
    """Continual: share of the training set that is new in each phase; by default all of it is used, equally."""
    noise: str = "paper"
    """Continual: label noise over the phases: paper (from 0.5 to 0), linear, none, or numbers such as 0.5,0.3,0."""
    buffer_size: int | None = None
    """Continual, limited access: how many older samples are kept; by default 5000, and 200 for digits."""
    subset_ratio: float = 0.1
    """Warm start: share of the training set in the first phase."""
    label_noise: float = 0.5
    """Warm start: label noise in the first phase."""
    warm_epochs: int | None = None
    """Warm start: epochs of the first phase; by default epochs / subset_ratio, the same number of updates."""
    noise_rule: str = "uniform"
    """Labels that noise draws: uniform over all classes, or other than the true one."""

    batch_size: int | None = None
    """Samples per optimiser step."""
    learning_rate: float | None = None
    """Of AdamW, after the warm-up."""
    weight_decay: float | None = None
    """Of AdamW."""
    warmup_ratio: float = 0.1
    """Share of each phase over which the learning rate rises from 0."""
    clip: float = 0.5
    """Largest gradient norm."""
    fresh_optimizer: bool = True
    """Whether the optimiser starts afresh at each phase."""
    augment: str | None = None
    """none, crop (pad by 4, or by 1 for digits, and crop), or crop_flip (and mirror)."""
    precision: str = "fp32"
    """fp32, or bf16 for autocast."""
    channels_last: bool = False
    """Whether convolutions run in that memory format."""

    reset_unit: str = "epochs"
    """Unit of the reset interval: epochs, counted from 1 in each phase, or steps."""
    optimizer_state: str = "keep"
    """Whether to keep or clear the optimiser's state at a reset of the hare."""
    reset_at_phase_end: bool = True
    """Whether a reset due at a phase's last epoch happens."""
    recalibrate_batchnorm: int = 0
    """Batches from which the tortoise's BatchNorm statistics are recomputed each epoch; 0 averages them."""
    ratio: float = 0.8
    """Shrink & Perturb: share of the weights that is given up; it is taken from the initial ones unless --perturb is
    given."""
    perturb: float = 0.0
    """Shrink & Perturb as Ash & Adams have it: factor of a freshly drawn network that is added; 0 adds none."""
    weight_noise: float = 0.0
    """Shrink & Perturb: standard deviation of normal noise added to the weights."""
    toward: str = "initial"
    """Shrink & Perturb and Head Reset: initial or fresh weights."""
    reinitialise_tortoise: bool = True
    """Whether what re-initialises weights (Shrink & Perturb, Head Reset, ReDo, ...), combined with a tortoise, acts on
    it too."""

    indicators_every: int = 0
    """Measure the plasticity indicators after every so many epochs, and at each phase's end; 0 means never."""
    indicators: tuple[str, ...] = ("weights", "features", "units", "gradients")
    """Groups of indicators to measure: weights, features, units, gradients; costly: curvature, covariance, probe."""
    evaluate_every: int = 1
    """Test after every so many epochs of a phase, and at its end; other epochs have no place in curves."""

    seeds: int | None = None
    """Number of seeds (data order, label noise, weights and everything else drawn); by default 5, and 3 for
    tiny-imagenet."""
    first_seed: int = 0
    """The first of them."""


@dataclass(frozen=True)
class VisionSettings(MethodSettings, _StudyFields):
    """Settings of a study on images. None means what the data set's name implies.

    Raises
    ------
    SettingError
        If a value is not accepted, or has no meaning for the stream.
    """

    def __post_init__(self) -> None:
        check_choice("VisionSettings.stream", self.stream, _OF_STREAM)
        check_number("VisionSettings.first_seed", self.first_seed, low=0, high=LAST_SEED, integer=True)
        check_number("VisionSettings.evaluate_every", self.evaluate_every, low=1, integer=True)
        check_choice("VisionSettings.device", self.device, ["auto", "cpu", "cuda"])
        self.data_config()
        check_number("VisionSettings.seeds", self._preset("seeds"), low=1, high=MOST_SEEDS, integer=True)
        self._model_config()
        self._training_config()
        self._stream_config("full")
        self.method_config("plain")
        self.indicator_config()
        for field in fields(self):
            value = getattr(self, field.name)
            for stream, names in _OF_STREAM.items():
                if stream != self.stream and field.name in names and value != field.default:
                    raise SettingError(
                        f"VisionSettings.{field.name} = {value!r}: it has no meaning for VisionSettings.stream = "
                        f"{self.stream!r}, only for {stream!r}."
                    )

    def resolved(self) -> Self:
        """Return these settings with the data set's own values written out, as results record them."""
        implied = ["model", "batch_size", "learning_rate", "weight_decay", "seeds"]
        if self.stream == "continual":
            implied.append("buffer_size")
        values: dict[str, Any] = {name: self._preset(name) for name in implied}
        if self.data_root is not None:
            # A study may be resumed from another directory.
            values["data_root"] = str(Path(self.data_root).expanduser().absolute())
        return replace(self, augment=self._training_config().augment, **values)

    @property
    def metric(self) -> str:
        """What trials are compared by: the first phase of a warm start is a means, not an end."""
        return "average_accuracy" if self.stream == "continual" else "final_accuracy"

    @property
    def method_defaults(self) -> dict[str, Any]:
        """Settings that all methods of the study share."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(MethodSettings)},
            "reset_unit": self.reset_unit,
            "optimizer_state": self.optimizer_state,
            "reset_at_phase_end": self.reset_at_phase_end,
            "recalibrate_batchnorm": self.recalibrate_batchnorm,
            "ratio": self.ratio,
            "noise": self.weight_noise,
            "toward": self.toward,
            "perturb": self.perturb,
            "reinitialise_tortoise": self.reinitialise_tortoise,
        }

    def indicator_config(self) -> IndicatorConfig:
        """Return which plasticity indicators are measured, and how often."""
        return IndicatorConfig(every=self.indicators_every, names=tuple(self.indicators))

    def data_config(self) -> DataConfig:
        """Return which images to load."""
        return DataConfig(
            name=self.data,
            root=self.data_root,
            download=self.download,
            train_limit=self.train_limit,
            test_limit=self.test_limit,
        )

    def method_config(self, name: str, **settings: Any) -> MethodConfig:
        """Return a method of this study, under the one name it has however `name` is spelt.

        Settings behind the name, as in ``"l2:l2_strength=0.01"``, go before `settings`, and those before the study's.
        """
        name, own = parse_method(name)
        return MethodConfig(name, **{**self.method_defaults, **settings, **own})

    def trial_config(self, method: MethodConfig, access: str, seed: int, **stream: Any) -> dict[str, Any]:
        """Return what a trial is made from, as plain data; `stream` are settings of its stream that go before these."""
        return {
            "data": self.data,
            "model": asdict(method.model(self._model_config())),
            "stream": {"kind": self.stream, **asdict(replace(self._stream_config(access), **stream))},
            "training": asdict(self._training_config()),
            "indicators": asdict(self.indicator_config()),
            "evaluate_every": self.evaluate_every,
            "method": asdict(method),
            "device": self.device,
            "seed": seed,
        }

    def trial_settings(self, method: MethodConfig, access: str, seed: int) -> dict[str, Any]:
        """Return a trial's columns in the table of results; None where a setting does not apply."""
        follows, resets = method.has_ema, method.resets
        return {
            "data": self.data,
            "model": self._model_config().name,
            "stream": self.stream,
            "access": access if self.stream == "continual" else None,
            "method": method.name,
            "momentum": method.momentum if follows else None,
            "reset_interval": method.reset_interval if resets else None,
            "reset_unit": method.reset_unit if resets else None,
            "seed": seed,
        }

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.first_seed, self.first_seed + self._preset("seeds")))

    def _preset(self, name: str) -> Any:
        value = getattr(self, name)
        return PRESETS[self.data][name] if value is None else value

    def _model_config(self) -> ModelConfig:
        return ModelConfig(
            name=self._preset("model"), hidden=tuple(self.hidden), width=self.width, head_hidden=self.head_hidden
        )

    def _training_config(self) -> TrainingConfig:
        augment = self._preset("augment")
        if self.augment is None and self.stream == "warm_start":
            augment = "none"  # protocol of tables 4 and 5 and appendix D
        return TrainingConfig(
            batch_size=self._preset("batch_size"),
            learning_rate=self._preset("learning_rate"),
            weight_decay=self._preset("weight_decay"),
            warmup_ratio=self.warmup_ratio,
            clip=self.clip,
            fresh_optimizer=self.fresh_optimizer,
            augment=augment,
            precision=self.precision,  # type: ignore[arg-type]
            channels_last=self.channels_last,
        )

    def _stream_config(self, access: str) -> ContinualConfig | WarmStartConfig:
        if self.stream == "warm_start":
            return WarmStartConfig(
                subset_ratio=self.subset_ratio,
                label_noise=self.label_noise,
                epochs=self.epochs,
                warm_epochs=self.warm_epochs,
                noise_rule=self.noise_rule,  # type: ignore[arg-type]
            )
        return ContinualConfig(
            phases=self.phases,
            epochs=self.epochs,
            chunk_ratio=self.chunk_ratio,
            noise=self.noise,
            access=access,  # type: ignore[arg-type]
            buffer_size=self._preset("buffer_size"),
            noise_rule=self.noise_rule,  # type: ignore[arg-type]
        )


def check_distinct(where: str, values: Sequence[Any], same: Callable[[Any], Hashable] = lambda value: value) -> None:
    """Raise `SettingError` unless there are `values`, of which no two are the `same`."""
    if not values:
        raise SettingError(f"{where} = (): accepted is at least one value.")
    seen: dict[Hashable, Any] = {}
    for value in values:
        if same(value) in seen:
            first = seen[same(value)]
            twice = "is given twice" if first == value else f"is the same as {first!r}"
            raise SettingError(f"{where} = {value!r}: it {twice}.")
        seen[same(value)] = value
