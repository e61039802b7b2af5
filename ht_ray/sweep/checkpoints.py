"""Checkpoints whose completeness can be told.

A trial's files are saved into a folder, and then listed in a manifest with their sizes and check sums. Copying a
checkpoint to its place may be cut off anywhere by a kill; one whose files are not what the manifest says is not used.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ht_ray.sweep.plain import to_json, write_atomic
from ht_ray.sweep.trial import Trial

__all__ = ["Checkpoint", "drop_older_checkpoints", "load_trial", "newest_checkpoint", "save_trial"]

_MANIFEST = "manifest.json"
_FILES = "trial"


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint is, and how many reports of its trial came before it."""

    path: Path
    reports: int


@dataclass(frozen=True)
class _Manifest:
    reports: int
    files: dict[str, list[int]]  # size in bytes and CRC-32, by path


def save_trial(trial: Trial, reports: int, directory: Path) -> None:
    """Save `trial`, which has made `reports` reports, into `directory`."""
    files = directory / _FILES
    files.mkdir()
    trial.save(files)
    saved = [path for path in sorted(files.rglob("*")) if path.is_file()]
    listed = {path.relative_to(files).as_posix(): [path.stat().st_size, _checksum(path)] for path in saved}
    write_atomic(directory / _MANIFEST, to_json(asdict(_Manifest(reports, listed))))


def load_trial(trial: Trial, directory: Path) -> int:
    """Let `trial` continue from what `save_trial` wrote, and return the number of its reports.

    Raises
    ------
    ValueError
        If the checkpoint is not complete.
    """
    manifest = _manifest(directory)
    files = directory / _FILES
    # A trial without files has a folder that copying may have left out.
    files.mkdir(exist_ok=True)
    trial.load(files)
    return manifest.reports


def newest_checkpoint(study: Path, trial_id: str, reports: int, say: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest complete checkpoint of a trial, over all attempts of the study in the directory `study`.

    Parameters
    ----------
    reports
        How many reports are known; a checkpoint that came after more of them is not used.
    say
        Told about checkpoints that are damaged.
    """
    for path in reversed(_by_age(study, trial_id)):
        try:
            manifest = _manifest(path)
        except ValueError as error:
            say(f"trial {trial_id}: the checkpoint {path} is damaged ({error}); going back to the one before, if any")
            continue
        if manifest.reports <= reports:
            return Checkpoint(path, manifest.reports)
    return None


def drop_older_checkpoints(study: Path, trial_id: str, reports: int, say: Callable[[str], None]) -> None:
    """Delete what a trial that has ended, with `reports` reports, needs no more: all before its newest checkpoint.

    Where no checkpoint is complete nothing is deleted, and one that is still being written is left alone.
    """
    newest = newest_checkpoint(study, trial_id, reports, say)
    if newest is None:
        return
    paths = _by_age(study, trial_id)
    for path in paths[: paths.index(newest.path)]:
        try:
            shutil.rmtree(path)
        except OSError as error:
            say(f"trial {trial_id}: its checkpoint {path}, which is needed no more, cannot be deleted ({error})")


def _by_age(study: Path, trial_id: str) -> list[Path]:
    """The checkpoints of a trial over all attempts, the oldest first."""
    # Names sort by age: attempts are numbered, and so are the checkpoints of each.
    return sorted(study.glob(f"ray/attempt-*/{trial_id}/checkpoint_*"))


def _manifest(directory: Path) -> _Manifest:
    """The manifest of the checkpoint in `directory`, after comparing the files with it."""
    path = directory / _MANIFEST
    if not path.is_file():
        raise ValueError("it was not written to its end: no manifest")
    manifest = _Manifest(**json.loads(path.read_bytes()))
    for name, (size, checksum) in manifest.files.items():
        file = directory / _FILES / name
        if not file.is_file() or file.stat().st_size != size or _checksum(file) != checksum:
            raise ValueError(f"its file {name} is not what was saved")
    return manifest


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum
