"""A disk that is full for a moment, under what trials save: a real small one, without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_disks import fill, make_room
from sweep_trials import Counting

from ht_ray._storage import Storage, StorageError
from ht_ray.agents.training.checkpoint import save_checkpoint as save_agent
from ht_ray.sweep.worker.checkpoints import Checkpoint, CheckpointStore
from ht_ray.sweep.worker.trainable import StudyTrainable, WorkerPlan
from ht_ray.vision import save_checkpoint

WEIGHTS = {"weights": torch.zeros(1 << 15)}

Save = Callable[[Path], None]
SAVES: dict[str, Save] = {
    "vision": lambda folder: save_checkpoint(WEIGHTS, folder / "state.pt"),
    "agents": lambda folder: save_agent(folder / "state.bin", {}, WEIGHTS),
    "a trial of somebody's, by path": lambda folder: torch.save(WEIGHTS, folder / "state.pt"),
}


class FullForAMoment(Counting):
    """A trial whose disk is full at its second part while its file is written, and has room again right after."""

    save_tensors: Save
    disk: Path
    full = 1

    def save(self, directory: Path) -> None:
        super().save(directory)
        if self.part == 2 and self.full:
            FullForAMoment.full -= 1
            fill(self.disk)
            try:
                self.save_tensors(directory)
            finally:
                make_room(self.disk)
        else:
            self.save_tensors(directory)


@pytest.fixture(params=SAVES)
def trial(request: pytest.FixtureRequest, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> type[FullForAMoment]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(FullForAMoment, "save_tensors", staticmethod(SAVES[request.param]), raising=False)
    monkeypatch.setattr(FullForAMoment, "disk", small_disk, raising=False)
    monkeypatch.setattr(FullForAMoment, "full", 1)
    return FullForAMoment


def test_a_full_disk_is_reported_as_one(trial: type[FullForAMoment], small_disk: Path) -> None:
    (small_disk / "checkpoints").mkdir()
    store, one = CheckpointStore(Storage(small_disk / "checkpoints"), "one"), trial({"seed": 1, "parts": 3}, None)
    one.advance()
    store.save(one.save, Checkpoint((1, 0), ("{}",)))
    one.advance()
    with pytest.raises(StorageError, match=r"cannot be used: .*(No space left on device|iostream error)"):
        store.save(one.save, Checkpoint((2, 0), ("{}", "{}")))
    store.save(one.save, Checkpoint((2, 0), ("{}", "{}")))
    assert [path.name[:6] for path in sorted((small_disk / "checkpoints/one").iterdir())] == ["000001", "000002"]


def test_a_worker_waits_and_goes_on(
    trial: type[FullForAMoment], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ht_ray.sweep.worker.trainable._LOOK_AGAIN", 0.0)
    monkeypatch.setattr("ht_ray.sweep.worker.trainable.load_factory", lambda name: trial)
    (small_disk / "checkpoints").mkdir()
    worker = StudyTrainable.__new__(StudyTrainable)
    checkpoints = Storage(small_disk / "checkpoints")
    worker._plan = WorkerPlan("", {"one": {"seed": 1, "parts": 3}}, checkpoints, (), patience=60.0)
    worker._shared, worker._leaving = None, False
    worker._assign({"members": ("one",)})
    results = [worker._step()[0] for _ in range(4)]
    assert [result["outcome"] for result in results] == ["running", "waiting", "running", "finished"]
    assert [json.loads(result["report"])["index"] for result in results if "report" in result] == [0, 1, 2]
    assert [note["event"] for note in worker._notes] == ["storage", "storage"]


def test_the_plain_loop_says_that_the_disk_is_full_and_leaves_nothing(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint(WEIGHTS, small_disk / "state.pt")
    make_room(small_disk)
    with pytest.raises(OSError, match="No space left on device"):
        save_checkpoint({"weights": torch.zeros(1 << 20)}, small_disk / "state.pt")
    assert not list(small_disk.iterdir())
