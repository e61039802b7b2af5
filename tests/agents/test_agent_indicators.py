"""Indicators of agents: measured when and on what is said, leaving training as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ht_ray.agents.augmentation import to_unit
from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.replay import FrameReplay
from ht_ray.agents.training.train import TrainingRun
from ht_ray.diagnostics import dormant_ratios, weight_distance
from ht_ray.errors import SettingError

SMALL: dict[str, Any] = {"learning_starts": 20, "n_step": 3, "hidden": 8, "batch_size": 2, "replay_capacity": 100}


def run(**given: Any) -> TrainingRun:
    config = DrQConfig(**SMALL, momentum=0.5, reset_interval=10)
    return TrainingRun("Breakout", config, seed=1, env=AtariConfig(max_steps=45), **given)


def test_they_are_of_the_network_before_the_step_and_its_reset() -> None:
    measured, plain = run(indicators_interval=10), run()
    initial = {name: parameter.detach().clone() for name, parameter in plain.agent.network.named_parameters()}
    seen: dict[str, float] = {}
    draw = FrameReplay.observations

    def watched(replay: FrameReplay, count: int, *, seed: int) -> torch.Tensor:
        found = draw(replay, count, seed=seed)
        # The second run stands where the first does: 9 updates made, the step's observation in the replay.
        seen["distance"] = float(weight_distance(measured.agent.network, initial)["all"])
        seen["dormant"] = float(dormant_ratios(measured.agent.network, to_unit(found), (0.025,))[0.025]["all"])
        assert (measured.agent.updates, found.shape) == (9, (512, 4, 84, 84))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameReplay, "observations", watched)
        measured.advance(30)
    (row,) = measured.record.indicators
    assert (row["step"], row["update"]) == (30, 10)
    assert row["weight_distance"] == pytest.approx(seen["distance"]) and seen["distance"] > 0
    assert row["dormant_ratio"] == pytest.approx(seen["dormant"])
    plain.advance(30)
    one, two = (own.agent.network.state_dict() for own in (measured, plain))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert measured.collector.replay.state_dict()["samples"] == plain.collector.replay.state_dict()["samples"]


def test_an_interval_is_at_least_one() -> None:
    with pytest.raises(SettingError, match="indicators_interval = 0"):
        run(indicators_interval=0)
