"""Lease of a study: the right of one driver to run it on a storage that has no locks."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ht_ray._storage import Storage, storage_errors
from ht_ray.errors import SettingError
from ht_ray.records.checked_json import Damaged, parse, to_json
from ht_ray.records.study_files import LEASE, LEASE_FILE

__all__ = ["BEAT", "LEASE_ENDS", "Lease"]

#: Seconds between two renewals.
BEAT = 10.0
#: A driver that has not renewed its lease for so long is gone.
LEASE_ENDS = 45.0
# What one driver writes the other reads after so long.
_SETTLES = 1.0


class Lease:
    """The right of one driver to run a study: a file that is renewed.

    Taking it waits while another driver may be alive. A driver that could not renew its own for long, because the
    storage was away or its machine stood still, finds it taken, if another one resumed the study meanwhile.

    Parameters
    ----------
    say
        Called if there is something to wait for.

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
            raise self._taken(taker)

    def renew(self) -> str | None:
        """Renew it if that is due, and return None; or who has it now."""
        if time.monotonic() - self._renewed < BEAT and self._renewed:
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
        say(f"Waiting up to {LEASE_ENDS:.0f} s to see whether {_who(before)} still runs this study")
        end = time.monotonic() + LEASE_ENDS
        while time.monotonic() < end:
            time.sleep(1.0)
            lease = self._read()
            if lease is None:
                return
            if lease != before:
                raise self._taken(_who(lease))

    def _taken(self, taker: str) -> SettingError:
        return SettingError(
            f"The study {self._storage.location!r} is being run by {taker}; wait for it or stop it first."
        )


def _who(lease: dict[str, Any]) -> str:
    return f"process {lease['pid']} on {lease['host']}"


def _machine() -> str:
    """Where process ids mean the same: hosts, and containers on one, may share a name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not boot.exists():
        return uuid.uuid4().hex  # it cannot be known: as if elsewhere
    return f"{boot.read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
