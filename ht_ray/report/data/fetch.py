"""Download of a study at a URI: the files that a report is made from, and no others."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ht_ray._storage import Storage, storage_errors
from ht_ray.errors import SettingError
from ht_ray.report.data.journal import JOURNAL

__all__ = ["fetched", "redact"]

AT_A_TIME = 8
NEEDED = ("config.json", "trials.json")


@contextmanager
def fetched(uri: str) -> Iterator[Path]:
    """Keep the files that a report needs of the study at `uri` in a directory of its name, while the block runs.

    Event files and checkpoints are not fetched.

    Raises
    ------
    SettingError
        If there is no study, or no file system for such a URI.
    StorageError
        If the storage does not answer.
    """
    storage = Storage(uri).child()
    shown = redact(uri)
    with tempfile.TemporaryDirectory(prefix="ht-ray-report-") as scratch:
        directory = Path(scratch) / (Path(uri.partition("?")[0]).name or "study")
        try:
            with storage_errors(shown):
                missing = [name for name in NEEDED if not storage.exists(name)]
                if missing:
                    raise SettingError(f"{shown} is no study: it has no {' and no '.join(missing)}.")
                names = [*NEEDED, *([JOURNAL] if storage.exists(JOURNAL) else [])]
                names += [
                    f"trials/{name}" for name in storage.files("trials") if Path(name).suffix in (".json", ".jsonl")
                ]
                with ThreadPoolExecutor(AT_A_TIME) as pool:
                    for _ in pool.map(lambda name: storage.download(name, directory / name), names):
                        pass
        except ImportError as error:
            raise SettingError(f"{shown}: a study at a URI is read with PyArrow ({error}).") from error
        yield directory


def redact(uri: str) -> str:
    """Return `uri` without a key and its secret: a report may be sent to others.

    Examples
    --------
    >>> redact("s3://key:secret@bucket/study")
    's3://bucket/study'
    """
    return re.sub(r"(?<=://)[^/?#]*@", "", uri)
