"""One trial of the continual RL study: an agent over a stream of tasks, from one visit or checkpoint to the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ht_ray.agents.continual import ContinualRun, task_stream_config
from ht_ray.agents.registry import agent_from_dict
from ht_ray.sweep import Report
from tune_configs.trial_numerics import computed_as_set

__all__ = ["ContinualRLTrial"]

_STATE = "run.bin"
_PART = "part.json"
# What a visit's row has that is no indicator.
_MEASURED = ("task", "cycle", "area", "start_return", "end_return")


class ContinualRLTrial:
    """Train an agent over a stream, and report after every visit and every `checkpoint_every` steps in one.

    Parameters
    ----------
    config
        From ``trial_config`` of `tune_configs.continual_rl.ContinualRLSettings`.
    shared
        None.
    """

    def __init__(self, config: dict[str, Any], shared: None = None) -> None:
        self.config = config
        stream = dict(config["stream"])
        self.run = ContinualRun(
            task_stream_config(stream.pop("name"), **stream),
            agent_from_dict(config["agent"]),
            seed=config["seed"],
            replay=config["replay"],
            curve_points=min(10, config["stream"]["visit_steps"]),
            evaluation_episodes=config["evaluation_episodes"],
            indicators=config["indicators"],
            device=config["device"],
        )
        #: Updates that were made before the present part, which an interruption may have cut in two.
        self.before = 0

    @computed_as_set
    def advance(self) -> Report:
        """Train up to the end of the visit or the next checkpoint in it.

        Raises
        ------
        ht_ray.errors.Diverged
            If the weights are no longer finite: that is the trial's result.
        """
        run = self.run
        visits, points = len(run.record.visits), len(run.record.curve)
        run.advance(self.config["checkpoint_every"])
        finished = run.record.visits[visits:]
        report = Report(
            curves={
                "visit": [{"step": row["step"], **{name: row[name] for name in _MEASURED}} for row in finished],
                "phase": [
                    {"step": row["visit"] + 1, "phase": row["visit"] + 1, **indicators}
                    for row in finished
                    if (indicators := {name: row[name] for name in row.keys() - {"visit", "step", *_MEASURED}})
                ],
                "training": [{"step": row["step"], "return": row["return"]} for row in run.record.curve[points:]],
            },
            summary={**run.measures().summary(), "updates": run.agent.updates},
            progress=run.steps / run.stream.steps,
            samples=(run.agent.updates - self.before) * run.config.batch_size,
        )
        self.before = run.agent.updates
        return report

    def interrupt(self) -> None:
        """Ask `advance` to raise `Interrupted` after the step that runs, or runs next."""
        self.run.interrupt()

    def save(self, directory: Path) -> None:
        """Write the agent, its replay, the game and the record."""
        self.run.save(directory / _STATE)
        (directory / _PART).write_text(json.dumps({"updates": self.before}), encoding="utf-8")

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote."""
        self.run.load(directory / _STATE)
        self.before = json.loads((directory / _PART).read_text(encoding="utf-8"))["updates"]
