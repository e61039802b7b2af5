"""The checkpoints of a trial, written and read by its worker on whatever storage the study has.

A checkpoint is a folder ``REPORTS-PART-TOKEN`` with the trial's files, its report lines so far, and a manifest that
lists all of them with their check sums and is written last. Its name sorts by how far the trial was; the token tells
apart what two workers write that do not know of each other, such as one on a node that was taken for lost.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ht_ray._storage import Storage, StorageError, storage_errors
from ht_ray.sweep.plain import to_json
from ht_ray.sweep.trial import Trial

__all__ = ["Checkpoint", "CheckpointStore", "Position"]

_MANIFEST = "manifest.json"
_FILES = "trial"
_LINES = "reports.jsonl"
_FORMAT = 2

#: How far a trial is: its reports, and how often it was saved after the last of them.
Position = tuple[int, int]


@dataclass(frozen=True)
class Checkpoint:
    """What was saved beside the trial's own files.

    Parameters
    ----------
    position
        How far the trial was.
    lines
        Its reports so far, as JSON.
    seconds
        What the part that was cut off had cost until then.
    extra
        What the study itself keeps with a checkpoint, as plain data.
    """

    position: Position
    lines: tuple[str, ...]
    seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Manifest:
    format: int
    trial: str
    reports: int
    part: int
    seconds: float
    extra: dict[str, Any]
    files: dict[str, list[int | str]]  # size in bytes and check sum, by path


class _Damaged(Exception):
    """A checkpoint that is not what was saved."""


class CheckpointStore:
    """The checkpoints of one trial.

    Parameters
    ----------
    storage
        The folder for the checkpoints of all trials.
    trial_id
        The trial's.
    keep
        How many are kept.
    every
        Beside them, the newest two are kept that were made after a multiple of so many reports: others may copy them.
    """

    def __init__(self, storage: Storage, trial_id: str, *, keep: int = 2, every: int | None = None) -> None:
        self._storage = storage.child(trial_id)
        self._trial_id = trial_id
        self._keep = keep
        self._every = every

    def save(self, trial: Trial, checkpoint: Checkpoint) -> None:
        """Save `trial`, and delete what it makes superfluous.

        Raises
        ------
        StorageError
            If the storage is full or does not answer; `save` may be called again then. What the trial itself raises
            goes through.
        """
        reports, part = checkpoint.position
        name = f"{reports:06d}-{part:06d}-{uuid.uuid4().hex[:8]}"
        local = self._storage.local
        # Beside its place, so that it need only be renamed; or, for storage elsewhere, in the local scratch.
        with storage_errors(self._storage.location):
            if local is not None:
                folder = local / f".{name}.tmp"
                folder.mkdir(parents=True)
            else:
                folder = Path(tempfile.mkdtemp(prefix=f"ht-ray-{self._trial_id[:40]}-"))
        try:
            files = folder / _FILES
            try:
                files.mkdir()
                trial.save(files)
                written = self._describe(folder, checkpoint)
            except Exception as error:
                # Libraries tell a full disk in many ways.
                if (reason := _cannot_write(folder)) is not None:
                    raise StorageError(f"the storage {str(folder.parent)!r} cannot be used: {reason}") from error
                raise
            with storage_errors(self._storage.location):
                if local is not None:
                    folder.rename(local / name)
                else:
                    for path in written:  # the manifest is the last
                        self._storage.upload(folder / path, f"{name}/{path}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        with storage_errors(self._storage.location):
            self._prune(self._keep)

    def _describe(self, folder: Path, checkpoint: Checkpoint) -> list[str]:
        """Write the reports and the manifest, and return the paths of all files."""
        (folder / _LINES).write_text("".join(f"{line}\n" for line in checkpoint.lines))
        paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        files: dict[str, list[int | str]] = {
            path: [(folder / path).stat().st_size, _checksum(folder / path)] for path in paths
        }
        manifest = _Manifest(_FORMAT, self._trial_id, *checkpoint.position, checkpoint.seconds, checkpoint.extra, files)
        content = to_json(asdict(manifest))
        (folder / _MANIFEST).write_text(f"{content}\n{hashlib.blake2b(content.encode()).hexdigest()}\n")
        return [*paths, _MANIFEST]

    def load_newest(
        self, build: Callable[[Checkpoint], Trial], say: Callable[[str], None]
    ) -> tuple[Trial, Checkpoint] | None:
        """Return a trial that goes on from its newest good checkpoint, and that checkpoint; None if there is none.

        Parameters
        ----------
        build
            Makes the trial that is to go on from a checkpoint, as yet without a past.
        say
            Told about each checkpoint that is damaged.

        Raises
        ------
        StorageError
            If the storage does not answer.
        """
        with storage_errors(self._storage.location):
            names = self._by_age()
        return self._load(names, build, say)

    def load_after(
        self, reports: int, build: Callable[[Checkpoint], Trial], say: Callable[[str], None]
    ) -> tuple[Trial, Checkpoint] | None:
        """Return, as `load_newest`, a trial that goes on from a checkpoint made right after so many reports."""
        with storage_errors(self._storage.location):
            names = [name for name in self._by_age() if _position(name) == (reports, 0)]
        return self._load(names, build, say)

    def _load(
        self, names: Sequence[str], build: Callable[[Checkpoint], Trial], say: Callable[[str], None]
    ) -> tuple[Trial, Checkpoint] | None:
        for name in reversed(names):
            scratch = None
            try:
                with storage_errors(self._storage.location):
                    if self._storage.local is not None:
                        folder = self._storage.local / name
                    else:
                        if not self._storage.exists(f"{name}/{_MANIFEST}"):
                            continue  # cut off while it was uploaded
                        folder = scratch = Path(tempfile.mkdtemp(prefix=f"ht-ray-{self._trial_id[:40]}-"))
                        for path in self._storage.files(name):
                            self._storage.download(f"{name}/{path}", folder / path)
                    checkpoint = self._checked(folder)
                    (folder / _FILES).mkdir(exist_ok=True)  # a trial may save nothing
                trial = build(checkpoint)
                trial.load(folder / _FILES)
            except _Damaged as damage:
                say(f"its checkpoint {self._storage}/{name} is damaged ({damage}); going back to the one before")
                continue
            finally:
                if scratch is not None:
                    shutil.rmtree(scratch, ignore_errors=True)
            return trial, checkpoint
        return None

    def newest(self) -> Position | None:
        """Return how far the newest checkpoint says the trial was, without looking into it."""
        names = self._by_age()
        return _position(names[-1]) if names else None

    def end(self, *, keep: bool) -> None:
        """Leave the newest checkpoint alone, or none unless `keep`, as a trial that has ended needs no more.

        Raises
        ------
        StorageError
            If the storage does not answer.
        """
        with storage_errors(self._storage.location):
            self._prune(1 if keep else 0)
            if not keep:
                self._storage.remove("")

    def _prune(self, keep: int) -> None:
        names = self._by_age()
        kept = set(names[max(len(names) - keep, 0) :])
        if self._every is not None:
            positions = {name: _position(name) for name in names}
            marks = [name for name, at in positions.items() if at is not None and at[1] == 0 == at[0] % self._every]
            kept.update(marks[-2:])
        for name in names:
            if name not in kept:
                self._storage.remove(name)
        # What a kill left of a checkpoint that was being written, or deleted: a trial has one worker at a time.
        for name in self._storage.names():
            if name.endswith(".tmp"):
                self._storage.remove(name)

    def _by_age(self) -> list[str]:
        return [name for name in self._storage.names() if _position(name) is not None]

    def _checked(self, folder: Path) -> Checkpoint:
        """What the checkpoint in `folder` holds beside the trial's files, all of which are compared first."""
        manifest = _manifest(folder)
        if manifest.trial != self._trial_id:
            raise _Damaged(f"it is one of the trial {manifest.trial!r}")
        for name, (size, checksum) in manifest.files.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != size or _checksum(file) != checksum:
                raise _Damaged(f"its file {name} is not what was saved")
        lines = tuple((folder / _LINES).read_text().splitlines())
        if len(lines) != manifest.reports:
            raise _Damaged(f"it has {len(lines)} reports and should have {manifest.reports}")
        return Checkpoint((manifest.reports, manifest.part), lines, manifest.seconds, manifest.extra)


def _manifest(folder: Path) -> _Manifest:
    path = folder / _MANIFEST
    if not path.is_file():
        raise _Damaged("it was not written to its end: no manifest")
    content, _, rest = path.read_bytes().partition(b"\n")
    if rest.decode("ascii", "replace") != f"{hashlib.blake2b(content).hexdigest()}\n":
        raise _Damaged("its manifest is not what was written")
    values: dict[str, Any] = json.loads(content)
    if values["format"] != _FORMAT:
        raise _Damaged(f"its format is {values['format']!r}, and this version reads {_FORMAT}")
    return _Manifest(**values)


def _position(name: str) -> Position | None:
    """How far a checkpoint of this name was; None if it is no checkpoint's."""
    parts = name.split("-")
    if len(parts) != 3 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    return int(parts[0]), int(parts[1])


def _cannot_write(folder: Path) -> str | None:
    """Why nothing more can be written to `folder`; None if it can."""
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(1 << 16))
        probe.unlink()
    except OSError as error:
        return str(error)
    return None


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
