"""Steps of a game beside the updates: the same whatever takes longer, and after a stop, and without the newest step."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ht_ray.agents import agent_variant
from ht_ray.agents.base_config import AgentConfig
from ht_ray.agents.envs.catch import CatchConfig
from ht_ray.agents.replay.packing import read_file
from ht_ray.agents.training.checkpoint import CheckpointError
from ht_ray.agents.training.train import TrainingRun

SMALL: dict[str, Any] = {"learning_starts": 10, "epsilon_decay_steps": 10, "hidden": 8, "batch_size": 2, "shift": 1}
SMALL |= {"momentum": 0.9, "reset_interval": 7, "replay_capacity": 60}
DRQ = agent_variant("drq+ht", **SMALL, n_step=3, prioritized=True)
BBF = agent_variant("bbf-spr0+ht", **SMALL, width=0.125, bins=11, restart_interval=12)
CONFIGS = pytest.mark.parametrize("config", [DRQ, BBF], ids=["drq", "bbf"])


pytestmark = pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")


def new_run(config: AgentConfig, **given: Any) -> TrainingRun:
    game = CatchConfig(balls=1) if config == DRQ else CatchConfig(cells=4, balls=2)  # DrQ's encoder wants large frames
    return TrainingRun("Catch", config, seed=3, env=game, **{"overlap": True, **given})


def saved(run: TrainingRun, path: Path) -> dict[str, Any]:
    run.save(path)
    state: dict[str, Any] = read_file(path)["state"]
    return state


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


@CONFIGS
def test_results_do_not_depend_on_what_takes_longer(config: AgentConfig, tmp_path: Path) -> None:
    runs = [new_run(config) for _ in range(3)]
    for run, (game_sleeps, update_sleeps) in zip(runs, [(0.0, 0.0), (0.01, 0.0), (0.0, 0.01)], strict=True):
        step, update = run.collector.env.step, run.agent.update

        def slow_step(action: int, step: Any = step, seconds: float = game_sleeps) -> Any:
            made = step(action)
            time.sleep(seconds)
            return made

        def slow_update(batch: Any, update: Any = update, seconds: float = update_sleeps) -> Any:
            time.sleep(seconds)
            return update(batch)

        run.collector.env.step = slow_step  # type: ignore[method-assign]
        run.agent.update = slow_update  # type: ignore[method-assign]
        run.advance(26)
    expected, *others = (saved(run, tmp_path / "run.bin") for run in runs)
    assert all(equal(other, expected) for other in others)
    assert runs[0].record.games


@CONFIGS
@pytest.mark.parametrize("at", [11, 18])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(config: AgentConfig, at: int, tmp_path: Path) -> None:
    whole = new_run(config)
    whole.advance(26)
    first = new_run(config)
    first.advance(at)
    first.save(tmp_path / "stopped.bin")
    second = new_run(config)
    second.load(tmp_path / "stopped.bin")
    second.advance(26)
    assert equal(saved(second, tmp_path / "second.bin"), saved(whole, tmp_path / "whole.bin"))


@pytest.mark.parametrize("overlap", [False, True])
def test_updates_run_beside_the_step_and_lack_it(overlap: bool) -> None:
    run = new_run(DRQ, overlap=overlap)
    added, threads, counts = 0, set[int](), list[tuple[int, int]]()
    add, update, step = run.collector.replay.add, run.agent.update, run.collector.env.step

    def counting(*values: Any, **ends: Any) -> None:
        nonlocal added
        added += 1
        add(*values, **ends)

    def noting(batch: Any) -> Any:
        counts.append((run.collector.steps, added))
        return update(batch)

    def stepping(action: int) -> Any:
        threads.add(threading.get_ident())
        return step(action)

    run.collector.replay.add = counting  # type: ignore[method-assign]
    run.agent.update = noting  # type: ignore[method-assign]
    run.collector.env.step = stepping  # type: ignore[method-assign]
    run.advance(30)
    # As many updates after the same steps, of a replay that is a step behind.
    assert counts == [(steps, steps - overlap) for steps in range(11, 31)]
    assert (threads == {threading.get_ident()}) is not overlap


def test_the_setting_is_a_part_of_the_run(tmp_path: Path) -> None:
    run, plain = new_run(DRQ), new_run(DRQ, overlap=False)
    for one in (run, plain):
        one.advance(30)
    assert not equal(run.agent.state_dict()["network"], plain.agent.state_dict()["network"])
    run.save(tmp_path / "run.bin")
    with pytest.raises(CheckpointError, match=r"overlap = True there, False here$"):
        plain.load(tmp_path / "run.bin")


def test_an_error_of_an_update_comes_out_after_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(DRQ)
    monkeypatch.setattr(run.agent, "update", None)
    with pytest.raises(TypeError, match="not callable"):
        run.advance(30)
    assert threading.active_count() < 50  # nothing is left waiting
