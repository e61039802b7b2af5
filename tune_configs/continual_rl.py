"""Compare methods of an agent over a stream of tasks: an agent whose world changes, and that comes back to each world.

By default DQN on three worlds of CartPole, plain and with Hare & Tortoise. Run it alone
(``python tune_configs/continual_rl.py --tasks 2 --cycles 6 --seeds 3``), on a cluster (``--address auto``), or as a
submitted job (``ray job submit --working-dir . -- python tune_configs/continual_rl.py --stream atari_modes --variant
drq --gpus-per-trial 0.25``).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_type_hints

if __package__ in (None, ""):  # run as a script: the checkout need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ht_ray._checks import check_choice, check_number
from ht_ray.agents.base_config import AgentConfig
from ht_ray.agents.continual import TASK_STREAMS, ContinualRun, TaskStreamConfig, task_stream_config, with_methods
from ht_ray.agents.continual.methods import agent_with, method_label
from ht_ray.agents.registry import AGENT_VARIANTS, agent_from_dict
from ht_ray.methods import parse_method
from ht_ray.sweep import TrialSpec
from tune_configs.command_line import main as run_main
from tune_configs.flags import help_texts
from tune_configs.prepare import Prepared
from tune_configs.settings import LAST_SEED, MOST_SEEDS, StudySettings, check_distinct

__all__ = ["ContinualRLSettings", "main", "trials"]


def _stream_fields() -> list[tuple[str, Any, Any]]:
    """Return the settings of all streams; None means the stream's own default."""
    found: dict[str, tuple[Any, list[str]]] = {}
    for stream, config in TASK_STREAMS.items():
        hints, texts = get_type_hints(config), help_texts(config)
        for one in fields(config):
            _, meanings = found.setdefault(one.name, (hints[one.name] | None, []))
            shared = one.name in TaskStreamConfig.__dataclass_fields__
            text = texts[one.name] if shared else f"{stream}: {texts[one.name]}"
            if text not in meanings:
                meanings.append(text)
    return [
        (name, kind, field(default=None, metadata={"help": " ".join(meanings), "section": "Stream"}))
        for name, (kind, meanings) in found.items()
    ]


_StreamFields: Any = make_dataclass("_StreamFields", _stream_fields(), frozen=True)
_STREAM = tuple(one.name for one in fields(_StreamFields))


@dataclass(frozen=True)
class ContinualRLSettings(_StreamFields, StudySettings):
    """Settings of the comparison of an agent's methods over a stream of tasks.

    Raises
    ------
    SettingError
        If a value is not accepted, or is no setting of the stream, the agent or the method.
    """

    most_used: ClassVar[tuple[str, ...]] = (
        *("stream", "variant", "set", "methods", "game", "tasks", "change", "cycles", "visit_steps", "interval"),
        *("indicators", "seeds", "results_dir", "resume", "gpus_per_trial", "max_concurrent", "address"),
    )

    stream: str = field(default="control", metadata={"choices": tuple(TASK_STREAMS)})
    """Which stream of tasks."""
    variant: str = field(default="dqn", metadata={"choices": tuple(AGENT_VARIANTS)})
    """The plain agent: dqn for control, drq or bbf for games."""
    set: tuple[str, ...] = ()
    """Settings of the agent: learning_rate=3e-3 hidden=32."""
    methods: tuple[str, ...] = ("plain", "hare_tortoise")
    """Methods to compare; several joined by + are combined: hare_tortoise+redo. Settings of its own follow a colon:
    redo:redo_threshold=0.1. crelu and layer_norm are forms of the network."""
    interval: int | None = None
    """Gradient steps from one reset to the next, in methods that reset; by default those of a visit."""
    replay: Literal["clear", "keep"] = "clear"
    """Whether the replay starts empty at each visit."""
    evaluation_episodes: int = 5
    """Games played without learning, before and after each visit."""
    indicators: bool = False
    """Whether plasticity indicators are measured at the end of each visit."""
    checkpoint_every: int = 10_000
    """Steps of a visit from one checkpoint to the next; the end of a visit is followed by one, too."""
    seeds: int = 5
    """Number of seeds: tasks, weights, games, exploration, batches and evaluation."""
    first_seed: int = 0
    """The first of them."""

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_choice(f"{owner}.device", self.device, ["auto", "cpu", "cuda"])
        self._check_numerics()
        check_choice(f"{owner}.replay", self.replay, ["clear", "keep"])
        for name in ("evaluation_episodes", "checkpoint_every"):
            check_number(f"{owner}.{name}", getattr(self, name), low=1, integer=True)
        check_number(f"{owner}.seeds", self.seeds, low=1, high=MOST_SEEDS, integer=True)
        check_number(f"{owner}.first_seed", self.first_seed, low=0, high=LAST_SEED, integer=True)
        if self.interval is not None:
            check_number(f"{owner}.interval", self.interval, low=1, integer=True)
        check_choice(f"{owner}.stream", self.stream, TASK_STREAMS)
        own = {one.name for one in fields(TASK_STREAMS[self.stream])}
        for name in _STREAM:
            if getattr(self, name) is not None and name not in own:
                raise self.refused(name, f": it is no setting of {{stream}} = {self.stream!r}.")
        self.stream_config()
        check_choice(f"{owner}.variant", self.variant, AGENT_VARIANTS)
        check_distinct(owner, "methods", self.methods, same=lambda text: repr(self.agent_config(text)))

    @classmethod
    def canonical(cls, config: dict[str, Any]) -> Any:
        """Return what the configuration of a trial, or JSON of it, means: equal for what trains the same."""
        return {**config, "agent": agent_from_dict(config["agent"])}

    def stream_config(self) -> TaskStreamConfig:
        """Return the stream."""
        given = {name: getattr(self, name) for name in _STREAM if getattr(self, name) is not None}
        return task_stream_config(self.stream, **given)

    def agent_config(self, text: str) -> AgentConfig:
        """Return the settings of the agent with a method."""
        base = agent_with(self.variant, self.set)
        interval = self.interval or self.stream_config().visit_steps * base.updates_per_step
        return with_methods(base, text, interval=interval)

    def resolved(self) -> Self:
        """Return these settings with the stream's defaults written out."""
        return replace(self, **asdict(self.stream_config()))

    @property
    def metric(self) -> str:
        """What trials are compared by."""
        return "average_return"

    def trial_config(self, text: str, seed: int) -> dict[str, Any]:
        """Return what a trial is made from, as plain data."""
        return {
            "stream": {"name": self.stream, **asdict(self.stream_config())},
            "agent": asdict(self.agent_config(text)),
            "replay": self.replay,
            "evaluation_episodes": self.evaluation_episodes,
            "indicators": self.indicators,
            "checkpoint_every": self.checkpoint_every,
            "device": self.device,
            **self.numerics,
            "seed": seed,
        }


def trials(settings: ContinualRLSettings) -> tuple[TrialSpec, ...]:
    """Return the planned trials: seeds outermost, so that a study that is stopped has whole seeds."""
    stream = settings.stream_config()
    tasks = stream.make(seed=settings.first_seed).tasks
    return tuple(
        TrialSpec(
            id=f"{re.sub(r'[^A-Za-z0-9._=+@-]', '-', text)}-seed{seed}",
            label=method_label(text),
            settings={
                "method": parse_method(text)[0],
                "task_stream": settings.stream,
                "tasks": len(tasks),
                "cycles": stream.cycles,
                "visit_steps": stream.visit_steps,
                "seed": seed,
            },
            config=settings.trial_config(text, seed),
        )
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
        for text in settings.methods
    )


def _prepare(settings: ContinualRLSettings, planned: tuple[TrialSpec, ...]) -> Prepared:
    stream = settings.stream_config()
    # What an agent and tasks that do not fit are refused for is not seen from their settings.
    for text in settings.methods:
        ContinualRun(stream, settings.agent_config(text), seed=settings.first_seed, curve_points=1)
    steps = len(stream.make(seed=settings.first_seed)) * stream.visit_steps
    print(f"continual_rl.py: {len(planned)} runs of {steps} steps", file=sys.stderr)
    return Prepared("tune_configs.continual_rl_trial:ContinualRLTrial")


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the study; see ``--help``."""
    return run_main("continual_rl", ContinualRLSettings, trials, str(__doc__), arguments, _prepare, program)


if __name__ == "__main__":
    sys.exit(main())
