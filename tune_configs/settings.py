"""What the vision studies have in common: their settings, and what a data set's name implies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, get_args, get_type_hints

from ht_ray._checks import check_choice, check_number, refused
from ht_ray._parts import is_path_of_part
from ht_ray.diagnostics import INDICATOR_GROUPS, IndicatorConfig
from ht_ray.errors import SettingError
from ht_ray.methods import registry
from ht_ray.methods.registry import split_methods, tried_settings
from ht_ray.numerics import TF32
from ht_ray.records.checked_json import Damaged, check_form, form_of
from ht_ray.report.data.selection import validation_metric
from ht_ray.sweep import Search, TrialSpec
from ht_ray.sweep.study.config import is_in_copy_of_job
from ht_ray.vision import (
    AUGMENTATIONS,
    DATA_SETS,
    STREAMS,
    DataConfig,
    MethodConfig,
    ModelConfig,
    StreamConfig,
    TrainingConfig,
    parse_method,
)
from ht_ray.vision.data.benchmark_stream import BenchmarkStreamConfig, is_benchmark
from ht_ray.vision.data.own_stream import OwnStreamConfig, is_own_stream, stream_settings
from tune_configs.flags import default_of, help_texts
from tune_configs.published import PUBLISHED, published_settings
from tune_configs.vision_trial import plain_method, trial_config

__all__ = [
    "OWN_PRESET",
    "PRESETS",
    "StudySettings",
    "VisionSettings",
    "check_distinct",
    "check_values",
    "presets_of",
    "unordered",
    "with_methods",
]

_IMPLIED = ("model", "learning_rate", "weight_decay", "batch_size", "augment", "buffer_size", "seeds")
#: What a data set's name implies where no flag says otherwise. Network, learning rate, weight decay and number of seeds
#: are those of arXiv 2406.02596, appendices A.2 and A.3; digits is ours: small, so that it takes minutes (the buffer is
#: of 1437 images).
PRESETS: dict[str, dict[str, Any]] = {
    data: dict(zip(_IMPLIED, values, strict=True))
    for data, values in {
        "digits": ("mlp", 1e-3, 1e-4, 32, "none", 200, 5),
        "mnist": ("mlp", 1e-3, 1e-4, 256, "none", 5000, 5),
        "cifar10": ("resnet18", 1e-3, 1e-5, 256, "crop_flip", 5000, 5),
        "cifar100": ("vit_tiny", 3e-3, 0.05, 256, "crop_flip", 5000, 5),
        "tiny-imagenet": ("vgg16", 1e-3, 1e-4, 256, "crop_flip", 5000, 3),
    }.items()
}
#: The same for data of one's own, which imply nothing.
OWN_PRESET: Mapping[str, Any] = dict(zip(_IMPLIED, ("mlp", 1e-3, 1e-4, 256, "none", 5000, 5), strict=True))
#: The same for streams that make their data; ours.
_STREAM_PRESETS: Mapping[str, Mapping[str, Any]] = {"bit_flipping": {**OWN_PRESET, "batch_size": 32}}
#: The same for benchmarks of Avalanche: what their images are, by a part of the name; the longest counts.
_BENCHMARK_DATA: Mapping[str, str] = {
    "MNIST": "mnist",
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100",
    "CIFAR110": "cifar100",
    "TinyImageNet": "tiny-imagenet",
}
#: Defaults of the studies that are not the library's.
_DEFAULTS: Mapping[str, Any] = {"epochs": 20}
#: What a study has of its own in their place: a grid, or one value with another default.
_METHODS_OWN = ("momentum", "reset_interval")

#: Where the settings of methods come from.
_SETTINGS = ("default", "published", "tuned")
#: Share of the training data that is held out where methods are tuned.
_HELD_OUT = 0.1

#: The most trials in a pack: beyond, memory is no longer near.
MOST_PACKED = 1000
#: The most seeds, and the last first one: beyond are typing errors.
MOST_SEEDS, LAST_SEED = 1000, 2**32 - 1


class _Section(NamedTuple):
    """A configuration whose fields are settings of the vision studies, under a title of ``--help``."""

    title: str
    config: type[Any]
    renamed: Mapping[str, str]
    """Fields that are called otherwise: one name has a meaning in several configurations."""
    choices: Mapping[str, Iterable[str]]

    def names(self) -> dict[str, str]:
        """Return the setting's name by the field's."""
        return {one.name: self.renamed.get(one.name, one.name) for one in fields(self.config)}


_INDICATORS = {one.name: f"indicators_{one.name}" for one in fields(IndicatorConfig)} | {"names": "indicators"}
_DATA = _Section("Data", DataConfig, {"name": "data", "root": "data_root", "cache": "data_cache"}, {"name": DATA_SETS})
_MODEL = _Section(
    "Network",
    ModelConfig,
    {"name": "model"},
    {"name": ("mlp", "resnet18", "vit_tiny", "vgg16"), "activation": ("relu", "crelu", "fourier")},
)
_TRAINING = _Section("Training", TrainingConfig, {}, {"augment": AUGMENTATIONS})
_MEASURED = _Section("Indicators", IndicatorConfig, _INDICATORS, {"names": tuple(INDICATOR_GROUPS)})
_STREAM_SECTIONS = [_Section("Stream", config, {}, {}) for config in STREAMS.values()]
#: Of a warm start: whether there is none is the study's to say.
_NO_FLAGS = ("fresh",)

#: Whose settings a refusal may speak of, and what they are called here.
RENAMED: Mapping[tuple[str, str], str] = {
    (section.config.__name__, name): setting
    for section in (_DATA, _MODEL, *_STREAM_SECTIONS, _TRAINING, _MEASURED)
    for name, setting in section.names().items()
} | {("MethodConfig", "name"): "methods"}


def _generated() -> list[tuple[str, Any, Any]]:
    """Return the settings that are those of configurations, and of the methods: name, type, field."""
    of_streams = {config.name: help_texts(config) for config in STREAMS.values()}
    found: dict[str, tuple[str, Any, Any]] = {}
    for section in (_DATA, _MODEL, *_STREAM_SECTIONS, _TRAINING, _MEASURED):
        hints, texts = get_type_hints(section.config), help_texts(section.config)
        for one in fields(section.config):
            name = section.names()[one.name]
            if name in found or name in _NO_FLAGS:
                continue
            text = _stream_text(name, of_streams) if section in _STREAM_SECTIONS else texts[one.name]
            metadata = {"help": text, "section": section.title, "choices": section.choices.get(one.name, ())}
            kind, default = hints[one.name], _DEFAULTS.get(name, default_of(one))
            if name in _IMPLIED:
                kind, default = kind | None, None
            found[name] = name, kind, field(default=default, metadata=metadata)
    return [*found.values(), *_of_methods(found)]


def _stream_text(name: str, of_streams: Mapping[str, Mapping[str, str]]) -> str:
    """Return what a setting of streams means: once where it is the same for all, otherwise for each that has it."""
    texts = {stream: own[name] for stream, own in of_streams.items() if name in own}
    if len(texts) == len(of_streams) and len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return " ".join(f"{stream}: {text[:1].lower()}{text[1:]}" for stream, text in texts.items())


def _of_methods(known: Iterable[str]) -> list[tuple[str, Any, Any]]:
    metadata = {name: {"help": one.info.help, "section": "Methods"} for name, one in registry.all_settings().items()}
    return [
        (name, one.kind, field(default=one.default, metadata=metadata[name]))
        for name, one in registry.all_settings().items()
        if name not in known and name not in _METHODS_OWN
    ]


def presets_of(data: str) -> Mapping[str, Any]:
    """Return what the name of a data set implies; one that there is not is refused with the other settings."""
    if is_benchmark(data):
        data = max((part for part in _BENCHMARK_DATA if data.partition(":")[2].endswith(part)), key=len, default="")
        data = _BENCHMARK_DATA.get(data, data)
    return PRESETS.get(data, OWN_PRESET)


@dataclass(frozen=True)
class StudySettings(ABC):
    """What the settings of every study have in common."""

    #: Settings that most users touch, in the order in which ``--help`` shows them.
    most_used: ClassVar[tuple[str, ...]] = ()
    #: Titles in ``--help`` of settings that a base has.
    sections: ClassVar[Mapping[type[Any], str]] = {}

    device: str = field(default="auto", metadata={"choices": ("auto", "cpu", "cuda")})
    """Where a trial runs: auto is its GPU, if it has one."""
    tf32: TF32 = "convolutions"
    """Where a GPU may round float32 products to TF32: none, convolutions (as torch has it), or all."""
    cudnn_benchmark: bool = False
    """Whether cuDNN times its kernels at the start and keeps the fastest."""
    deterministic: bool = False
    """Whether a GPU gives the same bits in every run; an operation that cannot is an error. A CPU does so anyhow."""

    def _check_numerics(self) -> None:
        check_choice(f"{type(self).__name__}.tf32", self.tf32, get_args(TF32))
        if self.cudnn_benchmark and self.deterministic:
            raise self.refused("cudnn_benchmark", " with {deterministic} = True: accepted is one of the two.")

    @property
    def numerics(self) -> dict[str, Any]:
        """What a trial's configuration says of a GPU's numerics: nothing where they are torch's own."""
        chosen = {"tf32": self.tf32, "benchmark": self.cudnn_benchmark, "deterministic": self.deterministic}
        usual = {"tf32": StudySettings.tf32, "benchmark": False, "deterministic": False}
        return {} if chosen == usual else {"numerics": chosen}

    def refused(self, name: str, reason: str, value: Any = None, **values: Any) -> SettingError:
        """Return the refusal of a setting, of all its value or of `value` in it; see `SettingError`."""
        given = getattr(self, name) if value is None else value
        return refused(f"{type(self).__name__}.{name}", given, reason, **values)

    @abstractmethod
    def resolved(self) -> Self:
        """Return these settings with what they imply written out, as results record them."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """What trials are compared by."""

    @property
    def pack_size(self) -> int | None:
        """How many trials are in one pack at most; None where the number of slots decides."""
        return None

    def search_of(self, planned: Sequence[TrialSpec]) -> Search | None:
        """Return how the planned trials are searched; None if all run as planned."""
        return None

    @classmethod
    def old_names(cls) -> dict[str, str]:
        """Return what settings were called in the minor version before, and what they are called now."""
        return {}

    @classmethod
    def canonical(cls, config: dict[str, Any]) -> Any:
        """Return what the configuration of a trial, or JSON of it, means: equal for what trains the same."""
        return config

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Self:
        """Return the settings that an earlier run wrote, under the names of then or of now.

        Raises
        ------
        SettingError
            If they are of another study, or of another version, or damaged.
        """
        known = {one.name for one in fields(cls)}
        saved = {name if name in known else cls.old_names().get(name, name): value for name, value in saved.items()}
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


def _fields(config: Any) -> dict[str, Field[Any]]:
    return {one.name: one for one in fields(config)}


def _from_anywhere(path: str) -> str:
    """Return a path as a study finds it that is resumed from another directory, or by another job."""
    found = Path(path).expanduser().absolute()
    return path if is_in_copy_of_job(str(found)) and not Path(path).is_absolute() else str(found)


def _streams_with(name: str) -> list[str]:
    return [stream for stream, config in STREAMS.items() if name in _fields(config)]


_Flags: Any = make_dataclass("_Flags", _generated(), frozen=True)


@dataclass(frozen=True)
class VisionSettings(_Flags, StudySettings):
    """Settings of a study on images: those of its data, network, stream, training, methods and indicators.

    They are made from the fields of `DataConfig`, `ModelConfig`, the streams, `TrainingConfig` and `IndicatorConfig`
    and the settings of all methods. None means what the data set's name implies, as `PRESETS` have it.

    Raises
    ------
    SettingError
        If a value is not accepted, or has no meaning for the stream.
    """

    stream: str = field(default="continual", metadata={"choices": tuple(STREAMS)})
    """Which stream of phases; warm_start is that of appendix D of the paper. One of yours is
    my_package.my_module:make_stream, called with labels, num_classes and seed, which returns its phases. A benchmark
    of Avalanche is avalanche:SplitMNIST, or avalanche:my_package.my_module:make_benchmark, with data of its own."""
    stream_args: tuple[str, ...] = ()
    """Arguments of a benchmark of Avalanche: n_experiences=5 seed=1 return_task_id=true fixed_class_order=3/1/2/0.
    n_experiences is 5 where the benchmark has no default; each trial's seed is the benchmark's, unless one is given."""
    accuracy_matrix: bool = False
    """Test on every task as each ends: accuracy of all tasks together, forgetting, backward and forward transfer; for
    streams whose tasks have tests of their own. Benchmarks of Avalanche always are."""
    evaluate_every: int = 1
    """Test after every so many epochs of a phase, and at its end; other epochs have no place in curves."""
    seeds: int | None = None
    """Number of seeds: data order, label noise, weights and everything else drawn."""
    first_seed: int = 0
    """The first of them."""
    validation: float = 0.0
    """Share of the training data that is held out, the classes in proportion and the same for every seed, and measured
    next to the test data: what is chosen is chosen on it. 0 holds none out."""
    versions: tuple[str, ...] = field(default=(), metadata={"flag": False})
    """Of the parts that are a user's own, such as network and data: hashes of them when the study began."""
    settings: str = field(default="default", metadata={"choices": _SETTINGS})
    """Of the methods, where a flag has its default: default; published is what the method's paper or FIRE's comparison
    used on this data set with its network; tuned tries up to four settings of each method, and the report says which is
    best on validation data (a tenth of the training data, if --validation says nothing else)."""
    pack: str = "auto"
    """Many small networks are trained as one program, which takes a fraction of the time: auto packs where that
    profits, a number packs up to so many trials wherever it is possible, off trains each alone."""

    def __post_init__(self) -> None:
        owner = "VisionSettings"
        self._check_numerics()
        if not (is_own_stream(self.stream) or is_benchmark(self.stream)):
            check_choice(f"{owner}.stream", self.stream, STREAMS)
        if self.stream_args and not is_benchmark(self.stream):
            why = ": it has no meaning for {VisionSettings.stream} = {stream!r}, only for benchmarks: avalanche:NAME."
            raise self.refused("stream_args", why, stream=self.stream)
        check_number(f"{owner}.first_seed", self.first_seed, low=0, high=LAST_SEED, integer=True)
        check_number(f"{owner}.validation", self.validation, low=0, high=0.5)
        check_number(f"{owner}.evaluate_every", self.evaluate_every, low=1, integer=True)
        if self.pack not in ("auto", "off"):
            if not self.pack.isdecimal():
                raise refused(f"{owner}.pack", self.pack, accepted="auto, off, or a number")
            check_number(f"{owner}.pack", int(self.pack), low=2, high=MOST_PACKED, integer=True)
        check_choice(f"{owner}.device", self.device, ["auto", "cpu", "cuda"])
        check_choice(f"{owner}.settings", self.settings, _SETTINGS)
        if self.settings == "tuned" and not self._tunes:
            raise self.refused("settings", ": this study has its own grid; accepted by ht-ray continual.")
        if self.settings == "published" and PUBLISHED.get(self.data) != self._preset("model"):
            known = ", ".join(f"{data} with {model}" for data, model in PUBLISHED.items())
            why = ": none are known for {data} = {given!r} with {model} = {network!r}; accepted with it are {known}."
            values = {"given": self.data, "network": self._preset("model"), "known": known}
            raise self.refused("settings", why, **values)
        if self._makes_data:
            self._refuse_data()
        else:
            self.data_config()
        check_number(f"{owner}.seeds", self._preset("seeds"), low=1, high=MOST_SEEDS, integer=True)
        self._model_config()
        self._training_config()
        self._stream_config()
        if self.task == "regression" and self._stream_class.needs_classes:
            raise self.refused("task", f": {{VisionSettings.stream}} = {self.stream!r} is about classes.")
        MethodConfig("plain", **self.method_defaults)
        self.indicator_config()
        for one in fields(self):
            value = getattr(self, one.name)
            if value != one.default and not self._has_meaning(one.name):
                streams = _streams_with(one.name)
                only = ", ".join(map(repr, streams))
                why = f": it has no meaning for {{VisionSettings.stream}} = {self.stream!r}, only for {only}."
                raise self.refused(one.name, why)

    def _refuse_data(self) -> None:
        """Refuse data, and what is about them, where the stream makes its own."""
        usual = _fields(self)
        # A benchmark reads its images.
        read = ("data_root", "data_cache", "download") if is_benchmark(self.stream) else ()
        for name in (*_DATA.names().values(), "validation"):
            if name in read:
                continue
            value = getattr(self, name)
            if value != usual[name].default and not (name == "data" and value == self.stream):
                only = f": it has no meaning for {{VisionSettings.stream}} = {self.stream!r}, which makes its own data."
                raise self.refused(name, only)

    def _has_meaning(self, name: str) -> bool:
        """Whether the stream has the setting, if it is one of a stream's."""
        return self.stream in (_streams_with(name) or [self.stream]) or name in _fields(self._stream_class)

    @classmethod
    def old_names(cls) -> dict[str, str]:
        """Return what settings were called in the minor version before, and what they are called now."""
        known = cls.__dataclass_fields__
        old = {**registry.old_names(), "weight_noise": "shrink_perturb_noise"}
        return {name: new for name, new in old.items() if name not in known}  # as noise, which is the labels'

    @classmethod
    def canonical(cls, config: dict[str, Any]) -> Any:
        """Return what the configuration of a trial, or JSON of it, means: equal for what trains the same."""
        return {**config, **trial_config(config)._asdict()}

    def resolved(self) -> Self:
        """Return these settings with the data set's own values written out, as results record them."""
        values = {name: self._preset(name) for name in _IMPLIED if self._has_meaning(name)}
        if self.data_root is not None:
            values["data_root"] = _from_anywhere(self.data_root)
        if self._makes_data:
            values["data"] = self.stream
        elif self.data not in DATA_SETS and not is_path_of_part(self.data):
            values["data"] = _from_anywhere(self.data)
        if self.settings == "tuned" and not (self.validation or self._makes_data or self._stream_class.memorized):
            values["validation"] = _HELD_OUT
        return replace(self, **values)

    @property
    def metric(self) -> str:
        """What trials are compared by, on validation data where the study holds some out.

        The first phase of a warm start is a means, not an end; of a benchmark it is all of its test samples at the end.
        """
        part = {"warm_start": "final"}.get(self.stream, "stream" if is_benchmark(self.stream) else "average")
        metric = f"{part}_{self.measured_by}"
        return validation_metric(metric) if self.validation else metric

    @property
    def measured_by(self) -> str:
        """What results are measured by: accuracy, R2 of a regression, or a measure of the user's own."""
        own = self._training_config().measure_name
        return own or ("r2" if self.task == "regression" or self.stream == "bit_flipping" else "accuracy")

    @property
    def _stream_class(self) -> type[StreamConfig]:
        return STREAMS.get(self.stream, BenchmarkStreamConfig if is_benchmark(self.stream) else OwnStreamConfig)

    @property
    def _makes_data(self) -> bool:
        return self._stream_class.makes_data

    @property
    def method_defaults(self) -> dict[str, Any]:
        """Settings that all methods of the study share."""
        known = [one.name for one in fields(self)]
        return {name: getattr(self, name) for name in registry.all_settings() if name in known}

    def indicator_config(self) -> IndicatorConfig:
        """Return which plasticity indicators are measured, and how often."""
        return self._made(_MEASURED)

    def data_config(self) -> DataConfig:
        """Return which images to load."""
        return self._made(_DATA)

    def method_config(self, name: str, **settings: Any) -> MethodConfig:
        """Return a method of this study, under the one name it has however `name` is spelt.

        Settings behind the name, as in ``"l2:l2_strength=0.01"``, go before `settings`, and those before the study's.
        """
        name, own = parse_method(name)
        values = self.method_defaults
        if self.settings == "published":
            usual = {one.name: one.default for one in fields(self)}
            for part in split_methods(name)[0]:
                known = published_settings(part, self.data, self.stream)
                values |= {one: value for one, value in known.items() if getattr(self, one) == usual[one]}
        return MethodConfig(name, **{**values, **settings, **own})

    def variants(self, text: str) -> list[tuple[MethodConfig, dict[str, Any]]]:
        """Return a method of this study, with what it has for itself; several where its settings are tuned.

        Settings behind the name, and flags that were given, stay as they are.
        """
        name, own = parse_method(text)
        tried: list[dict[str, Any]] = []
        if self.settings == "tuned" and not own:
            given = {one.name for one in fields(self) if getattr(self, one.name) != one.default}
            # An interval that was given is in the unit that was, or in the default one.
            given |= {one.removesuffix("interval") + "unit" for one in given if one.endswith("interval")}
            online = self.reset_unit == "steps" or getattr(self._stream_config(), "one_epoch", False)
            tried = [
                {one: value for one, value in each.items() if one not in given}
                for each in tried_settings(name, online=online)
            ]
        found: dict[MethodConfig, tuple[MethodConfig, dict[str, Any]]] = {}
        for values in tried or [own]:
            method = self.method_config(name, **values)
            found.setdefault(unordered(method), (method, values))
        return list(found.values())

    @property
    def _tunes(self) -> bool:
        """Whether methods are compared, so that each may have several settings."""
        return True

    def trial_config(self, method: MethodConfig, access: str, seed: int, **stream: Any) -> dict[str, Any]:
        """Return what a trial is made from, as plain data; `stream` are settings of its stream that go before these."""
        # What an earlier version did not have is left out where it says nothing.
        measure = {} if self.measured_by == "accuracy" else {"measure": self.measured_by}
        matrix = {"accuracy_matrix": True} if self.accuracy_matrix or is_benchmark(self.stream) else {}
        return {
            **measure,
            **matrix,
            "data": self.data,
            "model": asdict(method.model(self._model_config())),
            "stream": {"kind": self.stream, **asdict(self._stream_config(access, **stream))},
            "training": self._training_config().described(),
            "indicators": asdict(self.indicator_config()),
            "evaluate_every": self.evaluate_every,
            "method": plain_method(method),
            "device": self.device,
            "seed": seed,
            **self.numerics,
        }

    def trial_settings(self, method: MethodConfig, access: str, seed: int) -> dict[str, Any]:
        """Return a trial's columns in the table of results; None where a setting does not apply."""
        settings = method.flat
        return {
            "data": self.data,
            "model": self._preset("model"),
            "stream": self.stream,
            "access": access if self.stream == "continual" else None,
            "method": method.name,
            "momentum": settings["momentum"] if method.has_ema else None,
            "reset_interval": settings["reset_interval"] if method.resets else None,
            "reset_unit": settings["reset_unit"] if method.resets else None,
            "seed": seed,
        }

    @property
    def pack_size(self) -> int | None:
        """See `StudySettings.pack_size`."""
        return int(self.pack) if self.pack.isdecimal() else None

    @property
    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.first_seed, self.first_seed + self._preset("seeds")))

    def _preset(self, name: str) -> Any:
        value = getattr(self, name)
        if value is not None:
            return value
        if name == "augment" and self.stream == "warm_start":
            return "none"  # protocol of tables 4 and 5 and appendix D
        implied = presets_of(self.stream if is_benchmark(self.stream) else self.data)
        return _STREAM_PRESETS.get(self.stream, implied).get(name)

    def _made(self, section: _Section, **given: Any) -> Any:
        values = {own: self._preset(name) for own, name in section.names().items() if name not in _NO_FLAGS}
        return section.config(**{**values, **given})

    def _model_config(self) -> ModelConfig:
        return self._made(_MODEL)

    def _training_config(self) -> TrainingConfig:
        return self._made(_TRAINING)

    def _stream_config(self, access: str = "full", **given: Any) -> Any:
        if is_own_stream(self.stream):
            return OwnStreamConfig(self.stream)
        if is_benchmark(self.stream):
            return stream_settings(self.stream, arguments=self.stream_args, task_epochs=self.task_epochs)
        section = _Section("", STREAMS[self.stream], {}, {})
        return self._made(section, **({"access": access} if "access" in section.names() else {}), **given)


def with_methods(settings_class: type[Any]) -> type[Any]:
    """Return a class of settings with those, too, of methods that were registered after it was made."""
    known = settings_class.__dataclass_fields__
    more = _of_methods(known) if issubclass(settings_class, VisionSettings) else []
    text = {"__doc__": settings_class.__doc__, "__module__": settings_class.__module__}
    name = settings_class.__name__
    return make_dataclass(name, more, bases=(settings_class,), frozen=True, namespace=text) if more else settings_class


def check_distinct(
    owner: str, name: str, values: Sequence[Any], same: Callable[[Any], Hashable] = lambda value: value
) -> None:
    """Raise `SettingError` unless there are `values` of a setting, of which no two are the `same`."""
    if not values:
        raise refused(f"{owner}.{name}", (), accepted="at least one value")
    seen: dict[Hashable, Any] = {}
    for value in values:
        if same(value) in seen:
            first = seen[same(value)]
            twice = "is given twice" if first == value else f"is the same as {first!r}"
            raise refused(f"{owner}.{name}", value, ": it {twice}.", twice=twice)
        seen[same(value)] = value


def check_values(
    owner: str,
    name: str,
    values: Sequence[Any],
    same: Callable[[Any], Hashable] = lambda value: value,
    **bounds: Any,
) -> None:
    """Raise `SettingError` unless there are `values`, numbers within these bounds, of which no two are the `same`."""
    for value in values:
        check_number(f"{owner}.{name}", value, **bounds)
    check_distinct(owner, name, values, same)


def unordered(method: MethodConfig) -> MethodConfig:
    """Return what is equal for the same method however it is spelt, and in whatever order it is combined."""
    return replace(method, name="+".join(sorted(method.parts)))
