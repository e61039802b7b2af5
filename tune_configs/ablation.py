"""Sweep momentum and reset interval of Hare & Tortoise, next to plain training, EMA, Shrink & Perturb and Head Reset.

On the continual stream by default; ``--stream warm_start`` is the setting of the paper's appendix D. Run it alone
(``python tune_configs/ablation.py``), on a cluster (``--address auto``), or as a submitted job
(``ray job submit --working-dir . -- python tune_configs/ablation.py``).

Instead of the grid: ``--search random`` or ``--search optuna`` between its smallest and largest values, ``--scheduler
asha`` to stop what falls behind, ``--scheduler pbt`` for a population that changes both as it trains.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Self

if __package__ in (None, ""):  # run as a script: the checkout need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ht_ray._checks import check_choice
from ht_ray.methods import MethodConfig, display_name
from ht_ray.sweep import Parameter, Search, SearchConfig, TrialSpec, Values, draw_distinct
from tune_configs.command_line import main as run_main
from tune_configs.prepare import Prepared, prepare_vision
from tune_configs.settings import VisionSettings, check_distinct, check_values
from tune_configs.trials import label_of, trial

__all__ = ["AblationSettings", "main", "prepare", "trials"]

_BASELINES = ("plain", "ema", "shrink_perturb", "head_reset")


@dataclass(frozen=True)
class AblationSettings(SearchConfig, VisionSettings):
    """Settings of the momentum x reset interval study."""

    most_used: ClassVar[tuple[str, ...]] = (
        *("data", "data_root", "model", "stream", "epochs", "momenta", "reset_intervals", "baselines"),
        *("search", "scheduler", "seeds", "results_dir", "resume", "gpus_per_trial", "address"),
    )
    sections: ClassVar[Mapping[type[Any], str]] = {SearchConfig: "Search"}

    momenta: tuple[float, ...] = (0.9, 0.97, 0.99)
    """Momenta of the tortoise to try; a search other than the grid goes from the smallest to the largest."""
    reset_intervals: tuple[int, ...] = (1, 5, 10)
    """Reset intervals to try; a search other than the grid goes from the smallest to the largest."""
    baselines: tuple[str, ...] = field(default=_BASELINES, metadata={"choices": _BASELINES})
    """Methods to compare with; ema is run with every momentum."""

    def __post_init__(self) -> None:
        owner = "AblationSettings"
        SearchConfig.__post_init__(self)
        VisionSettings.__post_init__(self)
        check_values(owner, "momenta", self.momenta, low=0, high=1, high_open=True)
        check_values(owner, "reset_intervals", self.reset_intervals, low=1, integer=True)
        for name in self.baselines:
            check_choice(f"{owner}.baselines", name, _BASELINES)
        if self.baselines:
            check_distinct(owner, "baselines", self.baselines)
        if self.scheduler != "none" and self.stream == "warm_start":
            why = (
                ": a warm start reports twice, and its first phase is a means and not an end, by which nothing can be "
                "stopped or copied. Accepted with {stream} = 'continual'."
            )
            raise self.refused("scheduler", why)
        if self.draws and not self.parameters:
            why = " and {reset_intervals} = {intervals!r}: there is nothing to search; give several values of one."
            raise self.refused("momenta", why, intervals=self.reset_intervals)
        if self.search == "optuna" and self._preset("seeds") > 1:
            why = (
                ": {search} = 'optuna' tries every setting with one seed, the first; leave it out, and run the best "
                "settings with more seeds as a grid afterwards."
            )
            raise self.refused("seeds", why)

    def resolved(self) -> Self:
        """Return these settings with all that they imply written out, as results record them."""
        return replace(super().resolved(), **self.written_out())

    @property
    def _tunes(self) -> bool:
        return False

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What a search varies: what has more than one value in the grid."""
        momenta, intervals = sorted(self.momenta), sorted(self.reset_intervals)
        found = []
        if len(momenta) > 1:
            found.append(Parameter("method.momentum", "momentum", momenta[0], momenta[-1], scale="log_complement"))
        if len(intervals) > 1:
            low, high = intervals[0], intervals[-1]
            found.append(Parameter("method.reset_interval", "reset_interval", low, high, scale="log", integer=True))
        return tuple(found)

    def hare_tortoise(self, values: Values) -> MethodConfig:
        """Return Hare & Tortoise with these values, and those of the grid for what is not searched."""
        fixed = {"momentum": self.momenta[0], "reset_interval": self.reset_intervals[0]}
        return self.method_config("hare_tortoise", **{**fixed, **values})

    def search_of(self, planned: Sequence[TrialSpec]) -> Search | None:
        """Return how the planned trials are searched: all of Hare & Tortoise, next to the baselines."""
        # What is drawn at random beforehand, and not stopped, is an ordinary study.
        if self.scheduler == "none" and self.search != "optuna":
            return None
        trials = [spec for spec in planned if spec.settings["method"] == "hare_tortoise"]
        seeds = {spec.id: f"seed {spec.settings['seed']}" for spec in trials}
        return Search(
            config=SearchConfig(**{field.name: getattr(self, field.name) for field in fields(SearchConfig)}),
            parameters=self.parameters if self.draws else (),
            trials=tuple(seeds),
            reports=self.phases,
            groups=seeds if self.scheduler == "pbt" else dict.fromkeys(seeds, "all"),
            label=self._label,
        )

    @property
    def _label(self) -> str:
        """The label of Hare & Tortoise, with a place for each parameter."""
        label = label_of(self.hare_tortoise({}))
        for parameter in self.parameters:
            letter = {"momentum": "m", "reset_interval": "r"}[parameter.column]
            label = re.sub(rf" {letter}=\S+", f" {letter}={{{parameter.column}:.12g}}", label)
        return label

    def _preset(self, name: str) -> Any:
        one = name == "seeds" and self.seeds is None and (self.search == "optuna" or self.scheduler == "pbt")
        return 1 if one else super()._preset(name)


def trials(settings: AblationSettings) -> tuple[TrialSpec, ...]:
    """Return the planned trials: the baselines first, then the grid or what is in its place; seeds innermost."""
    planned = list(_baselines(settings))
    seeds = settings.seed_list
    if settings.scheduler == "pbt":
        written = settings.written_out()["population"]
        for seed in seeds:
            drawn = draw_distinct(settings.parameters, written, settings.search_seed, f"population of seed {seed}")
            planned += [
                _unsettled(settings, values, seed, f"member {number}") for number, values in enumerate(drawn, start=1)
            ]
        return tuple(planned)
    if settings.search == "optuna":
        # What stands here until there is a suggestion is trained by no trial.
        place = {parameter.column: parameter.value(sum(parameter.bounds) / 2) for parameter in settings.parameters}
        numbers = range(1, settings.written_out()["samples"] + 1)
        return (*planned, *(_unsettled(settings, place, seeds[0], f"sample {number}") for number in numbers))
    if settings.search == "random":
        samples = settings.written_out()["samples"]
        tried = draw_distinct(settings.parameters, samples, settings.search_seed, "random search")
    else:
        grid = product(settings.momenta, settings.reset_intervals)
        tried = tuple({"momentum": momentum, "reset_interval": interval} for momentum, interval in grid)
    methods = [settings.hare_tortoise(values) for values in tried]
    planned += [trial(settings, method, settings.access, seed) for method in methods for seed in seeds]
    return tuple(planned)


def _baselines(settings: AblationSettings) -> list[TrialSpec]:
    methods = [
        settings.method_config(name, momentum=momentum)
        for name in settings.baselines
        for momentum in (settings.momenta if name == "ema" else settings.momenta[:1])
    ]
    return [trial(settings, method, settings.access, seed) for method in methods for seed in settings.seed_list]


def _unsettled(settings: AblationSettings, values: Values, seed: int, name: str) -> TrialSpec:
    """Return a trial whose momentum and interval are found, or change, while the study runs."""
    kind, number = name.split()
    return trial(
        settings,
        settings.hare_tortoise(values),
        settings.access,
        seed,
        name=f"hare_tortoise-{kind}{number}",
        label=f"{display_name('hare_tortoise')}, {name}",
        columns={**dict.fromkeys(parameter.column for parameter in settings.parameters), kind: int(number)},
    )


def prepare(settings: AblationSettings, planned: tuple[TrialSpec, ...]) -> Prepared:
    """Load the images, and check the planned trials, or the ends of what a search may plan, against them."""
    if not settings.draws:
        return prepare_vision(settings, planned)
    # Where there are no values yet, or many, the ends of the ranges are checked.
    ends = [
        [(parameter.column, parameter.low), (parameter.column, parameter.high)] for parameter in settings.parameters
    ]
    corners = [settings.hare_tortoise(dict(corner)) for corner in product(*ends)]
    checked = [trial(settings, method, settings.access, settings.seed_list[0]) for method in corners]
    return prepare_vision(settings, (*_baselines(settings), *checked))


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the study; see ``--help``."""
    return run_main("ablation", AblationSettings, trials, str(__doc__), arguments, prepare, program)


if __name__ == "__main__":
    sys.exit(main())
