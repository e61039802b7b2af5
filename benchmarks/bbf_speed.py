"""What an update of BBF costs: the plain loop beside RLlib's `BBF`, where the time goes, and what a GPU makes of it.

    python benchmarks/bbf_speed.py [--variant bbf] [--updates 20] [--device cuda]

All play Freeway with the full network. Plain loop and RLlib take turns, a step of the agent with its updates each, so
that what else the machine does hits both; printed are medians over the turns, per update, and their ratio. The profile
is of the plain loop, with a clock (and on a GPU a synchronisation) around each part, whatever is not named being the
rest. On a GPU follow updates per second, hours for Atari-100k's 100 000 steps, games of the agent included, and the
peak of allocated memory: in 32 bits and bf16, compiled and not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ht_ray.agents.bbf.agent import BBFAgent
from ht_ray.agents.bbf.config import BBF_VARIANTS, BBFConfig
from ht_ray.agents.registry import agent_variant
from ht_ray.agents.training.train import TrainingRun

GAME, STARTS = "Freeway", 100


def config(variant: str) -> BBFConfig:
    """Return the variant, which begins to learn at once."""
    return agent_variant(variant, learning_starts=STARTS)


def synchronise(device: str) -> None:
    """Wait for a GPU."""
    if device != "cpu":
        torch.cuda.synchronize()


def plain_run(variant: str, device: str, **how: Any) -> TrainingRun:
    """Return a run that has made its first updates, which allocate and compile."""
    run = TrainingRun(GAME, config(variant), device=device, **how)
    run.advance(STARTS + 1)
    return run


def rllib_step(variant: str, device: str) -> Callable[[], None]:
    """Return what makes a training step of `BBF`, one step of the agent, after its first updates."""
    from ht_ray.rllib import BBFAlgorithmConfig

    settings = BBFAlgorithmConfig().environment(GAME).training(variant=variant, learning_starts=STARTS)
    settings.env_runners(rollout_fragment_length=1).learners(num_gpus_per_learner=int(device != "cpu"))
    algorithm = settings.debugging(seed=0, log_level="ERROR").build_algo()
    for _ in range(STARTS + 1):
        algorithm.training_step()
    step: Callable[[], None] = algorithm.training_step
    return step


def side_by_side(run: TrainingRun, step: Callable[[], None], device: str, updates: int) -> None:
    """Print what an update takes in the plain loop and in RLlib."""
    per_step = run.config.updates_per_step
    contestants = {"plain loop": lambda: run.advance(run.record.steps + 1), "RLlib BBF": step}
    turns: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(max(1, updates // per_step)):
        # Who comes first changes.
        for name in list(contestants)[:: 1 if turn % 2 else -1]:
            synchronise(device)
            start = time.perf_counter()
            contestants[name]()
            synchronise(device)
            turns[name].append((time.perf_counter() - start) / per_step * 1e3)
    base = statistics.median(turns["plain loop"])
    for name, measured in turns.items():
        middle = statistics.median(measured)
        print(f"{name:>10}: {middle:8.1f} ms per update, {middle / base:5.2f} x the plain loop's")


@contextmanager
def timed(run: TrainingRun, device: str) -> Iterator[dict[str, float]]:
    """Put clocks around the parts of an update while the block runs; yield their seconds by part.

    What a part calls that has a clock too is not counted twice.
    """
    seconds: dict[str, float] = defaultdict(float)
    inside = [0.0]
    undo: list[Callable[[], None]] = []

    def clock(owner: Any, name: str, part: str) -> None:
        inner = getattr(owner, name)

        def measured(*arguments: Any, **more: Any) -> Any:
            synchronise(device)
            start = time.perf_counter()
            inside.append(0.0)
            result = inner(*arguments, **more)
            synchronise(device)
            taken = time.perf_counter() - start
            seconds[part] += taken - inside.pop()
            inside[-1] += taken
            return result

        own = name in vars(owner)
        setattr(owner, name, measured)
        undo.append(lambda: setattr(owner, name, inner) if own else delattr(owner, name))

    agent, replay = run.agent, run.collector.replay
    assert isinstance(agent, BBFAgent)
    clock(replay, "sample", "replay: draw")
    clock(replay, "update_priorities", "replay: priorities")
    clock(agent, "_augmented", "augmentation")
    # Of modules the forward alone: `forward` as an instance's attribute is what their call finds.
    clock(agent.network.backbone.encoder, "forward", "forward: encoder, online")
    clock(agent.target.backbone.encoder, "forward", "forward: encoder, target")
    clock(agent.network.head.projection, "forward", "forward: heads")
    clock(agent.target.head.projection, "forward", "forward: heads")
    if agent.network.backbone.transition is not None:
        clock(agent.network.backbone.transition, "forward", "forward: SPR's model")
        clock(agent.network.head.predictor, "forward", "forward: SPR's model")
    clock(torch.Tensor, "backward", "backward")
    clock(agent.optimizer, "step", "optimiser")
    clock(agent.tortoise, "step", "tortoise (average)")
    clock(run.collector, "step", "game and acting")
    try:
        yield seconds
    finally:
        for back in reversed(undo):
            back()


def profile(run: TrainingRun, device: str, updates: int) -> None:
    """Print where the plain loop's time goes."""
    steps = max(1, updates // run.config.updates_per_step)
    with timed(run, device) as seconds:
        start = time.perf_counter()
        run.advance(run.record.steps + steps)
        synchronise(device)
        whole = time.perf_counter() - start
    parts = dict(sorted(seconds.items(), key=lambda part: -part[1]))
    parts["the rest"] = max(0.0, whole - sum(parts.values()))
    made = steps * run.config.updates_per_step
    for part, taken in parts.items():
        print(f"{part:>26}: {taken / made * 1e3:8.1f} ms per update, {taken / whole:6.1%}")


def on_a_gpu(variant: str, device: str, updates: int) -> None:
    """Print updates per second, hours for 100 000 steps and peak memory, by precision and compilation."""
    for precision in ("fp32", "bf16"):
        for compiled in (False, True):
            torch.cuda.reset_peak_memory_stats()
            run = plain_run(variant, device, precision=precision, compile=compiled)
            run.advance(run.record.steps + 20)
            synchronise(device)
            before, start = run.record.updates, time.perf_counter()
            run.advance(run.record.steps + max(1, updates // run.config.updates_per_step))
            synchronise(device)
            rate = (run.record.updates - before) / (time.perf_counter() - start)
            hours = agent_variant(variant).total_updates / rate / 3600
            memory = torch.cuda.max_memory_allocated() / 2**30
            how = f"{precision}{', compiled' if compiled else ''}"
            print(f"{how:>14}: {rate:7.1f} updates per second, {hours:5.2f} hours, {memory:5.2f} GiB", flush=True)
            del run


def main() -> None:
    parser = argparse.ArgumentParser(description="Time an update of BBF, in the plain loop and in RLlib.")
    parser.add_argument("--variant", default="bbf-spr0", choices=list(BBF_VARIANTS))
    parser.add_argument("--updates", type=int, default=20, help="of each contestant (default: 20)")
    parser.add_argument("--gpu-updates", type=int, default=1000, help="of each setting on a GPU (default: 1000)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--no-rllib", action="store_true", help="leave RLlib out")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run = plain_run(given.variant, given.device)
    print(f"{given.variant}: {sum(p.numel() for p in run.agent.network.parameters())} parameters", flush=True)
    if not given.no_rllib:
        side_by_side(run, rllib_step(given.variant, given.device), given.device, given.updates)
    profile(run, given.device, given.updates)
    del run
    if given.device != "cpu":
        on_a_gpu(given.variant, given.device, given.gpu_updates)


if __name__ == "__main__":
    main()
