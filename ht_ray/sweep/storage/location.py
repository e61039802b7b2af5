"""Location of a study: a directory of this machine, or a copy of one that lies on storage elsewhere.

The driver works in a directory. If the study is at a URI, that is a copy in the local scratch: a thread brings every
file that changes to the storage, through outages, and the copy is deleted when all of it is there.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ht_ray._files import locked
from ht_ray._storage import Storage, StorageError, is_uri, storage_errors
from ht_ray.errors import SettingError
from ht_ray.records.study_files import CONFIG_FILE, JOURNAL, LOCK, PLAN_FILE, POPULATION, TRIALS
from ht_ray.sweep.storage.lease import LEASE_ENDS, Lease
from ht_ray.sweep.storage.mirror import UPLOADS_AT_A_TIME, Mirror
from ht_ray.sweep.storage.scratch import scratch_folder

__all__ = ["StudyLocation", "fetch_records", "lock_study", "open_study"]


@dataclass(frozen=True)
class StudyLocation:
    """Where a study is.

    Parameters
    ----------
    name
        What the user calls it: a path or URI.
    directory
        Where the driver works.
    mirror
        What brings the driver's files to the storage; None if they are there already.
    """

    name: str
    directory: Path
    mirror: Mirror | None

    @property
    def storage(self) -> Storage:
        """Where workers read and write."""
        return Storage(self.name)

    @property
    def lost(self) -> str | None:
        """Why this driver has the study no more; None while it has."""
        return None if self.mirror is None else self.mirror.lost

    def sync(self, since: float | None = None) -> None:
        """Return when all that was written until now, or until `since` on the monotonic clock, is on the storage.

        Raises
        ------
        StorageError
            If that could not be done.
        """
        if self.mirror is not None:
            self.mirror.flush(since)


@contextmanager
def open_study(location: str, *, patience: float, say: Callable[[str], None]) -> Iterator[StudyLocation]:
    """Have the study at `location` for this driver alone, and its files in a local directory.

    Parameters
    ----------
    patience
        Seconds for which a storage that does not answer is waited for.
    say
        Called about outages, which are noted in the study's journal, too.

    Raises
    ------
    SettingError
        If another driver has it.
    StorageError
        If, at the end, files could not be brought to the storage: the message says where they are.
    """
    if not is_uri(location):
        directory = Path(location)
        with storage_errors(location):
            directory.mkdir(parents=True, exist_ok=True)
        with lock_study(directory):
            yield StudyLocation(location, directory, None)
        return
    storage = Storage(location)
    with scratch_folder() as scratch:
        directory = scratch / (Path(location.partition("?")[0]).name or "study")
        directory.mkdir()
        with storage_errors(location):
            lease = Lease(storage, say)
            fetch_records(storage, directory)
        mirror = Mirror(directory, storage, lease, patience=patience, say=say)
        try:
            yield StudyLocation(location, directory, mirror)
        finally:
            try:
                mirror.close()
            except (StorageError, KeyboardInterrupt) as error:
                kept = scratch.rename(scratch.with_name(f"ht-ray-unsent-{uuid.uuid4().hex[:8]}")) / directory.name
                advice = f"What is not at {storage} yet is kept in {kept}: copy that folder over it, and resume."
                if isinstance(error, KeyboardInterrupt):
                    say(advice)
                    raise
                raise StorageError(f"{error}\n{advice}") from error
            try:
                lease.end()
            except StorageError as error:
                say(f"{error}; the next driver will wait {LEASE_ENDS:.0f} s before it takes the study")


@contextmanager
def lock_study(directory: Path) -> Iterator[None]:
    """Keep every other driver off the study while the block runs.

    Raises
    ------
    SettingError
        If another process has it.
    """
    with ExitStack() as closing:
        with storage_errors(directory):
            free = closing.enter_context(locked(directory / LOCK))
        if not free:
            raise SettingError(
                f"The study {str(directory)!r} is being run by another process; wait for it or stop it first."
            )
        yield


def fetch_records(storage: Storage, directory: Path) -> None:
    """Copy what the driver of a study must know, and reports are made from, into `directory`.

    Event files for TensorBoard, which are written again, are left empty: when the driver deletes one, the one that is
    on the storage goes, too.
    """
    wanted = [name for name in (CONFIG_FILE, PLAN_FILE, JOURNAL, POPULATION) if storage.exists(name)]
    for folder in (TRIALS, "tensorboard"):
        for name in storage.files(folder):
            path = directory / folder / name
            if path.suffix in (".json", ".jsonl"):
                wanted.append(f"{folder}/{name}")
            elif path.name.startswith("events."):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    with ThreadPoolExecutor(UPLOADS_AT_A_TIME) as pool:
        for _ in pool.map(lambda name: storage.download(name, directory / name), wanted):
            pass
