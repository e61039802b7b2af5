"""Compare DrQ or BBF and what keeps it plastic on the games of Atari-100k, or sweep momentum and reset interval.

By default all 26 games, the agents of the paper's table 1 (six of DrQ, or with ``--agent bbf`` three of BBF), and five
seeds; with ``--momenta`` or ``--reset-intervals``, the plain agent next to Hare & Tortoise with each combination. Run
it alone (``python tune_configs/atari100k.py --games pong --steps 20000``), on a cluster (``--address auto``), or as a
submitted job (``ray job submit --working-dir . -- python tune_configs/atari100k.py --gpus-per-trial 0.25``). All flags
of BBF: ``--agent bbf --help-all``.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

if __package__ in (None, ""):  # run as a script: the checkout need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import nn

from ht_ray._checks import check_choice, check_fields, check_number
from ht_ray._deprecated import old_names
from ht_ray.agents.base_config import MOST, PRECISIONS, AgentConfig, Precision
from ht_ray.agents.bbf.config import BBFConfig
from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.envs.atari import PUBLISHED_PROTOCOLS, AtariConfig
from ht_ray.agents.envs.games import ATARI_100K_GAMES, game_name
from ht_ray.agents.registry import AGENTS, agent_from_dict
from ht_ray.errors import SettingError
from ht_ray.methods import HareTortoise, Phase
from ht_ray.report.atari.study import format_thousands
from ht_ray.sweep import TrialSpec, load_study_settings
from tune_configs.command_line import first_look
from tune_configs.command_line import main as run_main
from tune_configs.prepare import Prepared, check_memory, warnings_of
from tune_configs.settings import LAST_SEED, MOST_SEEDS, StudySettings, check_distinct, check_values

__all__ = ["AtariSettings", "BBFSettings", "main", "schedule_warnings", "trials"]

# What says whether a variant has a setting at all, by the setting.
_Having = Mapping[str, Callable[[Any], bool]]


class _Agent(NamedTuple):
    """An agent of the study: `key` is safe in a file's name, `name` is the paper's where the agent is."""

    key: str
    name: str
    method: str
    config: AgentConfig


@dataclass(frozen=True)
class _StudyFields(StudySettings):
    # Apart from the agent's own settings, so that these flags come first in ``--help``.
    agent: str = field(default="drq", metadata={"choices": ("drq", "bbf")})
    """The agent; the others' flags: --agent bbf --help-all."""
    games: tuple[str, ...] = ATARI_100K_GAMES
    """Games, of the 26 of Atari-100k."""
    variants: tuple[str, ...] | None = None
    """Which of the agent's variants; by default those of the paper, and with --momenta or --reset-intervals the plain
    one and Hare & Tortoise. DrQ: drq, drq+sp (Shrink & Perturb), drq+ht (Hare & Tortoise), drq+hr20k and drq+hr40k
    (Head Reset), drq+hr40k+ht. BBF: bbf, bbf-spr0 (without SPR), bbf-spr0+ht; not by default those that make 8 updates
    per step: bbf@rr8, bbf-spr0@rr8, bbf-spr0+ht@rr8. As published, with the published protocol: drq-published,
    bbf-published-2023, bbf-published-2025."""
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
    precision: Precision = "fp32"
    """bf16 is autocast; auto, BBF's default, is bf16 for BBF on a GPU and fp32 otherwise."""
    compile: bool = False
    """Whether the networks run through torch.compile."""
    overlap: bool = False
    """Whether the game makes its step while the updates that follow it run, which lack that step then."""
    indicators_interval: int | None = None
    """Gradient steps from one measurement of plasticity indicators to the next; by default there is none."""
    seeds: int = 5
    """Number of seeds: weights, games, exploration, batches, augmentation and evaluation."""
    first_seed: int = 0
    """The first of them."""


class _AtariStudy(_StudyFields):
    # What follows from the settings, whichever agent's they are: those of `config` are fields too.
    kind: ClassVar[str]
    #: The settings that only some variants have.
    having: ClassVar[_Having]
    #: What a variant's name says by itself.
    in_name: ClassVar[tuple[str, ...]]
    #: Those compared by default, and those next to a grid.
    paper: ClassVar[tuple[str, ...]]
    plain_and_ht: ClassVar[tuple[str, str]]
    sections: ClassVar[Mapping[type[Any], str]] = {DrQConfig: "Agent", BBFConfig: "Agent"}
    most_used: ClassVar[tuple[str, ...]] = (
        *("agent", "games", "variants", "momenta", "reset_intervals", "steps", "evaluate_every", "precision"),
        *("indicators_interval", "seeds", "results_dir", "resume", "gpus_per_trial", "max_concurrent", "address"),
    )

    @classmethod
    def old_names(cls) -> dict[str, str]:
        """Return what settings were called in the minor version before, and what they are called now."""
        return dict(old_names(cls))

    @classmethod
    def canonical(cls, config: dict[str, Any]) -> Any:
        """Return what the configuration of a trial, or JSON of it, means: equal for what trains the same."""
        agent = {cls.old_names().get(name, name): value for name, value in config["agent"].items()}
        # What differs is said in words that have names in them.
        return {**config, "agent": agent_from_dict(agent), "differs": len(config["differs"])}

    @property
    def _config(self) -> type[Any]:
        return AGENTS[self.kind].config

    @property
    def _implied(self) -> dict[str, Any]:
        """Settings of the agent that follow from the study's."""
        return {}

    @property
    def _all_variants(self) -> Mapping[str, Any]:
        return AGENTS[self.kind].variants

    @abstractmethod
    def _name(self, own: Any, config: Any, *, grid: bool = False) -> str:
        """Return what the paper calls `config`, made from the variant `own`, with what is not the paper's."""

    @abstractmethod
    def _method(self, own: Any) -> str:
        """Return the name of the vision studies, whose colours figures take."""

    def _check_study(self) -> None:
        where = type(self).__name__
        if check_choice(f"{where}.agent", self.agent, _SETTINGS) != self.kind:
            raise self.refused("agent", f": these are the settings of {self.kind!r}.")
        for name in ("steps", "evaluation_episodes"):
            check_number(f"{where}.{name}", getattr(self, name), low=1, high=MOST[name], integer=True)
        check_fields(self, "checkpoint_every", "max_steps", low=1, integer=True)
        check_fields(self, "evaluate_every", "indicators_interval", low=1, integer=True)
        check_fields(self, "seeds", low=1, high=MOST_SEEDS, integer=True)
        check_fields(self, "first_seed", low=0, high=LAST_SEED, integer=True)
        if self.evaluate_every is not None and self.evaluate_every > self.steps:
            why = f" changes nothing: {{steps}} = {self.steps}, and there is an evaluation at the end of a run anyhow."
            raise self.refused("evaluate_every", why)
        self._check_numerics()
        check_choice(f"{where}.precision", self.precision, PRECISIONS)
        check_choice(f"{where}.device", self.device, ["auto", "cpu", "cuda"])
        for game in self.games:
            self._game(game)
        check_distinct(where, "games", self.games, same=game_name)
        for variant in self._variants:
            for kind, agent in AGENTS.items():
                if kind != self.kind and variant in agent.variants:
                    raise self.refused("variants", f": it is one of {{{where}.agent}} = {kind!r}.", variant)
            check_choice(f"{where}.variants", variant, self._all_variants)
        if self.momenta is not None:
            check_values(where, "momenta", self.momenta, low=0, high=1, high_open=True)
        if self.reset_intervals is not None:
            check_values(where, "reset_intervals", self.reset_intervals, low=1, integer=True)
        for one, several in (("momentum", "momenta"), ("reset_interval", "reset_intervals")):
            if one in self._changed() and (values := getattr(self, several)) is not None:
                raise self.refused(one, f": {{{several}}} = {values!r} are given; give one of the two.")
        self._check_meaning(where)
        check_distinct(where, "variants", self._variants, same=self._identity)

    def _check_meaning(self, where: str) -> None:
        own = [self._all_variants[variant] for variant in self._variants]
        having = {name: self.having[name] for name in self._changed() if name in self.having}
        # Of the tortoise that every agent of BBF has, a grid varies that of Hare & Tortoise alone.
        having |= {name: _resets for name in ("momenta", "reset_intervals") if getattr(self, name) is not None}
        for name, has in having.items():
            if not any(map(has, own)):
                listed = ", ".join(self._variants)
                raise self.refused(name, f" changes nothing: it is a setting of none of the variants {listed}.")

    def _identity(self, variant: str) -> Hashable:
        return tuple(agent.config for agent in self._of_variant(variant))

    def _game(self, game: str) -> str:
        try:
            return game_name(game)
        except SettingError as error:
            raise error.of(type(self).__name__, "games", game) from error

    @property
    def _is_grid(self) -> bool:
        return self.momenta is not None or self.reset_intervals is not None

    @property
    def _variants(self) -> tuple[str, ...]:
        if self.variants is not None:
            return self.variants
        return self.plain_and_ht if self._is_grid else self.paper

    def _changed(self) -> dict[str, Any]:
        """The agent's settings that are not the defaults."""
        agents = {field.name for field in fields(self._config)}
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self) if f.name in agents}
        return {name: value for name, (value, default) in values.items() if value != default}

    def _of_variant(self, variant: str) -> Iterator[_Agent]:
        own = self._all_variants[variant]
        changed = self._changed()
        ours = {name: value for name, value in changed.items() if self.having.get(name, lambda own: True)(own)}
        config = replace(own, **ours, **self._implied)
        changed_here = [
            f"{name}={value}"
            for name, value in ours.items()
            if name in self.having and name not in self.in_name and value != getattr(own, name)
        ]
        end = f" ({', '.join(changed_here)})" if changed_here else ""
        if variant in PUBLISHED_PROTOCOLS:
            year = variant.rpartition("-published")[2].lstrip("-")
            end = " as published" + (f" in {year}" if year else "") + end
        if not (self._is_grid and own.reset_interval is not None):
            yield _Agent(variant, self._name(own, config) + end, self._method(own), config)
            return
        for momentum, interval in product(
            self.momenta or (config.momentum,), self.reset_intervals or (config.reset_interval,)
        ):
            cell = replace(config, momentum=momentum, reset_interval=interval)
            key = f"{variant}-m{momentum:.12g}-r{interval}"
            yield _Agent(key, self._name(own, cell, grid=True) + end, self._method(own), cell)

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
        """What is not as in the protocol, and the same for all agents; steps and episodes stand elsewhere."""
        changed = {name: value for name, value in self._changed().items() if name not in self.having}
        usual = {name: getattr(self._config, name) for name in changed}
        for name in ("max_steps", "precision", "overlap"):
            if getattr(self, name) not in (getattr(_StudyFields, name), "auto"):
                changed[name], usual[name] = getattr(self, name), getattr(_StudyFields, name)
        return [f"{name} = {value} instead of {usual[name]}" for name, value in changed.items()]

    def trial_config(self, agent: _Agent, game: str, seed: int) -> dict[str, Any]:
        """Return what a trial is made from, as plain data."""
        usual, published = AtariConfig(), PUBLISHED_PROTOCOLS.get(agent.key, AtariConfig())
        protocol = {name: value for name, value in asdict(published).items() if value != getattr(usual, name)}
        return {
            "game": game,
            "agent": asdict(agent.config),
            "env": {"max_steps": self.max_steps, **protocol},
            "steps": self.steps,
            "evaluate_every": self.evaluate_every,
            "evaluation_episodes": self.evaluation_episodes,
            "checkpoint_every": self.checkpoint_every,
            "precision": self.precision,
            "compile": self.compile,
            "device": self.device,
            "seed": seed,
            "differs": self.differs,
            # Absent where there are none: studies of before there were any go on.
            **({"indicators_interval": self.indicators_interval} if self.indicators_interval else {}),
            **({"overlap": True} if self.overlap else {}),
            **self.numerics,
        }


def _hare_tortoise(own: AgentConfig, config: AgentConfig, *, grid: bool) -> list[str]:
    if config.reset_interval is None:
        return []
    paper = (config.momentum, config.reset_interval) == (own.momentum, own.reset_interval)
    return ["H&T" if paper and not grid else f"H&T m={config.momentum:.12g} r={config.reset_interval}"]


def _resets(own: AgentConfig) -> bool:
    return own.reset_interval is not None


# Settings of BBF's restart, and of SPR.
_RESTART = ("shrink_perturb_ratio", "restart_optimizer_state", "reinitialize_tortoise")
_SPR = ("spr_steps",)


@dataclass(frozen=True)
class AtariSettings(DrQConfig, _AtariStudy):
    """Settings of the Atari-100k study of DrQ. A setting of a method is one of the variants that have the method.

    Raises
    ------
    SettingError
        If a value is not accepted, or changes nothing in any variant.
    """

    kind: ClassVar[str] = "drq"
    having: ClassVar[_Having] = {
        "momentum": lambda own: own.momentum is not None,
        "momentum_warmup": lambda own: own.momentum is not None,
        "reset_interval": _resets,
        "reset_only": _resets,
        "reset_schedule": _resets,
        "optimizer_state": _resets,
        "act_with_tortoise": lambda own: own.momentum is not None,
        "shrink_perturb_interval": lambda own: own.shrink_perturb_interval is not None,
        "shrink_perturb_ratio": lambda own: own.shrink_perturb_interval is not None,
        "head_reset_interval": lambda own: own.head_reset_interval is not None,
        "toward": lambda own: bool(own.shrink_perturb_interval or own.head_reset_interval),
        "reinitialize_tortoise": lambda own: (
            own.momentum is not None and bool(own.shrink_perturb_interval or own.head_reset_interval)
        ),
    }
    in_name: ClassVar[tuple[str, ...]] = (
        "momentum",
        "reset_interval",
        "shrink_perturb_interval",
        "head_reset_interval",
    )
    paper: ClassVar[tuple[str, ...]] = ("drq", "drq+sp", "drq+ht", "drq+hr20k", "drq+hr40k", "drq+hr40k+ht")
    plain_and_ht: ClassVar[tuple[str, str]] = ("drq", "drq+ht")

    momentum: float | None = None
    """Of the tortoise, in variants that have one; by default 0.995. See --momenta."""
    reset_interval: int | None = None
    """Of Hare & Tortoise, in gradient steps; by default 4000. See --reset-intervals."""
    shrink_perturb_interval: int | None = None
    """Of Shrink & Perturb, in gradient steps; by default 20000."""
    head_reset_interval: int | None = None
    """Of Head Reset, in gradient steps; by default the variant's."""
    method_settings: Mapping[str, Any] | None = field(default=None, hash=False, metadata={"flag": False})
    """Not a flag: settings follow the names in --methods, redo:redo_interval=500."""

    def __post_init__(self) -> None:
        self._check_study()
        for name in ("bins", "value_limit"):
            if name in self._changed() and self.value == "scalar":
                raise self.refused(name, " changes nothing: {value} = 'scalar' has no support.")

    def _name(self, own: Any, config: Any, *, grid: bool = False) -> str:
        parts = ["DrQ"]
        if config.shrink_perturb_interval is not None:
            paper = config.shrink_perturb_interval == own.shrink_perturb_interval
            parts.append("S&P" if paper else f"S&P {_thousands(config.shrink_perturb_interval)}")
        if config.head_reset_interval is not None:
            parts.append(f"HR {_thousands(config.head_reset_interval)}")
        return " + ".join([*parts, *_hare_tortoise(own, config, grid=grid)])

    def _method(self, own: Any) -> str:
        intervals = {
            "shrink_perturb": own.shrink_perturb_interval,
            "head_reset": own.head_reset_interval,
            "hare_tortoise": own.reset_interval,
        }
        return "+".join(name for name, interval in intervals.items() if interval is not None) or "plain"


@dataclass(frozen=True)
class BBFSettings(BBFConfig, _AtariStudy):
    """Settings of the Atari-100k study of BBF. A setting of SPR or of Hare & Tortoise is one of the variants with it.

    Raises
    ------
    SettingError
        If a value is not accepted, or changes nothing in any variant.
    """

    kind: ClassVar[str] = "bbf"
    having: ClassVar[_Having] = {
        "reset_interval": _resets,
        "reset_only": _resets,
        "reset_schedule": _resets,
        "optimizer_state": _resets,
        "spr_weight": lambda own: own.spr_weight > 0,
        "spr_steps": lambda own: own.spr_weight > 0,
        "updates_per_step": lambda own: True,
        "restart_optimizer_state": lambda own: True,
    }
    in_name: ClassVar[tuple[str, ...]] = ("reset_interval", "updates_per_step")
    paper: ClassVar[tuple[str, ...]] = ("bbf-spr0", "bbf-spr0+ht", "bbf")
    plain_and_ht: ClassVar[tuple[str, str]] = ("bbf-spr0", "bbf-spr0+ht")

    agent: str = field(default="bbf", metadata={"choices": ("drq", "bbf")})
    """The agent; the others' flags: --agent drq --help-all."""
    precision: Precision = "auto"
    """bf16 is autocast; auto is bf16 on a GPU, fp32 on a CPU."""
    reset_interval: int | None = None
    """Of Hare & Tortoise, in gradient steps; by default 4000. See --reset-intervals."""
    restart_optimizer_state: Literal["keep", "clear"] | None = None  # type: ignore[assignment]
    """What a restart does to AdamW's state of encoder and transition model; by default clear for bbf, as its published
    code does, and keep for the others."""
    training_steps: int = field(default=BBFConfig.training_steps, metadata={"flag": False})
    """Not to be set: it is --steps."""
    method_settings: Mapping[str, Any] | None = field(default=None, hash=False, metadata={"flag": False})
    """Not a flag: settings follow the names in --methods, redo:redo_interval=500."""

    def __post_init__(self) -> None:
        if "training_steps" in self._changed():
            raise self.refused("training_steps", ": set {steps} in its place.")
        self._check_study()
        for name in self._changed():
            for off, of in (("restart_interval", _RESTART), ("spr_weight", _SPR)):
                if name in of and not getattr(self, off):
                    raise self.refused(name, f" changes nothing: {{{off}}} = {getattr(self, off)!r}.")

    @property
    def _implied(self) -> dict[str, Any]:
        return {"training_steps": self.steps}

    def _name(self, own: Any, config: Any, *, grid: bool = False) -> str:
        rate = f" rr{config.updates_per_step}" if config.updates_per_step != BBFConfig.updates_per_step else ""
        spr = "" if config.spr_weight > 0 else " without SPR"
        return " + ".join([f"BBF{rate}{spr}", *_hare_tortoise(own, config, grid=grid)])

    def _method(self, own: Any) -> str:
        methods = {"spr": own.spr_weight > 0, "hare_tortoise": _resets(own)}
        return "+".join(name for name, has in methods.items() if has) or "plain"


#: By the flag ``--agent``.
_SETTINGS: Mapping[str, type[_AtariStudy]] = {"drq": AtariSettings, "bbf": BBFSettings}


def _thousands(number: int) -> str:
    return f"{number // 1000}k" if number % 1000 == 0 else str(number)


def trials(settings: _AtariStudy) -> tuple[TrialSpec, ...]:
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


def schedule_warnings(settings: _AtariStudy) -> list[str]:
    """Return what never happens in so short a run, or hardly works, a sentence for each agent and reason."""
    sentences = []
    for agent in settings.agents:
        config = agent.config
        learning = settings.steps - config.learning_starts
        if learning <= 0:
            return [
                f"--steps = {settings.steps}, --learning-starts = {config.learning_starts}: nothing is learned; all "
                "agents are the same, and act at random in training."
            ]
        updates = learning * config.updates_per_step
        for what, interval in (
            ("a reset of Hare & Tortoise", config.reset_interval),
            ("Shrink & Perturb", getattr(config, "shrink_perturb_interval", None)),
            ("Head Reset", getattr(config, "head_reset_interval", None)),
        ):
            if interval is not None and interval > updates:
                sentences.append(
                    f"{agent.name}: {what} every {interval} gradient steps, and a run has {updates}: it never happens."
                )
        restart = config.restart_interval if isinstance(config, BBFConfig) else None
        if restart is not None and updates < 2 * restart:
            sentences.append(
                f"{agent.name}: a restart every {restart} gradient steps, none with less than that left, and a run has "
                f"{updates}: it never happens."
            )
        if config.reset_interval is not None:
            tortoise = HareTortoise(
                nn.Identity(), momentum=config.momentum, reset_interval=config.reset_interval, reset_unit="steps"
            )
            found = warnings_of(partial(tortoise.before_phase, Phase(steps_per_epoch=1)))
            sentences += [f"{agent.name}: {text}" for text in found]
    return sentences


def _prepare(settings: _AtariStudy, planned: tuple[TrialSpec, ...]) -> Prepared:
    counts = (len(settings.games), "game"), (len(settings.agents), "variant"), (settings.seeds, "seed")
    product = " × ".join(f"{number} {what}{'s' if number > 1 else ''}" for number, what in counts)
    print(
        f"atari100k.py: {product} = {len(planned)} runs of {format_thousands(settings.steps)} steps, each evaluated on "
        f"{settings.evaluation_episodes} games",
        file=sys.stderr,
    )
    for capacity in {agent.config.replay_capacity for agent in settings.agents}:
        # A byte for each of the 84x84 pixels of a frame.
        check_memory(type(settings).__name__, "replay_capacity", capacity, capacity * 84 * 84)
    return Prepared("tune_configs.atari_trial:AtariTrial", schedule_warnings(settings))


def _settings_class(arguments: Sequence[str] | None) -> type[_AtariStudy]:
    """Return whose flags the command line has: those of ``--agent``, or of the study that is resumed."""
    given = first_look(arguments, agent="?", resume="?")
    agent = given["agent"]
    if agent is None and given["resume"] is not None:
        with suppress(SettingError):  # which is refused, as of every study, when the flags are parsed
            agent = load_study_settings(Path(given["resume"]).expanduser()).get("agent")
    return _SETTINGS.get(str(agent), AtariSettings)


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the study; see ``--help``."""
    return run_main("atari100k", _settings_class(arguments), trials, str(__doc__), arguments, _prepare, program)


if __name__ == "__main__":
    sys.exit(main())
