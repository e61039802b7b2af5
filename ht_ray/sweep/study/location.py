"""Where a study is: a directory of this machine, or a copy of one that lies on storage elsewhere.

The driver works in a directory. If the study is at a URI, that is a copy in the local scratch: a thread brings every
file that changes to the storage, through outages, and the copy is deleted when all of it is there.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ht_ray._schema import Damaged, parse
from ht_ray._storage import Storage, StorageError, is_uri, patiently, storage_errors
from ht_ray._study_files import LEASE
from ht_ray.errors import SettingError
from ht_ray.sweep.records.study_dir import LEASE_FILE, lock_study, note
from ht_ray.sweep.study.jsonable import to_json
from ht_ray.sweep.worker.scratch import scratch_folder

__all__ = ["Lease", "Mirror", "Place", "open_place"]

_BEAT = 10.0
# A driver that has not renewed its lease for so long is gone.
_LEASE_ENDS = 45.0
# What one driver writes the other reads after so long.
_SETTLES = 1.0
_UPLOADS_AT_A_TIME = 8


class Place:
    """Where a study is.

    Parameters
    ----------
    location
        What the user calls it: a path or URI.
    directory
        Where the driver works.
    mirror
        What brings the driver's files to the storage; None if they are there already.
    """

    def __init__(self, location: str, directory: Path, mirror: Mirror | None) -> None:
        self.location = location
        self.directory = directory
        self.mirror = mirror

    @property
    def storage(self) -> Storage:
        """Where workers read and write."""
        return Storage(self.location)

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
def open_place(location: str, *, patience: float, say: Callable[[str], None]) -> Iterator[Place]:
    """Have the study at `location` for this driver alone, and its files in a local directory.

    Parameters
    ----------
    patience
        Seconds for which a storage that does not answer is waited for.
    say
        Told about outages, which are noted in the study's journal, too.

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
            yield Place(location, directory, None)
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
            yield Place(location, directory, mirror)
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
                say(f"{error}; the next driver will wait {_LEASE_ENDS:.0f} s before it takes the study")


def fetch_records(storage: Storage, directory: Path) -> None:
    """Copy what the driver of a study must know, and reports are made from, into `directory`.

    Event files for TensorBoard, which are written anew, are left empty: when the driver deletes one, the one that is
    on the storage goes, too.
    """
    single = ("config.json", "trials.json", "journal.jsonl", "population.jsonl")
    wanted = [name for name in single if storage.exists(name)]
    for folder in ("trials", "tensorboard"):
        for name in storage.files(folder):
            path = directory / folder / name
            if path.suffix in (".json", ".jsonl"):
                wanted.append(f"{folder}/{name}")
            elif path.name.startswith("events."):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    with ThreadPoolExecutor(_UPLOADS_AT_A_TIME) as pool:
        for _ in pool.map(lambda name: storage.download(name, directory / name), wanted):
            pass


class Mirror:
    """Brings the files of a directory to a storage whenever they change, in a thread of its own.

    Parameters
    ----------
    directory
        Watched; what begins with a dot is left out. What is in it now is on the storage already.
    lease
        Renewed meanwhile. When another driver has it, nothing is brought any more.
    every
        Seconds between two looks.

    Attributes
    ----------
    lost
        Why the study is not this driver's any more; None while it is.
    """

    def __init__(
        self,
        directory: Path,
        storage: Storage,
        lease: Lease,
        *,
        patience: float,
        say: Callable[[str], None],
        every: float = 5.0,
    ) -> None:
        self.lost: str | None = None
        self._directory = directory
        self._storage = storage
        self._lease = lease
        self._patience = patience
        self._say = say
        self._every = every
        self._there: dict[Path, tuple[int, int]] = dict(self._look())
        self._looked = -math.inf
        self._outage: float | None = None
        self._one_at_a_time = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ht-ray-mirror", daemon=True)
        self._thread.start()

    def flush(self, since: float | None = None) -> None:
        """Bring over all that has changed; see `Place.sync`."""
        if since is not None and since < self._looked and self.lost is None:
            return
        waited = 0.0 if self._outage is None else time.monotonic() - self._outage
        patiently(self._bring, patience=self._patience - waited)
        if self.lost is not None:
            raise StorageError(self.lost)

    def close(self) -> None:
        """Stop watching, after a last `flush`."""
        self._end.set()
        self._thread.join()
        if self.lost is None:
            self.flush()

    def _watch(self) -> None:
        while not self._end.wait(self._every):
            began = time.monotonic()
            try:
                self._bring()
            except StorageError:
                continue  # told by _bring; the next look tries again
            # Looking at very many files is not to keep the machine busy.
            self._end.wait(min(_BEAT, 10 * (time.monotonic() - began)))

    def _bring(self) -> None:
        with self._one_at_a_time:
            try:
                self._renew()
                if self.lost is None:
                    self._bring_changes()
            except StorageError as error:
                if self._outage is None:
                    self._outage = time.monotonic()
                    self._tell(f"{error}; results are kept in {self._directory} and brought there when it answers")
                raise
            if self._outage is not None and self.lost is None:
                self._tell(f"the storage {self._storage} answers again, after {time.monotonic() - self._outage:.0f} s")
                self._outage = None
                self._bring_changes()  # the journal has grown

    def _renew(self) -> None:
        """Renew the lease, or find that it is lost."""
        if self.lost is None and (taker := self._lease.renew()) is not None:
            self.lost = (
                f"{taker} has taken over the study {self._storage}, which had not heard from this driver; what was "
                "reported here since then will be reported there"
            )

    def _bring_changes(self) -> None:
        began = time.monotonic()
        seen = dict(self._look())
        changed = [item for item in seen.items() if self._there.get(item[0]) != item[1]]
        with storage_errors(self._storage.location), ThreadPoolExecutor(_UPLOADS_AT_A_TIME) as pool:
            for path, status in pool.map(self._upload, changed):
                self._there[path] = status
                self._renew()
                if self.lost is not None:
                    return
            for path in self._there.keys() - seen.keys():
                self._storage.remove(self._name(path))
                del self._there[path]
        self._looked = began

    def _upload(self, item: tuple[Path, tuple[int, int]]) -> tuple[Path, tuple[int, int]]:
        path, _ = item
        try:
            self._storage.upload(path, self._name(path))
        except OSError:
            # Deleted since the look; the next one sees that.
            if path.exists():
                raise
        return item

    def _name(self, path: Path) -> str:
        return path.relative_to(self._directory).as_posix()

    def _look(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        """All files, with what changes when they do."""
        for root, folders, names in os.walk(self._directory):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if name.startswith("."):
                    continue
                path = Path(root, name)
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                yield path, (status.st_size, status.st_mtime_ns)

    def _tell(self, text: str) -> None:
        self._say(text)
        note(self._directory, "storage", detail=text)


class Lease:
    """The right of one driver to run a study on a storage that has no locks: a file that is renewed.

    Taking it waits while another driver may be alive. A driver that could not renew its own for long, because the
    storage was away or its machine stood still, finds it taken, if another one resumed the study meanwhile.

    Parameters
    ----------
    say
        Told that there is something to wait for.

    Raises
    ------
    SettingError
        If another driver has it.
    StorageError
        If the storage does not answer.
    """

    def __init__(self, storage: Storage, say: Callable[[str], None]) -> None:
        self._storage = storage
        self._token = uuid.uuid4().hex
        self._renewed = 0.0
        with storage_errors(storage.location):
            self._wait(say)
            self._write()
            # Of two that found it free at the same moment, the last to write has it.
            time.sleep(_SETTLES)
            taker = self.renew()
        if taker is not None:
            raise SettingError(f"The study {storage.location!r} is being run by {taker}; wait for it or stop it first.")

    def renew(self) -> str | None:
        """Renew it if that is due, and return None; or who has it now."""
        if time.monotonic() - self._renewed < _BEAT and self._renewed:
            return None
        with storage_errors(self._storage.location):
            found = self._read()
            if found is not None and found["token"] != self._token:
                return _who(found)
            self._write()
        self._renewed = time.monotonic()
        return None

    def end(self) -> None:
        """Give it up."""
        with storage_errors(self._storage.location):
            found = self._read()
            if found is not None and found["token"] == self._token:
                self._storage.remove(LEASE_FILE)

    def _write(self) -> None:
        lease = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "token": self._token,
            "beat": time.time(),
        }
        self._storage.write(LEASE_FILE, to_json(lease).encode())

    def _read(self) -> dict[str, Any] | None:
        try:
            lease: dict[str, Any] = parse(self._storage.read(LEASE_FILE), LEASE)
        except (FileNotFoundError, Damaged):
            return None  # half of it was written by a driver that is dead
        return lease

    def _wait(self, say: Callable[[str], None]) -> None:
        """Return when no other driver is at work; raise `SettingError` if one is."""
        before = self._read()
        if before is None or (before["machine"] == _machine() and not Path(f"/proc/{before['pid']}").exists()):
            return
        say(f"Waiting up to {_LEASE_ENDS:.0f} s to see whether {_who(before)} still runs this study")
        end = time.monotonic() + _LEASE_ENDS
        while time.monotonic() < end:
            time.sleep(1.0)
            lease = self._read()
            if lease is None:
                return
            if lease != before:
                raise SettingError(
                    f"The study {self._storage.location!r} is being run by {_who(lease)}; wait for it or stop it first."
                )


def _who(lease: dict[str, Any]) -> str:
    return f"process {lease['pid']} on {lease['host']}"


def _machine() -> str:
    """Where process ids mean the same: hosts, and containers on one, may share a name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return uuid.uuid4().hex  # cannot be told: as if elsewhere
    return f"{boot.read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
