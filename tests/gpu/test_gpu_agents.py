"""Agents learn on a GPU what they learn on the CPU, and go on from either."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from ht_ray.agents.bbf.agent import BBFAgent
from ht_ray.agents.bbf.config import BBFConfig
from ht_ray.agents.drq.agent import DrQAgent
from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.replay import FrameReplay, make_replay

pytestmark = pytest.mark.gpu

SHAPE = (4, 84, 84)
Learner = tuple[DrQAgent | BBFAgent, FrameReplay]


def make_learner(name: str, device: torch.device | str) -> Learner:
    config: DrQConfig | BBFConfig
    if name == "drq":
        config = DrQConfig(batch_size=4, hidden=16, momentum=0.9, reset_interval=3, replay_capacity=500)
        agent = DrQAgent(config, shape=SHAPE, num_actions=6, device=device)
    else:
        config = BBFConfig(batch_size=2, width=0.25, hidden=16, replay_capacity=500)
        agent = BBFAgent(config, shape=SHAPE, num_actions=6, device=device, precision="fp32")
    replay = make_replay(config.replay_config(stack=4, device=str(device)), frame_shape=SHAPE[1:], seed=0)
    draw = np.random.default_rng(0)
    replay.start(draw.integers(0, 255, SHAPE[1:], dtype=np.uint8))
    for step in range(100):
        frame = draw.integers(0, 255, SHAPE[1:], dtype=np.uint8)
        replay.add(
            int(draw.integers(6)), float(draw.integers(-1, 2)), frame, terminated=step % 31 == 30, truncated=False
        )
        if step % 31 == 30:
            replay.start(frame)
    return agent, replay


def learn(learner: Learner, updates: int) -> Tensor:
    agent, replay = learner
    config, losses = agent.config, []
    while len(losses) < updates:
        how = agent.sampling()
        count = config.batch_size * config.batches_per_sample
        batches = replay.sample(count, n_step=how.n_step, discount=how.discount, sequence=how.sequence)
        done = [agent.update(batch) for batch in batches.split(config.batch_size)]
        if config.prioritized:
            replay.update_priorities(batches.indices, torch.cat([values["losses"] for values in done]))
        losses += [values["loss"].cpu() for values in done]
    return torch.stack(losses)


@pytest.mark.parametrize("name", ["drq", "bbf"])
def test_an_agent_learns_and_acts_as_on_the_cpu(device: torch.device, name: str) -> None:
    learner, expected = make_learner(name, device), make_learner(name, "cpu")
    torch.testing.assert_close(learn(learner, 8), learn(expected, 8), rtol=1e-3, atol=1e-4)
    seen = torch.randint(256, (32, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    same = learner[0].act(seen) == expected[0].act(seen)
    assert same.device.type == "cpu"
    assert float(same.float().mean()) > 0.9


@pytest.mark.parametrize("name", ["drq", "bbf"])
@pytest.mark.parametrize("route", ["to the device", "to the CPU", "on the device"])
def test_an_agent_goes_on_from_a_state_of_another_device(device: torch.device, name: str, route: str) -> None:
    cpu = torch.device("cpu")
    first, second = {"to the device": (cpu, device), "to the CPU": (device, cpu), "on the device": (device,) * 2}[route]
    source = make_learner(name, first)
    learn(source, 4)
    states = [copy.deepcopy(part.state_dict()) for part in source]
    goes_on = make_learner(name, second)
    for part, state in zip(goes_on, states, strict=True):
        part.load_state_dict(state)
    torch.testing.assert_close(learn(goes_on, 4), learn(source, 4), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["drq", "bbf"])
def test_half_precision_is_near_float32(device: torch.device, name: str) -> None:
    full, half = (make_learner(name, device) for _ in range(2))
    half[0].precision = "bf16"
    torch.testing.assert_close(learn(half, 4), learn(full, 4), rtol=0.1, atol=0.05)
    assert {parameter.dtype for parameter in half[0].network.parameters()} == {torch.float32}
