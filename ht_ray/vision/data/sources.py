"""Image sources: torchvision's layouts, folders of classes, and tar and zip archives of those.

Reading has two steps. The first walks the whole source and checks it (an archive to its last checksum), so that what is
wrong with it is said before any image is decoded; the second decodes all images on a thread pool into one tensor.
Nothing is unpacked to disk and no member of an archive is ever used as a path.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple, Self, cast

import numpy as np
import torch

from ht_ray._checks import refused
from ht_ray.errors import SettingError

__all__ = ["ARCHIVES", "ImageSets", "Source", "decode", "encoding", "find_source", "fingerprint", "read_torchvision"]

_TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
}
# How archives are opened. tarfile's own "r|xz" stops after the first of several xz streams; these readers do not.
_OPENERS: dict[str, Callable[..., Any]] = {
    ".tar": Path.open,
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.xz": lzma.open,
    ".zip": Path.open,
}
ARCHIVES = tuple(_OPENERS)
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
_SPLITS = ("train", "test", "val")
_LAYOUTS = (
    "a folder or an archive with train/<class>/<image> and test/<class>/<image> (or val/<class>/<image>, or Tiny "
    "ImageNet's train/<class>/images/<image> and val/images with val/val_annotations.txt), or a folder that holds one "
    "such archive named after the data set"
)
# The most bytes of one file, of all files of a data set (and of all its images), and of a header in a tar archive: far
# more than any has, and what a machine can read.
_MOST_OF_FILE = 1 << 26
_MOST_OF_ALL = 1 << 35
_MOST_OF_HEADER = 1 << 20
# What readers of archives and images raise over bytes that are not what they should be. Errors of the disk are OSErrors
# too; messages pass on their words.
_DAMAGE = (
    *(OSError, EOFError, ValueError, LookupError, OverflowError, NotImplementedError, SyntaxError, struct.error),
    *(zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile),
)
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")


class ImageSets(NamedTuple):
    """Two sets of images: uint8 ``(N, C, H, W)`` with int64 labels ``(N,)``."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """One place that holds a data set.

    Attributes
    ----------
    kind
        ``"torchvision"`` (`path` is what torchvision calls root), ``"folder"`` (`path` holds ``train/``) or
        ``"archive"``.
    """

    kind: Literal["torchvision", "folder", "archive"]
    path: Path


def find_source(name: str, root: Path, download: bool) -> Source:
    """Return where under `root` the data set `name` lies.

    Raises
    ------
    SettingError
        If nothing usable is there, or several archives are.
    """
    if root.is_file():
        if root.name.lower().endswith(ARCHIVES):
            return Source("archive", root)
        raise _refused(root, f": a file of this kind is not read; accepted are {', '.join(ARCHIVES)}.")
    layout = _TORCHVISION[name][1] if name in _TORCHVISION else None
    if layout and (root / layout).is_dir():
        return Source("torchvision", root)
    if (root / "train").is_dir():
        return Source("folder", root)
    # "cifar10" must not find "cifar100.tar".
    named = re.compile(re.escape(name) + r"([^0-9A-Za-z].*)?(" + "|".join(map(re.escape, ARCHIVES)) + ")")
    archives = sorted(p for p in root.iterdir() if named.fullmatch(p.name) and p.is_file()) if root.is_dir() else []
    if len(archives) > 1:
        listed = ", ".join(p.name for p in archives)
        why = f" holds several archives for {name!r}: {{listed}}. Give the path of one of them."
        raise _refused(root, why, listed=listed)
    if archives:
        return Source("archive", archives[0])
    if layout and download:
        return Source("torchvision", root)
    if layout:
        why = f" holds no {name!r}. Accepted are torchvision's layout ({layout}) and {_LAYOUTS}; or set "
        raise _refused(root, why + "{DataConfig.download}.")
    raise _refused(
        root,
        f" holds no {name!r}, and torchvision cannot download it. Fetch "
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip and set {DataConfig.root} to it, unpacked or not. Accepted "
        f"are {_LAYOUTS}.",
    )


def _refused(root: Path, reason: str, **values: Any) -> SettingError:
    return refused("DataConfig.root", str(root), reason, **values)


def fingerprint(source: Source) -> dict[str, Any]:
    """Return plain data that differ once the images of a folder or archive have been changed.

    Paths, sizes and times of modification; contents are not read.
    """
    path = source.path.resolve()
    if source.kind == "archive":
        status = path.stat()
        return {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    digest = hashlib.blake2b(digest_size=16)
    for name, file in sorted(_folder_files(path)):
        try:
            status = file.stat()
        except OSError as error:
            raise SettingError(f"{file} cannot be read ({error.strerror}).") from error
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return {"path": str(path), "files": digest.hexdigest()}


def read_torchvision(name: str, root: Path, download: bool) -> ImageSets:
    """Return a data set that torchvision reads, or downloads into `root`.

    Raises
    ------
    SettingError
        If its files are missing or damaged, or the download fails.
    """
    from torchvision import datasets

    reader = getattr(datasets, _TORCHVISION[name][0])
    for file in (root / _TORCHVISION[name][1]).glob("*"):
        if not file.is_file() and not file.is_dir():
            raise SettingError(f"{file} is no regular file; accepted are files, and links to some.")
    try:
        train = reader(str(root), train=True, download=download)
        test = reader(str(root), train=False)
    # RuntimeError and URLError (an OSError) are for what is missing; torchvision does not check IDX files.
    except (*_DAMAGE, RuntimeError, AssertionError, http.client.HTTPException) as error:
        why = (
            f": {name!r} could not be read from {_TORCHVISION[name][1]} in it or downloaded there ({{trouble}}). "
            f"Delete what is there and try again, or put one of these elsewhere and set {{DataConfig.root}} to it: "
            f"{_LAYOUTS}."
        )
        raise _refused(root, why, trouble=f"{type(error).__name__}: {error}") from error
    images, labels = [], []
    for split in (train, test):
        if name == "mnist":
            images.append(split.data.unsqueeze(1))
        else:
            images.append(torch.from_numpy(np.ascontiguousarray(split.data.transpose(0, 3, 1, 2))))
        labels.append(torch.as_tensor(split.targets, dtype=torch.int64))
    # MNIST's classes read "0 - zero"; in folders they are the digits.
    classes = tuple(name.split(" - ")[0] for name in train.classes)
    return ImageSets(images[0], labels[0], images[1], labels[1], classes)


def encoding(source: Source) -> str:
    """Return how the images are stored, by the first of them: ``"as published"``, ``"PNG"``, ``"JPEG, quality 75"``.

    Raises
    ------
    SettingError
        If there is no image, or it cannot be decoded.
    """
    from PIL import Image

    if source.kind == "torchvision":
        return "as published"
    first = next((file for file in _files(source) if file[0].lower().endswith(_IMAGES)), None)
    if first is None:
        raise SettingError(f"{source.path} holds no images. Expected is {_LAYOUTS}.")
    name, data = first
    try:
        with Image.open(BytesIO(data) if isinstance(data, bytes) else data) as image:
            kind = str(image.format)
            tables = getattr(image, "quantization", {})
    except OSError as error:
        raise SettingError(f"{source.path}: {name} cannot be decoded as an image ({error}).") from error
    quality = _jpeg_quality(tables[0]) if kind == "JPEG" else None
    return kind if quality is None else f"{kind}, quality {quality}"


def _jpeg_quality(table: Sequence[int]) -> int | None:
    """Return the quality, 1 to 100, that libjpeg makes this table of luminance from; None if it makes it from none."""
    for quality in range(1, 101):
        scale = 5000 // quality if quality < 50 else 200 - 2 * quality
        scaled = (min(max((value * scale + 50) // 100, 1), 255) for value in _JPEG_LUMINANCE)
        # Without their order, in which Pillow's versions differ.
        if sorted(scaled) == sorted(table):
            return quality
    return None


# ITU-T T.81, table K.1.
_JPEG_LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)


def decode(source: Source, channels: int) -> ImageSets:
    """Return all images of a folder or archive, ordered by class and file name.

    Parameters
    ----------
    channels
        1 for a data set of grey images, 3 for one of colour images; grey images among those become RGB.

    Raises
    ------
    SettingError
        If the archive is truncated or corrupt, its folders are not as expected, or an image cannot be decoded or has
        another size than the others.
    """
    train, test, classes = _arrange(list(_files(source)), source.path)
    images = _decode_all(train + test, channels, source.path)
    number = {label: index for index, label in enumerate(classes)}
    labels = torch.tensor([number[item.label] for item in train + test], dtype=torch.int64)
    count = len(train)
    return ImageSets(images[:count], labels[:count], images[count:], labels[count:], tuple(classes))


class _Place(NamedTuple):
    """What a file is, by its path: ``label`` is ``None`` where annotations or nothing name the class."""

    prefix: tuple[str, ...]
    split: str
    label: str | None
    file: str
    is_image: bool


class _Item(NamedTuple):
    """One image: encoded bytes, or the file that holds them."""

    label: str
    file: str
    name: str
    data: bytes | Path


def _place(name: str, source: Path) -> _Place | None:
    """Return what the file `name` of a folder or archive is within a data set; None for what is none of its files."""
    parts = tuple(part for part in PurePosixPath(name).parts if part not in ("/", "."))
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    depth = 0 if parts[:1] and parts[0] in _SPLITS else 1
    if len(parts) < depth + 2 or parts[depth] not in _SPLITS:
        return None
    prefix, split, inner = parts[:depth], parts[depth], parts[depth + 1 :]
    file = inner[-1]
    if inner == (f"{split}_annotations.txt",):
        return _Place(prefix, split, None, file, False)
    if not file.lower().endswith(_IMAGES):
        return None
    if len(inner) == 2:
        return _Place(prefix, split, None if inner[0] == "images" else inner[0], file, True)
    if len(inner) == 3 and inner[1] == "images":
        return _Place(prefix, split, inner[0], file, True)
    raise SettingError(f"{source}: {name!r} is an image outside a folder of its class. Expected is {_LAYOUTS}.")


def _arrange(files: Iterable[tuple[str, bytes | Path]], path: Path) -> tuple[list[_Item], list[_Item], list[str]]:
    """Return the images to train with, those to test with, and the names of the classes, all sorted."""
    items: dict[str, list[_Item]] = {split: [] for split in _SPLITS}
    unlabelled: dict[str, list[tuple[str, str, bytes | Path]]] = {split: [] for split in _SPLITS}
    annotations: dict[str, dict[str, str]] = {}
    prefixes: set[str] = set()
    for name, data in files:
        place = _place(name, path)
        if place is None:
            continue
        prefixes.add("/".join(place.prefix))
        if not place.is_image:
            annotations[place.split] = _annotations(name, data)
        elif place.label is None:
            unlabelled[place.split].append((place.file, name, data))
        else:
            items[place.split].append(_Item(place.label, place.file, name, data))
    if len(prefixes) > 1:
        raise SettingError(
            f"{path} holds train and test folders in several places: {', '.join(map(repr, sorted(prefixes)))}. "
            "One leading folder at most is accepted."
        )
    for split, labels in annotations.items():
        for file, name, data in unlabelled[split]:
            if file not in labels:
                raise SettingError(f"{path}: {name} has no class in {split}_annotations.txt.")
            items[split].append(_Item(labels[file], file, name, data))
    train, test = items["train"], items["test"] or items["val"]
    for kind, found in (("train", train), ("test", test)):
        if not found:
            raise SettingError(f"{path} holds no {kind} images with a class. Expected is {_LAYOUTS}.")
        found.sort(key=lambda item: item[:2])
        for one, other in pairwise(found):
            if one[:2] == other[:2]:
                raise SettingError(f"{path} holds {one.name} twice (the other is {other.name}).")
    classes = sorted({item.label for item in train})
    if extra := sorted({item.label for item in test}.difference(classes)):
        raise SettingError(f"{path}: test classes without a train image: {', '.join(map(repr, extra[:5]))}.")
    return train, test, classes


def _annotations(name: str, data: bytes | Path) -> dict[str, str]:
    """Return the class of each file: Tiny ImageNet's lines start with file and class, divided by tabs."""
    text = (data if isinstance(data, bytes) else data.read_bytes()).decode("utf-8", errors="replace")
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    if short := next((row for row in rows if len(row) < 2), None):
        raise SettingError(f"{name}: expected lines of '<file>\\t<class>...', got {short[0]!r}.")
    return {row[0]: row[1] for row in rows}


def _files(source: Source) -> Iterable[tuple[str, bytes | Path]]:
    return _archive_files(source.path) if source.kind == "archive" else _folder_files(source.path)


def _folder_files(root: Path) -> Iterator[tuple[str, Path]]:
    def refuse(error: OSError) -> None:
        raise SettingError(f"{error.filename} cannot be read ({error.strerror}).") from error

    for split in filter(lambda split: (root / split).is_dir(), _SPLITS):
        for folder, _, files in os.walk(root / split, onerror=refuse, followlinks=True):
            for file in files:
                path = Path(folder, file)
                name = path.relative_to(root).as_posix()
                if _place(name, root) is not None:
                    _check_file(path)
                    yield name, path


def _check_file(path: Path) -> None:
    """Raise where reading `path` would wait for ever, or fill the memory."""
    try:
        status = path.stat()
    except OSError as error:
        raise SettingError(f"{path} cannot be read ({error.strerror}).") from error
    if not stat.S_ISREG(status.st_mode):
        raise SettingError(f"{path} is no regular file; accepted are files, and links to some.")
    if status.st_size > _MOST_OF_FILE:
        raise SettingError(f"{path} has {status.st_size} bytes; accepted are up to {_MOST_OF_FILE} for one file.")


class _Measure:
    """Adds up what an archive unpacks to, and raises before it is too much."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sum = 0

    def add(self, size: int, name: str | None) -> None:
        """Add `size` bytes, of the file `name` of the data set, or of what is not kept."""
        if name is not None and size > _MOST_OF_FILE:
            raise SettingError(
                f"{self._path}: {name} unpacks to {size} bytes; accepted are up to {_MOST_OF_FILE} for one file."
            )
        self._sum += size
        if self._sum > _MOST_OF_ALL:
            raise SettingError(f"{self._path} unpacks to more than {_MOST_OF_ALL} bytes, which is the most accepted.")


# --- archives ---


def _archive_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the data set's files; at its end the archive has been read whole, and what checksums it has verified."""
    suffix = next(suffix for suffix in ARCHIVES if path.name.lower().endswith(suffix))
    try:
        if suffix == ".tar.xz":
            # A truncated download is found before it is decompressed (the .xz file format 1.2.1, section 2.1.2.4).
            with path.open("rb") as end:
                end.seek(-2, os.SEEK_END)
                if end.read() != b"YZ":
                    raise EOFError("the end of the xz stream is missing")
        with _OPENERS[suffix](path, "rb") as file:
            yield from _zip_files(path, file) if suffix == ".zip" else _tar_files(path, file)
    except SettingError:
        raise
    except PermissionError as error:
        raise SettingError(f"{path} cannot be read: no permission.") from error
    except _DAMAGE as error:
        raise SettingError(
            f"{path} is truncated or corrupt ({type(error).__name__}: {error}). Copy or download it again."
        ) from error


def _zip_files(path: Path, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        # zipfile does not compare its members with the number that the end record gives (APPNOTE 4.3.16; 65535 stands
        # for "in the zip64 record", and more wrap round in some writers' archives).
        file.seek(-min(path.stat().st_size, (1 << 16) + 22), os.SEEK_END)
        tail = file.read()
        count = int.from_bytes(tail[tail.rfind(b"PK\x05\x06") + 10 :][:2], "little")
        if count not in (0xFFFF, len(archive.infolist()) & 0xFFFF):
            raise zipfile.BadZipFile(f"{len(archive.infolist())} members are listed, the end record says {count}")
        measure = _Measure(path)
        for member in archive.infolist():
            if member.flag_bits & 0x1:
                raise SettingError(f"{path}: {member.filename} is encrypted; unpack the archive first.")
            needed = not member.is_dir() and _place(member.filename, path) is not None
            kind = stat.S_IFMT(member.external_attr >> 16)
            if needed and kind not in (0, stat.S_IFREG):  # 0 where it was packed on a system without kinds
                raise _special(path, member.filename)
            measure.add(member.file_size, member.filename if needed else None)
            # Read what is not needed as well: a damaged name must not make an image disappear.
            with archive.open(member) as content:
                if needed:
                    yield member.filename, content.read()
                while content.read(1 << 20):
                    pass


def _special(path: Path, name: str) -> SettingError:
    return SettingError(
        f"{path}: {name} is a link or a special file. Pack the images themselves "
        "(tar --dereference --hard-dereference)."
    )


_LONG_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class _StrictMember(tarfile.TarInfo):
    """A member whose header must be sound: tarfile takes a broken one, past the first, for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        # What such a header holds, as a long name, is read as a whole.
        if member.type in _LONG_HEADERS and member.size > _MOST_OF_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictMember:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the marker at the end; missing from typeshed
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset} of the tar stream") from error


def _tar_files(path: Path, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictMember) as archive:
        measure = _Measure(path)
        for member in archive:
            needed = not member.isdir() and _place(member.name, path) is not None
            measure.add(member.size, member.name if needed else None)
            if not needed:
                continue
            content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
            if content is None:
                raise _special(path, member.name)
            yield member.name, content.read()
        # The rest is padding; only at its end does the decompressor compare checksums.
        rest = cast(IO[bytes], archive.fileobj)
        while block := rest.read(1 << 20):
            measure.add(len(block), None)
            if block.strip(b"\0"):
                raise tarfile.ReadError("there is more after the end marker")


# --- images ---


def _decode_all(items: Sequence[_Item], channels: int, path: Path) -> torch.Tensor:
    """Return the images as one uint8 tensor ``(N, C, H, W)``."""
    height, width = _pixels(items[0], channels, path).shape[:2]
    if len(items) * channels * height * width > _MOST_OF_ALL:
        raise SettingError(
            f"{path}: {len(items)} images of {height}x{width} (height x width) take more than {_MOST_OF_ALL} bytes, "
            "which is the most accepted."
        )
    images = np.empty((len(items), channels, height, width), dtype=np.uint8)

    def fill(start: int) -> None:
        for index in range(start, min(start + step, len(items))):
            pixels = _pixels(items[index], channels, path)
            if pixels.shape[:2] != (height, width):
                raise SettingError(
                    f"{path}: images must all have one size; {items[index].name} is {pixels.shape[0]}x"
                    f"{pixels.shape[1]} (height x width), {items[0].name} is {height}x{width}."
                )
            images[index] = pixels.transpose(2, 0, 1)

    step = 64
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, range(0, len(items), step)):
            pass
    return torch.from_numpy(images)


def _pixels(item: _Item, channels: int, path: Path) -> np.ndarray:
    """Return one image as uint8 ``(H, W, C)``."""
    from PIL import Image

    try:
        image = Image.open(BytesIO(item.data if isinstance(item.data, bytes) else item.data.read_bytes()))
        image.load()
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise SettingError(f"{path}: {item.name} cannot be decoded as an image ({error}).") from error
    if image.mode not in _EIGHT_BIT:
        raise SettingError(f"{path}: {item.name} has mode {image.mode!r}; accepted are 8 bits per channel.")
    if channels == 3:
        return np.asarray(image.convert("RGB"))
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))[..., None]
    pixels = np.asarray(image.convert("RGB"))
    if (pixels != pixels[..., :1]).any():
        raise SettingError(f"{path}: {item.name} is a colour image; this data set has grey ones.")
    return pixels[..., :1]
