"""Atari trials that are interrupted inside parts, also among an evaluation's games, report the same, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from ht_ray.agents.replay.packing import read_file, write_file
from ht_ray.agents.training import train as plain_loop
from ht_ray.sweep import Interrupted, Report
from tune_configs.atari100k import AtariSettings, BBFSettings, trials
from tune_configs.atari_trial import AtariTrial

pytestmark = pytest.mark.timeout(900)  # emulators and agents are made anew many times, on a busy machine slowly

STUDY: dict[str, Any] = {
    "steps": 50,
    "evaluate_every": 30,
    "checkpoint_every": 20,
    "evaluation_episodes": 10,  # more than are played side by side
    "max_steps": 12,
    "seeds": 1,
    "games": ("breakout",),
    "indicators_interval": 13,
}
AGENTS: dict[str, dict[str, Any]] = {
    "drq": {
        "variants": ("drq+ht",),
        "momentum": 0.5,
        "reset_interval": 7,
        "hidden": 16,
        "batch_size": 8,
        "n_step": 3,
        "learning_starts": 10,
        "epsilon_decay_steps": 10,
        "replay_capacity": 200,
    },
    "bbf": {
        "variants": ("bbf",),
        "width": 0.0625,
        "hidden": 4,
        "bins": 5,
        "batch_size": 2,
        "spr_steps": 2,
        "learning_starts": 10,
        "epsilon_decay_steps": 10,
        "replay_capacity": 80,
        "restart_interval": 30,
        "cycle_updates": 20,
        "momentum": 0.5,
    },
}

Result = tuple[list[Report], dict[str, Any], int]


@pytest.fixture(autouse=True, scope="module")
def _losses_are_reported() -> Any:
    """The loss of so few steps tells whether the weights are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_loop, "_LOSS_STEPS", 7)
        yield


def config_of(agent: str) -> dict[str, Any]:
    kind = AtariSettings if agent == "drq" else BBFSettings
    (spec,) = trials(kind(**AGENTS[agent], **STUDY).resolved())
    return spec.config


def played(
    config: dict[str, Any],
    directory: Path,
    interruptions: Iterable[int] = (),
    renew: Callable[[int], bool] = lambda count: False,
) -> Result:
    """Run a trial to its end, interrupted when the agent has acted so often.

    Returns its reports, its last state, and how often the agent acted. After the interruptions (numbered from 1) that
    `renew` accepts, another object goes on.
    """
    left, acted = set(interruptions), 0

    def new_trial() -> AtariTrial:
        trial = AtariTrial(config)
        act = trial.run.agent.act

        def counting(*arguments: Any) -> Any:
            nonlocal acted
            acted += 1
            if acted in left:
                trial.interrupt()
            return act(*arguments)

        trial.run.agent.act = counting  # type: ignore[method-assign]
        return trial

    trial, found, count = new_trial(), [], 0
    directory.mkdir(exist_ok=True)
    while not found or found[-1].progress < 1:
        try:
            found.append(trial.advance())
        except Interrupted:
            count += 1
            if renew(count):
                trial.save(directory)
                trial = new_trial()
                trial.load(directory)
                torch.manual_seed(count)
    assert count == len(left)
    trial.save(directory)
    return found, read_file(directory / "run.bin")["state"], acted


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def assert_same(whole: Result, interrupted: Result) -> None:
    assert [repr(report) for report in interrupted[0]] == [repr(report) for report in whole[0]]  # a NaN is no other
    assert interrupted[2] == whole[2]
    for part, state in whole[1].items():
        assert equal(state, interrupted[1][part]), part


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    return {agent: played(config_of(agent), tmp_path_factory.mktemp(agent)) for agent in AGENTS}


@pytest.mark.parametrize(("agent", "again"), [("drq", False), ("drq", True), ("bbf", True)])
def test_interrupted_everywhere(agent: str, again: bool, wholes: dict[str, Result], tmp_path: Path) -> None:
    whole = wholes[agent]
    assert [report.progress for report in whole[0]] == [0.4, 0.6, 0.8, 1]
    batch = config_of(agent)["agent"]["batch_size"]
    assert sum(report.samples for report in whole[0]) == whole[0][-1].summary["updates"] * batch > 0
    assert all(whole[0][-1].curves.values())
    # Among the first steps, the updates, the games of the first evaluation (from the 31st on), and after it.
    at = [3, 17, 28, 31, 35, 48, 52, 70]
    assert_same(whole, played(config_of(agent), tmp_path, at, lambda count: again))


def test_an_interruption_waits_and_happens_once(wholes: dict[str, Result]) -> None:
    trial = AtariTrial(config_of("drq"))
    trial.interrupt()
    trial.interrupt()
    with pytest.raises(Interrupted, match="after step 1 of Breakout"):
        trial.advance()
    assert trial.run.record.steps == 1
    assert trial.advance() == wholes["drq"][0][0]


def test_checkpoints_of_before_go_on(wholes: dict[str, Result], tmp_path: Path) -> None:
    """Those that were written between parts only do not say where the part began."""
    trial = AtariTrial(config_of("drq"))
    trial.advance()
    trial.save(tmp_path)
    assert json.loads((tmp_path / "part.json").read_text()) == {"steps": 20, "updates": 10}
    (tmp_path / "part.json").unlink()
    content = read_file(tmp_path / "run.bin")
    del content["state"]["evaluation"]
    write_file(content, tmp_path / "run.bin")
    resumed = AtariTrial(config_of("drq"))
    resumed.load(tmp_path)
    assert [repr(resumed.advance()) for _ in range(3)] == [repr(report) for report in wholes["drq"][0][1:]]
