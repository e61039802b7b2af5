"""Where a study is: a directory of this machine, or a copy of one that lies on storage elsewhere.

The driver works in a directory. If the study is at a URI, that is a copy in the local scratch: a thread brings every
file that changes to the storage, through outages, and the copy is deleted when all of it is there.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ht_ray._checks import SettingError
from ht_ray._storage import Storage, StorageError, is_uri, patiently, storage_errors
from ht_ray.sweep.plain import to_json
from ht_ray.sweep.study_dir import lock_study

__all__ = ["Mirror", "Place", "open_place"]

_LEASE = "lease.json"
_BEAT = 10.0
# A driver that has not renewed its lease for so long is gone.
_LEASE_ENDS = 45.0
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

    def sync(self) -> None:
        """Return when all that was written is on the storage.

        Raises
        ------
        StorageError
            If that could not be done.
        """
        if self.mirror is not None:
            self.mirror.flush()


@contextmanager
def open_place(location: str, *, patience: float, say: Callable[[str], None]) -> Iterator[Place]:
    """Have the study at `location` for this driver alone, and its files in a local directory.

    Parameters
    ----------
    patience
        Seconds for which a storage that does not answer is waited for.
    say
        Told about outages.

    Raises
    ------
    SettingError
        If another driver has it.
    StorageError
        If, at the end, files could not be brought to the storage: the message says where they are.
    """
    if not is_uri(location):
        directory = Path(location)
        directory.mkdir(parents=True, exist_ok=True)
        with lock_study(directory):
            yield Place(location, directory, None)
        return
    storage = Storage(location)
    scratch = Path(tempfile.mkdtemp(prefix="ht-ray-study-"))
    directory = scratch / (Path(location.partition("?")[0]).name or "study")
    directory.mkdir()
    try:
        with storage_errors(location):
            _take_lease(storage, say)
            fetch_records(storage, directory)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    mirror = Mirror(directory, storage, patience=patience, say=say)
    try:
        yield Place(location, directory, mirror)
    finally:
        mirror.close()
    with storage_errors(location):
        storage.remove(_LEASE)
    shutil.rmtree(scratch, ignore_errors=True)


def fetch_records(storage: Storage, directory: Path) -> None:
    """Copy what the driver of a study must know, and reports are made from, into `directory`."""
    names = [
        name for name in ("config.json", "trials.json", "journal.jsonl", "population.jsonl") if storage.exists(name)
    ]
    wanted = [f"trials/{name}" for name in storage.files("trials") if Path(name).suffix in (".json", ".jsonl")]
    with ThreadPoolExecutor(_UPLOADS_AT_A_TIME) as pool:
        for _ in pool.map(lambda name: storage.download(name, directory / name), [*names, *wanted]):
            pass


class Mirror:
    """Brings the files of a directory to a storage whenever they change, in a thread of its own.

    Parameters
    ----------
    directory
        Watched; what begins with a dot is left out.
    every
        Seconds between two looks.
    """

    def __init__(
        self,
        directory: Path,
        storage: Storage,
        *,
        patience: float,
        say: Callable[[str], None],
        every: float = 5.0,
    ) -> None:
        self._directory = directory
        self._storage = storage
        self._patience = patience
        self._say = say
        self._every = every
        self._there: dict[Path, tuple[int, int]] = dict(self._look())  # fetched a moment ago
        self._outage: float | None = None
        self._beaten = 0.0
        self._token = uuid.uuid4().hex
        self._one_at_a_time = threading.Lock()
        self._end = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._watch, name="ht-ray-mirror", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Bring over all that has changed; see `Place.sync`."""
        try:
            patiently(self._bring, patience=self._patience)
        except StorageError as error:
            raise StorageError(
                f"{error}\nWhat is not there yet is kept in {self._directory}: copy that folder over what is at "
                f"{self._storage}, and resume."
            ) from error

    def close(self) -> None:
        """Stop watching, after a last `flush`."""
        self._end.set()
        self._thread.join()
        self.flush()

    def _watch(self) -> None:
        while not self._end.wait(self._every):
            began = time.monotonic()
            try:
                self._bring()
                self._beat()
            except StorageError:
                continue  # told by _bring; the next look tries again
            # Looking at very many files is not to keep the machine busy.
            self._end.wait(min(60.0, 10 * (time.monotonic() - began)))

    def _bring(self) -> None:
        with self._one_at_a_time:
            changed = {path: seen for path, seen in self._look() if self._there.get(path) != seen}
            try:
                with storage_errors(self._storage.location), ThreadPoolExecutor(_UPLOADS_AT_A_TIME) as pool:
                    for path, seen in pool.map(self._upload, changed.items()):
                        self._there[path] = seen
            except StorageError as error:
                if self._outage is None:
                    self._outage = time.monotonic()
                    self._say(f"{error}; results are kept in {self._directory} and brought there when it answers")
                raise
            if self._outage is not None:
                self._say(f"the storage {self._storage} answers again, after {time.monotonic() - self._outage:.0f} s")
                self._outage = None

    def _upload(self, item: tuple[Path, tuple[int, int]]) -> tuple[Path, tuple[int, int]]:
        path, _ = item
        self._storage.upload(path, path.relative_to(self._directory).as_posix())
        return item

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

    def _beat(self) -> None:
        if time.monotonic() - self._beaten < _BEAT:
            return
        lease = {"host": socket.gethostname(), "pid": os.getpid(), "token": self._token, "beat": time.time()}
        with storage_errors(self._storage.location):
            self._storage.write(_LEASE, to_json(lease).encode())
        self._beaten = time.monotonic()


def _take_lease(storage: Storage, say: Callable[[str], None]) -> None:
    """Return when no other driver is at work on the study; raise `SettingError` if one is."""
    if not storage.exists(_LEASE):
        return
    before = storage.read(_LEASE)
    lease = json.loads(before)
    who = f"process {lease['pid']} on {lease['host']}"
    if lease["host"] == socket.gethostname() and not Path(f"/proc/{lease['pid']}").exists():
        return
    say(f"Waiting up to {_LEASE_ENDS:.0f} s to see whether {who} still runs this study")
    end = time.monotonic() + _LEASE_ENDS
    while time.monotonic() < end:
        time.sleep(1.0)
        if not storage.exists(_LEASE):
            return
        if storage.read(_LEASE) != before:
            raise SettingError(f"The study {storage.location!r} is being run by {who}; wait for it or stop it first.")
