"""Agents on a GPU: what the CPU computes, in CUDA graphs or without, from one device to the other, without a wait.

What CUDA graphs rest on is tested on the CPU as well, by a stand-in that notes every operation with its tensors and
repeats them. Needs torch, numpy and pytest only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from recorded_graph import Recorded
from torch import Tensor

from ht_ray import cuda_graph as graphs
from ht_ray.agents.base import Agent
from ht_ray.agents.base_config import AgentConfig
from ht_ray.agents.bbf.config import BBFConfig
from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.registry import make_agent
from ht_ray.agents.replay import FrameReplay, make_replay
from ht_ray.cuda_graph import Captured
from ht_ray.errors import SettingError

SIDE = 42
DRQ: dict[str, Any] = {"batch_size": 4, "hidden": 16, "replay_capacity": 300, "n_step": 3}
BBF: dict[str, Any] = {
    "batch_size": 2,
    "width": 0.25,
    "hidden": 16,
    "replay_capacity": 300,
    "n_step_start": 6,
    "spr_steps": 2,
    "learning_starts": 100,
}

#: Every event that replaces what a graph works on, or changes it in place, between enough updates for a capture.
CONFIGS: dict[str, AgentConfig] = {
    "drq": DrQConfig(**DRQ),
    "drq with resets": DrQConfig(**DRQ, momentum=0.5, reset_interval=3),
    "drq, cleared": DrQConfig(**DRQ, momentum=0.5, reset_interval=8, optimizer_state="clear"),
    "drq, all at once": DrQConfig(
        **DRQ, momentum=0.5, reset_interval=3, shrink_perturb_interval=9, head_reset_interval=7, act_with_tortoise=True
    ),
    "drq, prioritized": DrQConfig(**DRQ, prioritized=True, value="two_hot", momentum=0.5),
    "drq with methods": DrQConfig(
        **DRQ,
        momentum=0.5,
        reset_interval=8,
        methods="l2+regenerative+weight_clipping+optimizer_reset",
        method_settings={"optimizer_reset_interval": 11, "weight_clipping_factor": 0.5},
    ),
    # The n-step falls every other update, and starts anew after 14 and 28.
    "bbf": BBFConfig(**BBF, cycle_updates=12, restart_interval=14, training_steps=126, reset_interval=5, momentum=0.5),
    "bbf, cleared": BBFConfig(
        **BBF,
        cycle_updates=1,
        restart_interval=14,
        training_steps=126,
        restart_optimizer_state="clear",
        published_n_step=True,
    ),
    "bbf without spr": BBFConfig(**{**BBF, "spr_weight": 0.0}, cycle_updates=1, momentum=0.5, reset_interval=6),
}
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The GPU, computing alike each time and in 32 bits; or the CPU, with graphs that are recorded."""
    if request.param == "cuda":
        backends = torch.backends
        monkeypatch.setattr(backends.cudnn, "allow_tf32", False)
        monkeypatch.setattr(backends.cuda.matmul, "allow_tf32", False)
        monkeypatch.setattr(backends.cudnn, "deterministic", True)
        monkeypatch.setattr(backends.cudnn, "benchmark", False)
    else:
        monkeypatch.setattr(graphs, "Graph", Recorded)
        for module in ("base", "replay.frame_replay"):
            monkeypatch.setattr(f"ht_ray.agents.{module}.use_graph", lambda where, graph, device, **_: graph == "on")
        monkeypatch.setattr(Recorded, "captures", 0)
        monkeypatch.setattr(Recorded, "replays", 0)
    yield request.param


class Run:
    """An agent and a replay, which sees the same random game whatever the device."""

    def __init__(self, config: AgentConfig, device: str, graph: Any = "off", precision: Any = "fp32") -> None:
        self.config = config
        self.agent: Agent = make_agent(
            config, shape=(2, SIDE, SIDE), num_actions=3, seed=1, device=device, graph=graph, precision=precision
        )
        self.replay: FrameReplay = make_replay(
            config.replay_config(stack=2, device=device, graph=graph), frame_shape=(SIDE, SIDE), seed=2
        )
        self.steps = 0
        self.play(120)

    def play(self, steps: int) -> None:
        for _ in range(steps):
            draws = np.random.default_rng(self.steps)
            frame = draws.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)
            if self.steps % 19 == 0:
                self.replay.start(frame)
            else:
                over = self.steps % 19 == 18
                self.replay.add(int(draws.integers(3)), float(draws.normal()), frame, terminated=over, truncated=False)
            self.steps += 1

    def learn(self, updates: int) -> list[Tensor]:
        """Return what each update measured and the actions chosen after it; what was sampled before stays as it was."""
        config, found = self.config, []
        batch = None
        while len(found) < updates:
            self.play(1)
            now = self.agent.sampling()
            before = None if batch is None else (batch, {name: x.clone() for name, x in batch.columns().items()})
            batch = self.replay.sample(
                config.batch_size * config.batches_per_sample,
                n_step=now.n_step,
                discount=now.discount,
                sequence=now.sequence,
            )
            if before is not None:
                assert all(torch.equal(x, before[1][name]) for name, x in before[0].columns().items())
            losses = []
            for part in batch.split(config.batch_size):
                measured = self.agent.update(part)
                losses.append(measured["losses"])
                chosen = self.agent.act(part.observations)
                found.append(torch.cat([*(x.reshape(-1) for x in measured.values()), chosen.to(losses[0])]))
            if config.prioritized:
                self.replay.update_priorities(batch.indices, torch.cat(losses))
        return [x.cpu() for x in found]

    def state(self) -> tuple[Any, Any]:
        return self.agent.state_dict(), self.replay.state_dict()

    def load(self, other: Run) -> None:
        agent, replay = other.state()
        self.agent.load_state_dict(agent)
        self.replay.load_state_dict(replay)
        self.steps = other.steps


def assert_same(ours: Any, theirs: Any) -> None:
    """Nested tensors and plain data are equal, bit for bit."""
    if isinstance(ours, Mapping):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert_same(ours[name], theirs[name])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(ours, Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


def assert_close(run: Run, ours: list[Tensor], theirs: list[Tensor], *, rtol: float) -> None:
    """What was measured differs by rounding; the actions, which come last, may differ altogether."""
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one[: -run.config.batch_size], other[: -run.config.batch_size], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("device", ["recorded", GPU], indirect=True)
@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "fp32") for name in CONFIGS), ("drq with resets", "bf16"), ("bbf", "bf16")]
)
def test_a_graph_does_what_eager_updates_do(device: str, name: str, precision: str) -> None:
    where = "cuda" if device == "cuda" else "cpu"
    eager, captured = (Run(CONFIGS[name], where, graph, precision) for graph in ("off", "on"))
    expected, found = eager.learn(30), captured.learn(30)
    if where == "cpu":
        assert Recorded.captures > 2 and Recorded.replays > 10
    elif name.startswith("bbf") and not all(map(torch.equal, found, expected)):
        # On a GPU, gradients of pooling may be added up in any order. Then eager runs differ, too.
        again = Run(CONFIGS[name], where, "off", precision).learn(30)
        assert not all(map(torch.equal, again, expected))
        assert_close(captured, found[:8], expected[:8], rtol=1e-2 if precision == "fp32" else 0.1)
        return
    assert_same(found, expected)
    agent, other = captured.agent.state_dict(), eager.agent.state_dict()
    for state in (agent, other):
        for group in state["optimizer"]["param_groups"]:
            del group["capturable"]
    assert_same(agent, other)
    assert_same(captured.replay.state_dict(), eager.replay.state_dict())


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_gpu_finds_what_the_cpu_finds(device: str, name: str) -> None:
    # With batches, shifts and exploration drawn alike; later losses show whether weights went the same way.
    gpu, cpu = Run(CONFIGS[name], device, "auto"), Run(CONFIGS[name], "cpu")
    assert_close(cpu, gpu.learn(10), cpu.learn(10), rtol=1e-3)


@pytest.mark.parametrize("device", ["recorded", GPU], indirect=True)
@pytest.mark.parametrize("name", ["drq with resets", "drq, prioritized", "bbf"])
@pytest.mark.parametrize("into", ["on", "off"])
def test_it_is_saved_and_continued_among_captured_updates(device: str, name: str, into: str) -> None:
    where = "cuda" if device == "cuda" else "cpu"
    first = Run(CONFIGS[name], where, "on")
    first.learn(8)
    second = Run(CONFIGS[name], where, into)
    second.learn(10)  # what it captured itself is of no use after it loads
    second.load(first)
    ours, theirs = second.learn(10), first.learn(10)
    if where == "cuda" and name == "bbf":  # see above
        assert_close(first, ours, theirs, rtol=1e-2)
    else:
        assert_same(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("name", ["drq with resets", "drq, prioritized", "bbf"])
@pytest.mark.parametrize(("source", "target"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_it_goes_on_on_another_device(device: str, name: str, source: str, target: str) -> None:
    first = Run(CONFIGS[name], source, "auto")
    first.learn(8)
    second = Run(CONFIGS[name], target, "auto")
    second.load(first)
    assert_close(first, second.learn(6), first.learn(6), rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("graph", ["on", "off"])
@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_of_an_update_waits(device: str, name: str, graph: str) -> None:
    # No reset, restart or clearing is due in these updates, which may copy new weights from the CPU.
    config = replace(CONFIGS[name], **{"cycle_updates": 1} if name.startswith("bbf") else {})
    run = Run(config, device, graph)
    run.learn(10 if name.startswith("bbf") else 7)
    now = run.agent.sampling()
    run.play(2)
    size = config.batch_size * config.batches_per_sample
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = run.replay.sample(size, n_step=now.n_step, discount=now.discount, sequence=now.sequence)
        losses = [run.agent.update(part)["losses"] for part in batch.split(config.batch_size)]
        if config.prioritized:
            run.replay.update_priorities(batch.indices, torch.cat(losses))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", ["recorded", GPU], indirect=True)
def test_a_captured_function_follows_shapes_arguments_and_replaced_tensors(device: str) -> None:
    where = "cuda" if device == "cuda" else "cpu"
    held = {"sum": torch.zeros(2, device=where)}

    def add(factor: int, *, x: Tensor) -> dict[str, Tensor]:
        held["sum"] += factor * x.sum()
        return {"sum": held["sum"].detach(), "twice": 2 * x}

    captured = Captured(add, on=True, held=lambda: list(held.values()))
    total = 0.0
    results = []
    for size, factor, fresh in [*[(2, 1, False)] * 7, *[(3, 1, False)] * 6, *[(3, 2, False)] * 6, (3, 2, True)] * 2:
        if fresh:
            held["sum"], total = torch.zeros(2, device=where), 0.0
        x = torch.full((size,), float(len(results) + 1), device=where)
        total += factor * size * (len(results) + 1)
        result = captured(factor, x=x)
        assert held["sum"].tolist() == [total, total] and result["sum"].tolist() == [total, total]
        results.append((result["twice"], 2 * x))
    assert all(torch.equal(ours, expected) for ours, expected in results)


@pytest.mark.parametrize("device", ["recorded", GPU], indirect=True)
def test_a_learning_rate_that_changes_is_followed(device: str) -> None:
    where = "cuda" if device == "cuda" else "cpu"
    runs = [Run(CONFIGS["drq"], where, graph) for graph in ("on", "off")]
    for run in runs:
        run.learn(6)
        run.agent.optimizer.param_groups[0]["lr"] = 0.1
    assert_same(runs[0].learn(2), runs[1].learn(2))


@pytest.mark.parametrize("config", [CONFIGS["drq"], CONFIGS["bbf"]])
def test_graphs_are_refused_where_there_is_no_gpu(config: AgentConfig) -> None:
    assert not make_agent(config, shape=(2, SIDE, SIDE), num_actions=3).graph
    with pytest.raises(SettingError, match=r"Agent: graph = 'on': CUDA graphs need a GPU, and the device is 'cpu'"):
        make_agent(config, shape=(2, SIDE, SIDE), num_actions=3, graph="on")
    with pytest.raises(SettingError, match=r"FrameReplay: graph = 'on'"):
        make_replay(config.replay_config(stack=2, graph="on"))
    with pytest.raises(SettingError, match=r"graph = 'yes': accepted"):
        make_agent(config, shape=(2, SIDE, SIDE), num_actions=3, graph="yes")


def test_a_state_with_moments_in_channels_last_is_continued_alike() -> None:
    first, second, third = (Run(CONFIGS["drq with resets"], "cpu") for _ in range(3))
    first.learn(4)
    second.load(first)
    agent, replay = first.state()
    for values in agent["optimizer"]["state"].values():
        for name, value in values.items():
            if value.ndim == 4:
                values[name] = value.contiguous(memory_format=torch.channels_last)
    third.agent.load_state_dict(agent)
    third.replay.load_state_dict(replay)
    third.steps = first.steps
    assert_same(third.learn(4), second.learn(4))
