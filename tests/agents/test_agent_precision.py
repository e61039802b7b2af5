"""Precision of agents: bf16 for BBF on a GPU unless told otherwise, and what a run was begun with when it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from simulated_cuda import simulated_cuda

from ht_ray.agents import agent_variant
from ht_ray.agents.base import Agent
from ht_ray.agents.base_config import AgentConfig
from ht_ray.agents.envs.catch import CatchConfig
from ht_ray.agents.registry import make_agent
from ht_ray.agents.replay.packing import read_file
from ht_ray.agents.training.checkpoint import CheckpointError, save_checkpoint
from ht_ray.agents.training.train import TrainingRun
from ht_ray.errors import SettingError

SMALL: dict[str, Any] = {"hidden": 8, "batch_size": 2, "learning_starts": 10, "replay_capacity": 60}
DRQ = agent_variant("drq", **SMALL, n_step=3)
BBF = agent_variant("bbf", **SMALL, width=0.125)
GAME = CatchConfig(balls=1)


def agent(config: AgentConfig, **given: Any) -> Agent:
    return make_agent(config, shape=(4, 84, 84), num_actions=3, **given)


def test_bbf_is_in_bf16_on_a_gpu_and_everything_else_in_fp32() -> None:
    assert (agent(DRQ).precision, agent(BBF).precision) == ("fp32", "fp32")
    with simulated_cuda():
        assert (agent(DRQ, device="cuda").precision, agent(BBF, device="cuda").precision) == ("fp32", "bf16")
        assert agent(BBF, device="cuda", precision="fp32").precision == "fp32"
    with pytest.raises(SettingError, match="precision = 'half': accepted are 'auto', 'fp32', 'bf16'"):
        agent(BBF, precision="half")


def test_a_state_goes_on_in_its_own_precision_unless_another_is_asked_for() -> None:
    state = agent(BBF).state_dict()
    with simulated_cuda():
        here, told = agent(BBF, device="cuda"), agent(BBF, device="cuda", precision="bf16")
        for one in (here, told):
            one.load_state_dict(state)
        theirs = told.state_dict()
    assert (here.precision, told.precision) == ("fp32", "bf16")
    back = agent(BBF)
    back.load_state_dict(theirs)
    assert back.precision == "bf16"
    del state["precision"]  # of an earlier version, whose default was fp32 everywhere
    back.load_state_dict(state)
    assert back.precision == "fp32"


def test_a_run_goes_on_in_the_precision_it_was_begun_with(tmp_path: Path) -> None:
    def run(precision: Any) -> TrainingRun:
        return TrainingRun("Catch", DRQ, env=GAME, precision=precision)

    path = tmp_path / "run.bin"
    begun = run("bf16")
    begun.advance(14)
    begun.save(path)
    goes_on = run("auto")
    goes_on.load(path)
    assert goes_on.agent.precision == "bf16"
    with pytest.raises(CheckpointError, match=r"precision = 'bf16' there, 'fp32' here$"):
        run("fp32").load(path)
    older = read_file(path)
    del older["state"]["agent"]["precision"], older["settings"]["overlap"]
    save_checkpoint(path, older["settings"], older["state"])
    goes_on = run("auto")
    goes_on.load(path)
    assert goes_on.agent.precision == "bf16"
    for one in (begun, goes_on):
        one.advance(20)
    assert goes_on.record == begun.record
