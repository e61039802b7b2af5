"""Compare DrQ and what keeps it plastic on the games of Atari-100k, or sweep momentum and reset interval.

By default all 26 games, the six agents of the paper's table 1, and five seeds; with ``--momenta`` or
``--reset-intervals``, plain DrQ beside Hare & Tortoise with each combination. Run it alone
(``python tune_configs/atari100k.py --games pong --steps 20000``), on a cluster (``--address auto``), or as a submitted
job (``ray job submit --working-dir . -- python tune_configs/atari100k.py --gpus-per-trial 0.25``).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Self

if __package__ in (None, ""):  # run as a script: the checkout need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import nn

from ht_ray._checks import SettingError, SettingWarning, check_choice, check_number
from ht_ray.agents.drq_config import VARIANTS, DrQConfig
from ht_ray.agents.games import ATARI_100K_GAMES, game_name
from ht_ray.mechanisms import Tortoise
from ht_ray.report.atari_study import number_text
from ht_ray.sweep import TrialSpec
from tune_configs.command_line import Prepared
from tune_configs.command_line import main as run_main
from tune_configs.settings import StudySettings, check_distinct

__all__ = ["AtariSettings", "main", "schedule_warnings", "trials"]

# Which variants have a setting at all, by what they are.
_OF_METHOD = {
    "momentum": lambda own: own.momentum is not None,
    "reset_interval": lambda own: own.reset_interval is not None,
    "optimizer_state": lambda own: own.reset_interval is not None,
    "act_with_tortoise": lambda own: own.momentum is not None,
    "shrink_perturb_interval": lambda own: own.shrink_perturb_interval is not None,
    "shrink_perturb_ratio": lambda own: own.shrink_perturb_interval is not None,
    "head_reset_interval": lambda own: own.head_reset_interval is not None,
    "toward": lambda own: bool(own.shrink_perturb_interval or own.head_reset_interval),
    "reinitialise_tortoise": lambda own: (
        own.momentum is not None and bool(own.shrink_perturb_interval or own.head_reset_interval)
    ),
}

# What a variant's name says by itself.
_IN_NAME = ("momentum", "reset_interval", "shrink_perturb_interval", "head_reset_interval")


class _Agent(NamedTuple):
    """An agent of the study: `key` is safe in a file's name, `name` is the paper's where the agent is."""

    key: str
    name: str
    method: str
    config: DrQConfig


@dataclass(frozen=True)
class _StudyFields(StudySettings):
    # Apart from the agent's own settings, so that these flags come first in ``--help``.
    games: tuple[str, ...] = ATARI_100K_GAMES
    """Games, of the 26 of Atari-100k."""
    variants: tuple[str, ...] | None = None
    """Agents: drq, drq+sp (Shrink & Perturb), drq+ht (Hare & Tortoise), drq+hr20k and drq+hr40k (Head Reset),
    drq+hr40k+ht. By default all of them; with --momenta or --reset-intervals, drq and drq+ht."""
    momenta: tuple[float, ...] | None = None
    """Momenta of the tortoise to try, each with every reset interval; by default 0.995."""
    reset_intervals: tuple[int, ...] | None = None
    """Reset intervals to try, in gradient steps, each with every momentum; by default 4000."""
    steps: int = 100_000
    """Steps of the agent in a run, four frames each."""
    evaluate_every: int | None = None
    """Steps from one evaluation to the next, besides the one at the end; by default there is no other."""
    evaluation_episodes: int = 100
    """Whole games played in an evaluation."""
    checkpoint_every: int = 10_000
    """Steps from one checkpoint to the next; an evaluation is followed by one, too."""
    max_steps: int = 27_000
    """Steps of the agent after which a game is cut off."""
    precision: str = "fp32"
    """fp32, or bf16 for autocast."""
    compile: bool = False
    """Whether the networks run through torch.compile."""
    seeds: int = 5
    """Number of seeds: weights, games, exploration, batches, augmentation and evaluation."""
    first_seed: int = 0
    """The first of them."""


@dataclass(frozen=True)
class AtariSettings(DrQConfig, _StudyFields):
    """Settings of the Atari-100k study. A setting of a method is one of the variants that have the method.

    Raises
    ------
    SettingError
        If a value is not accepted, or changes nothing in any variant.
    """

    momentum: float | None = None
    """Of the tortoise, in variants that have one; by default 0.995. See --momenta."""
    reset_interval: int | None = None
    """Of Hare & Tortoise, in gradient steps; by default 4000. See --reset-intervals."""
    shrink_perturb_interval: int | None = None
    """Of Shrink & Perturb, in gradient steps; by default 20000."""
    head_reset_interval: int | None = None
    """Of Head Reset, in gradient steps; by default the variant's."""

    def __post_init__(self) -> None:
        where = type(self).__name__
        for name in ("steps", "seeds", "evaluation_episodes", "checkpoint_every", "max_steps"):
            check_number(f"{where}.{name}", getattr(self, name), low=1, integer=True)
        check_number(f"{where}.first_seed", self.first_seed, low=0, integer=True)
        if self.evaluate_every is not None:
            check_number(f"{where}.evaluate_every", self.evaluate_every, low=1, integer=True)
            if self.evaluate_every > self.steps:
                raise SettingError(
                    f"{where}.evaluate_every = {self.evaluate_every!r} changes nothing: steps = {self.steps!r}, and "
                    "there is an evaluation at the end of a run anyhow."
                )
        check_choice(f"{where}.precision", self.precision, ["fp32", "bf16"])
        check_choice(f"{where}.device", self.device, ["auto", "cpu", "cuda"])
        for game in self.games:
            self._game(game)
        check_distinct(f"{where}.games", self.games, same=game_name)
        for variant in self._variants:
            check_choice(f"{where}.variants", variant, VARIANTS)
        for momentum in self.momenta or ():
            check_number(f"{where}.momenta", momentum, low=0, high=1, high_open=True)
        for interval in self.reset_intervals or ():
            check_number(f"{where}.reset_intervals", interval, low=1, integer=True)
        for one, several in (("momentum", "momenta"), ("reset_interval", "reset_intervals")):
            if getattr(self, several) is not None:
                check_distinct(f"{where}.{several}", getattr(self, several))
                if getattr(self, one) is not None:
                    raise SettingError(
                        f"{where}.{one} = {getattr(self, one)!r}: {several} = {getattr(self, several)!r} are given; "
                        "give one of the two."
                    )
        self._check_meaning(where)
        check_distinct(f"{where}.variants", self._variants, same=self._identity)

    def _check_meaning(self, where: str) -> None:
        own = [VARIANTS[variant] for variant in self._variants]
        changed = dict.fromkeys(self._changed())
        for one, several in (("momentum", "momenta"), ("reset_interval", "reset_intervals")):
            if getattr(self, several) is not None:
                changed[one] = several
        for name, flag in changed.items():
            if name in _OF_METHOD and not any(map(_OF_METHOD[name], own)):
                raise SettingError(
                    f"{where}.{flag or name} = {getattr(self, flag or name)!r} changes nothing: it is a setting of "
                    f"none of the variants {', '.join(self._variants)}."
                )
            if name in ("bins", "value_limit") and self.value == "scalar":
                raise SettingError(
                    f"{where}.{name} = {getattr(self, name)!r} changes nothing: value = 'scalar' has no support."
                )

    def _identity(self, variant: str) -> Hashable:
        return tuple(agent.config for agent in self._of_variant(variant))

    def _game(self, game: str) -> str:
        try:
            return game_name(game)
        except SettingError as error:
            raise SettingError(f"{type(self).__name__}.games: {error}") from error

    @property
    def _is_grid(self) -> bool:
        return self.momenta is not None or self.reset_intervals is not None

    @property
    def _variants(self) -> tuple[str, ...]:
        if self.variants is not None:
            return self.variants
        return ("drq", "drq+ht") if self._is_grid else tuple(VARIANTS)

    def _changed(self) -> dict[str, Any]:
        """The agent's settings that are not the defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(DrQConfig)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def _of_variant(self, variant: str) -> Iterator[_Agent]:
        own = VARIANTS[variant]
        changed = self._changed()
        ours = {name: value for name, value in changed.items() if _OF_METHOD.get(name, lambda own: True)(own)}
        config = replace(own, **ours)
        told = [f"{name}={value}" for name, value in ours.items() if name in _OF_METHOD and name not in _IN_NAME]
        end = f" ({', '.join(told)})" if told else ""
        if not (self._is_grid and own.reset_interval is not None):
            yield _Agent(variant, _name(own, config) + end, _method(own), config)
            return
        for momentum, interval in product(
            self.momenta or (config.momentum,), self.reset_intervals or (config.reset_interval,)
        ):
            cell = replace(config, momentum=momentum, reset_interval=interval)
            key = f"{variant}-m{momentum:.12g}-r{interval}"
            yield _Agent(key, _name(own, cell, grid=True) + end, _method(own), cell)

    @property
    def agents(self) -> tuple[_Agent, ...]:
        """The agents to compare, in the order given."""
        return tuple(agent for variant in self._variants for agent in self._of_variant(variant))

    def resolved(self) -> Self:
        """Return these settings with the games as the literature spells them, and the variants written out."""
        return replace(self, games=tuple(map(self._game, self.games)), variants=self._variants)

    @property
    def metric(self) -> str:
        """What trials are compared by: scores of two games say nothing of each other."""
        return "final_human_normalised"

    @property
    def differs(self) -> list[str]:
        """What is not as in the protocol, and the same for all agents; steps and episodes are told elsewhere."""
        changed = {name: value for name, value in self._changed().items() if name not in _OF_METHOD}
        usual = {name: getattr(DrQConfig, name) for name in changed}
        for name in ("max_steps", "precision"):
            if getattr(self, name) != getattr(_StudyFields, name):
                changed[name], usual[name] = getattr(self, name), getattr(_StudyFields, name)
        return [f"{name} = {value} instead of {usual[name]}" for name, value in changed.items()]

    def trial_config(self, agent: _Agent, game: str, seed: int) -> dict[str, Any]:
        """Return what a trial is made from, as plain data."""
        return {
            "game": game,
            "agent": asdict(agent.config),
            "env": {"max_steps": self.max_steps},
            "steps": self.steps,
            "evaluate_every": self.evaluate_every,
            "evaluation_episodes": self.evaluation_episodes,
            "checkpoint_every": self.checkpoint_every,
            "precision": self.precision,
            "compile": self.compile,
            "device": self.device,
            "seed": seed,
            "differs": self.differs,
        }


def _name(own: DrQConfig, config: DrQConfig, *, grid: bool = False) -> str:
    """Return what the paper calls `config`, made from the variant `own`, with what is not the paper's."""
    parts = ["DrQ"]
    if config.shrink_perturb_interval is not None:
        paper = config.shrink_perturb_interval == own.shrink_perturb_interval
        parts.append("S&P" if paper else f"S&P {_thousands(config.shrink_perturb_interval)}")
    if config.head_reset_interval is not None:
        parts.append(f"HR {_thousands(config.head_reset_interval)}")
    if config.reset_interval is not None:
        paper = (config.momentum, config.reset_interval) == (own.momentum, own.reset_interval)
        told = f" m={config.momentum:.12g} r={config.reset_interval}"
        parts.append("H&T" if paper and not grid else "H&T" + told)
    return " + ".join(parts)


def _thousands(number: int) -> str:
    return f"{number // 1000}k" if number % 1000 == 0 else str(number)


def _method(own: DrQConfig) -> str:
    # The names of the vision studies, whose colours figures take.
    intervals = {
        "shrink_perturb": own.shrink_perturb_interval,
        "head_reset": own.head_reset_interval,
        "hare_tortoise": own.reset_interval,
    }
    return "+".join(name for name, interval in intervals.items() if interval is not None) or "plain"


def trials(settings: AtariSettings) -> tuple[TrialSpec, ...]:
    """Return the planned trials: seeds outermost, so that a study that is stopped has whole seeds; then games."""
    return tuple(
        TrialSpec(
            id=f"{agent.key}-{game}-seed{seed}",
            label=f"{agent.name}, {game}",
            settings={
                "game": game,
                "variant": agent.name,
                "method": agent.method,
                "momentum": agent.config.momentum,
                "reset_interval": agent.config.reset_interval,
                "steps": settings.steps,
                "episodes": settings.evaluation_episodes,
                "seed": seed,
            },
            config=settings.trial_config(agent, game, seed),
        )
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
        for game in map(game_name, settings.games)
        for agent in settings.agents
    )


def schedule_warnings(settings: AtariSettings) -> list[str]:
    """Return what never happens in so short a run, or hardly works, a sentence for each agent and reason."""
    learning = settings.steps - settings.learning_starts
    if learning <= 0:
        return [
            f"--steps = {settings.steps}, --learning-starts = {settings.learning_starts}: nothing is learned; all "
            "agents are the same, and act at random in training."
        ]
    updates = learning * settings.updates_per_step
    sentences = []
    for agent in settings.agents:
        config = agent.config
        for what, interval in (
            ("a reset of Hare & Tortoise", config.reset_interval),
            ("Shrink & Perturb", config.shrink_perturb_interval),
            ("Head Reset", config.head_reset_interval),
        ):
            if interval is not None and interval > updates:
                sentences.append(
                    f"{agent.name}: {what} every {interval} gradient steps, and a run has {updates}: it never happens."
                )
        if config.reset_interval is not None:
            tortoise = Tortoise(
                nn.Identity(), momentum=config.momentum, reset_interval=config.reset_interval, reset_unit="steps"
            )
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", SettingWarning)
                tortoise.begin_phase(steps_per_epoch=1)
            sentences += [f"{agent.name}: {warning.message}" for warning in caught]
    return sentences


def _prepare(settings: AtariSettings, planned: tuple[TrialSpec, ...]) -> Prepared:
    counts = (len(settings.games), "game"), (len(settings.agents), "variant"), (settings.seeds, "seed")
    told = " × ".join(f"{number} {what}{'s' if number > 1 else ''}" for number, what in counts)
    print(
        f"atari100k.py: {told} = {len(planned)} runs of {number_text(settings.steps)} steps, each evaluated on "
        f"{settings.evaluation_episodes} games",
        file=sys.stderr,
    )
    return Prepared("tune_configs.atari_trial:AtariTrial", schedule_warnings(settings))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; see ``--help``."""
    return run_main("atari100k", AtariSettings, trials, str(__doc__), arguments, _prepare)


if __name__ == "__main__":
    sys.exit(main())
