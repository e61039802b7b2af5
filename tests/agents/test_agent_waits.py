"""Sampling, learning and setting priorities never wait for the device; acting waits for its action. All simulated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simulated_cuda import Counts, simulated_cuda

from ht_ray.agents.bbf.agent import BBFAgent
from ht_ray.agents.bbf.config import BBFConfig
from ht_ray.agents.drq.agent import DrQAgent
from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.replay import FrameReplay, make_replay

pytestmark = pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")

SHAPE = (4, 84, 84)
AGENTS = {
    "drq": (DrQAgent, DrQConfig(batch_size=4, hidden=16, momentum=0.9, reset_interval=1, replay_capacity=300)),
    "bbf": (BBFAgent, BBFConfig(batch_size=2, width=0.25, hidden=16, replay_capacity=300)),
    "bbf without SPR": (BBFAgent, BBFConfig(batch_size=2, width=0.25, hidden=16, replay_capacity=300, spr_weight=0.0)),
}


def filled(config: DrQConfig | BBFConfig) -> FrameReplay:
    replay = make_replay(config.replay_config(stack=4, device="cuda"), frame_shape=SHAPE[1:], seed=0)
    draw = np.random.default_rng(0)
    replay.start(draw.integers(0, 255, SHAPE[1:], dtype=np.uint8))
    for _ in range(40):
        frame = draw.integers(0, 255, SHAPE[1:], dtype=np.uint8)
        replay.add(int(draw.integers(6)), 0.5, frame, terminated=False, truncated=False)
    return replay


@pytest.mark.parametrize("name", AGENTS)
def test_learning_waits_for_nothing_and_acting_for_its_action(name: str) -> None:
    kind, config = AGENTS[name]
    with simulated_cuda() as counts:
        agent, replay = kind(config, shape=SHAPE, num_actions=6, device="cuda"), filled(config)

        def learn() -> None:
            how = agent.sampling()
            size = config.batch_size * config.batches_per_sample
            batches = replay.sample(size, n_step=how.n_step, discount=how.discount, sequence=how.sequence)
            done = [agent.update(batch) for batch in batches.split(config.batch_size)]
            if config.prioritized:
                replay.update_priorities(batches.indices, torch.cat([values["losses"] for values in done]))

        learn()  # makes what is made once
        forget(counts)
        learn()
        assert not counts.waits
        assert not counts.unpinned
        assert counts.kernels > 50
        agent.act(torch.zeros(1, *SHAPE, dtype=torch.uint8))
        assert counts.waits.total() == 1


def forget(counts: Counts) -> None:
    for counter in (counts.waits, counts.unpinned, counts.operations):
        counter.clear()
