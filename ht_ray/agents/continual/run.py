"""The plain loop of continual RL: one agent that plays the tasks of a stream, visit after visit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ht_ray._checks import check_choice, check_number
from ht_ray._device import check_device
from ht_ray.agents.base_config import AgentConfig
from ht_ray.agents.continual.measures import ContinualMeasures, measure
from ht_ray.agents.continual.streams import Task, TaskStreamConfig, Visit
from ht_ray.agents.dqn.config import DQNConfig
from ht_ray.agents.registry import make_agent
from ht_ray.agents.replay import Batch, make_replay
from ht_ray.agents.training.checkpoint import load_checkpoint, save_checkpoint
from ht_ray.agents.training.collector import Collector
from ht_ray.agents.training.evaluate import evaluate
from ht_ray.agents.training.indicators import AgentIndicators
from ht_ray.errors import Diverged, Interrupted, SettingError
from ht_ray.mechanisms import derive_seed

__all__ = ["ContinualRecord", "ContinualRun"]


@dataclass
class ContinualRecord:
    """What a run was and how it went: plain data, written as JSON by ``json.dumps(dataclasses.asdict(record))``."""

    stream: str
    tasks: list[str]
    seed: int
    config: dict[str, Any]
    steps: int = 0
    updates: int = 0
    #: Learning curves: ``visit``, ``task``, ``cycle``, ``step`` (of all), ``visit_step``, and ``return``: the mean over
    #: the steps since the point before of the return of the game that a step is of; NaN where none of them ended.
    curve: list[dict[str, float]] = field(default_factory=list)
    #: Finished visits: ``visit``, ``task``, ``cycle``, ``step``, ``area``, ``start_return``, ``end_return``, and
    #: indicators by their names.
    visits: list[dict[str, float]] = field(default_factory=list)


class ContinualRun:
    """An agent over a stream of tasks: advanced, saved and continued by whoever drives it.

    The agent goes from task to task with its weights, its optimizer's state and its methods, and does not know when the
    task changes. A visit begins with a new game and, by default, with an empty replay and with epsilon at 1, so that
    what is carried over is the network. Before and after a visit some games are played without learning; they leave no
    trace in training.

    Parameters
    ----------
    stream : TaskStreamConfig
        The stream; its tasks depend on `seed`.
    config : AgentConfig or None, default None
        The agent's settings. Default: `DQNConfig`'s. `with_methods` names methods.
    seed : int, default 0
        Seed of every draw.
    replay : {"clear", "keep"}, default "clear"
        Whether the replay starts empty at each visit.
    curve_points : int, default 10
        Points of a visit's learning curve.
    evaluation_episodes : int, default 5
        Games played before and after each visit.
    indicators : bool, default False
        Whether plasticity indicators of the network are measured at the end of each visit, on observations of its
        replay; see `AgentIndicators`.
    device : torch.device or str, default "cpu"
        Where networks and replay are.

    Raises
    ------
    SettingError
        If a setting is not accepted, or the tasks differ in their actions or in the shape of what is seen.

    Examples
    --------
    >>> from ht_ray.agents.continual.streams import ControlStreamConfig
    >>> run = ContinualRun(ControlStreamConfig(tasks=1, cycles=2, visit_steps=150), DQNConfig(hidden=16))
    >>> run.advance()
    True
    >>> run.advance(), run.record.steps, len(run.record.visits)
    (False, 300, 2)
    """

    def __init__(
        self,
        stream: TaskStreamConfig,
        config: AgentConfig | None = None,
        *,
        seed: int = 0,
        replay: Literal["clear", "keep"] = "clear",
        curve_points: int = 10,
        evaluation_episodes: int = 5,
        indicators: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        check_number("ContinualRun: seed", seed, integer=True)
        check_choice("ContinualRun: replay", replay, ["clear", "keep"])
        check_number("ContinualRun: curve_points", curve_points, low=1, high=stream.visit_steps, integer=True)
        check_number("ContinualRun: evaluation_episodes", evaluation_episodes, low=1, integer=True)
        device = check_device("ContinualRun: device", device)
        self.config: AgentConfig = config or DQNConfig()
        self.stream = stream.make(seed=seed)
        self.seed = seed
        self._replay = replay
        self._points = curve_points
        self._episodes = evaluation_episodes
        self._shape, self._dtype, actions = self._seen(self.stream.tasks)
        self.agent = make_agent(self.config, shape=self._shape, num_actions=actions, seed=seed, device=device)
        names = [task.name for task in self.stream.tasks]
        self.record = ContinualRecord(self.stream.name, names, seed, asdict(self.config))
        self._settings = {
            "stream": {"name": self.stream.name, **asdict(stream)},
            "seed": seed,
            "config": self.record.config,
            "replay": replay,
            "curve_points": curve_points,
            "evaluation_episodes": evaluation_episodes,
            "indicators": indicators,
        }
        self._asked = False
        self._start_return: float | None = None
        self._returns = np.full(self.stream.visit_steps, np.nan)
        self.collector = self._enter(self.stream[0], None)
        self._indicators = AgentIndicators(self.agent, self.collector.replay, 1) if indicators else None

    @staticmethod
    def _seen(tasks: tuple[Task, ...]) -> tuple[tuple[Any, ...], Any, int]:
        found = {}
        for task in tasks:
            env = task.make()
            found[task.name] = (env.observation.shape, env.observation.dtype, env.actions)
        first = next(iter(found.values()))
        for name, own in found.items():
            if own != first:
                raise SettingError(
                    f"ContinualRun: task {name!r} shows {own[0]} of {own[1]} and has {own[2]} actions, "
                    f"{tasks[0].name!r} shows {first[0]} of {first[1]} and has {first[2]}: one network needs the same."
                )
        return first

    def _enter(self, visit: Visit, before: Collector | None) -> Collector:
        task, config = self.stream.tasks[visit.task], self.config
        env = task.make(seed=derive_seed(self.seed, "visit", visit.index))
        kept = before.replay if before is not None and self._replay == "keep" else None
        replay = kept or make_replay(
            config.replay_config(stack=self._shape[0], device=str(self.agent.device)),
            frame_shape=self._shape[1:],
            frame_dtype=self._dtype,
            seed=derive_seed(self.seed, "replay", visit.index),
        )
        return Collector(env, replay, config.epsilon_schedule)

    @property
    def visit(self) -> Visit:
        """The visit that goes on, or the last one."""
        return self.stream[min(len(self.record.visits), len(self.stream) - 1)]

    @property
    def steps(self) -> int:
        """Steps that were made, of all visits together."""
        done = len(self.record.visits)
        return self.record.steps + (self.collector.steps if done < len(self.stream) else 0)

    def measures(self) -> ContinualMeasures:
        """Return the measures of the visits that are finished."""
        return measure(self.record.visits, tasks=len(self.stream.tasks), cycles=self.stream.cycles)

    def interrupt(self) -> None:
        """Ask `advance` to raise `Interrupted` after the step that runs or that runs next; may be called anywhere."""
        self._asked = True

    def advance(self, steps: int | None = None) -> bool:
        """Go on to the end of the visit, or to the next multiple of `steps` in it; return whether there is more.

        Raises
        ------
        Diverged
            If the weights are no longer finite.
        Interrupted
            After `interrupt`; the next call goes on.
        """
        if len(self.record.visits) == len(self.stream):
            return False
        visit, collector = self.visit, self.collector
        if self._start_return is None:
            self._start_return = self._evaluate(visit, "start")
        end = visit.steps if steps is None else min((collector.steps // steps + 1) * steps, visit.steps)
        while collector.steps < end:
            ended = collector.step(self.agent.act)
            if ended is not None:
                begun = max(collector.steps - int(ended["steps"]), 0)
                self._returns[begun : collector.steps] = ended["score"]
            collector.learn(self.config, self.agent.sampling, self._update)
            if self._asked and collector.steps < visit.steps:
                self._asked = False
                raise Interrupted(f"after step {collector.steps} of visit {visit.index}")
        if collector.steps < visit.steps:
            return True
        if not all(bool(parameter.isfinite().all()) for parameter in self.agent.network.parameters()):
            raise Diverged(f"weights are not finite after visit {visit.index} of {self.stream.name}")
        self._leave(visit)
        if len(self.record.visits) == len(self.stream):
            return False
        self.collector = self._enter(self.visit, collector)
        return True

    def _update(self, batch: Batch) -> Tensor:
        return self.agent.update(batch)["losses"].nan_to_num()

    def _leave(self, visit: Visit) -> None:
        assert self._start_return is not None  # advance has measured it
        record, before = self.record, visit.index * visit.steps
        where = {"visit": visit.index, "task": visit.task, "cycle": visit.cycle}
        for part in np.array_split(np.arange(visit.steps), self._points):
            last = int(part[-1]) + 1
            record.curve.append(
                {**where, "step": before + last, "visit_step": last, "return": _known_mean(self._returns[part])}
            )
        measured: dict[str, float] = {}
        if self._indicators is not None:
            self._indicators.replay = self.collector.replay
            measured = self._indicators.measure()
        record.steps, record.updates = before + visit.steps, self.agent.updates
        record.visits.append(
            {
                **where,
                "step": record.steps,
                "area": _known_mean(self._returns),
                "start_return": self._start_return,
                "end_return": self._evaluate(visit, "end"),
                **measured,
            }
        )
        self._returns[:] = np.nan
        self._start_return = None

    def _evaluate(self, visit: Visit, when: str) -> float:
        task = self.stream.tasks[visit.task]
        return evaluate(
            self.agent.act,
            task.game,
            episodes=self._episodes,
            epsilon=self.config.evaluation_epsilon,
            seed=derive_seed(self.seed, f"evaluation at the {when}", visit.index),
            envs=self._episodes,
            config=task.env,
        ).score

    def save(self, path: Path) -> None:
        """Write everything needed to continue to the file `path`, at once."""
        state = {
            "agent": self.agent.state_dict(),
            "collector": self.collector.state_dict(),
            "returns": torch.from_numpy(self._returns.copy()),
            "start_return": self._start_return,
            "record": asdict(self.record),
        }
        save_checkpoint(path, self._settings, state)

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote, to the bit on a CPU.

        Raises
        ------
        CheckpointError
            If the file is damaged, or of a run with other settings.
        """
        state: Mapping[str, Any] = load_checkpoint(path, self._settings)
        self.record = ContinualRecord(**state["record"])
        self.collector = self._enter(self.visit, None)
        self.agent.load_state_dict(state["agent"])
        self.collector.load_state_dict(state["collector"])
        self._returns = state["returns"].numpy().copy()
        self._start_return = state["start_return"]


def _known_mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    known = values[np.isfinite(values)]
    return math.fsum(known) / len(known) if len(known) else math.nan
