"""One trial of the Atari study: the plain loop on one game, from one evaluation or checkpoint to the next."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.registry import agent_from_dict
from ht_ray.agents.training.train import Evaluation, TrainingRun
from ht_ray.report.atari.reference import human_normalized
from ht_ray.sweep import Report
from tune_configs.trial_numerics import computed_as_set

__all__ = ["AtariTrial"]

_STATE = "run.bin"
_PART = "part.json"


class AtariTrial:
    """Train an agent on a game, and report after every evaluation and every `checkpoint_every` steps.

    Parameters
    ----------
    config
        From ``trial_config`` of `tune_configs.atari100k.AtariSettings` or `BBFSettings`.
    shared
        None: the ROMs come with ale_py.
    """

    def __init__(self, config: dict[str, Any], shared: None = None) -> None:
        self.config = config
        self.run = TrainingRun(
            config["game"],
            agent_from_dict(config["agent"]),
            seed=config["seed"],
            env=AtariConfig(**config["env"]),
            device=config["device"],
            precision=config["precision"],
            compile=config["compile"],
            overlap=config.get("overlap", False),
            indicators_interval=config.get("indicators_interval"),
        )
        #: Steps and updates that were made before the present part.
        self.before = {"steps": 0, "updates": 0}

    @computed_as_set
    def advance(self) -> Report:
        """Train up to the next evaluation or checkpoint, and evaluate where it is due.

        Or do what an interruption has left of that: an evaluation goes on in the middle of its games.

        Raises
        ------
        ht_ray.errors.Diverged
            If the training loss is no longer finite: that is the trial's result.
        """
        config, run = self.config, self.run
        steps, every, episodes = config["steps"], config["evaluate_every"], config["evaluation_episodes"]
        if not run.evaluating:
            run.advance(steps, every, config["checkpoint_every"])
        step = run.record.steps
        evaluations = []
        if step == steps or (every is not None and step % every == 0):
            evaluations.append(self._row(run.evaluate(episodes)))
        # A part of the run without an evaluation still has the columns of the summary.
        last = self._row(run.record.evaluations[-1]) if run.record.evaluations else {}
        report = Report(
            curves={
                "evaluation": evaluations,
                "training_games": self._new(run.record.games),
                "training": self._new(run.record.losses),
                "indicators": self._new(run.record.indicators),
            },
            summary={
                "final_score": last.get("score", math.nan),
                "final_human_normalised": last.get("human_normalised", math.nan),
                "updates": run.record.updates,
            },
            progress=step / steps,
            samples=(run.record.updates - self.before["updates"]) * run.config.batch_size,
        )
        self.before = {"steps": step, "updates": run.record.updates}
        return report

    def interrupt(self) -> None:
        """Ask `advance` to raise `Interrupted` after the step that runs, or runs next, unless it is a part's last."""
        self.run.interrupt()

    def _new(self, rows: list[dict[str, float]]) -> list[dict[str, float]]:
        return [dict(row) for row in rows if row["step"] > self.before["steps"]]

    def _row(self, played: Evaluation) -> dict[str, float]:
        return {
            "step": played.step,
            "score": played.score,
            "human_normalised": float(human_normalized(self.run.record.game, played.score)),
            "game_steps": math.fsum(played.lengths) / len(played.lengths),
        }

    def save(self, directory: Path) -> None:
        """Write networks, optimiser, replay, emulator and record."""
        self.run.save(directory / _STATE)
        (directory / _PART).write_text(json.dumps(self.before), encoding="utf-8")

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote."""
        self.run.load(directory / _STATE)
        part = directory / _PART
        if part.is_file():
            self.before = json.loads(part.read_text(encoding="utf-8"))
        else:  # of an earlier version, which saved between parts only
            self.before = {"steps": self.run.record.steps, "updates": self.run.record.updates}
