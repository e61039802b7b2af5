"""Checkpoints of a trial, written and read by its worker on whatever storage the study has.

A checkpoint is a folder ``REPORTS-PART-TOKEN`` with the trial's files, its report lines so far, and a manifest that
lists all of them with their check sums and is written last. Its name sorts by how far the trial was; the token tells
apart what two workers write that do not know of each other, such as one on a node that was taken for lost.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ht_ray._storage import PASSING, Storage, StorageError, storage_errors
from ht_ray.records.checked_json import Damaged, check_form, parse, to_json
from ht_ray.records.study_files import MANIFEST
from ht_ray.sweep.storage.scratch import scratch_folder

__all__ = ["Checkpoint", "CheckpointStore", "Position"]

_MANIFEST = "manifest.json"
_FILES = "trial"
_LINES = "reports.jsonl"
_FORMAT = 2
_CUT_OFF = "it was not written to its end: it has no manifest"

# What a full, lost or broken disk says, whatever a library makes of it.
_DISK = (*PASSING, errno.EROFS)
# What reading one checkpoint says, on a storage that answers.
_UNREADABLE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EISDIR)

#: How far a trial is: its reports, and how often it was saved after the last of them.
Position = tuple[int, int]


@dataclass(frozen=True)
class Checkpoint:
    """What was saved in addition to the trial's own files.

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


class CheckpointStore:
    """The checkpoints of one trial.

    Parameters
    ----------
    storage
        The folder for the checkpoints of all trials. If it is on this machine it must be there: one that is missing is
        a storage that was lost, and not to be taken for an empty one.
    trial_id
        The trial's.
    keep
        How many are kept.
    every
        In addition, the newest two are kept that were made after a multiple of so many reports: others may copy them.
    """

    def __init__(self, storage: Storage, trial_id: str, *, keep: int = 2, every: int | None = None) -> None:
        self._all = storage
        self._storage = storage.child(trial_id)
        self._trial_id = trial_id
        self._keep = keep
        self._every = every
        self._damaged: set[str] = set()

    def save(self, write: Callable[[Path], None], checkpoint: Checkpoint) -> None:
        """Save what `write` writes into the folder it is given, and delete what that makes superfluous.

        Raises
        ------
        StorageError
            If the storage is full or does not answer; `save` may be called again then. What `write` itself raises
            goes through.
        """
        reports, part = checkpoint.position
        name = f"{reports:06d}-{part:06d}-{uuid.uuid4().hex[:8]}"
        local = self._storage.local
        with ExitStack() as cleaning:
            # Next to its name, so that it need only be renamed; or, for storage elsewhere, in the local scratch.
            with storage_errors(self._storage.location):
                if local is not None:
                    local.mkdir(exist_ok=True)
                    folder = local / f".{name}.tmp"
                    folder.mkdir()
                    cleaning.callback(shutil.rmtree, folder, ignore_errors=True)
                else:
                    folder = cleaning.enter_context(scratch_folder())
            files = folder / _FILES
            try:
                files.mkdir()
                write(files)
                written = self._describe(folder, checkpoint)
            except Exception as error:
                # Libraries report a full disk in many ways.
                if (reason := _disk_trouble(error, folder)) is not None:
                    raise StorageError(f"the storage {str(folder.parent)!r} cannot be used: {reason}") from error
                raise
            with storage_errors(self._storage.location):
                if local is not None:
                    folder.rename(local / name)
                else:
                    for path in written:  # the manifest is the last
                        self._storage.upload(folder / path, f"{name}/{path}")
        with storage_errors(self._storage.location):
            self._prune(self._keep, newest=name)

    def stop(self, attempt: str) -> None:
        """Let the trial's worker, in this attempt at the study, know that the trial is not to go on.

        Raises
        ------
        StorageError
            If the storage is full or does not answer.
        """
        with storage_errors(self._storage.location):
            self._storage.write(_stop(attempt), b"")

    def stopped(self, attempt: str) -> bool:
        """Return whether `stop` was called in this attempt.

        Raises
        ------
        StorageError
            If the storage does not answer.
        """
        with storage_errors(self._storage.location):
            return self._storage.exists(_stop(attempt))

    def _describe(self, folder: Path, checkpoint: Checkpoint) -> list[str]:
        """Write the reports and the manifest, and return the paths of all files."""
        (folder / _LINES).write_text("".join(f"{line}\n" for line in checkpoint.lines))
        paths = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        reports, part = checkpoint.position
        manifest = {
            "format": _FORMAT,
            "trial": self._trial_id,
            "reports": reports,
            "part": part,
            "seconds": checkpoint.seconds,
            "extra": checkpoint.extra,
            "files": {path: [(folder / path).stat().st_size, _checksum(folder / path)] for path in paths},
        }
        content = to_json(manifest)
        (folder / _MANIFEST).write_text(f"{content}\n{hashlib.blake2b(content.encode()).hexdigest()}\n")
        return [*paths, _MANIFEST]

    def newest(
        self, cleaning: ExitStack, say: Callable[[str], None], *, after: int | None = None
    ) -> tuple[Path, Checkpoint] | None:
        """Return the trial's files in its newest good checkpoint, and that checkpoint; None if there is none.

        Parameters
        ----------
        cleaning
            The files are on this machine until it is closed.
        say
            Called about each checkpoint that is damaged.
        after
            If given, only a checkpoint made right after so many reports will do.

        Raises
        ------
        StorageError
            If the storage does not answer.
        """
        with storage_errors(self._storage.location):
            names = self._by_age()
        if after is not None:
            names = [name for name in names if _position(name) == (after, 0)]
        for name in reversed(names):
            try:
                with storage_errors(self._storage.location):
                    folder, checkpoint = self._fetched(name, cleaning)
            except Damaged as damage:
                self._damaged.add(name)
                path = self._storage.child(name)
                say(f"its checkpoint {path} is damaged ({damage}); going back to the one before")
                continue
            return folder / _FILES, checkpoint
        return None

    def _fetched(self, name: str, cleaning: ExitStack) -> tuple[Path, Checkpoint]:
        """The checkpoint `name` in a folder of this machine, until `cleaning` is done, and what it holds."""
        if self._storage.local is not None:
            folder = self._storage.local / name
            try:
                checkpoint = self._checked(folder)
            except OSError as error:
                if error.errno in _UNREADABLE:
                    raise Damaged(f"it cannot be read: {error}") from error
                raise
        else:
            if not self._complete(name):
                raise Damaged(_CUT_OFF)
            folder = cleaning.enter_context(scratch_folder())
            for path in self._storage.files(name):
                self._storage.download(f"{name}/{path}", folder / path)
            checkpoint = self._checked(folder)
        (folder / _FILES).mkdir(exist_ok=True)  # a trial may save nothing
        return folder, checkpoint

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

    def _prune(self, keep: int, *, newest: str | None = None) -> None:
        """Delete all but the `keep` newest of the good checkpoints; `newest` is the newest, whatever its name."""
        good = [name for name in self._by_age() if name not in self._damaged and self._complete(name)]
        if newest in good:
            good.remove(newest)
            good.append(newest)
        if keep and not good:
            return
        kept = good[len(good) - keep :] if keep else []
        if self._every is not None:
            kept += [name for name in good if _is_mark(name, self._every)][-2:]
        for name in self._storage.names():
            # A trial has one worker at a time, so what is incomplete was left by one that was killed.
            if name not in kept and (_position(name) is not None or name.endswith(".tmp")):
                self._storage.remove(name)
        self._damaged.clear()

    def _complete(self, name: str) -> bool:
        return self._storage.exists(f"{name}/{_MANIFEST}")

    def _by_age(self) -> list[str]:
        names = [name for name in self._storage.names() if _position(name) is not None]
        if not names and self._all.local is not None and not self._all.local.is_dir():
            raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(self._all.local))
        return names

    def _checked(self, folder: Path) -> Checkpoint:
        """What the checkpoint in `folder` holds in addition to the trial's files, all of which are compared first."""
        manifest = _manifest(folder)
        if manifest["trial"] != self._trial_id:
            raise Damaged(f"it is one of the trial {manifest['trial']!r}")
        for name, (size, checksum) in manifest["files"].items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != size or _checksum(file) != checksum:
                raise Damaged(f"its file {name} is not what was saved")
        lines = tuple((folder / _LINES).read_text().splitlines())
        if len(lines) != manifest["reports"]:
            raise Damaged(f"it has {len(lines)} reports and should have {manifest['reports']}")
        return Checkpoint((manifest["reports"], manifest["part"]), lines, manifest["seconds"], manifest["extra"])


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.is_file():
        raise Damaged(_CUT_OFF)
    content, _, rest = path.read_bytes().partition(b"\n")
    if rest.decode("ascii", "replace") != f"{hashlib.blake2b(content).hexdigest()}\n":
        raise Damaged("its manifest is not what was written")
    manifest: dict[str, Any] = parse(content, {"format": int})
    if manifest["format"] != _FORMAT:
        raise Damaged(f"its format is {manifest['format']!r}, and this version reads {_FORMAT}")
    check_form(manifest, MANIFEST)
    return manifest


def _stop(attempt: str) -> str:
    # Deleted with what is half-written: an ended trial needs neither.
    return f".stop-{attempt}.tmp"


def _is_mark(name: str, every: int) -> bool:
    position = _position(name)
    return position is not None and position[1] == 0 and position[0] % every == 0


def _position(name: str) -> Position | None:
    """How far a checkpoint of this name was; None if it is no checkpoint's."""
    parts = name.split("-")
    if len(parts) != 3 or not (parts[0].isdecimal() and parts[1].isdecimal()):
        return None
    return int(parts[0]), int(parts[1])


def _disk_trouble(error: BaseException, folder: Path) -> str | None:
    """What is wrong with the disk of `folder`, if that is behind `error`; otherwise None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _DISK:
            return str(cause)
        # What PyTorch says of any disk that does not take a file, where it was given a path.
        if isinstance(cause, RuntimeError) and "iostream error" in str(cause):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    probe = folder / ".probe"
    try:
        probe.write_bytes(bytes(1 << 16))
        probe.unlink()
    except OSError as trouble:
        return str(trouble)
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
