"""What a replay costs: microseconds per step added, milliseconds per batch of 32 Atari observations.

    python benchmarks/replay_speed.py [STEPS]

Ours on the CPU, uniform and prioritised, beside RLlib's ``EpisodeReplayBuffer``, one thread, in one process, taking
turns; medians of processor time. A step is added at the end of an episode of 10 or 1500 steps; batches are drawn from
STEPS (100 000) steps, with 10-step returns and stacks of 4 where the replay makes them: RLlib's hands out pieces of
episodes of single frames, which are stacked, batched and made tensors elsewhere.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch

from ht_ray.agents.replay import FrameReplay

BATCH = 32
EPISODE = 1500
ROUNDS = 7
ADDED = 20
FRAME = np.random.default_rng(0).integers(0, 256, (84, 84), np.uint8)


def seconds(action: Callable[[], object], times: int) -> float:
    """Processor seconds of one `action`, the mean of so many."""
    began = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - began) / times


class Ours:
    """Our replay, and the moments that are timed."""

    def __init__(self, name: str, steps: int, *, prioritized: bool) -> None:
        self.name = name
        self._prioritized = prioritized
        self._replay = self._filled(steps)

    def _filled(self, steps: int) -> FrameReplay:
        replay = FrameReplay(steps, prioritized=self._prioritized)
        for t in range(steps):
            if t % EPISODE == 0:
                replay.start(FRAME)
            replay.add(0, 0.0, FRAME, terminated=t % EPISODE == EPISODE - 1, truncated=False)
        return replay

    def add(self, length: int) -> float:
        """Seconds per step added to a ring that is full, in an episode of `length` steps and a few more."""
        self._replay.start(FRAME)

        def step() -> None:
            self._replay.add(0, 0.0, FRAME, terminated=False, truncated=False)

        seconds(step, length)
        return seconds(step, ADDED)

    def draw(self) -> float:
        """Seconds per batch, with one step added before it and, where there are priorities, new ones set after it."""
        self._replay.start(FRAME)

        def batch() -> None:
            self._replay.add(0, 0.0, FRAME, terminated=False, truncated=False)
            drawn = self._replay.sample(BATCH)
            if self._prioritized:
                self._replay.update_priorities(drawn.indices, drawn.weights)

        return seconds(batch, 20)


class RLlib:
    """RLlib's buffer, used as its algorithms do: every step comes as a piece of its episode, as arrays."""

    name = "RLlib EpisodeReplayBuffer"

    def __init__(self, steps: int) -> None:
        from ray.rllib.utils.replay_buffers import EpisodeReplayBuffer

        self._replay = EpisodeReplayBuffer(capacity=steps + EPISODE)
        for _ in range(steps // EPISODE):
            self._replay.add(self._episode(EPISODE).to_numpy())

    def _episode(self, length: int) -> Any:
        from ray.rllib.env.single_agent_episode import SingleAgentEpisode

        return SingleAgentEpisode(
            observations=[FRAME] * (length + 1),
            actions=[0] * length,
            rewards=[0.0] * length,
            observation_space=gymnasium.spaces.Box(0, 255, FRAME.shape, np.uint8),
            action_space=gymnasium.spaces.Discrete(18),
            len_lookback_buffer=0,
        )

    def add(self, length: int) -> float:
        """Seconds per step added to an episode of `length` steps and a few more."""
        piece, total = self._episode(length), 0.0
        following = piece.cut()
        self._replay.add(piece.to_numpy())
        for _ in range(ADDED):
            piece = following
            piece.add_env_step(FRAME, 0, 0.0)
            following = piece.cut()
            piece.to_numpy()
            began = time.process_time()
            self._replay.add(piece)
            total += time.process_time() - began
        return total / ADDED

    def draw(self) -> float:
        return seconds(lambda: self._replay.sample(batch_size_B=BATCH, n_step=10, sample_episodes=True), 20)


def main() -> None:
    steps = int((*sys.argv[1:], "100000")[0])
    torch.set_num_threads(1)
    contenders = [
        Ours("uniform", steps, prioritized=False),
        Ours("prioritized", steps, prioritized=True),
        RLlib(steps),
    ]
    measures: dict[str, Callable[[Ours | RLlib], float]] = {
        "add at 10 steps, µs": lambda one: one.add(10) * 1e6,
        "add at 1500 steps, µs": lambda one: one.add(EPISODE) * 1e6,
        "batch of 32, ms": lambda one: one.draw() * 1e3,
    }
    found: dict[tuple[str, str], list[float]] = {(m, one.name): [] for m in measures for one in contenders}
    for _ in range(ROUNDS):
        for name, measure in measures.items():
            for one in contenders:
                found[name, one.name].append(measure(one))
    print(f"{'':24}" + "".join(f"{one.name:>28}" for one in contenders))
    for name in measures:
        medians = [statistics.median(found[name, one.name]) for one in contenders]
        print(f"{name:24}" + "".join(f"{value:12.2f} ({value / medians[0]:8.1f} x)   " for value in medians))


if __name__ == "__main__":
    main()
