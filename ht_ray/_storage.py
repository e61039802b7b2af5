"""Storage of folders on any file system that PyArrow or fsspec knows: local ones, NFS, S3 and its like.

The standard library only, until a folder that is not local is used.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from ht_ray._checks import check_choice
from ht_ray._files import write_atomic
from ht_ray.errors import SettingError

__all__ = [
    "PASSING",
    "Storage",
    "StorageError",
    "is_uri",
    "redact",
    "retry",
    "storage_errors",
]

T = TypeVar("T")

# Stores in which a file appears when all of it is there. They have no folders: making those costs a request, and leaves
# an empty object behind.
_OBJECT_STORES = ("s3", "gcs", "abfs")
_S3_OPTIONS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
# A store that is away is to be noticed; waiting for it is the business of `retry`.
_S3_CONNECT, _S3_REQUEST, _S3_ATTEMPTS = 5.0, 10.0, 3


#: What a disk says that may have room, or be back, later.
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


class StorageError(OSError):
    """A storage that is full, lost, or does not answer."""


def is_uri(location: str | Path) -> bool:
    """Return whether `location` is a URI and not a path on this machine.

    Examples
    --------
    >>> is_uri("s3://bucket/studies/first"), is_uri("/shared/studies/first")
    (True, False)
    """
    return "://" in str(location)


def redact(text: str) -> str:
    """Return `text` without the keys and secrets in its URIs.

    Examples
    --------
    >>> redact("s3://me:secret@bucket/first")
    's3://***@bucket/first'
    """
    return re.sub(r"(?<=://)[^/@\s]+@", "***@", text)


@contextmanager
def storage_errors(where: str | Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StorageError` that names the storage `where`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"the storage {str(where)!r} cannot be used: {error}") from error


def retry(
    what: Callable[[], T],
    *,
    patience: float,
    on_trouble: Callable[[StorageError], None] = lambda error: None,
    stop: Callable[[], bool] = lambda: False,
) -> T:
    """Return ``what()``, called again while it raises `StorageError`, for `patience` seconds.

    Parameters
    ----------
    on_trouble
        Called with the first error.
    stop
        Whether to give up before.

    Raises
    ------
    StorageError
        The last one.
    """
    began = time.monotonic()
    wait = 0.25
    while True:
        try:
            return what()
        except StorageError as error:
            if wait == 0.25:
                on_trouble(error)
            if stop() or time.monotonic() - began + wait > patience:
                raise
        time.sleep(wait)
        wait = min(2 * wait, 5.0)


class Storage:
    """A folder somewhere: on this machine, or at a URI such as ``s3://bucket/studies/first``.

    Instances can be pickled. Credentials are those of the environment (``AWS_ACCESS_KEY_ID``, ...); an object store
    that is not Amazon's is named in the URI: ``s3://bucket/folder?endpoint_override=HOST:9000&scheme=http``. Of a file
    that is written, nothing or all of it is there.

    Parameters
    ----------
    location
        A path or URI. Schemes that PyArrow has no file system for are looked up in fsspec.

    Raises
    ------
    SettingError
        When it is used for the first time: if nothing here knows the URI's scheme, or the URI has an option that does
        not exist, or credentials.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self.local = None if is_uri(self.location) else Path(self.location)
        self._opened: tuple[Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __str__(self) -> str:
        return self.location

    def child(self, *names: str) -> Storage:
        """Return a folder in this one."""
        path, mark, query = (self.location, "", "") if self.local is not None else self.location.partition("?")
        return Storage("/".join([path.rstrip("/"), *names]) + mark + query)

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises
        ------
        FileNotFoundError
            If there is none.
        OSError
            If it cannot be read.
        """
        if self.local is not None:
            return (self.local / name).read_bytes()
        system, root = self._open()
        with system.open_input_stream(f"{root}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all; its folder is made."""
        if self.local is not None:
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)
            return
        with self._writing(name) as stream:
            stream.write(content)

    def exists(self, name: str = "") -> bool:
        """Return whether there is a file or folder `name`."""
        if self.local is not None:
            return (self.local / name).exists()
        from pyarrow import fs

        system, root = self._open()
        return bool(system.get_file_info(f"{root}/{name}".rstrip("/")).type != fs.FileType.NotFound)

    def names(self, folder: str = "") -> list[str]:
        """Return the names of what is in `folder`, sorted; empty if there is no such folder."""
        if self.local is not None:
            path = self.local / folder
            return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        return sorted({PurePosixPath(info.path).name for info in self._infos(folder, recursive=False)})

    def files(self, folder: str = "") -> Iterator[str]:
        """Yield the paths, from `folder` on, of all files below it."""
        if self.local is not None:
            root = self.local / folder
            yield from sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
            return
        _, root_there = self._open()
        base = PurePosixPath(root_there) / folder
        for info in self._infos(folder, recursive=True):
            if info.is_file:
                yield PurePosixPath(info.path).relative_to(base).as_posix()

    def upload(self, source: Path, name: str) -> None:
        """Copy the file `source` to `name`."""
        if self.local is not None:
            self.write(name, source.read_bytes())
            return
        with source.open("rb") as file, self._writing(name) as stream:
            shutil.copyfileobj(file, stream, 1 << 22)

    def download(self, name: str, target: Path) -> None:
        """Copy the file `name` to `target`, whose folder is made."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.local is not None:
            shutil.copyfile(self.local / name, target)
            return
        system, root = self._open()
        with system.open_input_stream(f"{root}/{name}") as stream, target.open("wb") as file:
            shutil.copyfileobj(stream, file, 1 << 22)

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it; nothing happens if there is none."""
        if self.local is not None:
            path = self.local / name
            if path.is_dir():
                try:
                    if path.suffix != ".tmp":
                        # Another name first: half a folder is not to be taken for a whole one.
                        path = path.rename(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"))
                    shutil.rmtree(path)
                except FileNotFoundError:
                    return
            else:
                path.unlink(missing_ok=True)
            return
        from pyarrow import fs

        system, root = self._open()
        path_there = f"{root}/{name}".rstrip("/")
        kind = system.get_file_info(path_there).type
        if kind == fs.FileType.Directory:
            system.delete_dir(path_there)
        elif kind == fs.FileType.File:
            system.delete_file(path_there)

    def _infos(self, folder: str, *, recursive: bool) -> list[Any]:
        from pyarrow import fs

        system, root = self._open()
        selector = fs.FileSelector(f"{root}/{folder}".rstrip("/"), recursive=recursive, allow_not_found=True)
        infos: list[Any] = system.get_file_info(selector)
        return infos

    @contextmanager
    def _writing(self, name: str) -> Iterator[Any]:
        """A stream into a file of a storage elsewhere."""
        system, root = self._open()
        path = PurePosixPath(f"{root}/{name}")
        if system.type_name in _OBJECT_STORES:
            with system.open_output_stream(str(path)) as stream:
                yield stream
            return
        system.create_dir(str(path.parent), recursive=True)
        temporary = str(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"))
        with system.open_output_stream(temporary) as stream:
            yield stream
        system.move(temporary, str(path))

    def _open(self) -> tuple[Any, str]:
        """The file system and the path on it."""
        if self._opened is None:
            self._opened = _s3(self.location) if self.location.startswith("s3://") else _from_uri(self.location)
        return self._opened


def _s3(location: str) -> tuple[Any, str]:
    # PyArrow's own reading of such a URI leaves no way to set time limits.
    parts = urlsplit(location)
    bucket = parts.netloc.rpartition("@")[2]
    if "@" in parts.netloc:
        raise SettingError(
            f"The storage s3://...@{bucket}{parts.path}: accepted is a URI without credentials, which would end up in "
            "results and logs. Give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, here and on every node."
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        check_choice(f"The storage {location!r}: option", name, _S3_OPTIONS)
    if not bucket:
        raise SettingError(f"The storage {location!r}: accepted is s3://BUCKET/FOLDER.")
    from pyarrow import fs

    named = {"region", "endpoint_override"} & options.keys()
    if not named and not any(os.environ.get(f"AWS_{name}") for name in ("REGION", "DEFAULT_REGION", "ENDPOINT_URL")):
        options["region"] = fs.resolve_s3_region(bucket)
    system = fs.S3FileSystem(
        **options,
        connect_timeout=_S3_CONNECT,
        request_timeout=_S3_REQUEST,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
        allow_delayed_open=True,  # a small file is one request
    )
    return system, f"{bucket}{unquote(parts.path)}".rstrip("/")


def _from_uri(location: str) -> tuple[Any, str]:
    import pyarrow
    from pyarrow import fs

    try:
        opened: tuple[Any, str] = fs.FileSystem.from_uri(location)
        return opened
    except pyarrow.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise SettingError(f"The storage {location!r} cannot be used: {error}.") from error
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise SettingError(
            f"The storage {location!r} cannot be used: neither PyArrow nor fsspec has a file system for it ({error})."
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path
