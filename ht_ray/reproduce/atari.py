"""Agents on games of Atari-100k for the ledger: runs of its cells, and those that a study has made.

Unlike what is on images, this needs gymnasium, ale_py and cv2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ht_ray.agents import AgentConfig, AtariConfig
from ht_ray.agents.registry import agent_from_dict
from ht_ray.agents.training.checkpoint import CheckpointError
from ht_ray.agents.training.train import TrainingRun
from ht_ray.errors import Interrupted, SettingError
from ht_ray.report import human_normalized, load_study
from ht_ray.report.data.study import TrialData
from ht_ray.reproduce.calls import GRAPH, noted_call
from ht_ray.reproduce.cells import AtariCell
from ht_ray.reproduce.records import FORMAT, Record

__all__ = ["play_once", "step_seconds", "study_records"]

#: Steps from one checkpoint to the next, of a run that may be killed.
CHECKPOINT_EVERY = 10_000
#: Seconds of the time left that are kept for writing a checkpoint.
TO_SAVE = 10.0
#: Steps that are timed for an estimate: the first ones without, as kernels start and graphs are captured.
_UNTIMED, _TIMED = 10, 20


class _Clock(Protocol):
    def interrupting(self, interrupt: Callable[[], None], *, margin: float) -> AbstractContextManager[None]: ...


def _training(cell: AtariCell, agent: AgentConfig, seed: int, device: torch.device) -> TrainingRun:
    return TrainingRun(cell.game, agent, seed=seed, env=cell.env, device=device, graph=GRAPH)


def play_once(cell: AtariCell, seed: int, *, device: torch.device, folder: Path, clock: _Clock) -> Record | None:
    """Train an agent on its game, from where it was left in `folder`, evaluate it and return its record.

    None if the time of `clock` (a `Clock`) was over first.

    Raises
    ------
    SettingError
        If there are no games here, or what is underway is of other settings.
    Diverged
        If the training loss is no longer finite.
    """
    cell.check_available()
    training = _training(cell, cell.agent, seed, device)
    state = folder / "checkpoint.bin"
    if state.exists():
        try:
            training.load(state)
        except CheckpointError as error:
            raise SettingError(f"{folder.name} cannot go on: {error}. Remove {folder} to begin it again.") from error
    with noted_call(folder, device) as calls:
        try:
            with clock.interrupting(training.interrupt, margin=TO_SAVE):
                while training.record.steps < cell.steps:
                    training.advance(cell.steps, CHECKPOINT_EVERY)
                    training.save(state)
                training.evaluate(cell.episodes)
            done = True
        except Interrupted:
            training.save(state)
            done = False
    if not done:
        return None
    record = training.record
    return _record(
        cell,
        seed,
        env=asdict(cell.env),
        precision=training.agent.precision,
        calls=calls,
        updates=record.updates,
        evaluations=[(played.step, played.score) for played in record.evaluations],
        games=[(int(game["step"]), game["score"]) for game in record.games],
    )


def step_seconds(cell: AtariCell, device: torch.device) -> float:
    """Return the seconds of a step of training with its updates, from a few of them."""
    ready = cell.agent.n_step + 10
    training = _training(cell, replace(cell.agent, learning_starts=ready), 0, device)
    training.advance(ready + _UNTIMED)
    started = time.monotonic()
    training.advance(ready + _UNTIMED + _TIMED)
    return (time.monotonic() - started) / _TIMED


def _record(
    cell: AtariCell,
    seed: int,
    *,
    env: dict[str, Any],
    precision: str,
    calls: list[dict[str, Any]],
    updates: int,
    evaluations: Sequence[tuple[int, float]],
    games: Sequence[tuple[int, float]],
) -> Record:
    scores = [score for _, score in evaluations]
    normalized = [float(value) for value in human_normalized(cell.game, scores)]
    return {
        "format": FORMAT,
        "cell": cell.id,
        "seed": seed,
        "game": cell.game,
        "settings": {"agent": asdict(cell.agent), "env": env, "training": {"precision": precision}},
        "protocol": {"steps": cell.steps, "episodes": cell.episodes},
        "calls": calls,
        "results": {"score": scores[-1], "human_normalised": normalized[-1], "updates": updates},
        "curve": {"step": [step for step, _ in evaluations], "score": scores, "human_normalised": normalized},
        "training_games": {"step": [step for step, _ in games], "score": [score for _, score in games]},
    }


def study_records(location: str, machine: str, cells: Sequence[AtariCell]) -> Iterator[Record | str]:
    """Yield a record of each trial of an Atari study that is a finished run of a cell; of others, why it is none.

    Parameters
    ----------
    location
        The directory of a study of ``tune_configs/atari100k.py``, or its URI.
    machine
        The kind of machine that it ran on, which a study does not say.

    Raises
    ------
    SettingError
        If there is no such study.
    """
    study = load_study(location)
    if study.config["study"] != "atari100k":
        raise SettingError(f"{location} is a study of {study.config['study']!r}: accepted is one of 'atari100k'.")
    versions = study.config["versions"]
    for trial in study.trials:
        if trial.status != "finished":
            yield f"{trial.id} is {trial.status}"
            continue
        cell = next((cell for cell in cells if _is_run_of(trial, cell)), None)
        if cell is None:
            yield f"{trial.id} is no run of a cell: its game, agent or protocol is none of theirs"
            continue
        played, games = trial.curves["evaluation"], trial.curves["training_games"]
        call = {
            "device": machine,
            "ht_ray": versions["ht-ray"],
            "torch": versions["torch"],
            "python": versions["python"],
            "graph": GRAPH,
            "started": study.config["created"],
            "seconds": round(trial.seconds, 1),
        }
        yield _record(
            cell,
            trial.config["seed"],
            env=asdict(AtariConfig(**trial.config["env"])),
            precision=trial.config["precision"],
            calls=[call],
            updates=int(trial.summary["updates"]),
            evaluations=_pairs(played),
            games=_pairs(games),
        )


def _is_run_of(trial: TrialData, cell: AtariCell) -> bool:
    config = trial.config
    made = config["game"], config["steps"], config["evaluation_episodes"]
    return (
        made == (cell.game, cell.steps, cell.episodes)
        and agent_from_dict(config["agent"]) == cell.agent
        and AtariConfig(**config["env"]) == cell.env
        and not config.get("overlap")
    )


def _pairs(curve: Any) -> list[tuple[int, float]]:
    return [(int(step), float(score)) for step, score in zip(curve["step"], curve["score"], strict=True)]
