"""Replay of frames: each is kept once, and stacked when sampled."""

from __future__ import annotations

import math
import operator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from ht_ray._checks import check_number
from ht_ray._deprecated import renamed
from ht_ray.agents.replay.batch import Batch
from ht_ray.agents.replay.config import ReplayConfig
from ht_ray.agents.replay.packing import ReplayFileError, pack, read_file, unpack, write_file
from ht_ray.agents.replay.section import (
    ACTION,
    COLUMNS,
    INSIDE,
    OUTCOME,
    POSITION,
    REWARD,
    TERMINATED,
    TRUNCATED,
    Section,
)
from ht_ray.agents.replay.storage import FrameStore
from ht_ray.agents.replay.sum_tree import SumTree
from ht_ray.cuda_graph import Captured, use_graph
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.rng import generator
from ht_ray.mechanisms.weights.transfer import upload

__all__ = ["FrameReplay", "ReplayFileError", "make_replay"]

_FORMAT = "ht_ray.FrameReplay 1"
# Frames compressed together; 512 of 84 x 84 are 3.6 MB.
_CHUNK = 512
# Frames that wait for a device when nothing is sampled in between.
_STAGED = 256
# Of priorities: what has none left could never be drawn again.
_LEAST_PRIORITY = 1e-10
# What two replays must have alike for one to go on as the other.
_SETTINGS = (
    *("capacity", "frame_shape", "frame_dtype", "stack", "n_step", "discount", "prioritized", "priority_exponent"),
    *("importance", "published_n_step", "envs", "seed"),
)
_UNACCEPTABLE = "FrameReplay.update_priorities: accepted are finite priorities of at least 0"


def _acceptable(priorities: Tensor) -> Tensor:
    return (torch.isfinite(priorities) & (priorities >= 0)).all()


def _staged(device: torch.device, section: int) -> int:
    return 0 if device.type == "cpu" else min(_STAGED, section)


@renamed(prioritised="prioritized")
class FrameReplay:
    """A ring of single frames, from which transitions of n steps are drawn as ready tensors.

    Every observation is a stack of the newest `stack` frames of its episode, preceded by zeros at the start. A step
    costs the same whatever the episode's length. At a termination the steps stop and nothing is bootstrapped; at a
    truncation the steps stop and the value of the last observation is bootstrapped. A transition is drawn once its
    n steps are known (or its episode has ended), as long as the whole of its own stack is held.

    Parameters
    ----------
    capacity : int
        Frames held: one per step and one per start of an episode; divided among `envs`.
    frame_shape, frame_dtype
        Shape and type of one frame; by default (84, 84), uint8.
    stack : int, default 4
        Frames in an observation.
    n_step, discount
        What `sample` takes when it is given none. Default 10, 0.99.
    prioritized, priority_exponent, importance
        See `ReplayConfig`: draw in proportion to ``priority ** priority_exponent``, with weights
        ``probability ** -importance``. New transitions get the greatest priority so far, at first 1.
        Default False, 0.5, 0.5.
    published_n_step : bool, default False
        See `ReplayConfig`.
    envs : int, default 1
        Environments that write, each into a part of its own.
    device : torch.device or str, default "cpu"
        Where frames are kept and batches come. Neither adding nor sampling waits for a GPU.
    graph : {"auto", "on", "off"}, default "auto"
        See `Agent`: whether batches are put together, and priorities set, by CUDA graphs.
    seed : int, default 0
        Seed of the draws, which come from ``(seed, number of samples so far)`` and are the same on every device.

    Raises
    ------
    SettingError
        If a setting is out of its range, or an environment's part is too small for one transition.

    Examples
    --------
    >>> replay = FrameReplay(100, frame_shape=(2, 2), n_step=3, discount=0.5)
    >>> replay.start(np.zeros((2, 2), np.uint8))
    >>> for t in range(1, 5):
    ...     replay.add(0, 1.0, np.full((2, 2), t, np.uint8), terminated=t == 4, truncated=False)
    >>> batch = replay.sample(32)
    >>> batch.observations.shape, sorted(set(batch.returns.tolist())), sorted(set(batch.discounts.tolist()))
    (torch.Size([32, 4, 2, 2]), [1.0, 1.5, 1.75], [0.0, 0.125])
    """

    def __init__(
        self,
        capacity: int,
        *,
        frame_shape: tuple[int, ...] = (84, 84),
        frame_dtype: DTypeLike = np.uint8,
        stack: int = 4,
        n_step: int = 10,
        discount: float = 0.99,
        prioritized: bool = False,
        priority_exponent: float = 0.5,
        importance: float = 0.5,
        published_n_step: bool = False,
        envs: int = 1,
        device: torch.device | str = "cpu",
        graph: Literal["auto", "on", "off"] = "auto",
        seed: int = 0,
    ) -> None:
        for name, value in {"capacity": capacity, "stack": stack, "n_step": n_step, "envs": envs}.items():
            check_number(f"FrameReplay: {name}", value, low=1, integer=True)
        for side in frame_shape:
            check_number("FrameReplay: a side of frame_shape", side, low=1, integer=True)
        shares = {"discount": discount, "priority_exponent": priority_exponent, "importance": importance}
        for name, share in shares.items():
            check_number(f"FrameReplay: {name}", share, low=0, high=1)
        check_number("FrameReplay: seed", seed, integer=True)
        section = capacity // envs
        if section < stack + n_step:
            raise SettingError(
                f"FrameReplay: capacity = {capacity}: each of {envs} environment(s) needs at least stack + n_step = "
                f"{stack + n_step} frames to hold one transition, {envs * (stack + n_step)} in all."
            )
        self.capacity = capacity
        self.frame_shape = tuple(frame_shape)
        self.stack = stack
        self.n_step = n_step
        self.discount = discount
        self.prioritized = prioritized
        self.priority_exponent = priority_exponent
        self.importance = importance
        self.published_n_step = published_n_step
        self.envs = envs
        self.device = torch.device(device)
        self.graph = graph
        self.seed = seed
        #: Batches drawn so far.
        self.samples = 0
        self._size = section
        self._slots = section * envs
        staged = _staged(self.device, section)
        self._store = FrameStore(self._slots, self.frame_shape, frame_dtype, device=self.device, staged=staged)
        self.frame_dtype = self._store.dtype
        # The host's table is what counts; on the CPU the device's is the same memory.
        self._table = np.zeros((self._slots, COLUMNS))
        self._mirror = staged > 0
        if self._mirror:
            self._rows = torch.zeros(self._slots, COLUMNS, dtype=torch.float64, device=self.device)
        else:
            self._rows = torch.from_numpy(self._table)
        self._back = torch.arange(stack - 1, -1, -1, device=self.device)
        on = use_graph("FrameReplay: graph", graph, self.device)
        optional = graph == "auto"
        self._assemble = Captured(self._columns, on=on, held=self._weighing, optional=optional)
        self._prioritise = Captured(self._set_priorities, on=on, held=self._weighing, optional=optional)
        self._clear()

    def _clear(self) -> None:
        self._store.flush()
        self._sections = [
            Section(self._table[base : base + self._size], base=base, stack=self.stack)
            for base in range(0, self._slots, self._size)
        ]
        if self.prioritized:
            self._tree = SumTree(self._slots, device=self.device)
            self._priorities = torch.zeros(self._slots, dtype=torch.float64, device=self.device)
            self._greatest = torch.ones((), dtype=torch.float64, device=self.device)
            self._window = 1

    def _weighing(self) -> list[Tensor]:
        return [*self._tree.levels, self._priorities, self._greatest] if self.prioritized else []

    def __len__(self) -> int:
        """Transitions held whose stack is whole, those whose n steps are still to come included."""
        return sum(section.transitions - section.first for section in self._sections)

    def start(self, frame: NDArray[Any], env: int = 0) -> None:
        """Begin an episode with its first frame, o_0; an episode that still runs is cut, as if truncated.

        Raises
        ------
        ValueError
            If the frame is not of the replay's shape and type.
        """
        section, frame = self._section(env), self._checked(frame)
        self._store.write(section.begin(), frame)

    def add(
        self,
        action: int,
        reward: float,
        frame: NDArray[Any],
        *,
        terminated: bool,
        truncated: bool,
        env: int = 0,
    ) -> None:
        """Add a step: `action` taken at the newest frame, the `reward` for it, and the `frame` it led to.

        Parameters
        ----------
        terminated, truncated : bool
            Whether the episode ended here, and how; `terminated` counts if both are. `start` must follow.

        Raises
        ------
        ValueError
            If no episode runs, the reward is not finite, or the frame is not of the replay's shape and type.
        """
        section, frame = self._section(env), self._checked(frame)
        if not section.running:
            raise ValueError(f"FrameReplay.add: no episode runs in environment {env}: call start with its first frame")
        reward = float(reward)
        if not math.isfinite(reward):
            raise ValueError(f"FrameReplay.add: reward = {reward}: accepted is a finite number")
        outcome = TERMINATED if terminated else TRUNCATED if truncated else INSIDE
        self._store.write(section.step(operator.index(action), reward, outcome), frame)

    def _section(self, env: int) -> Section:
        if not 0 <= env < self.envs:
            raise ValueError(f"FrameReplay: env = {env}: this replay has environments 0 to {self.envs - 1}")
        return self._sections[env]

    def _checked(self, frame: NDArray[Any]) -> NDArray[Any]:
        frame = np.asarray(frame)
        if frame.shape != self.frame_shape or frame.dtype != self.frame_dtype:
            raise ValueError(
                f"FrameReplay: a frame of shape {frame.shape} and type {frame.dtype}: this replay holds frames of "
                f"shape {self.frame_shape} and type {self.frame_dtype}"
            )
        return frame

    def can_sample(self, transitions: int = 1, *, n_step: int | None = None, sequence: int = 0) -> bool:
        """Return whether at least so many transitions may be drawn with these settings of `sample`."""
        window = max(self.n_step if n_step is None else n_step, sequence)
        ready = (section.ready(window) for section in self._sections)
        return sum(high - low for low, high in ready) >= transitions

    def sample(
        self, batch_size: int, *, n_step: int | Tensor | None = None, discount: float | None = None, sequence: int = 0
    ) -> Batch:
        """Draw transitions, with replacement.

        Parameters
        ----------
        batch_size : int
            How many.
        n_step, discount
            N-step and discount of this batch; those of the replay by default. `n_step` may also be one for each
            transition, int64 of shape ``(B,)``, on the CPU; what is drawn then has the steps of the greatest behind it.
        sequence : int, default 0
            How many of the observations that follow are returned too; transitions whose episode may still bring some
            of them are not drawn.

        Raises
        ------
        SettingError
            If a setting is out of its range.
        ValueError
            If no transition may be drawn (see `can_sample`).
        """
        n_step = self.n_step if n_step is None else n_step
        discount = self.discount if discount is None else discount
        check_number("FrameReplay.sample: batch_size", batch_size, low=1, integer=True)
        check_number("FrameReplay.sample: sequence", sequence, low=0, integer=True)
        own_steps = {}
        if isinstance(n_step, Tensor):
            check_number("FrameReplay.sample: n_step", int(n_step.min()), low=1, integer=True)
            own_steps["each"], n_step = upload(n_step, self.device), int(n_step.max())
        check_number("FrameReplay.sample: n_step", n_step, low=1, integer=True)
        check_number("FrameReplay.sample: discount", discount, low=0, high=1)
        window = max(n_step, sequence)
        if not self.can_sample(n_step=window):
            raise ValueError(
                f"FrameReplay.sample: none of the {len(self)} transitions held may be drawn: each needs {window} "
                "steps, or its episode's end, after it"
            )
        self._flush()
        draws = generator(self.seed, "replay", self.samples)
        self.samples += 1
        if self.prioritized:
            self._weigh(window)
            # Stratified, as in section 3.3 of arXiv 1511.05952: one point in each of `batch_size` equal parts.
            drawn = torch.rand(batch_size, dtype=torch.float64, generator=draws).numpy()
            places = (np.arange(batch_size) + drawn) / batch_size
        else:
            places = self._draw_uniform(batch_size, window, draws)
        # One transfer: float64 holds any slot exactly.
        given = self._sent(np.append(places, discount))
        return Batch(**self._assemble(n_step, sequence, given=given, **own_steps))

    def _columns(self, n_step: int, sequence: int, *, given: Tensor, each: Tensor | None = None) -> dict[str, Tensor]:
        # What happens on the device alone. `given`: slots, or points of the sum of all weights; and the discount.
        # `each`: the steps of each transition, where they differ.
        places, discount = given[:-1], given[-1]
        if self.prioritized:
            slots = self._tree.find(places * self._tree.total)
            weights = self._tree[slots] ** -self.importance
            weights = weights / weights.max()
        else:
            slots, weights = places.long(), torch.ones_like(places)
        steps = torch.arange(max(n_step, sequence), device=self.device)
        rows = self._rows[self._shifted(slots.unsqueeze(1), steps)]
        outcomes = rows[..., OUTCOME]
        ended = outcomes != INSIDE
        # Step k is the episode's if none before it ended it.
        alive = ended.cumsum(1) - ended.long() == 0
        taken = alive[:, :n_step]
        if each is not None:
            taken = taken & (steps[:n_step] < each.unsqueeze(1))
        lengths = taken.sum(1)
        powers = torch.pow(discount, steps[:n_step].double())
        returns = torch.where(taken, rows[:, :n_step, REWARD] * powers, 0).sum(1)
        # The published code looks for a termination in the steps before the n-th only.
        seen = n_step - int(self.published_n_step)
        terminated = ((outcomes[:, :seen] == TERMINATED) & taken[:, :seen]).any(1)
        discounts = torch.where(terminated, 0, torch.pow(discount, lengths.double()))
        positions = rows[:, 0, POSITION].long()
        reach = torch.stack((torch.zeros_like(lengths), lengths - int(self.published_n_step)))
        observations, next_observations = self._observations(slots, positions, reach)
        columns = {
            "observations": observations,
            "actions": rows[:, 0, ACTION].long(),
            "returns": returns.float(),
            "next_observations": next_observations,
            "discounts": discounts.float(),
            "indices": slots,
            "weights": weights.float(),
            "steps": lengths,
        }
        if not sequence:
            return columns
        mask = alive[:, :sequence]
        reach = torch.minimum(steps[:sequence] + 1, mask.sum(1, keepdim=True))
        return {
            **columns,
            "future_observations": self._observations(slots.unsqueeze(1), positions.unsqueeze(1), reach),
            "future_actions": torch.where(mask, rows[:, :sequence, ACTION], 0).long(),
            "future_mask": mask.float(),
        }

    def observations(self, count: int, *, seed: int) -> Tensor:
        """Draw observations uniformly, with replacement, leaving no trace: what is sampled later is as without.

        Parameters
        ----------
        count : int
            How many.
        seed : int
            Seed of these draws alone.

        Returns
        -------
        Tensor
            ``(count, C, *frame_shape)``, on the replay's device.

        Raises
        ------
        ValueError
            If no transition is held.
        """
        check_number("FrameReplay.observations: count", count, low=1, integer=True)
        if not self.can_sample(n_step=1):
            raise ValueError("FrameReplay.observations: no transition is held")
        self._flush()
        slots = self._sent(self._draw_uniform(count, 1, generator(seed, "observations")))
        return self._observations(slots, self._rows[slots, POSITION].long(), torch.zeros_like(slots))

    def _shifted(self, slots: Tensor, steps: Tensor) -> Tensor:
        row = slots % self._size
        return slots - row + (row + steps) % self._size

    def _observations(self, slots: Tensor, positions: Tensor, reach: Tensor) -> Tensor:
        # The stacks of the frames `reach` steps after `slots`; `positions` are those of `slots` in their episode.
        frames = self._shifted(self._shifted(slots, reach).unsqueeze(-1), -self._back)
        held = self._back <= (positions + reach).unsqueeze(-1)
        return self._store.stacks(torch.where(held, frames, self._slots))

    def _draw_uniform(self, batch_size: int, window: int, draws: torch.Generator) -> NDArray[np.int64]:
        ready = np.array([section.ready(window) for section in self._sections])
        ends = (ready[:, 1] - ready[:, 0]).cumsum()
        drawn = torch.randint(int(ends[-1]), (batch_size,), generator=draws).numpy()
        envs = np.searchsorted(ends, drawn, side="right")
        transitions = drawn - ends[envs] + ready[envs, 1]
        slots = np.empty(batch_size, dtype=np.int64)
        for env, section in enumerate(self._sections):
            own = envs == env
            slots[own] = section.slots(section.frames_of(transitions[own]))
        return slots

    def _weigh(self, window: int) -> None:
        # Bring the tree up to date with what may be drawn.
        changed = [section.changed(window, self._window) for section in self._sections]
        slots = self._sent(np.concatenate([slots for slots, _ in changed]))
        ready = self._sent(np.concatenate([ready for _, ready in changed]))
        self._tree.update(slots, torch.where(ready, self._priorities[slots], 0))
        for section in self._sections:
            section.weighed = section.frames
        self._window = window

    def _sent(self, array: NDArray[Any]) -> Tensor:
        return upload(torch.from_numpy(array), self.device)

    def _flush(self) -> None:
        # Bring the device up to date with the host, and give new transitions their priority.
        self._store.flush()
        for section in self._sections:
            if section.uploaded == section.frames:
                continue
            if self._mirror:
                # From two before: the newest frame had no step yet, and the step before may have been cut.
                slots = section.slots_since(section.uploaded - 2)
                self._rows.index_copy_(0, self._sent(slots), self._sent(self._table[slots]))
            if self.prioritized:
                slots = section.slots_since(section.uploaded - 1)
                self._priorities[self._sent(slots)] = self._greatest  # index_fill_ would wait for its value
            section.uploaded = section.frames

    def update_priorities(self, indices: Tensor, priorities: Tensor) -> None:
        """Set the priorities of transitions just drawn, before new ones are added in their place.

        Parameters
        ----------
        indices : Tensor
            ``Batch.indices``, shape ``(B,)``.
        priorities : Tensor
            At least 0, for instance losses: shape ``(B,)``. The replay raises them to `priority_exponent` itself. Where
            a transition was drawn repeatedly, the greatest counts.

        Raises
        ------
        ValueError
            If the replay draws uniformly, or a priority is negative or not finite (on a GPU, where nothing waits for
            the answer, by an assertion on the device).
        """
        if not self.prioritized:
            raise ValueError("FrameReplay.update_priorities: this replay draws uniformly (prioritized=False)")
        self._flush()
        priorities = priorities.detach().to(self.device)
        if self.device.type == "cpu" and not _acceptable(priorities):
            raise ValueError(_UNACCEPTABLE)
        self._prioritise(indices=indices, priorities=priorities)

    def _set_priorities(self, *, indices: Tensor, priorities: Tensor) -> dict[str, Tensor]:
        values = priorities.to(torch.float64)
        if self.device.type != "cpu":
            torch._assert_async(_acceptable(values), _UNACCEPTABLE)
        values = values.clamp(min=_LEAST_PRIORITY) ** self.priority_exponent
        self._greatest.copy_(torch.maximum(self._greatest, values.max()))
        self._priorities.scatter_reduce_(0, indices, values, "amax", include_self=False)
        # What may not be drawn (any more) keeps its weight of 0.
        self._tree.update(indices, torch.where(self._tree[indices] > 0, self._priorities[indices], 0))
        return {}

    def _settings(self) -> dict[str, Any]:
        plain = {"frame_shape": list(self.frame_shape), "frame_dtype": self.frame_dtype.name}
        return {name: plain.get(name, getattr(self, name)) for name in _SETTINGS}

    def _held(self) -> NDArray[np.int64]:
        return np.concatenate([section.slots_since(0) for section in self._sections])

    def state_dict(self) -> dict[str, Any]:
        """Return everything held, compressed, as tensors on the CPU and plain data.

        A replay of the same settings that loads it goes on as this one would, on whatever device.
        """
        self._flush()
        held = self._held()
        state: dict[str, Any] = {
            "format": _FORMAT,
            "settings": self._settings(),
            "samples": self.samples,
            "sections": [section.state_dict() for section in self._sections],
            "table": pack(self._table[held]),
            "frames": [pack(self._store.read(held[i : i + _CHUNK])) for i in range(0, len(held), _CHUNK)],
        }
        if self.prioritized:
            state["priorities"] = pack(self._priorities.cpu().numpy()[held])
            state["greatest_priority"] = float(self._greatest)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the place of the replay whose `state_dict` this is.

        Raises
        ------
        ValueError
            If it is that of a replay with other settings.
        ReplayFileError
            If it is damaged or no such state; the replay may then be left empty.
        """
        if state.get("format") != _FORMAT:
            raise ReplayFileError(f"FrameReplay: this is no state of a replay: its format is {state.get('format')!r}")
        there = dict(state["settings"])
        if "prioritised" in there:  # as earlier versions wrote it
            there["prioritized"] = there.pop("prioritised")
        differing = [
            f"{name} = {there.get(name)!r} there, {value!r} here"
            for name, value in self._settings().items()
            if there.get(name) != value
        ]
        if differing:
            raise ValueError(f"FrameReplay: the saved replay has other settings: {'; '.join(differing)}")
        self._clear()
        for section, counts in zip(self._sections, state["sections"], strict=True):
            section.frames = counts["frames"]
        held = self._held()
        try:
            self._table[held] = unpack(state["table"], (len(held), COLUMNS), np.float64)
            for i, packed in enumerate(state["frames"]):
                slots = held[i * _CHUNK : (i + 1) * _CHUNK]
                self._store.fill(slots, unpack(packed, (len(slots), *self.frame_shape), self.frame_dtype))
            if self.prioritized:
                priorities = unpack(state["priorities"], (len(held),), np.float64)
        except ReplayFileError:
            self._clear()
            raise
        for section, counts in zip(self._sections, state["sections"], strict=True):
            section.load_state_dict(counts)
        self._flush()
        if self.prioritized:
            self._priorities[torch.from_numpy(held).to(self.device)] = torch.from_numpy(priorities).to(self.device)
            self._greatest.fill_(state["greatest_priority"])
        self.samples = state["samples"]

    def save(self, path: str | Path) -> None:
        """Write the state to `path`: to a temporary name, then renamed."""
        write_file(self.state_dict(), Path(path))

    def load(self, path: str | Path) -> None:
        """Go on from what `save` wrote.

        Raises
        ------
        ValueError
            If the file is that of a replay with other settings.
        ReplayFileError
            If it is cut off, damaged, or another kind of file.
        """
        self.load_state_dict(read_file(Path(path)))


def make_replay(
    config: ReplayConfig,
    *,
    frame_shape: tuple[int, ...] = (84, 84),
    frame_dtype: DTypeLike = np.uint8,
    envs: int = 1,
    seed: int = 0,
) -> FrameReplay:
    """Return the replay of `config`; the rest is as in `FrameReplay`."""
    settings = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "batch_size"}
    return FrameReplay(**settings, frame_shape=frame_shape, frame_dtype=frame_dtype, envs=envs, seed=seed)
