"""The checkpoints of a trial: what damage does to them, without Ray."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sweep_trials import Counting, load_newest

from ht_ray._storage import Storage, StorageError
from ht_ray.records.checked_json import to_json
from ht_ray.sweep import Trial
from ht_ray.sweep.worker.checkpoints import Checkpoint, CheckpointStore

PARTS = 5


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(params=["path", "URI"])
def everywhere(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Storage]:
    """A folder for checkpoints, as a path and as a URI, for which all goes through the local scratch."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder, Storage(folder if request.param == "path" else folder.as_uri())


def counting(seed: int = 1) -> Counting:
    return Counting({"seed": seed, "parts": PARTS}, None)


def new(checkpoint: Checkpoint) -> Counting:
    return counting()


def line_of(trial: Trial) -> str:
    """The next report of a trial, without the time it took."""
    report = trial.advance()
    return to_json({"curves": report.curves, "summary": report.summary, "progress": report.progress})


def saved(store: CheckpointStore, trial: Trial, parts: int) -> list[str]:
    """Save `trial` after each of its first `parts` parts, and return what it reported."""
    lines: list[str] = []
    for _ in range(parts):
        lines.append(line_of(trial))
        store.save(trial.save, Checkpoint((len(lines), 0), tuple(lines)))
    return lines


def names(folder: Path, trial: str = "one") -> list[str]:
    return sorted(path.name for path in (folder / trial).iterdir())


def positions(folder: Path) -> list[int]:
    return [int(name.partition("-")[0]) for name in names(folder)]


Harm = Callable[[bytes, bytes, random.Random], bytes | None]


def flipped(content: bytes, other: bytes, draw: random.Random) -> bytes:
    position = draw.randrange(len(content))
    return content[:position] + bytes([content[position] ^ 1 << draw.randrange(8)]) + content[position + 1 :]


HARMS: dict[str, Harm] = {
    "emptied": lambda content, other, draw: b"",
    "cut in half": lambda content, other, draw: content[: len(content) // 2],
    "a byte short": lambda content, other, draw: content[:-1],
    "a byte long": lambda content, other, draw: content + b"\n",
    "a bit flipped": flipped,
    "another trial's": lambda content, other, draw: other,
    "deleted": lambda content, other, draw: None,
}


def harmed(checkpoint: Path, other: Path, flips: int) -> Iterator[str]:
    """Harm each file of a checkpoint in each way, one at a time, and yield what was done."""
    draw = random.Random(7)
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        content, others = path.read_bytes(), (other / path.relative_to(checkpoint)).read_bytes()
        for harm, change in HARMS.items():
            for _ in range(flips if change is flipped else 1):
                changed = change(content, others, draw)
                if changed == content:
                    continue
                if changed is None:
                    path.unlink()
                else:
                    path.write_bytes(changed)
                yield f"{path.name} {harm}"
                path.write_bytes(content)


def check_every_harm(
    folder: Path, storage: Storage, build: Callable[[str], Trial], *, flips: int, parts: int = PARTS
) -> None:
    """Go on from two checkpoints of which the newest is harmed in every way, and once from none that is whole."""
    folder.mkdir(exist_ok=True)
    expected = [line_of(trial) for trial in [build("one")] for _ in range(parts)]
    for trial in ("one", "two"):
        saved(CheckpointStore(storage, trial), build(trial), 3)
    older, newest = ((folder / "one") / name for name in names(folder))
    other = folder / "two" / names(folder, "two")[-1]
    said: list[str] = []

    def go_on() -> int:
        """Return from which report the trial went on."""
        said.clear()
        found = load_newest(CheckpointStore(storage, "one"), lambda _: build("one"), said.append)
        trial, lines = (build("one"), []) if found is None else (found[0], list(found[1].lines))
        begun = len(lines)
        assert lines == expected[:begun]
        assert [line_of(trial) for _ in range(begun, parts)] == expected[begun:]
        return begun

    assert (go_on(), said) == (3, [])
    done = 0
    for harm in harmed(newest, other, flips):
        assert go_on() == 2, harm
        assert len(said) == 1, harm
        assert newest.name in said[0] and "is damaged" in said[0]
        done += 1
    assert done >= 3 * (len(HARMS) - 1)
    assert (go_on(), said) == (3, [])
    for checkpoint in (newest, older):
        (checkpoint / "reports.jsonl").write_bytes(b"")
    assert go_on() == 0
    assert len(said) == 2
    # The whole folder of another trial.
    shutil.rmtree(newest)
    shutil.copytree(other, newest)
    assert go_on() == 0
    assert "it is one of the trial 'two'" in said[0]


def test_damage_to_any_file_is_seen_and_never_used(everywhere: tuple[Path, Storage]) -> None:
    seeds = {"one": 1, "two": 2}
    check_every_harm(*everywhere, lambda trial: counting(seeds[trial]), flips=20)


@pytest.mark.slow
def test_damage_to_a_vision_trial(tmp_path: Path) -> None:
    from ht_ray.vision import DataConfig, load_data
    from tune_configs.ablation import AblationSettings, trials
    from tune_configs.vision_trial import VisionTrial

    settings = AblationSettings(
        momenta=(0.5,), reset_intervals=(1,), baselines=(), seeds=2, phases=4, epochs=1, train_limit=200
    )
    data = load_data(DataConfig("digits", train_limit=200)).to_arrays()
    configs = dict(zip(("one", "two"), (spec.config for spec in trials(settings)), strict=True))
    folder = tmp_path / "checkpoints"
    check_every_harm(folder, Storage(folder), lambda trial: VisionTrial(configs[trial], data), flips=3, parts=4)


@pytest.mark.slow
def test_damage_to_an_atari_trial(tmp_path: Path) -> None:
    from tune_configs.atari100k import AtariSettings, trials
    from tune_configs.atari_trial import AtariTrial

    settings = AtariSettings(
        games=("breakout",), variants=("drq+ht",), seeds=2, momentum=0.5, reset_interval=7, hidden=16, batch_size=8,
        n_step=3, learning_starts=10, epsilon_decay_steps=10, replay_capacity=200, steps=80, evaluate_every=40,
        checkpoint_every=20, evaluation_episodes=1, max_steps=25,
    ).resolved()  # fmt: skip
    configs = dict(zip(("one", "two"), (spec.config for spec in trials(settings)), strict=True))
    folder = tmp_path / "checkpoints"
    check_every_harm(folder, Storage(folder), lambda trial: AtariTrial(configs[trial]), flips=3, parts=4)


def test_the_two_newest_are_kept(everywhere: tuple[Path, Storage]) -> None:
    folder, storage = everywhere
    store, trial = CheckpointStore(storage, "one"), counting()
    lines = saved(store, trial, 3)
    assert positions(folder) == [2, 3]
    store.save(trial.save, Checkpoint((3, 1), tuple(lines), seconds=1.5, extra={"rung": 2}))
    assert [name[:13] for name in names(folder)] == ["000003-000000", "000003-000001"]
    found = load_newest(store, new, pytest.fail)
    assert found is not None
    assert found[1] == Checkpoint((3, 1), tuple(lines), 1.5, {"rung": 2})
    store.end(keep=True)
    assert [name[:13] for name in names(folder)] == ["000003-000001"]
    store.end(keep=False)
    assert not (folder / "one").exists()
    assert load_newest(store, new, pytest.fail) is None


def test_after_damage_the_good_ones_are_kept(everywhere: tuple[Path, Storage]) -> None:
    """The damaged ones have the higher numbers; they are not what a trial that began again is to leave."""
    folder, storage = everywhere
    saved(CheckpointStore(storage, "one"), counting(), 4)
    for name in names(folder):
        (folder / "one" / name / "manifest.json").write_bytes(b"")
    store, said = CheckpointStore(storage, "one"), []
    assert load_newest(store, new, said.append) is None
    assert len(said) == 2
    lines = saved(store, counting(), 1)
    assert positions(folder) == [1]
    found = load_newest(CheckpointStore(storage, "one"), new, pytest.fail)
    assert found is not None
    assert found[1].lines == tuple(lines)


def test_what_a_kill_left_is_not_used_and_goes_away(everywhere: tuple[Path, Storage]) -> None:
    folder, storage = everywhere
    store, trial = CheckpointStore(storage, "one"), counting()
    lines = saved(store, trial, 2)
    newest = folder / "one" / names(folder)[-1]
    # In mid-save on a path; in mid-upload, where the manifest comes last, elsewhere.
    shutil.copytree(newest, newest.with_name(".000003-000000-aaaaaaaa.tmp"))
    half = shutil.copytree(newest, newest.with_name("000003-000000-ffffffff"))
    (half / "manifest.json").unlink()
    said: list[str] = []
    found = load_newest(CheckpointStore(storage, "one"), new, said.append)
    assert found is not None
    assert found[1].position == (2, 0)
    assert [text.partition(" is damaged (")[2] for text in said] == [
        "it was not written to its end: it has no manifest); going back to the one before"
    ]
    lines.append(line_of(trial))
    store.save(trial.save, Checkpoint((3, 0), tuple(lines)))
    assert positions(folder) == [2, 3]
    assert "ffffffff" not in names(folder)[-1]


_MID_SAVE = """
import os, signal, sys
from pathlib import Path
from sweep_trials import Counting, load_newest
from ht_ray._storage import Storage
from ht_ray.sweep.worker.checkpoints import Checkpoint, CheckpointStore
class Killed(Counting):
    def save(self, directory):
        super().save(directory)
        if self.part == 2:
            os.kill(os.getpid(), signal.SIGKILL)
trial, store = Killed({"seed": 1, "parts": 5}, None), CheckpointStore(Storage(sys.argv[1]), "one")
for part in (1, 2):
    trial.advance()
    store.save(trial.save, Checkpoint((part, 0), ("{}",) * part))
"""


def test_a_kill_in_mid_save(everywhere: tuple[Path, Storage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, storage = everywhere
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    killed = subprocess.run(
        [sys.executable, "-c", _MID_SAVE, storage.location], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    # The half one is next to the whole one, or in the scratch.
    assert len([*(folder / "one").glob(".*.tmp"), *(tmp_path / "scratch").iterdir()]) == 1
    store = CheckpointStore(storage, "one")
    found = load_newest(store, new, pytest.fail)
    assert found is not None
    assert found[1].position == (1, 0)
    store.save(found[0].save, Checkpoint((2, 0), ("{}", "{}")))
    assert positions(folder) == [1, 2]
    assert not list((tmp_path / "scratch").iterdir())


def test_a_folder_that_is_gone_is_not_an_empty_one(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    store, trial = CheckpointStore(Storage(folder), "one"), counting()
    lines = saved(store, trial, 1)
    away = folder.rename(tmp_path / "away")
    with pytest.raises(StorageError, match=r"cannot be used.*checkpoints"):
        load_newest(store, new, pytest.fail)
    with pytest.raises(StorageError, match=r"cannot be used.*checkpoints"):
        store.save(trial.save, Checkpoint((1, 1), tuple(lines)))
    assert not folder.exists()
    away.rename(folder)
    assert load_newest(store, new, pytest.fail) is not None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_one_that_cannot_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    store = CheckpointStore(Storage(tmp_path), "one")
    saved(store, counting(), 2)
    newest = names(tmp_path)[-1]
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if newest in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    said: list[str] = []
    found = load_newest(store, new, said.append)
    assert found is not None
    assert found[1].position == (1, 0)
    assert os.strerror(number) in said[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    saved(CheckpointStore(Storage(tmp_path), "one"), counting(), 2)
    newest = tmp_path / "one" / names(tmp_path)[-1]
    newest.chmod(0)
    said: list[str] = []
    found = load_newest(CheckpointStore(Storage(tmp_path), "one"), new, said.append)
    newest.chmod(0o700)
    assert found is not None
    assert found[1].position == (1, 0)
    assert "Permission denied" in said[0]


class Full(Counting):
    """A trial that finds the disk full, as libraries tell it."""

    error: Exception

    def save(self, directory: Path) -> None:
        super().save(directory)
        raise self.error


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_the_storages_fault_and_not_the_trials(tmp_path: Path, wrapped: bool) -> None:
    trial = Full({"seed": 1, "parts": 5}, None)
    full = OSError(errno.ENOSPC, "No space left on device")
    trial.error = full
    if wrapped:
        trial.error = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
        trial.error.__cause__ = full
    with pytest.raises(StorageError, match=r"cannot be used: \[Errno 28\] No space left"):
        CheckpointStore(Storage(tmp_path), "one").save(trial.save, Checkpoint((0, 0), ()))
    assert not names(tmp_path)
    trial.error = ValueError("this is its own")
    with pytest.raises(ValueError, match="its own"):
        CheckpointStore(Storage(tmp_path), "one").save(trial.save, Checkpoint((0, 0), ()))


class Nothing(Counting):
    """A trial that saves nothing."""

    def save(self, directory: Path) -> None:
        pass

    def load(self, directory: Path) -> None:
        assert list(directory.iterdir()) == []


def test_a_trial_may_save_nothing(everywhere: tuple[Path, Storage]) -> None:
    store = CheckpointStore(everywhere[1], "one")
    store.save(Nothing({"seed": 1, "parts": 5}, None).save, Checkpoint((0, 1), ()))
    assert load_newest(store, lambda _: Nothing({"seed": 1, "parts": 5}, None), pytest.fail) is not None


def test_a_later_format_is_not_guessed_at(tmp_path: Path) -> None:
    import hashlib

    store = CheckpointStore(Storage(tmp_path), "one")
    saved(store, counting(), 1)
    path = tmp_path / "one" / names(tmp_path)[0] / "manifest.json"
    values: dict[str, Any] = json.loads(path.read_text().splitlines()[0])
    content = json.dumps({**values, "format": 99})
    path.write_text(f"{content}\n{hashlib.blake2b(content.encode()).hexdigest()}\n")
    said: list[str] = []
    assert load_newest(store, new, said.append) is None
    assert "its format is 99" in said[0]
