"""What every study's command line does: flags, refusals, resuming, and the report at the end."""

from __future__ import annotations

import argparse
import io
import json
import operator
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ht_ray._checks import refused
from ht_ray._files import print_line
from ht_ray._storage import StorageError, is_uri
from ht_ray.errors import SettingError
from ht_ray.methods.registry import load_method, split_methods
from ht_ray.sweep import (
    RayStartError,
    Study,
    StudyResult,
    SweepConfig,
    TrialSpec,
    check_before_ray,
    load_study_settings,
    run_study,
)
from ht_ray.sweep.records.progress import Console
from ht_ray.sweep.study.plan import load_plan
from tune_configs.flags import current_flags, flag_name, flags_of, help_page, parse_flags
from tune_configs.prepare import Prepare, check_this_machine, device_warnings, prepare_vision
from tune_configs.settings import RENAMED, StudySettings, with_methods

__all__ = [
    "Done",
    "add_working_directory",
    "check_same",
    "first_look",
    "load_methods",
    "main",
    "names_for",
    "run_settings",
    "saved_settings",
]

# Each is a directory, and a plan in the driver's memory.
_MOST_TRIALS = 100_000

TSettings = TypeVar("TSettings", bound=StudySettings)


def main(
    name: str,
    settings_class: type[StudySettings],
    trials: Callable[[Any], tuple[Any, ...]],
    description: str,
    arguments: Sequence[str] | None = None,
    prepare: Prepare | None = None,
    program: str | None = None,
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
    program
        What the command is called in messages and in ``--help``; ``NAME.py`` by default.
    """
    program = program or f"{name}.py"
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show "±" shows "?", and the study ends as it would elsewhere.
        sys.stdout.reconfigure(errors="replace")
    add_working_directory()
    try:
        settings, run = _parse(program, settings_class, description, arguments)
        return _run(name, settings, run, trials, prepare or prepare_vision, program)
    except SettingError as error:
        print(f"{program}: error: {error.describe(_flag_of(settings_class))}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    except RayStartError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return os.EX_TEMPFAIL
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


def _flag_of(settings_class: type[StudySettings]) -> Callable[[str | None, str], str]:
    return names_for(settings_class, flag_name)


def names_for(settings_class: type[StudySettings], written: Callable[[str], str]) -> Callable[[str | None, str], str]:
    """Return what the settings that a refusal speaks of are called: as `written` says, where they are the study's."""
    names = {one.name for config in (with_methods(settings_class), SweepConfig) for one in fields(config)}

    def called(owner: str | None, name: str) -> str:
        # As in "the default of SweepConfig", and "resources, 'tape'".
        before, _, owner = (owner or "").rpartition(" ")
        own, comma, part = RENAMED.get((owner, name), name).partition(", ")
        if own in names and (not owner or owner.endswith(("Config", "Settings"))):
            return f"{before} {written(own)}".strip() + comma + part
        return ": ".join(part for part in (owner, name) if part)

    return called


def _parse(
    program: str, settings_class: type[TSettings], description: str, arguments: Sequence[str] | None
) -> tuple[TSettings, SweepConfig]:
    """Return what the command line says; with ``--resume``, the settings of that study: no flag may contradict them."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _load_methods(given)
    settings_class = with_methods(settings_class)
    given, sentences = current_flags(given, settings_class.old_names())
    for sentence in sentences:
        print(f"{program}: warning: {sentence}", file=sys.stderr)
    wanted = {"-h", "--help", "--help-all"}.intersection(given)
    given = [argument for argument in given if argument not in wanted]
    flags = flags_of(settings_class, "Study", settings_class.sections)
    every = [*flags, *flags_of(SweepConfig, "Running")]

    def parse(**defaults: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        values = parse_flags(program, given, every, {**{flag.name: flag.default for flag in every}, **defaults})
        study = {flag.name: values.pop(flag.name) for flag in flags}
        return study, values

    study, run = parse()
    if wanted:
        values = asdict(settings_class(**study).resolved())
        most_used = None if "--help-all" in wanted else settings_class.most_used
        print_line(help_page(program, description, every, values, most_used))
        raise SystemExit(0)
    config = SweepConfig(**run).located()
    if config.resume is None:
        return settings_class(**study).resolved(), config
    try:
        saved = saved_settings(settings_class, config.resume)
    except SettingError as error:
        raise refused("SweepConfig.resume", config.resume, ": {why}", why=error) from error
    # With the study's settings as defaults, a flag that was given differs from one that was not.
    check_same(saved, type(saved)(**{**asdict(saved), **parse(**asdict(saved))[0]}).resolved())
    return saved, config


def check_same(saved: StudySettings, asked: StudySettings) -> None:
    """Refuse to go on with a study under other settings than its own.

    Raises
    ------
    SettingError
        If one of those that are asked for differs.
    """
    for one in fields(saved):
        if not one.metadata.get("flag", True):  # recorded when the study begins, and looked at by `prepare`
            continue
        value, kept = getattr(asked, one.name), getattr(saved, one.name)
        if value != kept:
            why = ": the study that is resumed has {kept!r} and keeps it; start a new study for other settings."
            raise asked.refused(one.name, why, value, kept=kept)


def first_look(arguments: Sequence[str] | None, **counts: str) -> dict[str, Any]:
    """Return a few flags of a command line before the others are known, by name, each with its ``nargs``; or None."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, count in counts.items():
        parser.add_argument(f"--{name}", nargs=count)
    return vars(parser.parse_known_args(arguments)[0])


def _load_methods(arguments: Sequence[str]) -> None:
    given = first_look(arguments, methods="*", base="?")
    load_methods([*(given["methods"] or ()), given["base"] or ""])


def load_methods(texts: Iterable[str]) -> None:
    """Import the methods that are named by the paths of their classes: they have settings of their own."""
    for text in texts:
        for part in split_methods(text)[0]:
            if ":" in part:
                load_method(part)


def _as_planned(location: str, settings: StudySettings, planned: tuple[TrialSpec, ...]) -> tuple[TrialSpec, ...]:
    """Return the trials as the study that is resumed has them, if they train the same under other names."""
    try:
        stored = load_plan(location)
    except SettingError:  # which is reported, or mended, when the study goes on
        return planned

    def meaning(spec: TrialSpec) -> Any:
        config = settings.canonical(json.loads(json.dumps(spec.config)))
        # The names of methods and variants say what is in the configuration.
        return {name: value for name, value in spec.settings.items() if name not in ("method", "variant")}, config

    same = len(stored) == len(planned) and all(map(operator.eq, map(meaning, stored), map(meaning, planned)))
    return stored if same else planned


def _run(
    name: str,
    settings: StudySettings,
    run: SweepConfig,
    trials: Callable[[Any], tuple[Any, ...]],
    prepare: Prepare,
    program: str,
) -> int:
    done = run_settings(
        name, settings, run, trials, prepare, lambda text: print(f"{program}: warning: {text}", file=sys.stderr)
    )
    print_line(done.describe(f"--resume {shlex.quote(done.result.location)}"))
    return done.result.exit_code


class Done(NamedTuple):
    """How a study ended, and what a terminal shows of it."""

    result: StudyResult
    summary: tuple[str, ...]

    def describe(self, resume: str) -> str:
        """Return what a terminal shows at the end; `resume` is how to go on, if something is missing."""
        return "\n".join([*self.summary, *self.result.lines(resume)])


def run_settings(
    name: str,
    settings: StudySettings,
    run: SweepConfig,
    trials: Callable[[Any], tuple[Any, ...]],
    prepare: Prepare,
    warn: Callable[[str], None],
    console: Console | None = None,
    callbacks: Sequence[Any] = (),
) -> Done:
    """Run, or resume, a study with these settings, and write its report: what all ways to start one have in common.

    Parameters
    ----------
    name
        Of the study.
    settings
        Resolved: as they are recorded.
    run
        How it is run; with ``resume``, which study goes on.
    trials, prepare
        See `main`.
    warn
        Called with each sentence that whoever started the study should know.
    console
        Where the progress is shown; standard error by default.
    callbacks
        Callbacks of Ray Tune; see `ht_ray.sweep.run_study`.

    Raises
    ------
    SettingError
        If the study cannot run as configured.
    RayStartError
        If Ray does not start on this machine.
    StorageError
        If the study's location is full or lost.
    """
    if settings.device == "cuda" and run.gpus_per_trial == 0:
        why = ": the trials have no GPU; give each one, or a share of one, with {SweepConfig.gpus_per_trial}."
        raise settings.refused("device", why)
    check_this_machine(run)
    planned = trials(settings)
    if len(planned) > _MOST_TRIALS:
        raise SettingError(f"{len(planned)} trials would be run: accepted are up to {_MOST_TRIALS} in one study.")
    location = check_before_ray(run, name)
    if run.resume is None:
        run = replace(run, results_dir=location)
    else:
        planned = _as_planned(location, settings, planned)
    prepared = prepare(settings, planned)
    said = [*device_warnings(settings, run), *prepared.warnings]
    if run.resume is None and prepared.pack is not None:  # a study that is resumed keeps its packs
        grouped, more = prepared.pack(planned, run.cpus_per_trial)
        said += more
        if run.wandb is not None and settings.pack_size is None and grouped != planned:
            said.append(
                "--wandb: trials are trained alone, not in packs, as Tune's callback keeps two processes for each that "
                "runs; --pack 8 packs all the same."
            )
        else:
            planned = grouped
    for sentence in said:
        warn(sentence)
    study = Study(
        name=name,
        factory=prepared.factory,
        trials=planned,
        metric=settings.metric,
        shared=prepared.shared,
        settings={**asdict(settings), **prepared.recorded},
        search=settings.search_of(planned),
        pack_size=settings.pack_size,
    )
    summary: list[str] = []

    def report(directory: Path) -> None:
        from ht_ray.report import load_study, write_report
        from ht_ray.report.summary import summarize

        data = load_study(directory)
        files = write_report(data, log=print, patience=60 * run.storage_minutes, brief=True)
        figures = sum(path.suffix == ".png" for path in files)
        summary.append(summarize(data))
        lines = {"report": f"{location}/report.html", "figures": f"{location}/figures ({figures})"}
        if (directory / "report").is_dir():
            lines["TensorBoard"] = f"tensorboard --logdir {shlex.quote(f'{location}/report')}"
        summary.extend(f"{title:<12} {text}" for title, text in lines.items())

    result = run_study(study, run, console=console, finish=report, callbacks=callbacks)
    return Done(result, tuple(summary))


def saved_settings(settings_class: type[TSettings], location: str) -> TSettings:
    """Return the settings of the study that is at a path or URI.

    Raises
    ------
    SettingError
        If there is none, or it is one of other settings.
    """
    stored = load_study_settings(location if is_uri(location) else Path(location).expanduser())
    methods = stored.get("methods", ())
    load_methods([methods] if isinstance(methods, str) else methods)
    return with_methods(settings_class).from_json(stored)


def add_working_directory() -> None:
    """Let modules in the working directory be found, by the workers, too: they are given the driver's path."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
