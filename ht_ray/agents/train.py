"""The plain loop: DrQ(eps) on one game of Atari-100k, without Ray.

    python -m ht_ray.agents.train --game pong --variant drq+ht --steps 2000

It is what RLlib's algorithm is compared with, weight by weight, and what a machine without Ray runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ht_ray._checks import SettingError, check_number
from ht_ray.agents.atari import AtariConfig
from ht_ray.agents.checkpoint import load_checkpoint, save_checkpoint
from ht_ray.agents.collect import Game, make_collector
from ht_ray.agents.drq import DrQAgent
from ht_ray.agents.drq_config import VARIANTS, DrQConfig, drq_variant
from ht_ray.agents.evaluate import evaluate
from ht_ray.mechanisms import derive_seed

__all__ = ["Diverged", "Evaluation", "TrainingRecord", "train"]

#: Steps over which the training loss is averaged for the record.
_LOSS_STEPS = 1000


class Diverged(ArithmeticError):
    """The training loss is no longer finite."""


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
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def final_score(self) -> float | None:
        """The mean score of the evaluation at the end; None without one."""
        last = self.evaluations[-1] if self.evaluations else None
        return last.score if last is not None and last.step == self.steps else None


def train(
    game: str,
    config: DrQConfig | None = None,
    *,
    steps: int = 100_000,
    seed: int = 0,
    env: AtariConfig | None = None,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    compile: bool = False,
    evaluate_every: int | None = None,
    evaluation_episodes: int = 100,
    checkpoint_dir: str | Path | None = None,
    checkpoint_every: int = 10_000,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> TrainingRecord:
    """Train DrQ(eps) on one game as Atari-100k has it, and evaluate it on whole games.

    Parameters
    ----------
    game
        Its name.
    config
        The agent. Default: `DrQConfig`'s; see `VARIANTS`.
    steps
        Of the agent: four frames each. Default 100 000.
    seed
        Of every draw.
    env
        The protocol. Default: `AtariConfig`'s.
    device, precision, compile
        See `DrQAgent`; the replay is on the device too.
    evaluate_every
        Steps from one evaluation to the next, besides the one at the end. Default: none. Training is the same whatever
        it is.
    evaluation_episodes
        Games of each evaluation; 0 for no evaluation at all. Default 100.
    checkpoint_dir
        Where ``checkpoint.bin`` is written, and continued from if it is there; to the end of the same run, or with
        more `steps` further on.
    checkpoint_every
        Steps from one checkpoint to the next, besides the one at the end. Default 10 000.
    on_evaluation
        Called with each evaluation.

    Raises
    ------
    Diverged
        If the training loss becomes NaN or infinite.
    SettingError
        If a setting is not accepted or there is no such game.
    ValueError
        If the checkpoint is damaged, or of a run with other settings.

    Examples
    --------
    >>> record = train("Pong", DrQConfig(learning_starts=20, n_step=3, hidden=16), steps=24, evaluation_episodes=0)
    >>> record.steps, record.updates, record.final_score
    (24, 4, None)
    """
    check_number("train: steps", steps, low=1, integer=True)
    check_number("train: seed", seed, integer=True)
    check_number("train: evaluation_episodes", evaluation_episodes, low=0, integer=True)
    check_number("train: checkpoint_every", checkpoint_every, low=1, integer=True)
    if evaluate_every is not None:
        check_number("train: evaluate_every", evaluate_every, low=1, integer=True)
    config, env = config or DrQConfig(), env or AtariConfig()
    collector = make_collector(game, config, seed=seed, env=env, device=device)
    agent = DrQAgent(
        config,
        shape=(env.stack, env.size, env.size),
        num_actions=collector.env.actions,
        seed=seed,
        device=device,
        precision=precision,
        compile=compile,
    )
    record = TrainingRecord(collector.env.game, seed, asdict(config))
    settings = {"game": record.game, "seed": seed, "config": record.config, "env": asdict(env), "precision": precision}
    path = Path(checkpoint_dir) / "checkpoint.bin" if checkpoint_dir is not None else None
    loss_sum = torch.zeros((), device=agent.device)
    loss_count = 0
    if path is not None and path.exists():
        state = load_checkpoint(path, settings)
        agent.load_state_dict(state["agent"])
        collector.load_state_dict(state["collector"])
        loss_sum.copy_(state["loss_sum"])
        loss_count = state["loss_count"]
        record = TrainingRecord(**state["record"])
        record.evaluations = [Evaluation(**done) for done in state["record"]["evaluations"]]

    while collector.steps < steps:
        ended = collector.step(agent.act)
        if ended is not None:
            record.games.append(ended)
        step = record.steps = collector.steps
        if step > config.learning_starts and collector.replay.can_sample():
            for _ in range(config.updates_per_step):
                batch = collector.replay.sample(config.batch_size)
                measured = agent.update(batch)
                if config.prioritised:
                    collector.replay.update_priorities(batch.indices, measured["losses"])
                loss_sum += measured["loss"]
                loss_count += 1
        record.updates = agent.updates
        if loss_count and step % _LOSS_STEPS == 0:
            loss = loss_sum.item() / loss_count
            if not math.isfinite(loss):
                raise Diverged(f"training loss {loss} between steps {step - _LOSS_STEPS} and {step} of {record.game}")
            record.losses.append({"step": step, "loss": loss})
            loss_sum.zero_()
            loss_count = 0
        last = step == steps
        if evaluation_episodes and (last or (evaluate_every is not None and step % evaluate_every == 0)):
            played = evaluate(
                agent.act,
                game,
                episodes=evaluation_episodes,
                epsilon=config.evaluation_epsilon,
                seed=derive_seed(seed, "evaluation", step),
                config=env,
            )
            record.evaluations.append(Evaluation(step, played.scores.tolist(), played.lengths.tolist()))
            if on_evaluation is not None:
                on_evaluation(record.evaluations[-1])
        if path is not None and (last or step % checkpoint_every == 0):
            save_checkpoint(
                path,
                settings,
                {
                    "agent": agent.state_dict(),
                    "collector": collector.state_dict(),
                    "loss_sum": loss_sum,
                    "loss_count": loss_count,
                    "record": asdict(record),
                },
            )
    return record


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ht_ray.agents.train", description="Train DrQ(eps) on one game of Atari-100k."
    )
    parser.add_argument("--game", required=True, help="one of the 26")
    parser.add_argument("--variant", default="drq", help=", ".join(VARIANTS))
    parser.add_argument("--steps", type=int, default=100_000, help="of the agent (default: 100000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--compile", action="store_true", help="run the networks through torch.compile")
    parser.add_argument("--evaluate-every", type=int, help="steps between evaluations, besides the one at the end")
    parser.add_argument("--evaluation-episodes", type=int, default=100, help="games of each (default: 100; 0: none)")
    parser.add_argument("--checkpoint-dir", type=Path, help="where to write a checkpoint, and to continue from it")
    parser.add_argument("--checkpoint-every", type=int, default=10_000, help="steps (default: 10000)")
    parser.add_argument("--record", type=Path, help="a JSON file for curves and scores")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    given = vars(_arguments().parse_args(arguments))
    variant, path = given.pop("variant"), given.pop("record")

    def show(played: Evaluation) -> None:
        print(f"step {played.step}: mean score {played.score:g} over {len(played.scores)} games", flush=True)

    try:
        record = train(given.pop("game"), drq_variant(variant), on_evaluation=show, **given)
    except SettingError as error:
        print(error, file=sys.stderr)
        return 2
    if path is not None:
        path.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    print(f"{record.game}, {variant}: {record.steps} steps, {record.updates} updates, {len(record.games)} games")
    return 0


if __name__ == "__main__":
    sys.exit(main())
