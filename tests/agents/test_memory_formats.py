"""The memory format of an agent's network changes no draw, and its optimiser is handed nothing laid out otherwise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from ht_ray.agents.base import Agent
from ht_ray.agents.bbf.agent import BBFAgent
from ht_ray.agents.bbf.config import BBFConfig
from ht_ray.agents.bbf.restart import Restart
from ht_ray.agents.drq.agent import DrQAgent
from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.replay import Batch
from ht_ray.mechanisms import fresh_weights
from ht_ray.methods import HeadReset, ShrinkPerturb

SHAPE, ACTIONS, STEPS = (2, 36, 36), 3, 2
DRQ: dict[str, Any] = {"hidden": 8, "momentum": 0.9, "shift": 1, "learning_rate": 1e-2}
BBF: dict[str, Any] = DRQ | {"width": 0.125, "bins": 11, "spr_steps": STEPS, "training_steps": 2050}
AGENTS: dict[str, Any] = {
    "drq": lambda: DrQConfig(**DRQ, reset_interval=2, shrink_perturb_interval=2, head_reset_interval=3),
    "drq, same padding, normalised": lambda: DrQConfig(**DRQ, padding="same", layer_norm=True, value="two_hot"),
    "bbf": lambda: BBFConfig(**BBF, reset_interval=3, restart_interval=2),
    "bbf, cleared": lambda: BBFConfig(**BBF, restart_interval=2, restart_optimizer_state="clear"),
}


def agent(name: str) -> Agent:
    config = AGENTS[name]()
    kind: Any = BBFAgent if isinstance(config, BBFConfig) else DrQAgent
    made: Agent = kind(config, shape=SHAPE, num_actions=ACTIONS)
    return made


def batch(number: int, size: int = 4) -> Batch:
    draws = torch.Generator().manual_seed(number)
    frames = torch.randint(256, (2 + STEPS, size, *SHAPE), generator=draws, dtype=torch.uint8)
    actions = torch.randint(ACTIONS, (size, STEPS), generator=draws)
    return Batch(
        observations=frames[0],
        actions=actions[:, 0],
        returns=torch.randn(size, generator=draws),
        next_observations=frames[1],
        discounts=torch.full((size,), 0.9),
        indices=torch.arange(size),
        weights=torch.rand(size, generator=draws),
        future_observations=frames[2:].transpose(0, 1),
        future_actions=actions,
        future_mask=torch.ones(size, STEPS),
    )


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", AGENTS)
def test_what_is_drawn_anew_is_the_same_in_every_memory_format(name: str, place: str) -> None:
    def redrawn(net: nn.Module) -> dict[str, torch.Tensor]:
        drawn = {f"fresh {key}": value for key, value in fresh_weights(net, seed=1).items()}
        optimizer = torch.optim.Adam(net.parameters())
        ShrinkPerturb(net, toward="fresh", ratio=1.0, seed=2).apply(None, optimizer)
        HeadReset(net, toward="fresh", seed=3).apply(None, optimizer)
        drawn |= {f"methods {key}": value.detach().cpu().clone() for key, value in net.state_dict().items()}
        Restart(net, ratio=1.0, seed=4).apply(optimizer)
        return drawn | {f"restart {key}": value.cpu() for key, value in net.state_dict().items()}

    network = agent(name).network
    other = copy.deepcopy(network).to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    one, two = redrawn(network), redrawn(other)
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []


@pytest.mark.parametrize("name", AGENTS)
def test_gradients_and_state_are_laid_out_as_the_weights_are(name: str, matching_layouts: list[int]) -> None:
    """Of an agent that continues from one whose state was in the other format, as on a GPU."""
    before, expected = agent(name), agent(name)
    for number in range(3):
        before.update(batch(number))
        expected.update(batch(number))
    state = before.state_dict()
    for held in (state["optimizer"]["state"].values(), [state["network"]]):
        for tensors in held:
            for key, value in tensors.items():
                if value.dim() == 4:
                    tensors[key] = value.contiguous(memory_format=torch.channels_last)
    after = agent(name)
    after.load_state_dict(state)
    for number in range(3, 7):
        after.update(batch(number))
        expected.update(batch(number))
    assert max(matching_layouts) > matching_layouts[0] > 0
    for key, value in expected.network.state_dict().items():
        assert torch.equal(after.network.state_dict()[key], value), key
