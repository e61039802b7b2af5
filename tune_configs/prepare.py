"""What a study loads, checks and warns of before Ray is started."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ht_ray._checks import refused
from ht_ray._parts import is_path_of_part, version_of_part
from ht_ray.diagnostics import IndicatorConfig
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.methods import METHODS, MethodConfig, Phase, Tortoise, setting_names
from ht_ray.methods.registry import all_settings, flat_names
from ht_ray.sweep import SweepConfig, TrialSpec
from ht_ray.sweep.study.config import GIB, ray_address
from ht_ray.vision import DATA_SETS, DataConfig, ImageData, Stream, StreamConfig, hold_out, load_data, make_model
from ht_ray.vision.data.benchmark_stream import BenchmarkStreamConfig, is_benchmark
from ht_ray.vision.data.own_stream import is_own_stream
from ht_ray.vision.data.transforms import Permute
from ht_ray.vision.models.own import check_network, is_own_model
from ht_ray.vision.training.optimizer import fitting
from ht_ray.vision.training.run import check_accuracy_matrix
from tune_configs.flags import flag_name
from tune_configs.packs import packed
from tune_configs.published import published_settings
from tune_configs.settings import StudySettings, VisionSettings
from tune_configs.vision_trial import data_of, stream_of, trial_config

__all__ = [
    "Prepare",
    "Prepared",
    "check_memory",
    "check_this_machine",
    "device_warnings",
    "method_warnings",
    "prepare_vision",
    "schedule_warnings",
    "unpublished",
    "unused_settings",
    "warnings_of",
]


class Prepared(NamedTuple):
    """What the trials of a study need besides their plan; see `ht_ray.sweep.Study`.

    `warnings` are sentences for whoever started the study: trials run in other processes, where nobody sees one.
    `recorded` are settings that go before the study's where they are recorded: versions of its parts.
    `pack` takes the planned trials and the CPUs of each, and returns them with the packs that they may be in, and more
    such sentences.
    """

    factory: str
    warnings: Sequence[str] = ()
    shared: Any = None
    recorded: Mapping[str, Any] = {}
    pack: Callable[[tuple[TrialSpec, ...], float], tuple[tuple[TrialSpec, ...], list[str]]] | None = None


Prepare = Callable[[Any, tuple[TrialSpec, ...]], Prepared]


def prepare_vision(settings: VisionSettings, planned: tuple[TrialSpec, ...]) -> Prepared:
    """Load the images of a vision study, and check the planned trials against them."""
    made, said = None, list[str]()
    if is_benchmark(settings.stream):
        data, made, said = _benchmark(settings, trial_config(planned[0].config).stream)
    else:
        data = data_of(planned[0].config, None) if settings.stream == settings.data else _load(settings)
    versions = versions_of(settings, data, made)
    if settings.versions:  # of a study that goes on
        for name, version in versions.items():
            if f"{name} {version}" not in settings.versions:
                why = ": it is not what it was when the study began; put that back, or start a new study."
                raise settings.refused(name, why)
    several = [spec.label for spec in planned if trial_config(spec.config).method.flat.get("tortoise_momenta")]
    if several and not settings.validation:
        why = f": {several[0]} has several tortoises, of which one is chosen on validation data: hold some out."
        raise settings.refused("validation", why)
    if settings.validation:
        try:
            data = hold_out(data, settings.validation)[0]
        except SettingError as error:
            raise error.of("VisionSettings", "validation") from error
    check_streams(planned, data.train_labels, data.num_classes, data.shape, made)
    check_networks(planned, data.shape, data.num_classes)
    check_objective(planned, data, made)
    said += [*unpublished(settings, planned), *unused_settings(settings, planned)]
    if settings.settings != "tuned":  # of several settings some do not suit the stream: that is what is found out
        said += method_warnings(planned, data.shape, data.num_classes)
        said += schedule_warnings(planned, data.train_labels, data.num_classes, made)
    said += size_warnings(settings, len(data.train_labels))
    pack = partial(packed, settings, shape=data.shape, num_classes=data.num_classes)
    recorded = {"versions": tuple(f"{name} {version}" for name, version in versions.items())}
    shared = None if settings.stream == settings.data and made is None else data.to_arrays()
    if shared is not None and made is not None:
        shared["streams"] = made
    return Prepared("tune_configs.vision_trial:VisionTrial", said, shared, recorded, pack)


def _benchmark(settings: VisionSettings, config: StreamConfig) -> tuple[ImageData, Mapping[int, Stream], list[str]]:
    """Return the images of the study's benchmark and its streams by seed, and what to say of its transforms."""
    from strategies.experiences import benchmark_streams  # avalanche takes seconds to import

    assert isinstance(config, BenchmarkStreamConfig)
    sources = DataConfig(root=settings.data_root, cache=settings.data_cache, download=settings.download)
    data, streams, left_out = benchmark_streams(config, settings.seed_list, sources)
    augment = settings.augment
    # Where both crop and flip, nothing is left out.
    alike = {"crop": ["RandomCrop"], "crop_flip": ["RandomCrop", "RandomHorizontalFlip"]}.get(str(augment), [])
    if [text.partition("(")[0] for text in left_out] in ([], alike):
        return data, streams, []
    said = f"--stream {settings.stream}: its training transforms {', '.join(left_out)} are left out, and --augment"
    return data, streams, [f"{said} {augment} is in their place."]


def versions_of(settings: VisionSettings, data: ImageData, made: Mapping[int, Stream] | None = None) -> dict[str, str]:
    """Return hashes of the parts that are a user's own, by the settings that name them.

    Of what a module makes it is that of its source file; of other data, of the samples and labels themselves; of a
    benchmark, whose streams by seed are `made`, the version of Avalanche, too.
    """
    found = {}
    if settings.model is not None and is_own_model(settings.model):
        library = settings.model.partition(":")[0]
        if library in ("timm", "torchvision"):
            found["model"] = version(library)
        else:
            found["model"] = version_of_part("ModelConfig", "name", settings.model)
    if is_own_stream(settings.stream):
        found["stream"] = version_of_part("VisionSettings", "stream", settings.stream)
    for name in ("loss", "measure"):
        if (path := getattr(settings, name)) is not None:
            found[name] = version_of_part("TrainingConfig", name, path)
    if is_benchmark(settings.stream):
        found["stream"] = f"avalanche-lib {version('avalanche-lib')}"
        path = settings.stream.partition(":")[2]
        if is_path_of_part(path):
            found["stream"] += f" {version_of_part('VisionSettings', 'stream', path)}"
        phases = [phase for stream in (made or {}).values() for phase in stream]
        parts = [(phase.indices, phase.labels, phase.test_indices, phase.test_labels) for phase in phases]
        orders = [phase.transform.order for phase in phases if isinstance(phase.transform, Permute)]
        found["stream"] += f" {_digest([*_tensors(data), *(one for own in parts for one in own), *orders])}"
    if settings.data not in (*DATA_SETS, settings.stream):
        found["data"] = _digest(_tensors(data))
        if is_path_of_part(settings.data) and not settings.data.startswith("torchvision:"):
            found["data"] = f"{version_of_part('DataConfig', 'name', settings.data)} {found['data']}"
    return found


def _tensors(data: ImageData) -> list[Tensor]:
    return [data.train_images, data.train_labels, data.test_images, data.test_labels]


def _digest(tensors: Iterable[Tensor | None]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            array: Any = tensor.contiguous().numpy()
            digest.update(memoryview(array).cast("B"))
    return digest.hexdigest()[:16]


def _load(settings: VisionSettings) -> ImageData:
    try:
        return load_data(settings.data_config())
    except SettingError as error:
        if error.field is not None:
            raise
        # What is wrong with the files themselves: say which flag they came from.
        field = "data" if settings.data_root is None else "data_root"
        raise error.of("VisionSettings", field, getattr(settings, field)) from error


def device_warnings(settings: StudySettings, run: SweepConfig) -> list[str]:
    """Return a sentence if this machine's GPU would stay idle, which nobody asked for."""
    if settings.device != "auto" or run.gpus_per_trial > 0 or not torch.cuda.is_available():
        return []
    return [
        "this machine has a GPU, and the trials train without it: give each a share with --gpus-per-trial, or say "
        "--device cpu."
    ]


def check_this_machine(run: SweepConfig) -> None:
    """Refuse more CPUs, memory and GPUs than there are, where Ray would be started on this machine.

    A cluster may have what the driver has not: there Ray is asked, once it is connected.

    Raises
    ------
    SettingError
        If a trial needs more than this machine has; of GPUs, more than it has for PyTorch.
    """
    ray = sys.modules.get("ray")
    if ray_address(run) != "local" or (ray is not None and ray.is_initialized()):
        return
    found = torch.cuda.device_count()
    if run.gpus_per_trial > found:
        why = (
            f": PyTorch finds {found or 'no'} GPU{'' if found == 1 else 's'} on this machine. Leave it out, or "
            "name a cluster that has more with {SweepConfig.address}."
        )
        raise refused("SweepConfig.gpus_per_trial", run.gpus_per_trial, why)
    for name, amount in {"cpus_per_trial": os.cpu_count() or 1, "memory_per_trial": _memory() / GIB}.items():
        value = getattr(run, name)
        if value is not None and value > amount:
            raise refused(f"SweepConfig.{name}", value, f": this machine has {amount:.3g}.")


def check_memory(owner: str, name: str, value: Any, needed: int, more: str = "") -> None:
    """Refuse a setting with which a trial needs more bytes than this machine has.

    Parameters
    ----------
    owner, name, value
        The setting.
    needed
        The bytes.
    more
        Other settings that have part in it, named in braces, behind the value.

    Raises
    ------
    SettingError
        If there are not as many.
    """
    if needed > _memory():
        takes = f": that takes {needed / GIB:.3g} GiB of memory; this machine has {_memory() / GIB:.3g}."
        raise refused(f"{owner}.{name}", value, more + takes)


def _memory() -> int:
    """The memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_networks(planned: Sequence[TrialSpec], shape: tuple[int, ...], num_classes: int) -> None:
    """Refuse networks that cannot be trained in the memory of this machine, which builds each of them to check it.

    Raises
    ------
    SettingError
        If weights, gradients and the optimiser's two averages need more memory than there is.
    """
    for spec in _first_of_each(planned, lambda spec: spec.config["model"]):
        config = trial_config(spec.config).model
        if is_own_model(config.name):
            network = make_model(config, shape=shape, num_classes=num_classes, seed=0)
            check_network(config.name, network, shape, num_classes)
            continue
        with torch.device("meta"):  # which allocates nothing
            network = make_model(config, shape=shape, num_classes=num_classes, seed=0)
        more = f", {{width}} = {config.width!r}, {{head_hidden}} = {config.head_hidden!r}"
        needed = 4 * sum(p.numel() * p.element_size() for p in network.parameters())
        check_memory("ModelConfig", "hidden", config.hidden, needed, more)


def check_objective(planned: Sequence[TrialSpec], data: ImageData, made: Mapping[int, Stream] | None = None) -> None:
    """Refuse a loss and a measure of a user's own that cannot be computed of samples of these data.

    Raises
    ------
    SettingError
        If so.
    """
    config = planned[0].config
    objective = trial_config(config).training.objective
    if objective.own:
        phase = stream_of(config, data.train_labels, data.num_classes, made)[0]
        labels = phase.labels[:64]
        draw = torch.Generator().manual_seed(0)
        objective.check(torch.randn(len(labels), data.num_classes, generator=draw), labels)


def _first_of_each(planned: Sequence[TrialSpec], key: Callable[[TrialSpec], Any]) -> list[TrialSpec]:
    """Return the first of the planned trials that are alike in `key`, plain data."""
    found: dict[str, TrialSpec] = {}
    for spec in planned:
        found.setdefault(json.dumps(key(spec)), spec)
    return list(found.values())


def warnings_of(action: Callable[[], object]) -> list[str]:
    """Return what `action` warns of settings: trials run in other processes, where nobody sees a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SettingWarning)
        action()
    return [str(warning.message) for warning in caught]


def check_streams(
    planned: Sequence[TrialSpec],
    labels: Tensor,
    num_classes: int,
    shape: tuple[int, ...] | None = None,
    made: Mapping[int, Stream] | None = None,
) -> None:
    """Refuse a data set that is too small for the phases of the planned trials, or no images where they take images.

    Raises
    ------
    SettingError
        If a phase has fewer than two samples, which BatchNorm cannot normalise, or there can be no accuracy matrix.
    """
    # Where seeds differ, phases are as long.
    for spec in _first_of_each(planned, lambda spec: spec.config["stream"]):
        stream = stream_of(spec.config, labels, num_classes, made)
        if spec.config.get("accuracy_matrix") and not (made and stream.plain):
            check_accuracy_matrix(stream)
        for phase in stream:
            if phase.transform is not None and shape is not None:
                phase.transform.prepared(torch.Size(shape), "cpu")
            if len(phase) < 2:
                raise SettingError(
                    f"Phase {phase.index + 1} would have {len(phase)} of the {len(labels)} training images, and needs "
                    "at least 2: take more images, or larger shares of them."
                )


def method_warnings(planned: Sequence[TrialSpec], shape: tuple[int, ...], num_classes: int) -> list[str]:
    """Return what the methods of the planned trials warn of on their networks, a sentence for each method.

    Trials run in other processes, where nobody sees a warning, and where a refusal would come late.

    Raises
    ------
    SettingError
        If a method cannot act on the network.
    """
    sentences = []
    for spec in _first_of_each(planned, lambda spec: [spec.config["method"], spec.config["model"]]):
        config = trial_config(spec.config)
        fitting(config.method.training(config.training, shape), shape)
        model = make_model(config.model, shape=shape, num_classes=num_classes, seed=0)
        sentences += [f"{spec.label}: {text}" for text in warnings_of(partial(config.method.build, model))]
        if "augment" in config.method.parts and config.method.training(config.training, shape) == config.training:
            sentences.append(
                f"{spec.label}: every method of the study is augmented like this already; --augment none makes a "
                "difference."
            )
    return sentences


def schedule_warnings(
    planned: Sequence[TrialSpec], labels: Tensor, num_classes: int, made: Mapping[int, Stream] | None = None
) -> list[str]:
    """Return which schedules do not fit the phases of the planned trials, a sentence for each method and reason.

    Trials run in other processes, where nobody sees a warning.
    """
    sentences = []
    for spec in _first_of_each(planned, lambda spec: [spec.label, spec.settings["access"]]):
        method = trial_config(spec.config).method
        batch_size = spec.config["training"]["batch_size"]
        stream = stream_of(spec.config, labels, num_classes, made)
        raised: dict[str, list[tuple[int, str]]] = {}
        for phase in stream:
            for text in _unfit(method, phase.index, phase.epochs, -(-len(phase) // batch_size)):
                # The same reason in another phase has other numbers.
                raised.setdefault(re.sub(r"[\d.,]+", "", text), []).append((phase.index + 1, text))
        for reasons in raised.values():
            first, text = reasons[0]
            listed = f"phase {first}" if len(reasons) == 1 else f"{len(reasons)} phases, first {first}"
            sentences.append(f"{spec.label} ({listed} of {len(stream)}): {text}")
    return sentences


def _unfit(method: MethodConfig, number: int, epochs: int, steps_per_epoch: int) -> Iterator[str]:
    """Yield what of the methods does not fit a phase, a sentence for each reason."""
    for part, own in method.settings.items():
        cls = METHODS[part]
        interval = getattr(own, "interval", None)
        if interval is not None and getattr(own, "unit", None) == "epochs" and interval > epochs:
            name = {field: flat for flat, field in flat_names(cls).items()}
            yield (
                f"{name['interval']} = {interval} epochs, and a phase has {epochs}: it never acts, as epochs are "
                f"counted from 1 in each. Take an interval of at most {epochs}, or {name['unit']} = 'steps'."
            )
        if issubclass(cls, Tortoise):
            tortoise = cls(nn.Identity(), own)
            yield from warnings_of(partial(tortoise.before_phase, Phase(number, epochs, steps_per_epoch)))


def size_warnings(settings: VisionSettings, images: int) -> list[str]:
    """Return which sizes are more than the whole training set, a sentence for each."""
    means = {"batch_size": "each step sees all of a phase", "buffer_size": "the buffer keeps all that has arrived"}
    return [
        f"{flag_name(name)} = {value!r}: there are {images} training images, so that {what}."
        for name, what in means.items()
        if (value := getattr(settings, name)) is not None and value > images
    ]


def unpublished(settings: VisionSettings, planned: Sequence[TrialSpec]) -> list[str]:
    """Return a sentence on the methods that have their defaults where published settings were asked for."""
    if settings.settings != "published":
        return []
    parts = dict.fromkeys(part for spec in planned for part in trial_config(spec.config).method.parts)
    without = [
        part for part in parts if setting_names([part]) and not published_settings(part, settings.data, settings.stream)
    ]
    return (
        [f"--settings published: none are known of {', '.join(without)}, which have their defaults."] if without else []
    )


def unused_settings(settings: VisionSettings, planned: Sequence[TrialSpec]) -> list[str]:
    """Return which settings were changed and mean nothing to any of the planned trials, a sentence for each."""
    used = {name for spec in planned for name in setting_names(trial_config(spec.config).method.parts)}
    usual = {one.name: one.default for one in fields(settings)}
    sentences = [
        f"{flag_name(name)} = {getattr(settings, name)!r} changes nothing: it is a setting of no method in this study."
        for name in all_settings()
        if name in usual and name not in used and getattr(settings, name) != usual[name]
    ]
    if all(spec.config["stream"].get("fresh") for spec in planned):
        sentences += [
            f"{flag_name(name)} = {getattr(settings, name)!r} changes nothing: no trial of this study is warm-started."
            for name in ("subset_ratio", "label_noise", "warm_epochs")
            if getattr(settings, name) != usual[name]
        ]
    if settings.data == "digits" and settings.data_root is not None:
        sentences.append(f"--data-root = {settings.data_root!r} changes nothing: digits come with scikit-learn.")
    if not settings.indicators_every and tuple(settings.indicators) != IndicatorConfig.names:
        sentences.append(
            f"--indicators = {tuple(settings.indicators)!r}: nothing is measured with --indicators-every = 0; give it "
            "a number of epochs."
        )
    return sentences
