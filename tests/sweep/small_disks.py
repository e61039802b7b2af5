"""Small disks, to be filled."""

from __future__ import annotations

from pathlib import Path


def fill(disk: Path) -> None:
    """Leave no room, though what is there already be deleted or grow a little."""
    with (disk / "filler").open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def make_room(disk: Path) -> None:
    (disk / "filler").unlink()
