"""Search of a study: parameters with their ranges, and the choice of search and scheduler. No Ray here.

A search works in coordinates in which equal steps matter equally: the logarithm of ``1 - m`` for a momentum, the
logarithm of a reset interval. Trials see values, rounded so that they can be named.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ht_ray._checks import check_choice, check_fields, check_number, did_you_mean, refused
from ht_ray.errors import SettingError

__all__ = ["Parameter", "Search", "SearchConfig", "Values", "draw_distinct", "random_stream", "with_values"]

Values: TypeAlias = dict[str, float]
"""A value for each parameter, by its column."""

DEFAULT_SAMPLES = 20
DEFAULT_POPULATION = 8

_SCALES = ("linear", "log", "log_complement")
_DIGITS = {"linear": 4, "log": 3, "log_complement": 3}


@dataclass(frozen=True)
class Parameter:
    """One setting that is searched.

    Parameters
    ----------
    path
        Where a trial's config has it: ``"method.momentum"``.
    column
        Its name in the table of results, and in `Values`.
    low, high
        The range of values, ends included.
    scale
        The coordinate: ``"linear"`` is the value, ``"log"`` its logarithm, ``"log_complement"`` that of ``1 - value``.
        Values are rounded to four significant digits, three, and three of ``1 - value``.
    integer
        Whether values are whole numbers.

    Raises
    ------
    SettingError
        If the range is empty, or not one of the scale.

    Examples
    --------
    >>> momentum = Parameter("method.momentum", "momentum", 0.9, 0.999, scale="log_complement")
    >>> momentum.value(momentum.coordinate(0.97)), momentum.value(sum(momentum.bounds) / 2)
    (0.97, 0.99)
    """

    path: str
    column: str
    low: float
    high: float
    scale: str = "linear"
    integer: bool = False

    def __post_init__(self) -> None:
        where = f"Parameter({self.column!r})"
        if not (self.path and all(self.path.split(".")) and self.column):
            raise SettingError(f"{where}.path = {self.path!r}: accepted are names joined by dots, and a column.")
        check_choice(f"{where}.scale", self.scale, _SCALES)
        edge = {"linear": -math.inf, "log": 0.0, "log_complement": -math.inf}[self.scale]
        check_number(f"{where}.low", self.low, low=edge, low_open=True, integer=self.integer)
        check_number(f"{where}.high", self.high, low=self.low, low_open=True, integer=self.integer)
        if self.scale == "log_complement":
            check_number(f"{where}.high", self.high, high=1, high_open=True)
            if self.integer:
                raise SettingError(f"{where}.integer = True: accepted with the scales 'linear' and 'log'.")

    @property
    def bounds(self) -> tuple[float, float]:
        """The coordinates of the range, the smaller first; of whole numbers, half a number beyond them."""
        margin = 0.5 if self.integer else 0.0
        ends = (self._transform(self.low - margin), self._transform(self.high + margin))
        return min(ends), max(ends)

    def coordinate(self, value: float) -> float:
        """Return the coordinate of a value of the range."""
        check_number(f"Parameter({self.column!r}): value", value, low=self.low, high=self.high, integer=self.integer)
        return self._transform(value)

    def value(self, coordinate: float) -> float:
        """Return the value at, or nearest to, a coordinate: rounded, and inside the range."""
        if self.scale == "linear":
            value = coordinate
        else:
            # Beyond the bounds the value is at an end of the range anyhow, and the exponential may be too large.
            low, high = self.bounds
            value = math.exp(min(max(coordinate, low), high))
        if self.integer:
            value = round(value)
        else:
            value = float(f"{value:.{_DIGITS[self.scale]}g}")
            if self.scale == "log_complement":
                # Without the last digits that the subtraction gets wrong.
                value = float(f"{1 - value:.12g}")
        return min(max(value, self.low), self.high)

    def draw(self, stream: random.Random) -> float:
        """Return a value drawn uniformly over the coordinates."""
        return self.value(stream.uniform(*self.bounds))

    def perturb(self, value: float, factor: float) -> float:
        """Return a neighbour of `value`: ``factor`` times it, or times ``1 - value``; always another whole number.

        On a linear scale, which may have zeros, the step is ``factor - 1`` of the range. At an end of the range a step
        outwards changes nothing.
        """
        low, high = self.bounds
        step = (factor - 1) * (high - low) if self.scale == "linear" else math.log(factor)
        moved = self.value(self.coordinate(value) + step)
        if self.integer and moved == value:
            moved = min(max(value + (1 if factor > 1 else -1), self.low), self.high)
        return moved

    def set(self, config: dict[str, Any], value: float) -> None:
        """Put a value into a trial's config.

        Raises
        ------
        SettingError
            If the config has no such path.
        """
        *folders, name = self.path.split(".")
        inner = config
        for folder in folders:
            inner = self._inside(inner, folder)
        self._inside(inner, name)
        inner[name] = value

    def get(self, config: Mapping[str, Any]) -> float:
        """Return the value that a trial's config has."""
        inner: Any = config
        for part in self.path.split("."):
            inner = self._inside(inner, part)
        return int(inner) if self.integer else float(inner)

    def _inside(self, config: Any, part: str) -> Any:
        if isinstance(config, Mapping) and part in config:
            return config[part]
        known = list(map(str, config)) if isinstance(config, Mapping) else []
        raise SettingError(
            f"Parameter({self.column!r}).path = {self.path!r}: a trial's config has no {part!r} there."
            f"{did_you_mean(part, known)}"
        )

    def _transform(self, value: float) -> float:
        if self.scale == "linear":
            return float(value)
        return math.log(value if self.scale == "log" else 1 - value)


@dataclass(frozen=True)
class SearchConfig:
    """How the settings of a study are searched, and which of its trials are stopped early.

    Raises
    ------
    SettingError
        If a field cannot work, or changes nothing.
    """

    search: Literal["grid", "random", "optuna"] = "grid"
    """Where the settings of the trials come from: grid, random (drawn beforehand), or optuna (suggested by the results
    so far; needs ht-ray[optuna])."""
    samples: int | None = None
    """Search random or optuna: how many settings are tried; by default 20."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """What happens to trials that fall behind: none, asha (they are stopped), or pbt (they take over the state of
    better ones, with settings nearby)."""
    population: int | None = None
    """Scheduler pbt: trials of a population; by default 8."""
    grace_period: int = 1
    """Scheduler asha: no trial is stopped before it has reported so often."""
    reduction_factor: int = 3
    """Scheduler asha: at every rung, this times as many reports as at the one before, the best 1/so many go on."""
    perturbation_interval: int = 1
    """Scheduler pbt: reports from one round of copying to the next."""
    quantile: float = 0.25
    """Scheduler pbt: share of the population that copies, and share that is copied."""
    resample_probability: float = 0.25
    """Scheduler pbt: how often a setting is drawn again instead of a step of 1.2 or 0.8 of a momentum's complement or
    of an interval."""
    search_seed: int = 0
    """Seed of what the search draws; the trials have their own."""

    def __post_init__(self) -> None:
        check_choice("SearchConfig.search", self.search, ("grid", "random", "optuna"))
        check_choice("SearchConfig.scheduler", self.scheduler, ("none", "asha", "pbt"))
        check_fields(self, "samples", "grace_period", "perturbation_interval", low=1, integer=True)
        check_fields(self, "population", "reduction_factor", low=2, integer=True)
        check_fields(self, "quantile", low=0, high=0.5, low_open=True)
        check_fields(self, "resample_probability", low=0, high=1)
        check_fields(self, "search_seed", low=0, integer=True)
        if self.scheduler == "pbt" and self.search != "grid":
            raise self._refused("search", ": {scheduler} = 'pbt' searches by itself; leave the search out.")
        for names, field, needed in _OF:
            for name in names:
                value = getattr(self, name)
                if value != getattr(SearchConfig, name) and getattr(self, field) not in needed:
                    other = " or ".join(map(repr, needed))
                    found = getattr(self, field)
                    why = f" changes nothing: it is a setting of {{{field}}} = {other}, and {{{field}}} = {found!r}."
                    raise self._refused(name, why)
        if self.search_seed and not self.draws:
            why = " changes nothing: a grid draws nothing; it is a setting of {search} = 'random' and 'optuna', and of "
            raise self._refused("search_seed", why + "{scheduler} = 'pbt'.")

    def _refused(self, name: str, reason: str) -> SettingError:
        return refused(f"SearchConfig.{name}", getattr(self, name), reason)

    @property
    def draws(self) -> bool:
        """Whether settings come from ranges, and not from a grid."""
        return self.search != "grid" or self.scheduler == "pbt"

    def written_out(self) -> dict[str, Any]:
        """Return the fields whose defaults depend on others, with their values."""
        if self.search != "grid":
            return {"samples": DEFAULT_SAMPLES if self.samples is None else self.samples}
        if self.scheduler == "pbt":
            return {"population": DEFAULT_POPULATION if self.population is None else self.population}
        return {}


_OF = (
    (("samples",), "search", ("random", "optuna")),
    (("grace_period", "reduction_factor"), "scheduler", ("asha",)),
    (("population", "perturbation_interval", "quantile", "resample_probability"), "scheduler", ("pbt",)),
)


@dataclass(frozen=True)
class Search:
    """How the trials of a study are searched; a study without one runs all its trials as planned.

    Parameters
    ----------
    config
        The choices.
    parameters
        What is searched.
    trials
        The ids of the trials that take part. The others are what they are compared with, and run to their end.
    reports
        How often such a trial reports until its end.
    groups
        The group of each of the trials, by its id: schedulers compare within a group only. A population of PBT is a
        group; its trials must have one seed, so that what is copied fits.
    label
        The label of a trial with given values, with a replacement field for each column: ``"m={momentum:g}"``.

    Raises
    ------
    SettingError
        If a scheduler cannot do anything with so few reports, or trials.
    """

    config: SearchConfig
    parameters: tuple[Parameter, ...]
    trials: tuple[str, ...]
    reports: int
    groups: Mapping[str, str]
    label: str = ""

    def __post_init__(self) -> None:
        config = self.config
        check_number("Search.reports", self.reports, low=1, integer=True)
        if not self.trials:
            raise SettingError("Search.trials = (): accepted is at least one trial.")
        if config.draws and not self.parameters:
            raise SettingError("Search.parameters = (): accepted is at least one parameter.")
        if config.search == "optuna" and importlib.util.find_spec("optuna") is None:
            raise config._refused("search", ": Optuna is not installed here: pip install 'ht-ray[optuna]'.")
        for field, scheduler in (("grace_period", "asha"), ("perturbation_interval", "pbt")):
            value = getattr(config, field)
            if config.scheduler == scheduler and value >= self.reports:
                why = (
                    f": a trial of this study reports {self.reports} times, and {{scheduler}} = {scheduler!r} would do "
                    "nothing before its end; accepted is a number below that."
                )
                raise config._refused(field, why)

    def members(self, group: str) -> tuple[str, ...]:
        """Return the ids of the trials of a group, as planned."""
        return tuple(trial for trial in self.trials if self.groups[trial] == group)


def with_values(config: Mapping[str, Any], parameters: Sequence[Parameter], values: Values) -> dict[str, Any]:
    """Return a trial's config with these values of its parameters."""
    copied = copy.deepcopy(dict(config))
    for parameter in parameters:
        parameter.set(copied, values[parameter.column])
    return copied


def random_stream(seed: int, purpose: str, *position: object) -> random.Random:
    """Return a stream of draws for one purpose and position; it depends on nothing that was drawn before."""
    return random.Random("\x1f".join(map(str, (seed, purpose, *position))))


def draw_distinct(parameters: Sequence[Parameter], number: int, seed: int, purpose: str) -> tuple[Values, ...]:
    """Return `number` different draws of all parameters; the first are the same for any number.

    Raises
    ------
    SettingError
        If the ranges hold too few different values.
    """
    drawn: dict[tuple[float, ...], Values] = {}
    stream = random_stream(seed, purpose)
    for _ in range(100 * number):
        values = {parameter.column: parameter.draw(stream) for parameter in parameters}
        drawn.setdefault(tuple(values.values()), values)
        if len(drawn) == number:
            return tuple(drawn.values())
    ranges = ", ".join(f"{parameter.column} in [{parameter.low:g}, {parameter.high:g}]" for parameter in parameters)
    raise SettingError(f"{number} different settings are wanted, and {ranges} hold about {len(drawn)}.")
