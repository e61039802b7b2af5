"""Mirror of a study: a thread that brings the files of a directory to a storage whenever they change."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ht_ray._storage import Storage, StorageError, retry, storage_errors
from ht_ray.records import EventKind
from ht_ray.records.study_files import note
from ht_ray.sweep.storage.lease import BEAT, Lease

__all__ = ["UPLOADS_AT_A_TIME", "Mirror"]

UPLOADS_AT_A_TIME = 8


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
        """Bring over all that has changed; see `StudyLocation.sync`."""
        if since is not None and since < self._looked and self.lost is None:
            return
        waited = 0.0 if self._outage is None else time.monotonic() - self._outage
        retry(self._bring, patience=self._patience - waited)
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
                continue  # _bring has said so; the next look tries again
            # Looking at very many files is not to keep the machine busy.
            self._end.wait(min(BEAT, 10 * (time.monotonic() - began)))

    def _bring(self) -> None:
        with self._one_at_a_time:
            try:
                self._renew()
                if self.lost is None:
                    self._bring_changes()
            except StorageError as error:
                if self._outage is None:
                    self._outage = time.monotonic()
                    self._say_and_note(
                        f"{error}; results are kept in {self._directory} and brought there when it answers"
                    )
                raise
            if self._outage is not None and self.lost is None:
                self._say_and_note(
                    f"the storage {self._storage} answers again, after {time.monotonic() - self._outage:.0f} s"
                )
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
        with storage_errors(self._storage.location), ThreadPoolExecutor(UPLOADS_AT_A_TIME) as pool:
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

    def _say_and_note(self, text: str) -> None:
        self._say(text)
        note(self._directory, EventKind.STORAGE, detail=text)
