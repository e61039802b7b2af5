"""Trials of a study: what is planned of each, the class that runs one, and what it reports. No Ray here."""

from __future__ import annotations

import copy
import importlib
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ht_ray._checks import check_choice, check_fields, check_number, did_you_mean
from ht_ray.errors import SettingError
from ht_ray.records.checked_json import Scalar, to_jsonable
from ht_ray.records.study_files import ID
from ht_ray.sweep.search.search import Search

__all__ = ["RESERVED_COLUMNS", "Pack", "Report", "Study", "Trial", "TrialSpec", "load_factory"]

# The columns of results.csv that are not a trial's settings or summary.
RESERVED_COLUMNS = ("id", "label", "status", "executor", "restarts", "seconds", "error")


@dataclass(frozen=True)
class Report:
    """What one part of a trial measured.

    Parameters
    ----------
    curves
        The rows of this part only, by curve: ``{"epoch": [{"step": 1, "test_accuracy": 0.9}, ...]}``. ``"step"`` is
        the x-axis of the curve and must not go back from part to part. A value that is not finite is kept as null.
    summary
        The trial's summary so far, the same keys in every report. The last one goes to ``results.csv``.
    progress
        How much of the trial is done, in [0, 1]; 1 ends it.
    samples
        How many samples this part was trained on, for the rate that is watched; 0 where that means nothing.

    Raises
    ------
    SettingError
        If `progress` is outside [0, 1], `samples` is negative, a row has no ``"step"``, or a value is no number.
    """

    curves: Mapping[str, list[dict[str, float]]]
    summary: Mapping[str, float]
    progress: float
    samples: int = 0

    def __post_init__(self) -> None:
        check_number("Report: progress", self.progress, low=0, high=1)
        check_number("Report: samples", self.samples, low=0, integer=True)
        for curve, rows in self.curves.items():
            for row in rows:
                step = row.get("step")
                if not isinstance(step, numbers.Real) or not math.isfinite(step):
                    raise SettingError(
                        f"Report.curves[{curve!r}]: the row {row!r} has no 'step', its position on the x-axis."
                    )
                _check_numbers(f"Report.curves[{curve!r}]", row)
        _check_numbers("Report.summary", self.summary)


class Trial(Protocol):
    """One run with one setting and one seed, built by ``factory(config, shared)`` in a worker.

    It must be deterministic: a part that is run again from a checkpoint reports what it reported before.

    A trial whose parts take long should also have a method ``interrupt()``, without arguments: it asks `advance` to
    raise `ht_ray.errors.Interrupted` at its next point where the trial can be saved. It is called from a signal handler
    or another thread, so it should only set a flag. A trial without it is saved between its parts only.
    """

    def advance(self) -> Report:
        """Do the next part of the work (one phase of a stream, say) and return what it measured.

        Raises
        ------
        ht_ray.errors.Diverged
            If training cannot go on. That is a result of the trial, which is not tried again.
        """

    def save(self, directory: Path) -> None:
        """Write everything needed to continue after the last `advance` into the empty `directory`, as plain files."""

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote. Called at most once, on a new trial, before any `advance`."""


class Pack(Protocol):
    """Several trials that run as one program, built by ``factory.pack(configs, shared)`` in a worker.

    `configs` has the config of each trial, by its id. What comes of a trial does not depend, bit for bit, on who else
    is in its pack: who is, is decided by what is left to do, and a study that is resumed may pack otherwise. A pack has
    the CPUs, GPUs and memory of one trial.

    Like `Trial` it may have a method ``interrupt()``: it asks `advance` to raise `ht_ray.errors.Interrupted`.
    """

    def advance(self) -> Mapping[str, Report | Exception]:
        """Do the next part of those trials that are furthest behind, and return what each of these measured.

        In place of a `Report` stands the exception that ended a trial: a `ht_ray.errors.Diverged`, or what its failure
        is. The others are unharmed. An exception that is raised, other than `Interrupted`, ends them all, as does one
        that is raised when the pack is built. Where memory runs out, all go on from their checkpoints, in another pack.

        Raises
        ------
        ht_ray.errors.Interrupted
            If it was asked to, at a point where each trial can be saved. Nothing is reported then.
        """

    def save(self, trial: str, directory: Path) -> None:
        """Write what one trial needs to continue into the empty `directory`, as `Trial.save` does."""

    def load(self, trial: str, directory: Path) -> None:
        """Let one trial continue from what `save` wrote. At most once for each, and before any `advance`."""

    def drop(self, trial: str) -> None:
        """Train a trial no longer: it has finished, failed or diverged, or was stopped. It is not asked for again."""


@dataclass(frozen=True)
class TrialSpec:
    """One planned trial.

    Parameters
    ----------
    id
        Its name: safe as a file name, unique in the study and the same every time the study is planned.
    label
        What a figure's legend says; the same for all seeds.
    settings
        What distinguishes it from the others, flat: the columns of ``results.csv``.
    config
        What the factory is given; JSON-able.
    pack
        The name of a group, of which several may run as one program: as a `Pack`. A trial that has one always runs so,
        also by itself; one that has none, never.

    Raises
    ------
    SettingError
        If `id` or `pack` cannot be a file name, `settings` is not flat or uses a column of the results table, or
        `config` is no JSON.

    Examples
    --------
    >>> TrialSpec(id="plain-seed0", label="Plain", settings={"method": "plain", "seed": 0}).config
    {}
    >>> TrialSpec(id="m=0.9/seed0", label="EMA")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: TrialSpec.id = 'm=0.9/seed0': accepted are 1 to 120 letters, digits and ._=+@-, ...
    """

    id: str
    label: str
    settings: dict[str, Scalar] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    pack: str | None = None

    def __post_init__(self) -> None:
        _check_name("TrialSpec.id", self.id)
        if self.pack is not None:
            _check_name(f"TrialSpec.pack of trial {self.id!r}", self.pack)
        for name, value in self.settings.items():
            if name in RESERVED_COLUMNS:
                raise SettingError(
                    f"TrialSpec.settings[{name!r}] of trial {self.id!r}: the results table has a column "
                    f"of that name already; taken are {', '.join(RESERVED_COLUMNS)}."
                )
            if value is not None and not isinstance(value, (bool, int, float, str)):
                raise SettingError(
                    f"TrialSpec.settings[{name!r}] = {value!r} of trial {self.id!r}: accepted is one number, text, "
                    "True, False or None."
                )
        _check_json(f"TrialSpec.config of trial {self.id!r}", self.config)


@dataclass(frozen=True)
class Study:
    """Many trials of one class, to be run and compared.

    Parameters
    ----------
    name
        Its name in titles and in the default directory's name.
    factory
        Where workers find the trial's class (or function): ``"package.module:Class"``. Called as
        ``factory(config, shared)``; for trials that are packed, as ``factory.pack(configs, shared)``.
    trials
        All planned trials, in the order they are started and listed.
    metric
        The key of a trial's summary by which the best trial so far is found.
    mode
        Whether the best is the largest or the smallest: ``"max"`` or ``"min"``.
    shared
        What all trials read (arrays of a data set, say). It is put into Ray's object store once per run; NumPy
        arrays in it are mapped read-only by the trials, not copied.
    settings
        The whole study's settings, JSON-able, kept in ``config.json``.
    search
        How its trials are searched; without it, all run as planned.
    pack_size
        The most trials in a pack; None for so many that there is a pack, or the same number of packs, for each trial
        that the cluster runs at a time, and at most 32.

    Raises
    ------
    SettingError
        If there are no trials, two have one id, or a field is not as described.
    """

    name: str
    factory: str
    trials: tuple[TrialSpec, ...]
    metric: str
    mode: str = "max"
    shared: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    search: Search | None = None
    pack_size: int | None = None

    def __post_init__(self) -> None:
        _check_name("Study.name", self.name)
        check_fields(self, "pack_size", low=1, integer=True)
        check_choice("Study.mode", self.mode, ("max", "min"))
        if not all(self.factory.partition(":")):
            raise SettingError(f"Study.factory = {self.factory!r}: accepted is 'package.module:Class'.")
        if not self.trials:
            raise SettingError("Study.trials = (): accepted is at least one trial.")
        seen: set[str] = set()
        for spec in self.trials:
            # Some file systems do not tell upper from lower case.
            if spec.id.lower() in seen:
                raise SettingError(f"Study.trials: two trials have the id {spec.id!r}; each needs its own.")
            seen.add(spec.id.lower())
        if self.search is not None:
            self._check_search(self.search)
        _check_json("Study.settings", self.settings)

    def _check_search(self, search: Search) -> None:
        planned = {spec.id: spec for spec in self.trials}
        first: dict[str, TrialSpec] = {}
        for trial in search.trials:
            if trial not in planned:
                raise SettingError(f"Study.search: its trial {trial!r} is not planned.{did_you_mean(trial, planned)}")
            other = first.setdefault(search.groups[trial], planned[trial])
            if search.config.scheduler == "pbt" and planned[trial].pack != other.pack:
                raise SettingError(
                    f"TrialSpec.pack = {planned[trial].pack!r} of trial {trial!r}: accepted is {other.pack!r}, as of "
                    f"{other.id!r}: the members of a population copy one another's state."
                )
            for parameter in search.parameters:
                parameter.set(copy.deepcopy(planned[trial].config), parameter.low)


def load_factory(factory: str) -> Callable[[dict[str, Any], Any], Trial]:
    """Import what ``"package.module:Class"`` names.

    Examples
    --------
    >>> load_factory("fractions:Fraction")
    <class 'fractions.Fraction'>
    """
    module, _, name = factory.partition(":")
    found: Callable[[dict[str, Any], Any], Trial] = getattr(importlib.import_module(module), name)
    return found


def _check_name(where: str, name: str) -> None:
    if not ID.fullmatch(name):
        raise SettingError(
            f"{where} = {name!r}: accepted are 1 to 120 letters, digits and ._=+@-, starting with a letter or digit."
        )


def _check_numbers(where: str, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        if value is not None and not isinstance(value, numbers.Real):
            raise SettingError(f"{where}: {name} = {value!r}: accepted is a number.")


def _check_json(where: str, value: object) -> None:
    try:
        to_jsonable(value)
    except TypeError as error:
        raise SettingError(f"{where}: accepted is what JSON can hold ({error}).") from error
