"""The replay against lists of episodes in plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ht_ray.agents.replay import Batch, FrameReplay, ReplayConfig, frame_replay, make_replay
from ht_ray.errors import SettingError

SHAPE = (2, 3)


@contextmanager
def staged(active: bool) -> Iterator[None]:
    """Let replays on the CPU keep host and device apart, as on a GPU."""
    with mock.patch.object(frame_replay, "_staged", lambda device, section: min(7, section) if active else 0):
        yield


@dataclass
class Episode:
    """What happened, each frame named by a number of its own, and when each frame came (a number per environment)."""

    frames: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    end: str | None = None


class Reference:
    """Everything that ever happened, and what a replay may say of it."""

    def __init__(self, replay: FrameReplay) -> None:
        self.replay = replay
        self.episodes: list[list[Episode]] = [[] for _ in range(replay.envs)]
        self.clock = [0] * replay.envs
        self.names = 0

    def _frame(self, env: int) -> np.ndarray:
        self.names += 1
        episode = self.episodes[env][-1]
        episode.frames.append(self.names)
        episode.times.append(self.clock[env])
        self.clock[env] += 1
        return np.full(SHAPE, self.names, np.int32)

    def start(self, env: int) -> None:
        if self.episodes[env] and self.episodes[env][-1].end is None:
            self.episodes[env][-1].end = "truncated"
        self.episodes[env].append(Episode())
        self.replay.start(self._frame(env), env)

    def add(self, env: int, action: int, reward: float, end: str | None) -> None:
        episode = self.episodes[env][-1]
        episode.actions.append(action)
        episode.rewards.append(reward)
        episode.end = end
        self.replay.add(
            action,
            reward,
            self._frame(env),
            terminated=end == "terminated",
            truncated=end == "truncated",
            env=env,
        )

    def drawable(self, window: int) -> dict[int, tuple[Episode, int]]:
        """By the name of their first frame, the transitions that may be drawn."""
        found = {}
        for env, episodes in enumerate(self.episodes):
            oldest = self.clock[env] - self.replay.capacity // self.replay.envs
            for episode in episodes:
                for t in range(len(episode.actions)):
                    whole = episode.times[max(0, t - self.replay.stack + 1)] >= oldest
                    known = episode.end is not None or t + window <= len(episode.actions)
                    if whole and known:
                        found[episode.frames[t]] = (episode, t)
        return found

    def stack(self, episode: Episode, t: int) -> list[int]:
        frames = [0] * self.replay.stack + episode.frames[: t + 1]
        return frames[-self.replay.stack :]

    def check(self, batch: Batch, n: int, discount: float, sequence: int) -> None:
        drawable = self.drawable(max(n, sequence))
        for i, names in enumerate(self.named(batch.observations)):
            episode, t = drawable[names[-1]]
            length = len(episode.actions)
            m = min(n, length - t)
            assert names == self.stack(episode, t)
            assert self.named(batch.next_observations)[i] == self.stack(episode, t + m - self.replay.published_n_step)
            assert batch.actions[i] == episode.actions[t]
            expected = sum(discount**k * episode.rewards[t + k] for k in range(m))
            assert batch.returns[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
            stopped = episode.end == "terminated" and t + m == length
            # The published code looks for a termination in the steps before the n-th.
            stopped = stopped and not (self.replay.published_n_step and m == n)
            assert batch.discounts[i].item() == pytest.approx(0 if stopped else discount**m, rel=1e-6)
            for k in range(sequence):
                inside = t + k < length
                assert batch.future_mask is not None and batch.future_mask[i, k] == inside
                assert batch.future_actions is not None
                assert batch.future_actions[i, k] == (episode.actions[t + k] if inside else 0)
                assert batch.future_observations is not None
                future = self.named(batch.future_observations[:, k])[i]
                assert future == self.stack(episode, min(t + k + 1, length))

    def named(self, observations: torch.Tensor) -> list[list[int]]:
        assert observations.dtype == torch.int32 and observations.shape[1:] == (self.replay.stack, *SHAPE)
        assert (observations == observations[..., :1, :1]).all()
        names: list[list[int]] = observations[..., 0, 0].tolist()
        return names


def assert_same(one: Batch, other: Batch) -> None:
    for name, value in vars(one).items():
        theirs = getattr(other, name)
        assert value is theirs is None or torch.equal(value, theirs), name


@st.composite
def plans(draw: st.DrawFn) -> tuple[dict, list[tuple[int, int]]]:
    envs = draw(st.integers(1, 3))
    stack, n_step = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    setup = {
        "capacity": envs * draw(st.integers(stack + n_step, 40)) + draw(st.integers(0, envs - 1)),
        "stack": stack,
        "n_step": n_step,
        "envs": envs,
        "prioritized": draw(st.booleans()),
        "published_n_step": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }
    # Segments: so many events, in episodes whose mean length is about this.
    segments = draw(
        st.lists(st.tuples(st.integers(1, 60), st.sampled_from([1, 2, 5, 20, 100])), min_size=1, max_size=6)
    )
    return setup, segments


@settings(deadline=None, max_examples=80)
@given(plans(), st.booleans())
def test_matches_lists_of_episodes(plan: tuple[dict, list[tuple[int, int]]], apart: bool) -> None:
    setup, segments = plan
    draws = np.random.default_rng(setup["seed"])
    with staged(apart):
        replay = FrameReplay(**setup, frame_shape=SHAPE, frame_dtype=np.int32, discount=0.9)
        reference = Reference(replay)
        priorities: dict[int, float] = {}
        greatest = 1.0
        for events, length in segments:
            for _ in range(events):
                env = int(draws.integers(replay.envs))
                episodes = reference.episodes[env]
                if not episodes or episodes[-1].end is not None or draws.random() < 0.02:
                    reference.start(env)
                    continue
                end = str(draws.choice(["terminated", "truncated"])) if draws.random() < 1 / length else None
                reference.add(env, int(draws.integers(100)), float(draws.normal()), end)
                priorities[episodes[-1].frames[-2]] = greatest
            n, sequence = int(draws.integers(1, 13)), int(draws.choice([0, 0, 1, 5]))
            drawable = reference.drawable(max(n, sequence))
            assert replay.can_sample(len(drawable), n_step=n, sequence=sequence)
            assert not replay.can_sample(len(drawable) + 1, n_step=n, sequence=sequence)
            assert len(replay) == len(reference.drawable(0))
            if not drawable:
                with pytest.raises(ValueError, match="may be drawn"):
                    replay.sample(8, n_step=n, sequence=sequence)
                continue
            batch = replay.sample(24, n_step=n, discount=0.8, sequence=sequence)
            reference.check(batch, n, 0.8, sequence)
            names = [row[-1] for row in reference.named(batch.observations)]
            if not replay.prioritized:
                assert (batch.weights == 1).all()
                continue
            weights = np.array([priorities[name] for name in names]) ** -0.5
            np.testing.assert_allclose(batch.weights.numpy(), weights / weights.max(), rtol=1e-6)
            losses = draws.exponential(size=24) * (draws.random(24) < 0.9)
            replay.update_priorities(batch.indices, torch.from_numpy(losses))
            updated: dict[int, float] = {}
            for name, loss in zip(names, losses, strict=True):
                updated[name] = max(updated.get(name, 0), max(loss, 1e-10) ** 0.5)
            priorities |= updated
            greatest = max(greatest, *updated.values())

        twin = FrameReplay(**setup, frame_shape=SHAPE, frame_dtype=np.int32, discount=0.9)
        twin.load_state_dict(replay.state_dict())
        for t in range(50):
            if replay.can_sample(n_step=3):
                assert_same(replay.sample(8, n_step=3), twin.sample(8, n_step=3))
            for one in (replay, twin):
                frame = np.full(SHAPE, t, np.int32)
                if t in (0, 20):
                    for env in range(replay.envs):
                        one.start(frame, env)
                else:
                    one.add(t, t, frame, terminated=t == 19, truncated=False, env=t % replay.envs if t != 19 else 0)


def filled(**settings: object) -> FrameReplay:
    """Several turns of a ring of 60 frames, episodes of 1 to 9 steps; the last one runs."""
    replay = FrameReplay(60, frame_shape=SHAPE, frame_dtype=np.int32, n_step=3, stack=2, **settings)  # type: ignore[arg-type]
    name = 0
    for length in [*(1 + i % 9 for i in range(40)), 6]:
        name += 1
        replay.start(np.full(SHAPE, name, np.int32))
        for t in range(1, length + 1):
            name += 1
            end = t == length and name < 230
            replay.add(0, 0.0, np.full(SHAPE, name, np.int32), terminated=end, truncated=False)
    return replay


def test_uniform_draws_are_uniform() -> None:
    replay = filled()
    count = next(k for k in range(100) if not replay.can_sample(k + 1))
    drawn = torch.cat([replay.sample(500).indices for _ in range(80)])
    _, counts = drawn.unique(return_counts=True)
    assert len(counts) == count > 30
    expected = len(drawn) / count
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < count - 1 + 5 * (2 * (count - 1)) ** 0.5


def test_prioritised_draws_follow_priorities() -> None:
    replay = filled(prioritized=True, priority_exponent=1.0)
    drawable = torch.cat([replay.sample(500).indices for _ in range(4)]).unique()
    priorities = torch.arange(1.0, len(drawable) + 1)
    replay.update_priorities(drawable, priorities)
    drawn = torch.cat([replay.sample(500).indices for _ in range(80)])
    counts = torch.stack([(drawn == index).sum() for index in drawable])
    assert counts.sum() == len(drawn)
    expected = priorities / priorities.sum() * len(drawn)
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < len(drawable) - 1 + 5 * (2 * (len(drawable) - 1)) ** 0.5


def test_priorities_that_come_late() -> None:
    def add(name: int, terminated: bool = False) -> None:
        replay.add(0, 0.0, np.array([name], np.uint8), terminated=terminated, truncated=False)

    replay = FrameReplay(
        8, frame_shape=(1,), stack=1, n_step=1, prioritized=True, priority_exponent=1.0, importance=1.0
    )
    replay.start(np.array([0], np.uint8))
    for name in range(1, 8):
        add(name)
    drawn = replay.sample(200).indices.unique()
    assert drawn.tolist() == list(range(7))
    add(8, terminated=True)  # in the slot of frame 0
    replay.update_priorities(drawn, torch.full((7,), 50.0))
    replay.start(np.array([9], np.uint8))
    add(10)
    batch = replay.sample(4000)
    weights = dict(zip(batch.observations.flatten().tolist(), batch.weights.tolist(), strict=True))
    # The step from 7 was added when 1 was the greatest, the one from 9 when 50 was.
    assert weights == pytest.approx({3: 0.02, 4: 0.02, 5: 0.02, 6: 0.02, 7: 1.0, 9: 0.02})
    replay.update_priorities(drawn, torch.full((7,), 50.0))
    # Slot 0 holds the frame that ended an episode: it has no transition, whatever priority it is given.
    assert 0 not in replay.sample(4000).indices.tolist()


def test_draws_depend_on_seed_and_number_alone() -> None:
    one, other, third = filled(seed=1), filled(seed=1), filled(seed=2)
    torch.manual_seed(0)
    first = one.sample(16)
    assert_same(first, other.sample(16))
    assert not torch.equal(first.indices, third.sample(16).indices)
    assert not torch.equal(first.indices, one.sample(16).indices)


def test_batches_are_copies() -> None:
    replay = filled()
    batch = replay.sample(8)
    before = batch.observations.clone()
    for t in range(120):
        replay.start(np.full(SHAPE, 1000 + t, np.int32))
    assert torch.equal(batch.observations, before)


def test_a_new_start_cuts_the_running_episode() -> None:
    replay = FrameReplay(50, frame_shape=(1,), stack=1, n_step=5, discount=0.5)
    replay.start(np.array([1], np.uint8))
    replay.add(0, 1.0, np.array([2], np.uint8), terminated=False, truncated=False)
    assert not replay.can_sample()
    replay.start(np.array([3], np.uint8))
    batch = replay.sample(1)
    assert (batch.next_observations.item(), batch.returns.item(), batch.discounts.item()) == (2, 1.0, 0.5)


def test_make_replay_passes_every_setting() -> None:
    config = ReplayConfig(90, 8, 7, 0.5, 2, True, 0.25, 0.75, True)
    replay = make_replay(config, frame_shape=(3,), frame_dtype=np.float32, envs=2, seed=5)
    for name, value in vars(config).items():
        if name != "batch_size":
            assert str(getattr(replay, name)) == str(value), name
    assert (replay.frame_shape, replay.frame_dtype, replay.envs, replay.seed) == ((3,), np.dtype("float32"), 2, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 0}, "capacity = 0"),
        ({"capacity": 27, "envs": 2}, "capacity = 27: each of 2 environment.* 28 in all"),
        ({"stack": 0}, "stack = 0"),
        ({"n_step": 0}, "n_step = 0"),
        ({"discount": 1.1}, "discount = 1.1"),
        ({"envs": 0}, "envs = 0"),
        ({"frame_shape": (84, 0)}, "side of frame_shape = 0"),
        ({"frame_dtype": "datetime64[s]"}, "torch has no such type"),
        ({"priority_exponent": -1}, "priority_exponent = -1"),
        ({"importance": 2}, "importance = 2"),
    ],
)
def test_refuses_settings(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        FrameReplay(**{"capacity": 100, **settings})
    if settings.keys() <= {"stack", "n_step", "discount", "priority_exponent", "importance"}:
        with pytest.raises(SettingError, match=message):
            ReplayConfig(**settings)


def test_refuses_an_unknown_device() -> None:
    with pytest.raises(SettingError, match="device = 'gpu0'"):
        ReplayConfig(device="gpu0")


def test_refuses_wrong_calls() -> None:
    replay = FrameReplay(100, frame_shape=(2,))
    frame = np.zeros(2, np.uint8)
    step = {"terminated": False, "truncated": False}
    with pytest.raises(ValueError, match="no episode runs in environment 0"):
        replay.add(0, 0.0, frame, **step)
    with pytest.raises(ValueError, match="environments 0 to 0"):
        replay.start(frame, env=1)
    with pytest.raises(ValueError, match=r"shape \(3,\) and type uint8"):
        replay.start(np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="type float32"):
        replay.start(np.zeros(2, np.float32))
    replay.start(frame)
    with pytest.raises(ValueError, match="reward = nan"):
        replay.add(0, float("nan"), frame, **step)
    with pytest.raises(TypeError):
        replay.add(0.5, 0.0, frame, **step)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 transitions held"):
        replay.sample(2)
    with pytest.raises(ValueError, match="draws uniformly"):
        replay.update_priorities(torch.tensor([0]), torch.tensor([1.0]))
    with pytest.raises(SettingError, match="n_step = 0"):
        replay.sample(2, n_step=0)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("prioritized", [False, True])
def test_an_n_for_each_transition(prioritized: bool, apart: bool) -> None:
    with staged(apart):
        replay = FrameReplay(
            60, frame_shape=SHAPE, frame_dtype=np.int32, stack=2, prioritized=prioritized, discount=0.5
        )
        for episode in range(5):
            replay.start(np.full(SHAPE, 100 * episode, np.int32))
            for t in range(1, 8):
                frame = np.full(SHAPE, 100 * episode + t, np.int32)
                replay.add(t, float(t), frame, terminated=t == 7 and episode % 2 == 0, truncated=t == 7)
        ns = torch.arange(64) % 4 + 1
        batch = replay.sample(64, n_step=ns)
    assert batch.steps is not None
    starts = batch.observations[:, -1, 0, 0]
    lengths = torch.minimum(ns, 7 - starts % 100)
    assert torch.equal(batch.steps, lengths)
    assert torch.equal(batch.next_observations[:, -1, 0, 0] - starts, lengths.int())
    for start, m, total, discount in zip(
        starts.tolist(), lengths.tolist(), batch.returns, batch.discounts, strict=True
    ):
        t, episode = start % 100, start // 100
        assert total == sum(0.5**k * (t + k + 1) for k in range(m))
        assert discount == (0 if t + m == 7 and episode % 2 == 0 else 0.5**m)
    with pytest.raises(SettingError, match="n_step = 0"):
        replay.sample(2, n_step=torch.tensor([0, 3]))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_refuses_priorities(bad: float) -> None:
    replay = filled(prioritized=True)
    batch = replay.sample(2)
    with pytest.raises(ValueError, match="finite priorities"):
        replay.update_priorities(batch.indices, torch.tensor([1.0, bad]))


@pytest.mark.gpu
@pytest.mark.parametrize("prioritized", [False, True])
def test_gpu_gives_what_the_cpu_gives_without_waiting(prioritized: bool) -> None:
    pair = [filled(prioritized=prioritized, device=device) for device in ("cpu", "cuda")]
    for t in range(300):
        each = 3 if t % 2 else torch.arange(16) % 3 + 1
        batches = [replay.sample(16, n_step=each, sequence=t % 3) for replay in pair]
        for name, value in vars(batches[0]).items():
            theirs = getattr(batches[1], name)
            assert value is theirs is None or torch.allclose(value, theirs.cpu()), name
        torch.cuda.set_sync_debug_mode("error" if t > 5 else "default")
        try:
            for replay, batch in zip(pair, batches, strict=True):
                if prioritized:
                    replay.update_priorities(batch.indices, batch.weights * (1 + t % 5))
                replay.start(np.full(SHAPE, t, np.int32))
                replay.add(1, 0.5, np.full(SHAPE, -t, np.int32), terminated=t % 2 == 0, truncated=False)
                replay.sample(16)
        finally:
            torch.cuda.set_sync_debug_mode("default")
