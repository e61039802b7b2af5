"""What every study's command line does: flags, refusals, resuming, and the report at the end."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, make_dataclass
from typing import Any

import tyro
from torch import Tensor, nn

from ht_ray._checks import SettingError, SettingWarning
from ht_ray.mechanisms import Tortoise
from ht_ray.sweep import Study, SweepConfig, TrialSpec, check_before_ray, load_study_settings, run_study
from ht_ray.vision import MethodConfig, load_data
from tune_configs.settings import VisionSettings, with_flag_names
from tune_configs.vision_trial import stream_of

__all__ = ["main", "schedule_warnings"]


def main(
    name: str,
    settings_class: type[VisionSettings],
    trials: Callable[[Any], tuple[Any, ...]],
    description: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a study from the command line, and return the exit code.

    0 when all trials finished (a trial that diverged is a result), 1 when one failed or is missing, 2 for settings
    that cannot work, 130 after Ctrl-C.

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
    """

    # One class for both makes one flat list of flags.
    flat = tyro.conf.OmitArgPrefixes
    both = make_dataclass("Arguments", [("study", flat[settings_class]), ("run", flat[SweepConfig])])
    try:
        parsed: Any = tyro.cli(both, args=arguments, prog=f"{name}.py", description=description)
        return _run(name, parsed.study, parsed.run, trials)
    except SettingError as error:
        print(f"{name}.py: error: {error}", file=sys.stderr)
        return 2


def _run(name: str, settings: VisionSettings, run: SweepConfig, trials: Callable[[Any], tuple[Any, ...]]) -> int:
    if run.resume is not None:
        settings = _resumed(name, settings, run.resume)
    settings = settings.resolved()
    planned = trials(settings)
    with_flag_names(lambda: check_before_ray(run, name))
    data = with_flag_names(lambda: load_data(settings.data_config()))
    for sentence in schedule_warnings(planned, data.train_labels, data.num_classes):
        print(f"{name}.py: warning: {sentence}", file=sys.stderr)
    study = Study(
        name=name,
        factory="tune_configs.vision_trial:VisionTrial",
        trials=planned,
        metric="average_accuracy",
        shared=data.to_arrays(),
        settings=asdict(settings),
    )
    result = with_flag_names(lambda: run_study(study, run))
    if result.finished or result.diverged:
        from ht_ray.report import write_report

        for path in write_report(result.directory, say=print):
            print(path)
    print(result.describe())
    if run.tensorboard:
        print(f"Curves: tensorboard --logdir {shlex.quote(str(result.directory / 'trials'))}")
    return result.exit_code


def schedule_warnings(planned: Sequence[TrialSpec], labels: Tensor, num_classes: int) -> list[str]:
    """Return what `Tortoise` warns of in the phases of the planned trials, a sentence for each setting.

    Trials run in other processes, where nobody sees a warning.
    """
    sentences = []
    told = set()
    for spec in planned:
        key = (spec.label, spec.settings["access"])
        method = MethodConfig(**spec.config["method"])
        if key in told or not {"ema", "hare_tortoise"} & set(method.parts):
            continue
        told.add(key)
        tortoise = Tortoise(
            nn.Identity(),
            momentum=method.momentum,
            reset_interval=method.reset_interval if "hare_tortoise" in method.parts else None,
            reset_unit=method.reset_unit,
        )
        batch_size = spec.config["training"]["batch_size"]
        raised: list[tuple[int, str]] = []
        stream = stream_of(spec.config, labels, num_classes)
        for phase in stream:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", SettingWarning)
                tortoise.begin_phase(steps_per_epoch=-(-len(phase) // batch_size), epochs=phase.epochs)
            raised += [(phase.index + 1, str(warning.message)) for warning in caught]
        if raised:
            phases = sorted({number for number, _ in raised})
            listed = f"phase {phases[0]}" if len(phases) == 1 else f"{len(phases)} phases, first {phases[0]}"
            sentences.append(f"{spec.label} ({listed} of {len(stream)}): {raised[0][1]}")
    return sentences


def _resumed(name: str, given: VisionSettings, directory: str) -> VisionSettings:
    """Return the settings of the study in `directory`; refuse flags that contradict them."""
    saved: VisionSettings = type(given).from_json(load_study_settings(directory))
    default = type(given)()
    for field in fields(given):
        value = getattr(given, field.name)
        if value != getattr(default, field.name) and value != getattr(saved, field.name):
            raise SettingError(
                f"--{field.name.replace('_', '-')} = {value!r}: the study that is resumed has "
                f"{getattr(saved, field.name)!r}, and keeps it; start a new study for other settings."
            )
    return saved
