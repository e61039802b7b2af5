"""BBF in the plain loop: what is sampled when, and that a run that was stopped is the run that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ht_ray.agents.bbf.agent import BBFAgent
from ht_ray.agents.bbf.config import BBFConfig
from ht_ray.agents.envs.catch import CatchConfig
from ht_ray.agents.replay import Batch
from ht_ray.agents.replay.packing import read_file
from ht_ray.agents.training.train import TrainingRun, main, train

GAME = CatchConfig(cells=4, balls=2)
SMALL: dict[str, Any] = {
    "width": 0.125,
    "hidden": 8,
    "bins": 11,
    "batch_size": 3,
    "spr_steps": 2,
    "shift": 1,
    "learning_starts": 20,
    "epsilon_decay_steps": 20,
    "replay_capacity": 60,
    "updates_per_step": 4,
    "restart_interval": 40,
    "cycle_updates": 30,
    "reset_interval": 16,
    "momentum": 0.9,
    "training_steps": 70,
}


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """200 updates with four restarts, stopped in the middle of a game and of a cycle."""
    settings: dict[str, Any] = {"seed": 4, "env": GAME, "evaluation_episodes": 0}
    record = train("Catch", BBFConfig(**SMALL), steps=70, checkpoint_dir=tmp_path / "whole", **settings)
    train("Catch", BBFConfig(**SMALL), steps=34, checkpoint_dir=tmp_path / "stopped", **settings)
    stopped = read_file(tmp_path / "stopped" / "checkpoint.bin")["state"]
    assert stopped["collector"]["env"]["running"] and stopped["agent"]["updates"] == 56
    train("Catch", BBFConfig(**SMALL), steps=70, checkpoint_dir=tmp_path / "stopped", **settings)
    whole, continued = (read_file(tmp_path / name / "checkpoint.bin")["state"] for name in ("whole", "stopped"))
    assert record.updates == whole["agent"]["updates"] == 200
    assert whole["agent"]["methods"]["restart"]["network head"]["applications"] == 4
    assert whole["agent"]["methods"]["hare_tortoise"]["resets"] == 12
    for part, state in whole.items():
        assert equal(state, continued[part]), part


def test_batches_are_sampled_together_and_their_priorities_set_together(monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingRun("Catch", BBFConfig(**SMALL | {"reset_interval": None}), env=GAME)
    agent, replay = run.agent, run.collector.replay
    assert isinstance(agent, BBFAgent)
    run.advance(20)
    events: list[Any] = []
    sample, update, prioritise = replay.sample, agent.update, replay.update_priorities

    def sampling(size: int, **how: Any) -> Batch:
        drawn = sample(size, **how)
        events.append((agent.updates, size, how, drawn))
        return drawn

    def updating(batch: Batch) -> dict[str, torch.Tensor]:
        measured = update(batch)
        events.append((batch, measured))
        return measured

    def prioritising(indices: torch.Tensor, losses: torch.Tensor) -> None:
        prioritise(indices, losses)
        events.append((indices, losses, "priorities"))

    monkeypatch.setattr(replay, "sample", sampling)
    monkeypatch.setattr(agent, "update", updating)
    monkeypatch.setattr(replay, "update_priorities", prioritising)
    run.advance(32)
    assert agent.updates == 48 and len(events) == 24 * 4
    for group in range(24):
        (updates, size, how, drawn), *learned, (indices, losses, _) = events[4 * group : 4 * group + 4]
        assert updates == 2 * group and size == 6
        since = updates if updates < 40 else updates - 40
        # As the schedules are written down: 10 * 0.3 ** x and 1 - 0.03 * 0.1 ** x, rounded to whole steps.
        assert how["n_step"] == round(10 * 0.3 ** min(since / 30, 1)) and how["sequence"] == 2
        assert how["discount"] == pytest.approx(1 - 0.03 * 0.1 ** min(since / 30, 1))
        assert torch.equal(torch.cat([batch.indices for batch, _ in learned]), drawn.indices)
        assert torch.equal(torch.cat([batch.future_observations for batch, _ in learned]), drawn.future_observations)
        assert torch.equal(indices, drawn.indices)
        assert torch.equal(losses, torch.cat([measured["losses"] for _, measured in learned]))
        # One over the square root of the priority, which is the square root of the loss; largest 1 in the whole group.
        assert drawn.weights.max() == 1
    later = sample(200, n_step=3, sequence=2)
    held = dict(zip(indices.tolist(), losses.tolist(), strict=True))
    once = {int(slot) for slot in indices if (indices == slot).sum() == 1}
    pairs = [(w, held[int(s)]) for w, s in zip(later.weights, later.indices, strict=True) if int(s) in once]
    products = torch.tensor([float(weight) * loss**0.25 for weight, loss in pairs])
    assert len(set(later.indices.tolist()) & once) > 1
    torch.testing.assert_close(products, products[:1].expand_as(products))


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--game", "pong", "--variant", "bbf-ht"]) == 2
    assert "Did you mean" in capsys.readouterr().err
    arguments = ["--game", "pong", "--variant", "bbf-spr0+ht", "--steps", "2", "--evaluation-episodes", "0"]
    path = tmp_path / "record.json"
    assert main([*arguments, "--record", str(path)]) == 0
    assert capsys.readouterr().out == "Pong, bbf-spr0+ht: 2 steps, 0 updates, 0 games\n"
    assert '"training_steps": 2' in path.read_text()
