"""What every study's command line does: flags, refusals, resuming, and the report at the end."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, make_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import tyro
from torch import Tensor, nn

from ht_ray._storage import StorageError, is_uri
from ht_ray.diagnostics import IndicatorConfig
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.methods import Tortoise, setting_names
from ht_ray.sweep import RayStartError, Study, SweepConfig, TrialSpec, check_before_ray, load_study_settings, run_study
from ht_ray.sweep.study.config import GIB, ray_address
from ht_ray.vision import ImageData, Method, MethodConfig, load_data, make_model
from tune_configs.settings import StudySettings, VisionSettings
from tune_configs.vision_trial import stream_of, trial_config

__all__ = [
    "Prepared",
    "check_gpus",
    "check_memory",
    "check_networks",
    "check_streams",
    "check_this_machine",
    "device_warnings",
    "main",
    "method_warnings",
    "prepare_vision",
    "schedule_warnings",
    "size_warnings",
    "unused_settings",
    "with_flag_names",
]

# Each is a directory, and a plan in the driver's memory.
_MOST_TRIALS = 100_000

TSettings = TypeVar("TSettings", bound=StudySettings)

# Fields of configurations whose flags have other names.
_FLAGS = {
    "DataConfig.name": "data",
    "DataConfig.root": "data_root",
    "ModelConfig.name": "model",
    "MethodConfig.name": "methods",
    "MethodConfig.noise": "weight_noise",
    "IndicatorConfig.names": "indicators",
    "IndicatorConfig.every": "indicators_every",
}


class Prepared(NamedTuple):
    """What the trials of a study need besides their plan; see `ht_ray.sweep.Study`.

    `warnings` are sentences for whoever started the study: trials run in other processes, where nobody sees one.
    """

    factory: str
    warnings: Sequence[str] = ()
    shared: Any = None


Prepare = Callable[[Any, tuple[TrialSpec, ...]], Prepared]


def main(
    name: str,
    settings_class: type[StudySettings],
    trials: Callable[[Any], tuple[Any, ...]],
    description: str,
    arguments: Sequence[str] | None = None,
    prepare: Prepare | None = None,
) -> int:
    """Run a study from the command line, and return the exit code.

    0 when all trials finished (a trial that diverged is a result), 1 when one failed or is missing, 2 for settings
    that cannot work, 75 where Ray did not start (``EX_TEMPFAIL``: another try may succeed), 130 after Ctrl-C.

    Parameters
    ----------
    name
        Of the study.
    settings_class
        Its flags.
    trials
        Makes the planned trials from the settings.
    description
        For ``--help``.
    arguments
        The command line; ``sys.argv`` by default.
    prepare
        Loads what the planned trials need and checks them against it, before Ray is started; `prepare_vision` by
        default.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show "±" shows "?", and the study ends as it would elsewhere.
        sys.stdout.reconfigure(errors="replace")
    try:
        settings, run = _parse(name, settings_class, description, arguments)
        return _run(name, settings, run, trials, prepare or prepare_vision)
    except SettingError as error:
        names = [field.name for config in (settings_class, SweepConfig) for field in fields(config)]
        print(f"{name}.py: error: {with_flag_names(str(error), names)}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"{name}.py: error: {error}", file=sys.stderr)
        return 1
    except RayStartError as error:
        print(f"{name}.py: error: {error}", file=sys.stderr)
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        print(f"{name}.py: interrupted", file=sys.stderr)
        return 130


def with_flag_names(text: str, names: Sequence[str]) -> str:
    """Return a refusal with the flags, of these field `names`, that a command line knows instead of the fields.

    Examples
    --------
    >>> names = ("data", "batch_size", "results_dir", "resume")
    >>> with_flag_names("TrainingConfig: batch_size = 0: accepted is a number with 2 <= batch_size.", names)
    '--batch-size = 0: accepted is a number with 2 <= batch_size.'
    >>> with_flag_names("SweepConfig.results_dir = 'x': it exists. To continue it: resume='x'.", names)
    "--results-dir = 'x': it exists. To continue it: --resume='x'."
    """

    def of_field(match: re.Match[str]) -> str:
        name = _FLAGS.get(f"{match[1]}.{match[2]}", match[2])
        return _flag(name) if name in names else match[0]

    text = re.sub(r"\b(\w+(?:Config|Settings))(?:: |\.)(\w+)", of_field, text)
    # Two fields in one sentence: only the first has the name of its class before it.
    return re.sub(rf"(?<![\w.'\"/:,-])({'|'.join(names)})(?= ?=)", lambda match: _flag(match[1]), text)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parse(
    name: str, settings_class: type[TSettings], description: str, arguments: Sequence[str] | None
) -> tuple[TSettings, SweepConfig]:
    """Return what the command line says; with ``--resume``, the settings of that study: no flag may contradict them."""
    # Checked once they are parsed, so that values are refused in our words and not in the parser's.
    study, run = _unchecked(settings_class), _unchecked(SweepConfig)
    # One class for both makes one flat list of flags.
    flat = tyro.conf.OmitArgPrefixes
    both = make_dataclass("Arguments", [("study", flat[study]), ("run", flat[run])])

    def parse(**defaults: Any) -> Any:
        return tyro.cli(both, args=arguments, prog=f"{name}.py", description=description, **defaults)

    parsed = parse()
    config = SweepConfig(**vars(parsed.run)).located()
    if config.resume is None:
        return settings_class(**vars(parsed.study)).resolved(), config
    try:
        saved = settings_class.from_json(
            load_study_settings(config.resume if is_uri(config.resume) else Path(config.resume).expanduser())
        )
    except SettingError as error:
        raise SettingError(f"SweepConfig.resume = {config.resume!r}: {error}") from error
    # With the study's settings as defaults, a flag that was given is told from one that was not.
    given = settings_class(**vars(parse(default=both(study=study(**asdict(saved)), run=parsed.run)).study)).resolved()
    for field in fields(saved):
        value, kept = getattr(given, field.name), getattr(saved, field.name)
        if value != kept:
            raise SettingError(
                f"{settings_class.__name__}.{field.name} = {value!r}: the study that is resumed has {kept!r} and "
                "keeps it; start a new study for other settings."
            )
    return saved, config


def _unchecked(config: type[Any]) -> type[Any]:
    return type(config.__name__, (config,), {"__post_init__": lambda self: None, "__doc__": config.__doc__})


def _run(
    name: str,
    settings: StudySettings,
    run: SweepConfig,
    trials: Callable[[Any], tuple[Any, ...]],
    prepare: Prepare,
) -> int:
    if settings.device == "cuda" and run.gpus_per_trial == 0:
        raise SettingError(
            f"{type(settings).__name__}.device = 'cuda': the trials have no GPU; give each one, or a share of one, "
            "with SweepConfig.gpus_per_trial."
        )
    check_gpus(run)
    check_this_machine(run)
    planned = trials(settings)
    if len(planned) > _MOST_TRIALS:
        raise SettingError(f"{len(planned)} trials would be run: accepted are up to {_MOST_TRIALS} in one study.")
    location = check_before_ray(run, name)
    if run.resume is None:
        run = replace(run, results_dir=location)
    prepared = prepare(settings, planned)
    for sentence in [*device_warnings(settings, run), *prepared.warnings]:
        print(f"{name}.py: warning: {sentence}", file=sys.stderr)
    study = Study(
        name=name,
        factory=prepared.factory,
        trials=planned,
        metric=settings.metric,
        shared=prepared.shared,
        settings=asdict(settings),
        search=settings.search_of(planned),
    )
    methods = False

    def report(directory: Path) -> None:
        nonlocal methods
        from ht_ray.report import write_report

        files = [
            path.relative_to(directory)
            for path in write_report(directory, log=print, patience=60 * run.storage_minutes)
        ]
        methods = (directory / "report").is_dir()
        for path in files:
            print(f"{location}/{path}")

    result = run_study(study, run, finish=report)
    print(result.describe())
    if run.tensorboard != "none":
        if run.tensorboard == "trials":
            print(f"Curves of all trials: tensorboard --logdir {shlex.quote(location)}")
        else:
            print(f"Configurations, means over seeds: tensorboard --logdir {shlex.quote(f'{location}/tensorboard')}")
        if methods:
            print(f"Methods, means over seeds: tensorboard --logdir {shlex.quote(f'{location}/report')}")
    return result.exit_code


def prepare_vision(settings: VisionSettings, planned: tuple[TrialSpec, ...]) -> Prepared:
    """Load the images of a vision study, and check the planned trials against them."""
    data = _load(settings)
    check_streams(planned, data.train_labels, data.num_classes)
    check_networks(planned, data.shape, data.num_classes)
    said = [*unused_settings(settings, planned), *method_warnings(planned, data.shape, data.num_classes)]
    said += schedule_warnings(planned, data.train_labels, data.num_classes)
    said += size_warnings(settings, len(data.train_labels))
    return Prepared("tune_configs.vision_trial:VisionTrial", said, data.to_arrays())


def _load(settings: VisionSettings) -> ImageData:
    try:
        return load_data(settings.data_config())
    except SettingError as error:
        if str(error).startswith("DataConfig."):
            raise
        # What is wrong with the files themselves: say which flag they came from.
        field = "data" if settings.data_root is None else "data_root"
        raise SettingError(f"VisionSettings.{field} = {getattr(settings, field)!r}: {error}") from error


def device_warnings(settings: StudySettings, run: SweepConfig) -> list[str]:
    """Return a sentence if this machine's GPU would stay idle, which nobody asked for."""
    if settings.device != "auto" or run.gpus_per_trial > 0 or not torch.cuda.is_available():
        return []
    return [
        "this machine has a GPU, and the trials train without it: give each a share with --gpus-per-trial, or say "
        "--device cpu."
    ]


def check_gpus(run: SweepConfig) -> None:
    """Refuse shares of a GPU where Ray would be started on this machine, and it has none.

    A cluster may have GPUs where the driver has none: there Ray is asked, once it is connected.

    Raises
    ------
    SettingError
        If a trial needs more GPUs than this machine has for PyTorch.
    """
    if not _ray_starts_here(run):
        return
    found = torch.cuda.device_count()
    if run.gpus_per_trial > found:
        raise SettingError(
            f"SweepConfig.gpus_per_trial = {run.gpus_per_trial!r}: PyTorch finds {found or 'no'} "
            f"GPU{'' if found == 1 else 's'} on this machine. Leave it out, or name a cluster that has more with "
            "SweepConfig.address."
        )


def check_this_machine(run: SweepConfig) -> None:
    """Refuse more CPUs and memory than there are, where Ray would be started on this machine.

    Raises
    ------
    SettingError
        If a trial needs more than this machine has.
    """
    if not _ray_starts_here(run):
        return
    has = {"cpus_per_trial": os.cpu_count() or 1, "memory_per_trial": _memory() / GIB}
    for name, amount in has.items():
        value = getattr(run, name)
        if value is not None and value > amount:
            raise SettingError(f"SweepConfig.{name} = {value!r}: this machine has {amount:.3g}.")


def _ray_starts_here(run: SweepConfig) -> bool:
    ray = sys.modules.get("ray")
    return ray_address(run) == "local" and not (ray is not None and ray.is_initialized())


def check_memory(what: str, needed: int) -> None:
    """Refuse `what` a trial is set to where it needs more bytes than this machine has.

    Raises
    ------
    SettingError
        If it does.
    """
    if needed > _memory():
        raise SettingError(
            f"{what}: that takes {needed / GIB:.3g} GiB of memory; this machine has {_memory() / GIB:.3g}."
        )


def _memory() -> int:
    """The memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_networks(planned: Sequence[TrialSpec], shape: tuple[int, int, int], num_classes: int) -> None:
    """Refuse networks that cannot be trained in the memory of this machine, which builds each of them to check it.

    Raises
    ------
    SettingError
        If weights, gradients and the optimiser's two averages need more memory than there is.
    """
    for config in {json.dumps(spec.config["model"]): trial_config(spec.config).model for spec in planned}.values():
        with torch.device("meta"):  # which allocates nothing
            network = make_model(config, shape=shape, num_classes=num_classes, seed=0)
        settings = f"hidden = {config.hidden!r}, width = {config.width!r}, head_hidden = {config.head_hidden!r}"
        check_memory(f"ModelConfig.{settings}", 4 * sum(p.numel() * p.element_size() for p in network.parameters()))


def check_streams(planned: Sequence[TrialSpec], labels: Tensor, num_classes: int) -> None:
    """Refuse a data set that is too small for the phases of the planned trials.

    Raises
    ------
    SettingError
        If a phase has fewer than two samples, which BatchNorm cannot normalise.
    """
    # Where seeds differ, phases are as long.
    for spec in {json.dumps(spec.config["stream"]): spec for spec in planned}.values():
        for phase in stream_of(spec.config, labels, num_classes):
            if len(phase) < 2:
                raise SettingError(
                    f"Phase {phase.index + 1} would have {len(phase)} of the {len(labels)} training images, and needs "
                    "at least 2: take more images, or larger shares of them."
                )


def method_warnings(planned: Sequence[TrialSpec], shape: tuple[int, int, int], num_classes: int) -> list[str]:
    """Return what the methods of the planned trials warn of on their networks, a sentence for each method.

    Trials run in other processes, where nobody sees a warning, and where a refusal would come late.

    Raises
    ------
    SettingError
        If a method cannot act on the network.
    """
    sentences = []
    told = set()
    for spec in planned:
        key = json.dumps([spec.config["method"], spec.config["model"]])
        if key in told:
            continue
        told.add(key)
        config = trial_config(spec.config)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SettingWarning)
            Method(config.method, make_model(config.model, shape=shape, num_classes=num_classes, seed=0), seed=0)
        sentences += [f"{spec.label}: {warning.message}" for warning in caught]
        if "augment" in config.method.parts and config.method.training(config.training, shape) == config.training:
            sentences.append(
                f"{spec.label}: every method of the study is augmented like this already; --augment none makes a "
                "difference."
            )
    return sentences


def schedule_warnings(planned: Sequence[TrialSpec], labels: Tensor, num_classes: int) -> list[str]:
    """Return which schedules do not fit the phases of the planned trials, a sentence for each method and reason.

    Trials run in other processes, where nobody sees a warning.
    """
    sentences = []
    told = set()
    for spec in planned:
        key = (spec.label, spec.settings["access"])
        method = trial_config(spec.config).method
        if key in told or not (method.has_ema or {"redo", "optimizer_reset"} & set(method.parts)):
            continue
        told.add(key)
        batch_size = spec.config["training"]["batch_size"]
        stream = stream_of(spec.config, labels, num_classes)
        raised: dict[str, list[tuple[int, str]]] = {}
        for phase in stream:
            texts = _never_due(method, phase.epochs)
            if method.has_ema:
                texts += _of_tortoise(method, -(-len(phase) // batch_size), phase.epochs)
            for text in texts:
                # The same reason in another phase has other numbers.
                raised.setdefault(re.sub(r"[\d.,]+", "", text), []).append((phase.index + 1, text))
        for told_of in raised.values():
            first, text = told_of[0]
            listed = f"phase {first}" if len(told_of) == 1 else f"{len(told_of)} phases, first {first}"
            sentences.append(f"{spec.label} ({listed} of {len(stream)}): {text}")
    return sentences


def _of_tortoise(method: MethodConfig, steps_per_epoch: int, epochs: int) -> list[str]:
    tortoise = Tortoise(
        nn.Identity(),
        momentum=method.momentum,
        reset_interval=method.reset_interval if "hare_tortoise" in method.parts else None,
        reset_unit=method.reset_unit,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SettingWarning)
        tortoise.begin_phase(steps_per_epoch=steps_per_epoch, epochs=epochs)
    return [str(warning.message) for warning in caught]


def _never_due(method: MethodConfig, epochs: int) -> list[str]:
    intervals = {
        "redo": (method.redo_interval, method.redo_unit),
        "optimizer_reset": (method.optimizer_reset_interval, method.optimizer_reset_unit),
    }
    return [
        f"{part}_interval = {interval} epochs, and a phase has {epochs}: it never acts, as epochs are counted anew in "
        f"each. Take an interval of at most {epochs}, or {part}_unit = 'steps'."
        for part, (interval, unit) in intervals.items()
        if part in method.parts and unit == "epochs" and interval is not None and interval > epochs
    ]


def size_warnings(settings: VisionSettings, images: int) -> list[str]:
    """Return which sizes are more than the whole training set, a sentence for each."""
    means = {"batch_size": "each step sees all of a phase", "buffer_size": "the buffer keeps all that has arrived"}
    return [
        f"{_flag(name)} = {value!r}: there are {images} training images, so that {what}."
        for name, what in means.items()
        if (value := getattr(settings, name)) is not None and value > images
    ]


def unused_settings(settings: VisionSettings, planned: Sequence[TrialSpec]) -> list[str]:
    """Return which settings were changed and mean nothing to any of the planned trials, a sentence for each."""
    used = {name for spec in planned for name in setting_names(trial_config(spec.config).method.parts)}
    defaults = {field.name: field.default for field in fields(settings)}
    values = settings.method_defaults
    usual = {name: getattr(MethodConfig, name) for name in values}
    for name in ("momentum", "reset_interval"):
        if name in defaults:  # the study's one for all its methods
            values[name], usual[name] = getattr(settings, name), defaults[name]
    sentences = [
        f"{_flag(_FLAGS.get(f'MethodConfig.{name}', name))} = {values[name]!r} changes nothing: it is a setting of no "
        "method in this study."
        for name in usual
        if name not in used and values[name] != usual[name]
    ]
    if all(spec.config["stream"].get("fresh") for spec in planned):
        sentences += [
            f"{_flag(name)} = {getattr(settings, name)!r} changes nothing: no trial of this study is warm-started."
            for name in ("subset_ratio", "label_noise", "warm_epochs")
            if getattr(settings, name) != defaults[name]
        ]
    if settings.data == "digits" and settings.data_root is not None:
        sentences.append(f"--data-root = {settings.data_root!r} changes nothing: digits come with scikit-learn.")
    if not settings.indicators_every and tuple(settings.indicators) != IndicatorConfig.names:
        sentences.append(
            f"--indicators = {tuple(settings.indicators)!r}: nothing is measured with --indicators-every = 0; give it "
            "a number of epochs."
        )
    return sentences
