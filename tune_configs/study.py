"""Study: the studies of the command line as one Python object, for scripts and notebooks."""

from __future__ import annotations

import importlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, get_args, get_origin, get_type_hints

from ht_ray._checks import check_choice, did_you_mean, refused
from ht_ray._storage import Storage, is_uri
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.methods import find_method, setting_names
from ht_ray.methods.registry import all_settings, split_methods
from ht_ray.records.checked_json import Damaged, check_form, form_of
from ht_ray.sweep import SweepConfig, TrialSpec
from ht_ray.sweep.study.config import check_callback
from ht_ray.sweep.study.plan import load_study_name
from tune_configs import ablation, continual, warm_start
from tune_configs.command_line import (
    add_working_directory,
    check_same,
    load_methods,
    names_for,
    run_settings,
    saved_settings,
)
from tune_configs.flags import default_of, readable_type
from tune_configs.prepare import Prepare, prepare_vision
from tune_configs.settings import StudySettings, VisionSettings, with_methods

if TYPE_CHECKING:
    import pandas

    from ht_ray.report.data.selection import Choice

__all__ = ["Results", "Study"]


class _Kind(NamedTuple):
    """One of the studies, as its command line has it."""

    settings: type[VisionSettings]
    trials: Callable[[Any], tuple[TrialSpec, ...]]
    prepare: Prepare = prepare_vision
    grid: Mapping[str, str] = {}
    """Which of its settings hold the values of a grid, by the method's setting that they are of."""


_KINDS = {
    "ablation": _Kind(
        ablation.AblationSettings,
        ablation.trials,
        ablation.prepare,
        {"momentum": "momenta", "reset_interval": "reset_intervals"},
    ),
    "continual": _Kind(continual.ContinualSettings, continual.trials),
    "warm_start": _Kind(warm_start.WarmStartSettings, warm_start.trials),
}
# Which study goes on is said by `Study.resume`.
_RUNNING = tuple(one.name for one in fields(SweepConfig) if one.name != "resume")


class Study:
    """Train many networks with many seeds on Ray Tune, and compare them: what the command lines do, as an object.

    Every flag of the study's command line is a keyword, with underscores: ``--reset-interval`` is ``reset_interval``,
    ``--gpus-per-trial`` is ``gpus_per_trial``. Everything is checked when the object is made; nothing is trained
    before `run`. (`ht_ray.sweep.Study` is another class: the plan of trials of any kind.)

    Parameters
    ----------
    kind : {"continual", "ablation", "warm_start"}, default "continual"
        Which study: methods over the phases of a stream; momentum by reset interval of Hare & Tortoise with searches
        over both; or warm starts.
    model : str or callable, optional
        The network, by name, or as the flag ``--model`` takes it. A callable must be importable by the workers, from a
        module: it is passed on as ``"module:name"``.
    data : str, path or callable, default "digits"
        The data set, as the flag ``--data`` takes it.
    methods : str, class or sequence of them, optional
        What to compare: names, combinations with ``+``, names with settings behind a colon, or classes derived from
        `ht_ray.methods.Method`. Not of an ablation.
    grid : mapping, optional
        Values to try of methods' settings, by their names on the command line: ``{"momentum": [0.9, 0.99]}``. Each
        method is run with every combination of those that it has.
    seeds : int, optional
        The number of seeds; by default what the data set's name implies, for most five.
    callbacks : sequence, optional
        Callbacks of Ray Tune that see every trial and every result: objects, classes, functions that return one, or
        their names as ``"module:name"``. One that raises an error is called no more, and the study goes on.
    **settings
        All other flags: those of the study (``epochs=5``) and of how it is run (``address="auto"``,
        ``gpus_per_trial=0.25``, ``results_dir=...``).

    Raises
    ------
    SettingError
        If a name is unknown, or a value not accepted.

    Examples
    --------
    >>> study = Study(methods=["plain", "hare_tortoise"], grid={"reset_interval": [1, 5]}, access="full", seeds=2)
    >>> [trial.id for trial in study.trials][2:]  # doctest: +NORMALIZE_WHITESPACE
    ['full-hare_tortoise-m0.99-r1e-seed0', 'full-hare_tortoise-m0.99-r1e-seed1',
     'full-hare_tortoise-m0.99-r5e-seed0', 'full-hare_tortoise-m0.99-r5e-seed1']
    >>> Study(momentm=0.9)
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: Study: 'momentm' is no setting of a continual study. Did you mean 'momentum'?
    """

    def __init__(
        self,
        kind: str = "continual",
        *,
        model: str | Callable[..., Any] | None = None,
        data: str | os.PathLike[str] | Callable[..., Any] | None = None,
        methods: str | type[Any] | Sequence[str | type[Any]] | None = None,
        grid: Mapping[str, Sequence[Any]] | None = None,
        seeds: int | None = None,
        callbacks: Sequence[Any] = (),
        **settings: Any,
    ) -> None:
        check_choice("Study: kind", kind, _KINDS)
        add_working_directory()
        named = {"model": model, "data": data, "methods": methods, "seeds": seeds}
        given = {
            **{name: _by_name(name, value) for name, value in named.items() if value is not None},
            **{name: _by_name(name, value) for name, value in _with_callbacks(settings, callbacks).items()},
        }
        own = _KINDS[kind]
        texts = given.get("methods")
        if isinstance(texts, str):
            given["methods"] = (texts,)
        load_methods([*given.get("methods", ()), given.get("base") or ""])
        settings_class = with_methods(own.settings)
        known = {one.name for one in fields(settings_class)}
        for name in given:
            if name not in known and name not in _RUNNING:
                hint = did_you_mean(name, [*known, *_RUNNING, "grid"])
                if name == "resume":
                    hint = " To go on with an earlier study: Study.resume(directory)."
                raise SettingError(f"Study: {name!r} is no setting of {_a(kind)} study.{hint}")
        with _refused_as_keywords(settings_class):
            _expand(own, given, grid or {}, settings_class)
            settled = _typed(settings_class, {name: value for name, value in given.items() if name in known})
            running = _typed(SweepConfig, {name: value for name, value in given.items() if name not in known})
            self._begin(kind, settings_class(**settled).resolved(), SweepConfig(**running), callbacks)

    def _begin(self, kind: str, settings: VisionSettings, running: SweepConfig, callbacks: Sequence[Any]) -> None:
        self._callbacks = [one for one in callbacks if not isinstance(one, str)]
        for one in self._callbacks:
            check_callback("Study: callbacks", one, one)
        self.kind = kind
        #: All settings of the study, with what they imply written out.
        self.settings = settings
        #: How it is run.
        self.running = running
        #: What will be trained, in the order in which it starts.
        self.trials: tuple[TrialSpec, ...] = _KINDS[kind].trials(settings)

    @classmethod
    def resume(cls, directory: str | os.PathLike[str], *, callbacks: Sequence[Any] = (), **running: Any) -> Self:
        """Return the study that was begun in a directory, or at a URI; `run` trains what is missing of it.

        It may have been begun by a command line. It keeps its settings; how it is run may change.

        Parameters
        ----------
        directory : path
            The study's directory, or its URI.
        callbacks : sequence, optional
            As of a new study.
        **running
            How to run it: ``address``, ``cpus_per_trial``, ``max_concurrent`` and the other settings of
            `ht_ray.sweep.SweepConfig`.

        Raises
        ------
        SettingError
            If there is no study, it is of another kind, or a value is not accepted.
        """
        add_working_directory()
        location = os.fspath(directory)
        kind = load_study_name(location if is_uri(location) else Path(location).expanduser())
        check_choice(f"Study.resume({location!r}): its kind", kind, _KINDS)
        accepted = [name for name in _RUNNING if name not in ("results_dir", "resume_or_start")]
        for name in running:
            if name not in accepted:
                hint = did_you_mean(name, accepted)
                raise SettingError(
                    f"Study.resume: {name!r} is no setting of how a study is run; those of the study itself it keeps."
                    f"{hint}"
                )
        given = {name: _by_name(name, value) for name, value in _with_callbacks(running, callbacks).items()}
        study = cls.__new__(cls)
        with _refused_as_keywords(_KINDS[kind].settings):
            running_as = SweepConfig(**_typed(SweepConfig, given), resume=location)
            study._begin(kind, saved_settings(_KINDS[kind].settings, location), running_as, callbacks)
        return study

    def run(self, *, quiet: bool = False) -> Results:
        """Train what is planned, or missing, write the report, and return the results.

        Progress is shown as from the command line: a display in a terminal, a line now and then elsewhere, as in a
        notebook. Ctrl-C (in a notebook: interrupt the kernel) stops the study in order and raises `KeyboardInterrupt`.

        Parameters
        ----------
        quiet : bool, default False
            Whether to leave out the summary at the end.

        Returns
        -------
        Results
            Also where trials failed: look at `Results.complete`.

        Raises
        ------
        SettingError
            If the study cannot run here.
        ht_ray.sweep.RayStartError
            If Ray does not start on this machine.
        ht_ray._storage.StorageError
            If the study's location is full or lost.
        KeyboardInterrupt
            If it was stopped; what was reported is kept, and the message says how to go on.
        """
        kind, running = _KINDS[self.kind], self.running.located()
        with _refused_as_keywords(kind.settings):
            if running.resume is not None and self.running.resume is None:  # it was begun before
                check_same(saved_settings(kind.settings, running.resume), self.settings)
            done = run_settings(
                self.kind, self.settings, running, kind.trials, kind.prepare, _warn, callbacks=self._callbacks
            )
        location = done.result.location
        again = f"Study.resume({location!r}).run()"
        if not quiet:
            print(done.describe(again))
        if done.result.interrupted:
            raise KeyboardInterrupt(f"the study was stopped; to go on: {again}")
        return Results(location)

    def __repr__(self) -> str:
        return f"<Study {self.kind}: {len(self.trials)} trials, data {self.settings.data!r}>"


@dataclass(frozen=True)
class Results:
    """What came of a study: tables, figures and curves, read from its directory.

    Parameters
    ----------
    location : str or path
        The study's directory, or its URI: of any study of this package, however it was started.

    Raises
    ------
    SettingError
        If there is no study.
    """

    location: str

    def __post_init__(self) -> None:
        text = os.fspath(self.location)
        location = text if is_uri(text) else str(Path(text).expanduser().absolute())
        object.__setattr__(self, "location", location)
        load_study_name(location)

    @property
    def directory(self) -> Path | str:
        """The study's directory; its URI as text, if it is at one."""
        return self.location if is_uri(self.location) else Path(self.location)

    @property
    def complete(self) -> bool:
        """Whether every trial has ended in a result: finished, diverged, or stopped by the search."""
        return all(trial.status in ("finished", "diverged", "stopped") for trial in self.load().trials)

    @property
    def report(self) -> Path | str:
        """The report, one HTML page."""
        return self._at("report.html")

    @property
    def figures(self) -> tuple[Path | str, ...]:
        """The figures as PNG files, sorted by name; each lies next to its PDF."""
        return tuple(
            self._at(f"figures/{name}") for name in Storage(self.location).names("figures") if name.endswith(".png")
        )

    def table(self, name: str = "table") -> pandas.DataFrame:
        """Return a table of the report, unrounded; accuracies are fractions.

        Parameters
        ----------
        name : str, default "table"
            ``"table"`` has a row for each method with its settings; ``"results"`` one for each trial; ``"choice"`` the
            best setting of each method; and the other ``.csv`` files in the study's directory by their names
            (see docs/results.md).

        Raises
        ------
        SettingError
            If the study has no such table.
        """
        import pandas

        storage = Storage(self.location)
        known = [file.removesuffix(".csv") for file in storage.names() if file.endswith(".csv")]
        if name == "table" and name not in known and "atari_aggregates" in known:
            name = "atari_aggregates"
        check_choice("Results.table: name", name, known)
        return pandas.read_csv(io.BytesIO(storage.read(f"{name}.csv")))

    def best(self, *, method: str | None = None, access: str | None = None) -> Choice:
        """Return the best setting, chosen on validation data where the study held some out, with its test accuracy.

        Without validation data it is chosen on test data, and `chosen_on` says so.

        Parameters
        ----------
        method : str, optional
            Choose among the settings of this method only.
        access : str, optional
            The access mode in which to compare; by default the study's first.

        Raises
        ------
        SettingError
            If the study has no such method or access mode, or no trial has finished.
        """
        from ht_ray.report.data.selection import choose

        return choose(self.load(), method=method, access=access)

    def to_tensorboard(self) -> Path | str:
        """Return the folder of the report's event files, for ``tensorboard --logdir``; the study's has every trial."""
        return self._at("report")

    def load(self) -> Any:
        """Return all that is known of the trials, curves included, as `ht_ray.report.load_study` does."""
        from ht_ray.report import load_study

        return load_study(self.location)

    def _at(self, name: str) -> Path | str:
        return Storage(self.location).child(name).location if is_uri(self.location) else Path(self.location, name)


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _with_callbacks(settings: Mapping[str, Any], callbacks: Sequence[Any]) -> Mapping[str, Any]:
    """Return settings with those of the callbacks that are given by name, as the flag ``--callback`` takes them."""
    named = [one for one in callbacks if isinstance(one, str)]
    return {**settings, "callback": named} if named else settings


def _by_name(field: str, value: Any) -> Any:
    """Return a value as flags have it: sequences as tuples, paths as text, objects of modules as ``module:name``.

    This is the one place where objects come in: what is not to be passed by its name is turned into something here.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if field == "stream_args" and isinstance(value, Mapping):
        return tuple(f"{name}={_written(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple, set, range)):
        return tuple(_by_name(field, one) for one in value)
    if callable(value):
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if module == "__main__":
            raise SettingError(
                f"Study: {field} = {name}: it is defined in the script or notebook itself, where the workers cannot "
                "import it: move it to a module, or give 'module:name'."
            )
        found: Any = None
        if module and name and "<" not in name:
            found = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part, None)
        if found is not value:
            raise SettingError(
                f"Study: {field} = {value!r}: the workers import it by its name, and a module has none of it: give a "
                "function or class at the top of a module, or 'module:name'."
            )
        return f"{module}:{name}"
    return value


def _expand(
    kind: _Kind,
    given: dict[str, Any],
    grid: Mapping[str, Sequence[Any]],
    settings_class: type[VisionSettings],
) -> None:
    """Put the values of a grid where the study takes them: in settings of its own, or into its methods."""
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise SettingError(f"Study: grid[{name!r}] = {values!r}: accepted is a list of values.")
    if not grid:
        return
    if kind.grid:
        for name, values in grid.items():
            check_choice("Study: grid", name, kind.grid)
            given[kind.grid[name]] = tuple(values)
        return
    texts: Sequence[str] = given.get("methods") or default_of(settings_class.__dataclass_fields__["methods"])
    used: set[str] = set()
    expanded = []
    for text in texts:
        parts, own = split_methods(text)
        has = setting_names([find_method(part).name for part in parts if part.strip().lower() != "fresh"])
        fixed = {item.partition("=")[0].strip().replace("-", "_") for item in (own or "").split(",")}
        names = [name for name in grid if name in has and name not in fixed]
        used.update(names)
        for values in product(*(grid[name] for name in names)):
            more = [f"{name}={_written(value)}" for name, value in zip(names, values, strict=True)]
            settings = ",".join(filter(None, [own, *more]))
            expanded.append("+".join(parts) + (f":{settings}" if settings else ""))
    for name in grid:
        if name not in used:
            every = all_settings()
            hint = did_you_mean(name, every) if name not in every else ""
            raise SettingError(f"Study: grid[{name!r}]: it is a setting of none of the methods {tuple(texts)!r}.{hint}")
    given["methods"] = tuple(expanded)


def _written(value: Any) -> str:
    """Return a value as it stands behind a method's name."""
    if isinstance(value, (tuple, list)):
        return "/".join(map(_written, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _warn(text: str) -> None:
    warnings.warn(_keywords(text), SettingWarning, stacklevel=4)


def _keywords(text: str) -> str:
    """Return a text with keywords in place of flags."""
    return re.sub(r"(?<!\S)--([a-z][a-z0-9-]*)", lambda found: found[1].replace("-", "_"), text)


@contextmanager
def _refused_as_keywords(settings_class: type[StudySettings]) -> Iterator[None]:
    """Call the settings that are refused in the block by their keywords."""
    try:
        yield
    except SettingError as error:
        text = _keywords(error.describe(names_for(settings_class, str)))
        start = "" if text.startswith("Study") else "Study: "
        raise SettingError(f"{start}{text}", owner="Study", field=error.field, value=error.value) from error


def _typed(config: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of settings with the types of their fields: one where several are meant is made a tuple.

    Raises
    ------
    SettingError
        If a value is of another type.
    """
    hints, found = get_type_hints(config), {}
    for name, value in given.items():
        kind = readable_type(hints[name])
        kinds = get_args(kind) or (kind,)
        if get_origin(kind) is tuple and value is not None and not isinstance(value, tuple):
            value = (value,)
        elif str in kinds and int not in kinds and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        try:
            check_form(list(value) if isinstance(value, tuple) else value, form_of(kind), name)
        except Damaged as error:
            accepted = str(error).rpartition("should be ")[2]
            raise refused(f"{config.__name__}.{name}", value, accepted=accepted) from error
        found[name] = value
    return found
