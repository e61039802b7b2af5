"""Saving and loading a replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ht_ray.agents.replay import FrameReplay, ReplayFileError

FRAME = (8, 8)


def make(**settings: object) -> FrameReplay:
    return FrameReplay(1200, frame_shape=FRAME, n_step=3, **settings)  # type: ignore[arg-type]


def filled(steps: int = 1500, **settings: object) -> FrameReplay:
    replay = make(**settings)
    draws = np.random.default_rng(0)
    replay.start(np.zeros(FRAME, np.uint8))
    for t in range(1, steps + 1):
        replay.add(t % 5, 0.5, draws.integers(0, 256, FRAME, np.uint8), terminated=False, truncated=t % 40 == 0)
        if t % 40 == 0:
            replay.start(np.zeros(FRAME, np.uint8))
    return replay


@pytest.mark.parametrize("prioritized", [False, True])
def test_a_loaded_replay_goes_on_as_the_saved_one(tmp_path: Path, prioritized: bool) -> None:
    replay, twin = filled(prioritized=prioritized), filled(77, prioritized=prioritized)
    for t in range(5):
        batch = replay.sample(8)
        if prioritized:
            replay.update_priorities(batch.indices, torch.rand(8) + t)
    replay.save(tmp_path / "replay.pt")
    twin.load(tmp_path / "replay.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["replay.pt"]
    assert len(twin) == len(replay)
    for t in range(1, 60):
        one, other = replay.sample(8, sequence=2), twin.sample(8, sequence=2)
        for name, value in vars(one).items():
            assert torch.equal(value, getattr(other, name)), name
        for each in (replay, twin):
            if prioritized:
                each.update_priorities(one.indices, one.weights * t)
            each.add(1, t, np.full(FRAME, t, np.uint8), terminated=False, truncated=False)


def test_an_empty_replay_can_be_saved(tmp_path: Path) -> None:
    replay = filled()
    make().save(tmp_path / "replay.pt")
    replay.load(tmp_path / "replay.pt")
    assert len(replay) == 0 and not replay.can_sample()


def test_frames_that_change_little_take_little_space(tmp_path: Path) -> None:
    replay = FrameReplay(1000, frame_shape=(84, 84))
    frame = np.random.default_rng(0).integers(0, 256, (84, 84), np.uint8)
    replay.start(frame)
    for t in range(900):
        frame[t % 84, :8] += 1
        replay.add(0, 0.0, frame, terminated=False, truncated=False)
    replay.save(tmp_path / "replay.pt")
    assert (tmp_path / "replay.pt").stat().st_size < 901 * 84 * 84 / 50


def test_names_the_settings_that_differ(tmp_path: Path) -> None:
    filled().save(tmp_path / "replay.pt")
    other = FrameReplay(1200, frame_shape=FRAME, n_step=5, seed=1)
    with pytest.raises(ValueError, match=r"n_step = 3 there, 5 here; seed = 0 there, 1 here"):
        other.load(tmp_path / "replay.pt")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_refuses_a_file_cut_off(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "replay.pt"
    filled().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ReplayFileError, match=r"replay\.pt"):
        make().load(path)


def test_notices_any_changed_byte(tmp_path: Path) -> None:
    path = tmp_path / "replay.pt"
    filled(30).save(path)
    data = path.read_bytes()
    for place in range(0, len(data), len(data) // 50):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
        with pytest.raises(ReplayFileError, match=r"replay\.pt"):
            make().load(path)


def test_refuses_other_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(ReplayFileError, match="no saved replay"):
        make().load(path)
    with pytest.raises(ReplayFileError, match="no state of a replay"):
        make().load_state_dict({"weight": torch.zeros(2)})
    with pytest.raises(FileNotFoundError):
        make().load(tmp_path / "none.pt")


def test_damaged_frames_in_a_state_leave_the_replay_empty() -> None:
    state = filled().state_dict()
    state["frames"][1][100] ^= 1
    replay = filled(100)
    with pytest.raises(ReplayFileError, match="damaged"):
        replay.load_state_dict(state)
    assert len(replay) == 0


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["ht_ray.agents.replay.packing.os.fsync", "pathlib.Path.replace"])
def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], where: str
) -> None:
    path = tmp_path / "replay.pt"
    filled(30).save(path)
    before = path.read_bytes()

    def fail(*given: object) -> None:
        raise error("stopped")

    monkeypatch.setattr(where, fail)
    with pytest.raises(error, match="stopped"):
        filled(60).save(path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["replay.pt"]
