"""The plain loop: a run that was stopped is the run that was not, in another process too; records, command line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ht_ray.agents.drq.agent import DrQAgent
from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.registry import agent_variant
from ht_ray.agents.replay.packing import read_file
from ht_ray.agents.training.checkpoint import CheckpointError, save_checkpoint
from ht_ray.agents.training.train import Diverged, TrainingRun, main, train
from ht_ray.errors import SettingError

SMALL: dict[str, Any] = {
    "learning_starts": 20,
    "epsilon_decay_steps": 20,
    "n_step": 3,
    "hidden": 8,
    "batch_size": 2,
    "replay_capacity": 100,
    "momentum": 0.9,
    "reset_interval": 14,
    "head_reset_interval": 33,
    "prioritized": True,
}
# Games are cut off early, so that a short run has ends of every kind.
ENV = AtariConfig(max_steps=45)


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def in_a_new_process(directory: Path, steps: int) -> None:
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from ht_ray.agents.envs.atari import AtariConfig\n"
        "from ht_ray.agents.drq.config import DrQConfig\n"
        "from ht_ray.agents.training.train import train\n"
        f"train('Breakout', DrQConfig(**{SMALL!r}), steps={steps}, seed=4, env=AtariConfig(max_steps=45),\n"
        f"      evaluation_episodes=0, checkpoint_dir={str(directory)!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900)


def test_continued_in_a_new_process_it_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Stopped in the middle of an episode; the next 100 steps and updates, and all that is left by them."""
    config = DrQConfig(**SMALL)
    settings: dict[str, Any] = {"seed": 4, "env": ENV, "evaluation_episodes": 0}
    record = train("Breakout", config, steps=160, checkpoint_dir=tmp_path / "whole", **settings)
    train("Breakout", config, steps=60, checkpoint_dir=tmp_path / "stopped", **settings)
    stopped = read_file(tmp_path / "stopped" / "checkpoint.bin")["state"]
    assert stopped["collector"]["env"]["running"] and stopped["collector"]["env"]["steps"] > 0
    in_a_new_process(tmp_path / "stopped", 160)
    whole, continued = (read_file(tmp_path / name / "checkpoint.bin") for name in ("whole", "stopped"))
    assert whole["state"]["agent"]["updates"] == stopped["agent"]["updates"] + 100 == 140
    assert whole["state"]["agent"]["methods"]["hare_tortoise"]["resets"] == 10
    for part, state in whole["state"].items():
        assert equal(state, continued["state"][part]), part
    assert {game["steps"] for game in record.games} == {45.0}


def test_evaluating_changes_nothing_and_repeats_itself() -> None:
    env, config = AtariConfig(max_steps=12), DrQConfig(**SMALL)
    watched, alone = (TrainingRun("Pong", config, env=env) for _ in range(2))
    first = [watched.evaluate(2) for _ in range(2)]
    assert first[0] == first[1]
    for steps in (24, 30):
        watched.advance(steps)
        watched.evaluate(2)
    alone.advance(30)
    assert equal(watched.agent.state_dict(), alone.agent.state_dict())
    assert equal(watched.collector.state_dict(), alone.collector.state_dict())
    assert [played.step for played in watched.record.evaluations] == [0, 0, 24, 30]


def test_an_evaluation_is_random_as_often_as_its_own_epsilon_says(monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingRun("Pong", DrQConfig(**SMALL, epsilon=0.0, evaluation_epsilon=1.0), env=AtariConfig(max_steps=9))
    monkeypatch.setattr(run.agent, "act", None)
    assert run.evaluate(2).lengths == [9, 9]


def test_the_record_tells_what_was_done(tmp_path: Path) -> None:
    config = DrQConfig(**SMALL | {"prioritized": False, "updates_per_step": 2})
    seen = []
    record = train(
        "pong",
        config,
        steps=26,
        env=AtariConfig(max_steps=10),
        evaluate_every=10,
        evaluation_episodes=1,
        on_evaluation=seen.append,
    )
    assert (record.game, record.steps, record.updates) == ("Pong", 26, 12)
    assert [played.step for played in seen] == [10, 20, 26] and seen == record.evaluations
    assert record.final_score == seen[-1].score == seen[-1].scores[0]
    assert [(game["step"], game["steps"]) for game in record.games] == [(10, 10), (20, 10)]
    assert json.loads(json.dumps(asdict(record)))["config"] == record.config == json.loads(json.dumps(asdict(config)))


def test_losses_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ht_ray.agents.training.train._LOSS_STEPS", 4)
    run = TrainingRun("Pong", DrQConfig(**SMALL))
    losses: list[float] = []
    update = run.agent.update

    def noting(batch: Any) -> Any:
        measured = update(batch)
        losses.append(float(measured["loss"]))
        return measured

    monkeypatch.setattr(run.agent, "update", noting)
    run.advance(26)
    assert [row["step"] for row in run.record.losses] == [24]
    assert run.record.losses[0]["loss"] == pytest.approx(np.mean(losses[:4]), rel=1e-5)


@pytest.mark.parametrize("prioritized", [False, True])
def test_divergence_is_noticed_before_anything_is_saved(prioritized: bool) -> None:
    run = TrainingRun("Pong", DrQConfig(**SMALL | {"prioritized": prioritized}))
    run.advance(26)
    with torch.no_grad():
        next(run.agent.network.head.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="training loss nan between steps 0 and 28 of Pong"):
        run.advance(28)


def test_an_evaluation_that_was_interrupted_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"env": AtariConfig(max_steps=5), "evaluation_episodes": 1, "evaluate_every": 20}
    config = DrQConfig(**SMALL)
    whole = train("Pong", config, steps=30, **settings)
    evaluate = TrainingRun.evaluate

    def interrupted(run: TrainingRun, episodes: int) -> Any:
        if run.record.steps == stop:
            raise KeyboardInterrupt
        return evaluate(run, episodes)

    monkeypatch.setattr(TrainingRun, "evaluate", interrupted)
    for stop in (20, 30):
        with pytest.raises(KeyboardInterrupt):
            train("Pong", config, steps=30, checkpoint_dir=tmp_path, checkpoint_every=10, **settings)
        saved = read_file(tmp_path / "checkpoint.bin")["state"]["record"]
        assert saved["steps"] == stop and [done["step"] for done in saved["evaluations"]] == [20][: stop // 30]
    monkeypatch.undo()
    continued = train("Pong", config, steps=30, checkpoint_dir=tmp_path, **settings)
    assert continued == whole and [done.step for done in whole.evaluations] == [20, 30]
    with monkeypatch.context() as patch:  # and one that was finished is not repeated
        patch.setattr(TrainingRun, "evaluate", None)
        assert train("Pong", config, steps=30, checkpoint_dir=tmp_path, **settings) == whole


def test_fewer_steps_than_were_made_are_refused(tmp_path: Path) -> None:
    config = DrQConfig(**SMALL)
    train("Pong", config, steps=6, evaluation_episodes=0, checkpoint_dir=tmp_path)
    with pytest.raises(SettingError, match=r"steps = 5: the run in .* has made 6 already"):
        train("Pong", config, steps=5, evaluation_episodes=0, checkpoint_dir=tmp_path)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    config = DrQConfig(**SMALL)
    run = TrainingRun("Pong", config)
    run.advance(3)
    path = tmp_path / "new" / "checkpoint.bin"
    run.save(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    for other, said in (
        (TrainingRun("Breakout", config), "game = 'Pong' there, 'Breakout' here"),
        (TrainingRun("Pong", config, seed=1), "seed = 0 there, 1 here"),
        (
            TrainingRun("Pong", replace(config, learning_rate=0.1)),
            r"settings: config\.learning_rate = 0\.0001 there, 0\.1 here$",
        ),
        (TrainingRun("Pong", config, env=ENV), r"env\.max_steps = 27000 there, 45 here$"),
    ):
        with pytest.raises(CheckpointError, match=said):
            other.load(path)
    older = {"game": "Pong", "seed": 0, "config": {**asdict(config)}, "env": asdict(AtariConfig()), "precision": "fp32"}
    for name in ("published_shift", "reset_only"):  # settings that are newer than the file
        del older["config"][name]
    save_checkpoint(path.with_name("older.bin"), older, read_file(path)["state"])
    TrainingRun("Pong", config).load(path.with_name("older.bin"))
    with pytest.raises(CheckpointError, match=r"config\.published_shift = False there, True here$"):
        TrainingRun("Pong", replace(config, published_shift=True)).load(path.with_name("older.bin"))
    run.collector.replay.save(tmp_path / "replay.bin")
    with pytest.raises(CheckpointError, match="but another file of ht_ray"):
        run.load(tmp_path / "replay.bin")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="no checkpoint to continue from"):
        run.load(path)


def test_wrong_settings_are_refused_before_anything_is_done() -> None:
    with pytest.raises(SettingError, match="Did you mean 'Breakout'"):
        train("Breakuot")
    for wrong in ({"steps": 0}, {"evaluate_every": 0}, {"evaluation_episodes": -1}, {"checkpoint_every": 0}):
        with pytest.raises(SettingError, match=next(iter(wrong))):
            train("Pong", **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["gpu0", f"cuda:{torch.cuda.device_count()}"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(SettingError, match=f"TrainingRun: device = '{device}': there is no such device"):
        TrainingRun("Pong", DrQConfig(**SMALL), device=device)
    with pytest.raises(SettingError, match=f"DrQAgent: device = '{device}': there is no such device"):
        DrQAgent(DrQConfig(**SMALL), shape=(4, 84, 84), num_actions=3, device=device)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--game", "Pnog"]) == 2
    assert "Did you mean 'Pong'" in capsys.readouterr().err
    path = tmp_path / "record.json"
    arguments = ["--game", "pong", "--variant", "drq+ht", "--steps", "5", "--evaluation-episodes", "0"]
    assert main([*arguments, "--record", str(path)]) == 0
    assert capsys.readouterr().out == "Pong, drq+ht: 5 steps, 0 updates, 0 games\n"
    assert json.loads(path.read_text())["config"] == json.loads(json.dumps(asdict(agent_variant("drq+ht"))))


def test_the_command_line_refuses_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    existing = tmp_path / "thesis.json"
    existing.write_text("{}")
    monkeypatch.setattr(TrainingRun, "advance", None)
    for arguments, said in (
        (["--variant", "drq-ht"], "Did you mean 'drq+ht'"),
        (["--steps", "0"], "train: steps = 0"),
        (["--device", f"cuda:{torch.cuda.device_count()}"], "there is no such device here"),
        (["--checkpoint-dir", str(existing)], "checkpoint_dir = "),
        (["--record", str(tmp_path / "none" / "record.json")], "there is no folder"),
        (["--record", str(tmp_path)], "it exists"),
        (["--record", str(existing)], "it exists"),
    ):
        assert main(["--game", "pong", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert existing.read_text() == "{}"


def test_the_command_line_continues_and_refuses_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, path = tmp_path / "run", tmp_path / "record.json"
    arguments = ["--game", "pong", "--evaluation-episodes", "0", "--checkpoint-dir", str(run)]
    recorded = [*arguments, "--record", str(path), "--steps"]
    assert main([*recorded, "3"]) == 0
    assert main([*recorded, "5"]) == 0  # its own record may be replaced
    assert json.loads(path.read_text())["steps"] == 5
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 1}))
    capsys.readouterr()
    for wrong, said in (
        ([*arguments, "--record", str(other)], "is no record of the run to be continued"),
        ([*arguments, "--variant", "drq+ht"], "config.momentum = None there, 0.995 here"),
        ([*arguments, "--steps", "4"], "has made 5 already"),
    ):
        assert main(wrong) == 2
        assert said in capsys.readouterr().err
    (run / "checkpoint.bin").write_bytes(b"nothing")
    assert main(arguments) == 2
    assert "is no checkpoint to continue from" in capsys.readouterr().err
