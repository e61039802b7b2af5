"""The plain loop: an agent on one game of Atari-100k, without Ray.

    python -m ht_ray.agents.train --game pong --variant drq+ht --steps 2000

It is what RLlib's algorithm is compared with, weight by weight, and what a machine without Ray runs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ht_ray._checks import check_number
from ht_ray._device import check_device
from ht_ray.agents.base_config import MOST, PRECISIONS, AgentConfig, Precision
from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.envs.atari import PUBLISHED_PROTOCOLS, AtariConfig
from ht_ray.agents.envs.base import EnvironmentConfig
from ht_ray.agents.envs.games import game_name
from ht_ray.agents.methods import method_flags
from ht_ray.agents.registry import AGENT_VARIANTS, agent_variant, make_agent
from ht_ray.agents.replay import Batch
from ht_ray.agents.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from ht_ray.agents.training.collector import Game, make_collector
from ht_ray.agents.training.evaluate import EvaluationRun
from ht_ray.agents.training.indicators import AgentIndicators
from ht_ray.errors import Diverged, Interrupted, SettingError
from ht_ray.mechanisms import derive_seed
from ht_ray.methods.config import parse_value

__all__ = ["Diverged", "Evaluation", "TrainingRecord", "TrainingRun", "train"]

# How settings of methods are kept apart from others on the command line.
_METHOD_SETTING = "method_setting:"

#: Steps over which the training loss is averaged for the record.
_LOSS_STEPS = 1000


@dataclass(frozen=True)
class Evaluation:
    """Whole games, played after so many steps of training."""

    step: int
    #: Unclipped score of each game.
    scores: list[float]
    #: Steps of the agent in each game.
    lengths: list[int]

    @property
    def score(self) -> float:
        """The mean score."""
        return math.fsum(self.scores) / len(self.scores)


@dataclass
class TrainingRecord:
    """What a run was and how it went: plain data, written as JSON by ``json.dumps(dataclasses.asdict(record))``."""

    game: str
    seed: int
    config: dict[str, Any]
    #: Steps of the agent, and gradient steps.
    steps: int = 0
    updates: int = 0
    #: Games that ended in training, with random actions and all.
    games: list[Game] = field(default_factory=list)
    #: Mean training loss of every 1000 steps with updates: ``step``, ``loss``.
    losses: list[dict[str, float]] = field(default_factory=list)
    #: Plasticity indicators: ``step``, ``update`` (the gradient step that they were measured before), and by name.
    indicators: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def final_score(self) -> float | None:
        """The mean score of the evaluation at the end; None without one."""
        last = self.evaluations[-1] if self.evaluations else None
        return last.score if last is not None and last.step == self.steps else None


class TrainingRun:
    """An agent on one game as Atari-100k has it: advanced, evaluated, saved and continued by whoever drives it.

    Training is the same wherever it is stopped in between, whenever it is evaluated, and after `load`. Where it was
    interrupted it can be saved, too, and the same call goes on, after `load` as well.

    Parameters
    ----------
    game : str
        Its name.
    config : AgentConfig or None, default None
        The agent's settings. Default: `DrQConfig`'s; see `agent_variant`.
    seed : int, default 0
        Seed of every draw.
    env : EnvironmentConfig or None, default None
        The protocol, or another game's settings. Default: `AtariConfig`'s.
    device, precision, compile, graph
        See `Agent`; the replay is on the device too, with graphs of its own.
    overlap : bool, default False
        Whether the game makes its step in a thread while the updates that follow it run. They then lack the newest
        transition; results depend on this setting, and not on which of the two takes longer.
    indicators_interval : int or None, default None
        Gradient steps from one measurement of plasticity indicators to the next; see `AgentIndicators`. Default: none.

    Raises
    ------
    SettingError
        If a setting is not accepted, or there is no such game or device.

    Examples
    --------
    >>> run = TrainingRun("Pong", DrQConfig(learning_starts=20, n_step=3, hidden=16))
    >>> run.advance(24, 10, None), run.advance(24), run.record.updates
    (10, 24, 4)
    """

    def __init__(
        self,
        game: str,
        config: AgentConfig | None = None,
        *,
        seed: int = 0,
        env: EnvironmentConfig | None = None,
        device: torch.device | str = "cpu",
        precision: Precision = "auto",
        compile: bool = False,
        graph: Literal["auto", "on", "off"] = "auto",
        overlap: bool = False,
        indicators_interval: int | None = None,
    ) -> None:
        check_number("TrainingRun: seed", seed, integer=True)
        device = check_device("TrainingRun: device", device)
        self.config: AgentConfig = config or DrQConfig()
        self.env: EnvironmentConfig = env or AtariConfig()
        self.collector = make_collector(game, self.config, seed=seed, env=self.env, device=device, graph=graph)
        self.agent = make_agent(
            self.config,
            shape=(self.env.stack, self.env.size, self.env.size),
            num_actions=self.collector.env.actions,
            seed=seed,
            device=device,
            precision=precision,
            compile=compile,
            graph=graph,
        )
        self._indicators = None
        if indicators_interval is not None:
            self._indicators = AgentIndicators(self.agent, self.collector.replay, indicators_interval)
        # As a file has it, so that a record that was read back is the same.
        plain = json.loads(json.dumps(asdict(self.config)))
        self.record = TrainingRecord(self.collector.env.game, seed, plain)
        self._settings = {
            "game": self.record.game,
            "seed": seed,
            "config": self.record.config,
            "env": asdict(self.env),
            "overlap": overlap,
        }
        self._overlap = overlap
        self._any_precision = precision == "auto"
        self._loss_sum = torch.zeros((), device=self.agent.device)
        self._loss_count = 0
        # A bare attribute: it is set from signal handlers, and who is interrupted may hold a lock.
        self._asked = False
        self._evaluation: EvaluationRun | None = None

    def interrupt(self) -> None:
        """Ask `advance` or `evaluate` to raise `Interrupted`; may be called at any time, from anywhere.

        It is raised once, after the step (of each game, in an evaluation) that runs or that runs next, unless that is
        the last one of the call: then nothing is left to interrupt, and the next call is left after its first step.
        """
        self._asked = True

    def _interrupted(self) -> Interrupted:
        self._asked = False
        return Interrupted(f"after step {self.record.steps} of {self.record.game}")

    @property
    def evaluating(self) -> bool:
        """Whether an evaluation was interrupted: `evaluate` goes on with it, and `advance` gives it up."""
        return self._evaluation is not None

    def advance(self, steps: int, *intervals: int | None) -> int:
        """Go on until `steps` steps have been made, or the next multiple of one of `intervals` if that comes first.

        Returns
        -------
        int
            How many steps have been made, over all calls.

        Raises
        ------
        Diverged
            If the training loss became NaN or infinite; noticed at the end of the call at the latest.
        Interrupted
            After `interrupt`.
        """
        self._evaluation = None
        made = self.record.steps
        end = min([steps, *((made // interval + 1) * interval for interval in intervals if interval is not None)])
        while self.record.steps < end:
            self._step()
            if self._asked and self.record.steps < end:
                self._mean_loss()
                raise self._interrupted()
        self._mean_loss()
        return self.record.steps

    def _step(self) -> None:
        collector, agent, record = self.collector, self.agent, self.record

        def learn() -> None:
            collector.learn(self.config, agent.sampling, self._update)

        ended = collector.step(agent.act, meanwhile=learn if self._overlap else None)
        if ended is not None:
            record.games.append(ended)
        step = record.steps = collector.steps
        if not self._overlap:
            learn()
        record.updates = agent.updates
        if self._loss_count and step % _LOSS_STEPS == 0:
            record.losses.append({"step": step, "loss": self._mean_loss()})
            self._loss_sum.zero_()
            self._loss_count = 0

    def _update(self, batch: Batch) -> Tensor:
        if self._indicators is not None and self._indicators.due:
            at = {"step": self.collector.steps, "update": self.agent.updates + 1}
            self.record.indicators.append({**at, **self._indicators.measure()})
        measured = self.agent.update(batch)
        self._loss_sum += measured["loss"]
        self._loss_count += 1
        # What is not finite is no priority, which on a GPU would end the process; the sum of losses keeps it.
        return measured["losses"].nan_to_num()

    def _mean_loss(self) -> float:
        loss = self._loss_sum.item() / max(self._loss_count, 1)
        if not math.isfinite(loss):
            step = self.record.steps
            since = (step - 1) // _LOSS_STEPS * _LOSS_STEPS
            raise Diverged(f"training loss {loss} between steps {since} and {step} of {self.record.game}")
        return loss

    def evaluate(self, episodes: int = 100) -> Evaluation:
        """Play `episodes` whole games, and note their scores in the record.

        Raises
        ------
        Interrupted
            After `interrupt`.
        """
        games, self._evaluation = self._evaluation, None
        if games is None or games.episodes != episodes:
            games = self._new_evaluation(episodes)
        while not games.done:
            games.step(self.agent.act)
            if self._asked and not games.done:
                self._evaluation = games
                raise self._interrupted()
        played = games.result()
        self.record.evaluations.append(Evaluation(self.record.steps, played.scores.tolist(), played.lengths.tolist()))
        return self.record.evaluations[-1]

    def _new_evaluation(self, episodes: int) -> EvaluationRun:
        return EvaluationRun(
            self.record.game,
            episodes=episodes,
            epsilon=self.config.evaluation_epsilon,
            seed=derive_seed(self.record.seed, "evaluation", self.record.steps),
            config=self.env,
        )

    def save(self, path: Path) -> None:
        """Write everything needed to continue to the file `path`, at once."""
        state = {
            "agent": self.agent.state_dict(),
            "collector": self.collector.state_dict(),
            "loss_sum": self._loss_sum,
            "loss_count": self._loss_count,
            "record": asdict(self.record),
            "evaluation": self._evaluation.state_dict() if self._evaluation is not None else {},
        }
        save_checkpoint(path, {**self._settings, "precision": self.agent.precision}, state)

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote, in its precision if this run's is ``"auto"``.

        Raises
        ------
        CheckpointError
            If the file is damaged, or of a run with other settings.
        """
        defaults = {"config": _defaults(self.config), "env": _defaults(self.env), "overlap": False}
        settings = self._settings if self._any_precision else {**self._settings, "precision": self.agent.precision}
        state = load_checkpoint(path, settings, defaults=defaults, open=("precision",) if self._any_precision else ())
        self.agent.load_state_dict(state["agent"])
        self.agent.precision = state["settings"]["precision"]  # of a file from before agents noted it, too
        self.collector.load_state_dict(state["collector"])
        self._loss_sum.copy_(state["loss_sum"])
        self._loss_count = state["loss_count"]
        self.record = TrainingRecord(**state["record"])
        self.record.evaluations = [Evaluation(**done) for done in state["record"]["evaluations"]]
        self._evaluation = None
        if games := state.get("evaluation"):  # earlier versions saved between evaluations only
            self._evaluation = self._new_evaluation(len(games["scores"]))
            self._evaluation.load_state_dict(games)


def _defaults(config: Any) -> dict[str, Any]:
    return {one.name: one.default for one in fields(config) if one.default is not MISSING}


def train(
    game: str,
    config: AgentConfig | None = None,
    *,
    steps: int = 100_000,
    seed: int = 0,
    env: EnvironmentConfig | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "auto",
    compile: bool = False,
    graph: Literal["auto", "on", "off"] = "auto",
    overlap: bool = False,
    indicators_interval: int | None = None,
    evaluate_every: int | None = None,
    evaluation_episodes: int = 100,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 10_000,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> TrainingRecord:
    """Make a `TrainingRun` to its end.

    Parameters
    ----------
    game, config, seed, env, device, precision, compile, graph, overlap, indicators_interval
        See `TrainingRun`.
    steps : int, default 100000
        Steps of the agent, four frames each. BBF's restarts go by ``BBFConfig.training_steps`` instead.
    evaluate_every : int or None, default None
        Steps from one evaluation to the next, besides the one at the end. By default there is none. Training is
        the same whatever it is.
    evaluation_episodes : int, default 100
        Games of each evaluation; 0 for no evaluation at all.
    checkpoint_dir : str or Path or None, default None
        Where ``checkpoint.bin`` is written, and continued from if it is there; to the end of the same run, or with
        more `steps` further on. An evaluation that is due where it stands, and was not finished, is made up for.
    checkpoint_every : int, default 10000
        Steps from one checkpoint to the next, besides the one at the end.
    on_evaluation : callable, default None
        Called with each evaluation.

    Raises
    ------
    Diverged
        If the training loss becomes NaN or infinite.
    SettingError
        If a setting is not accepted, there is no such game or device, `checkpoint_dir` cannot be written, or the
        checkpoint in it has made more than `steps`.
    CheckpointError
        If the checkpoint is damaged, or of a run with other settings.

    Examples
    --------
    >>> record = train("Pong", DrQConfig(learning_starts=20, n_step=3, hidden=16), steps=24, evaluation_episodes=0)
    >>> record.steps, record.updates, record.final_score
    (24, 4, None)
    """
    check_number("train: steps", steps, low=1, high=MOST["steps"], integer=True)
    most = MOST["evaluation_episodes"]
    check_number("train: evaluation_episodes", evaluation_episodes, low=0, high=most, integer=True)
    check_number("train: checkpoint_every", checkpoint_every, low=1, integer=True)
    if evaluate_every is not None:
        check_number("train: evaluate_every", evaluate_every, low=1, integer=True)
    run = TrainingRun(
        game,
        config,
        seed=seed,
        env=env,
        device=device,
        precision=precision,
        compile=compile,
        graph=graph,
        overlap=overlap,
        indicators_interval=indicators_interval,
    )
    path = None
    if checkpoint_dir is not None:
        path = _checkpoint_path(Path(checkpoint_dir))
        if path.exists():
            run.load(path)
        if run.record.steps > steps:
            raise SettingError(
                f"train: steps = {steps}: the run in {checkpoint_dir} has made {run.record.steps} already."
            )

    def save() -> None:
        if path is not None and (run.record.steps == steps or run.record.steps % checkpoint_every == 0):
            run.save(path)

    while True:
        step = run.record.steps
        due = step == steps or (step > 0 and evaluate_every is not None and step % evaluate_every == 0)
        if evaluation_episodes and due and all(done.step != step for done in run.record.evaluations):
            played = run.evaluate(evaluation_episodes)
            if on_evaluation is not None:
                on_evaluation(played)
            save()
        if step == steps:
            return run.record
        run.advance(steps, evaluate_every, checkpoint_every if path is not None else None)
        save()  # before games that may take long


def _checkpoint_path(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"train: checkpoint_dir = {str(directory)!r}: {error}") from error
    if not os.access(directory, os.W_OK):
        raise SettingError(f"train: checkpoint_dir = {str(directory)!r}: not to be written by this user.")
    return directory / "checkpoint.bin"


def _check_record(path: Path, *, checkpoint_dir: Path | None, **run: Any) -> None:
    """Raise unless the record of `run` (game, seed, config) may be written to `path`, where no other file is lost."""
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise SettingError(f"--record {path}: there is no folder {path.parent} to write to.")
    if not path.exists():
        return
    if checkpoint_dir is not None and (checkpoint_dir / "checkpoint.bin").exists():
        # What this run wrote when it was stopped is a part of what it will write.
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            earlier = None
        if isinstance(earlier, dict) and all(earlier.get(name) == value for name, value in run.items()):
            return
    raise SettingError(
        f"--record {path}: it exists, and is no record of the run to be continued; give another name, or move it away."
    )


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ht_ray.agents.train", description="Train DrQ(eps) or BBF on one game of Atari-100k."
    )
    parser.add_argument("--game", required=True, help="one of the 26")
    parser.add_argument("--variant", default="drq", help=", ".join(AGENT_VARIANTS))
    parser.add_argument("--steps", type=int, default=100_000, help="of the agent (default: 100000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision", default="auto", choices=PRECISIONS, help="auto: bf16 for BBF on a GPU, else fp32 (default: auto)"
    )
    parser.add_argument("--overlap", action="store_true", help="the game makes its step while the updates run")
    parser.add_argument("--compile", action="store_true", help="run the networks through torch.compile")
    parser.add_argument(
        "--graph", default="auto", choices=("auto", "on", "off"), help="updates as CUDA graphs (default: on a GPU)"
    )
    parser.add_argument("--indicators-interval", type=int, help="gradient steps between plasticity indicators")
    parser.add_argument("--evaluate-every", type=int, help="steps between evaluations, besides the one at the end")
    parser.add_argument("--evaluation-episodes", type=int, default=100, help="games of each (default: 100; 0: none)")
    parser.add_argument("--checkpoint-dir", type=Path, help="where to write a checkpoint, and to continue from it")
    parser.add_argument("--checkpoint-every", type=int, default=10_000, help="steps (default: 10000)")
    parser.add_argument("--record", type=Path, help="a new JSON file for curves and scores")
    methods = parser.add_argument_group(
        "methods", "What is done to keep the network plastic, besides what the variant says; intervals in updates."
    )
    methods.add_argument(
        "--methods", default="", metavar="NAMES", help="such as redo+l2, or package.module:Class (default: none)"
    )
    for name, flag in method_flags().items():
        methods.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"{_METHOD_SETTING}{name}",
            type=parse_value,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=flag.info.help.replace("%", "%%"),
        )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    given = vars(make_parser().parse_args(arguments))
    variant, path, game = given.pop("variant"), given.pop("record"), given.pop("game")
    methods = given.pop("methods")
    settings = {
        name.removeprefix(_METHOD_SETTING): given.pop(name) for name in list(given) if name.startswith(_METHOD_SETTING)
    }

    def show(played: Evaluation) -> None:
        print(f"step {played.step}: mean score {played.score:g} over {len(played.scores)} games", flush=True)

    try:
        config = agent_variant(variant, methods=methods, method_settings=settings)
        if "training_steps" in config.__dataclass_fields__:
            length: dict[str, Any] = {"training_steps": given["steps"]}
            config = replace(config, **length)
        if path is not None:
            # As a file has it.
            known = json.loads(json.dumps({"game": game_name(game), "seed": given["seed"], "config": asdict(config)}))
            _check_record(path, checkpoint_dir=given["checkpoint_dir"], **known)
        # A published variant plays as it was published.
        record = train(game, config, env=PUBLISHED_PROTOCOLS.get(variant), on_evaluation=show, **given)
    except (SettingError, CheckpointError) as error:
        print(error, file=sys.stderr)
        return 2
    except Diverged as error:
        print(error, file=sys.stderr)
        return 1
    if path is not None:
        path.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    named = f"{variant} with {config.methods}" if config.methods else variant
    print(f"{record.game}, {named}: {record.steps} steps, {record.updates} updates, {len(record.games)} games")
    return 0
