"""Data sets in memory: images as uint8, tables of features as float32, normalised on the device.

The images stay uint8 until a batch is made, so that CIFAR-10 takes 184 MB instead of 737, and the whole set can be put
into shared memory or onto a GPU.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch

from ht_ray._checks import check_choice, check_fields, check_number, did_you_mean, refused
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.rng import generator
from ht_ray.vision.data import cache as _cache
from ht_ray.vision.data.own import is_own_data, kind_of, read_own
from ht_ray.vision.data.sources import ImageSets, Source, decode, encoding, find_source, fingerprint, read_torchvision

__all__ = ["DATA_SETS", "DataConfig", "ImageData", "hold_out", "image_encoding", "load_data", "user_cache"]

DATA_SETS = ("digits", "mnist", "cifar10", "cifar100", "tiny-imagenet")
"""Names that `DataConfig.name` accepts."""

_DIGITS_TEST = 360


@dataclass(frozen=True)
class DataConfig:
    """Which images, and where they are.

    Attributes
    ----------
    name
        The data set, one of `DATA_SETS`. ``"digits"`` comes with scikit-learn and needs neither `root` nor a download.
        A data set of your own is a path: of a folder of class folders or an archive of it, a NumPy file (``.npz``), a
        Parquet file, or a Hugging Face set saved on disk; or my_package.my_module:load, or torchvision:FashionMNIST.
    root
        Where the images are; None stands for ``~/.cache/ht-ray/data`` (``$XDG_CACHE_HOME/ht-ray/data``). A root that is
        given must exist. It may be

        - a folder in torchvision's layout (``MNIST/raw``, ``cifar-10-batches-py``, ``cifar-100-python``);
        - a folder of class folders: ``train/<class>/<image>`` with ``test/<class>/<image>``, or ``val`` for ``test``
          (``val`` is not read where there is a ``test`` with classes);
        - Tiny ImageNet's official layout: ``train/<class>/images/<image>``, ``val/images`` and
          ``val/val_annotations.txt``; its test images have no classes and are left out;
        - an archive of class folders, with one leading folder at most: ``.tar``, ``.tar.gz`` (``.tgz``),
          ``.tar.xz``, ``.zip``;
        - a folder that holds exactly one such archive named after the data set: ``cifar10.tar.xz``,
          ``tiny-imagenet-200.zip``.
    cache
        Folder for the tensors decoded from class folders and archives; None stands for ``~/.cache/ht-ray/decoded``
        (``$XDG_CACHE_HOME/ht-ray/decoded``).
    download
        Whether torchvision may download MNIST, CIFAR-10 or CIFAR-100 into `root` when they are not there.
    task
        What the labels of data of your own are: classes, or with ``"regression"`` numbers to predict. These are
        normalised by mean and standard deviation of the training part, so that losses are in units of its variance.
    label
        The column of the labels in a Parquet file or a Hugging Face set; None looks for label, target, class and y.
    test_ratio
        Of data of your own without a test part: the share that is held out for testing, the classes in proportion, the
        same for every seed.
    train_limit, test_limit
        Keep so many images (None: all), the classes as equal in number as they allow. The choice is the same for every
        seed, a smaller one is part of a larger one, and images stay in their order.

    Raises
    ------
    SettingError
        If a value is not accepted.
    """

    name: str = "digits"
    root: str | None = None
    cache: str | None = None
    download: bool = True
    task: Literal["classification", "regression"] = "classification"
    label: str | None = None
    test_ratio: float = 0.2
    train_limit: int | None = None
    test_limit: int | None = None

    def __post_init__(self) -> None:
        own = isinstance(self.name, str) and self.name not in DATA_SETS and is_own_data(self.name)
        if own:
            kind_of(self.name)
        else:
            check_choice("DataConfig.name", self.name, DATA_SETS)
        check_fields(self, "test_ratio", low=0, low_open=True, high=0.5)
        check_choice("DataConfig.task", self.task, ["classification", "regression"])
        for field, default in {"label": None, "test_ratio": DataConfig.test_ratio, "task": DataConfig.task}.items():
            if not own and getattr(self, field) != default:
                why = ": it has no meaning for {DataConfig.name} = {name!r}, only for data of your own."
                raise refused(f"DataConfig.{field}", getattr(self, field), why, name=self.name)
        for field in ("root", "cache"):
            value = getattr(self, field)
            if value is not None and not (isinstance(value, str) and value.strip()):
                raise refused(f"DataConfig.{field}", value, accepted="a path as text, or None")
        if not isinstance(self.download, bool):
            raise refused("DataConfig.download", self.download, accepted="True or False")
        check_fields(self, "train_limit", "test_limit", low=1, integer=True)


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A data set in memory.

    Attributes
    ----------
    name
        Name of the data set.
    train_images, test_images
        uint8, ``(N, C, H, W)``; of a table, its features: float32, ``(N, F)``. They may lie in memory that other
        processes share: treat them as read-only.
    train_labels, test_labels
        int64, ``(N,)``: indices into `classes`; of a regression float32, the targets.
    classes
        Names of the classes; of a regression the target's alone.
    mean, std
        Per channel, of ``train_images / 255`` (std: over all pixels, without Bessel's correction; 1 for a channel that
        is constant, so that it can be divided by). Of a table: per feature, of the features as they are.
    val_images, val_labels
        A validation part, held out of the training part; see `hold_out`. None (default): there is none.

    Raises
    ------
    SettingError
        If types and shapes do not fit together, a label is no index into `classes`, or a feature is not finite.
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    val_images: torch.Tensor | None = None
    val_labels: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if (self.val_images is None) != (self.val_labels is None):
            raise SettingError("ImageData: expected val_images and val_labels, or neither.")
        wanted, sides = (torch.float32, 2) if self.is_table else (torch.uint8, 4)
        for split in ("train", "test") if self.val_images is None else ("train", "test", "val"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.dtype != wanted or images.ndim != sides or images.shape[1:] != self.shape:
                kind = str(wanted).removeprefix("torch.")
                raise SettingError(
                    f"ImageData.{split}_images: expected {kind} (N, {', '.join(map(str, self.shape))}), got "
                    f"{images.dtype} {tuple(images.shape)}."
                )
            if self.is_table and not images.isfinite().all():
                row, column = (~images.isfinite()).nonzero()[0].tolist()
                raise SettingError(
                    f"ImageData.{split}_images: expected finite numbers, got {images[row, column].item()} as feature "
                    f"{column} of sample {row}."
                )
            if self.is_regression:
                finite = labels.dtype == torch.float32 and bool(labels.isfinite().all())
                if not finite or labels.shape != images.shape[:1] or not len(labels) or self.num_classes != 1:
                    raise SettingError(
                        f"ImageData.{split}_labels: expected finite float32 ({len(images)},), at least one, and one "
                        f"name in `classes`, got {labels.dtype} {tuple(labels.shape)} and {self.num_classes} names."
                    )
                continue
            if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
                raise SettingError(
                    f"ImageData.{split}_labels: expected int64 ({len(images)},) and at least one, got "
                    f"{labels.dtype} {tuple(labels.shape)}."
                )
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.num_classes:
                raise SettingError(
                    f"ImageData.{split}_labels: expected 0 to {self.num_classes - 1} (there are {self.num_classes} "
                    f"classes), got {low} to {high}."
                )
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise SettingError(
                f"ImageData: expected a mean and a std for each of {self.shape[0]} channels, got "
                f"{len(self.mean)} and {len(self.std)}."
            )

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return (
            f"ImageData({self.name!r}: {len(self.train_labels)} train and {len(self.test_labels)} test "
            f"{f'samples of {shape} features' if self.is_table else f'images of {shape}'}, "
            f"{'a regression' if self.is_regression else f'{self.num_classes} classes'})"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, ``(C, H, W)``; of one sample of a table, ``(F,)``."""
        return tuple(self.train_images.shape[1:])

    @property
    def is_table(self) -> bool:
        """Whether the samples are features of a table, and no images."""
        return self.train_images.is_floating_point() and self.train_images.ndim == 2

    @property
    def is_regression(self) -> bool:
        """Whether the labels are numbers to predict, and no classes."""
        return self.train_labels.is_floating_point()

    @property
    def num_classes(self) -> int:
        """Number of classes, which is that of a network's outputs; 1 of a regression."""
        return len(self.classes)

    def on(self, device: torch.device) -> DeviceData:
        """Return what is trained and tested on, on `device`: one copy there for all in this process who hold it."""
        copies = _ON_DEVICES.setdefault(self, WeakValueDictionary())
        if (found := copies.get(device)) is None:
            found = copies[device] = DeviceData(
                self.train_images.to(device),
                self.test_images.to(device),
                self.test_labels.to(device),
                None if self.val_images is None else self.val_images.to(device),
                None if self.val_labels is None else self.val_labels.to(device),
            )
        return found

    def to_arrays(self) -> dict[str, Any]:
        """Return the set as NumPy arrays (views, nothing is copied) and plain data, for Ray's object store.

        Returns
        -------
        dict
            One entry per attribute; `from_arrays` takes it.
        """
        return {
            field: value.numpy() if isinstance(value, torch.Tensor) else value for field, value in vars(self).items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> ImageData:
        """Return the set that `to_arrays` has taken apart; the arrays are not copied.

        Arrays that come back from Ray's object store are read-only. The tensors share their memory, so writing to one
        of them in place ends the process.
        """
        fields = dict(arrays)
        with warnings.catch_warnings():
            # torch has no read-only tensors and says so; nothing here or below writes to images or labels.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            for field, value in fields.items():
                if isinstance(value, np.ndarray):
                    fields[field] = torch.from_numpy(value)
        for field in ("classes", "mean", "std"):
            fields[field] = tuple(fields[field])
        return cls(**fields)


@dataclass(frozen=True, eq=False)
class DeviceData:
    """Images and labels of an `ImageData` on a device; labels to train on are the stream's."""

    train_images: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    val_images: torch.Tensor | None
    val_labels: torch.Tensor | None


# Freed with the last run that holds them.
_ON_DEVICES: MutableMapping[ImageData, MutableMapping[torch.device, DeviceData]] = WeakKeyDictionary()


def load_data(config: DataConfig) -> ImageData:
    """Return a data set as uint8 tensors.

    Class folders and archives are decoded on a thread pool, in the order of class and file name, and the tensors are
    kept in `DataConfig.cache`; later calls map that file, as long as the source has the same size and time of
    modification and the file's checksums hold. Grey images in a colour data set become RGB; MNIST has one channel.

    ``digits`` are scikit-learn's 1797 images of 8x8 (the test part of the UCI set), values 0 to 16 scaled to 0 to 255;
    a fixed 360 of them, 36 of each class, are the test set.

    Raises
    ------
    SettingError
        If the root does not exist, holds no such data set, or what it holds is damaged; if a limit is larger than the
        set; if a download fails.

    Warns
    -----
    RuntimeWarning
        If a cache file is stale or damaged (it is replaced), or cannot be written (it is done without).

    Examples
    --------
    >>> data = load_data(DataConfig("digits", train_limit=1000))
    >>> data
    ImageData('digits': 1000 train and 360 test images of 1x8x8, 10 classes)
    >>> data.train_images.dtype, data.train_images.max().item()
    (torch.uint8, 255)
    """
    if config.name == "digits":
        sets = _digits()
    elif config.name in DATA_SETS:
        sets = _from_source(config)
    else:
        sets = _own(config)
    train_images, train_labels = _limit(
        sets.train_images, sets.train_labels, len(sets.classes), config.train_limit, "train"
    )
    test_images, test_labels = _limit(sets.test_images, sets.test_labels, len(sets.classes), config.test_limit, "test")
    mean, std = _statistics(train_images)
    if config.task == "regression":
        (center,), (scale,) = _statistics(train_labels[:, None])
        train_labels, test_labels = (((part.double() - center) / scale).float() for part in (train_labels, test_labels))
    return ImageData(config.name, train_images, train_labels, test_images, test_labels, sets.classes, mean, std)


def _root(config: DataConfig) -> Path:
    if config.root is None:
        return user_cache("DataConfig.root") / "data"
    root = Path(config.root).expanduser()
    if not root.exists():
        siblings = [p.name for p in root.parent.iterdir()] if root.parent.is_dir() else []
        why = " does not exist.{hint_of_folder} Leave it out to use the default folder."
        raise refused("DataConfig.root", config.root, why, hint_of_folder=did_you_mean(root.name, siblings))
    return root


def hold_out(data: ImageData, fraction: float, seed: int = 0) -> tuple[ImageData, ImageData]:
    """Hold a validation part out of the training part, the classes in proportion.

    Parameters
    ----------
    data : ImageData
        Without a validation part.
    fraction : float
        Share of the training part to hold out; ``round(fraction * n)`` samples, above 0 and at most 0.5.
    seed : int, default 0
        Of the choice.

    Returns
    -------
    training : ImageData
        What is left, with the part that is held out as `val_images` and `val_labels`: where it is trained on, rows have
        ``val_loss`` and ``val_accuracy`` next to those of the test set.
    validation : ImageData
        The same training part, with the validation part in place of the test set.

    Mean and standard deviation of both are those of what is left to train on. Samples stay in their order.

    Raises
    ------
    SettingError
        If the fraction is not accepted, the validation part would be empty, a class would have no sample left to train
        on, or there is a validation part already.

    Examples
    --------
    >>> training, validation = hold_out(load_data(DataConfig("digits")), 0.1, seed=0)
    >>> len(training.train_labels), len(training.val_labels), len(validation.test_labels)
    (1293, 144, 144)
    """
    check_number("hold_out: fraction", fraction, low=0, low_open=True, high=0.5)
    check_number("hold_out: seed", seed, integer=True)
    if data.val_images is not None:
        raise SettingError("hold_out: data: accepted is a set without a validation part.")
    labels = data.train_labels
    count = round(fraction * len(labels))
    strata = torch.zeros(len(labels), dtype=torch.int64) if data.is_regression else labels
    held = _held_out(strata, data.num_classes, fraction, generator(seed, "data: validation"))
    sizes = torch.bincount(strata, minlength=data.num_classes)
    left = torch.bincount(strata[~held], minlength=data.num_classes)
    if count < 1 or bool(((left == 0) & (sizes > 0)).any()):
        why = "the validation part would be empty" if count < 1 else "a class would have no sample left to train on"
        raise refused("hold_out: fraction", fraction, f" of {len(labels)} training samples: {why}.")
    images = data.train_images[~held]
    mean, std = _statistics(images)
    rest: dict[str, Any] = {"train_images": images, "train_labels": labels[~held], "mean": mean, "std": std}
    part = data.train_images[held], labels[held]
    return (
        replace(data, **rest, val_images=part[0], val_labels=part[1]),
        replace(data, **rest, test_images=part[0], test_labels=part[1]),
    )


def _held_out(labels: torch.Tensor, classes: int, fraction: float, draw: torch.Generator) -> torch.Tensor:
    """Return which of the samples are drawn: a share of them, the classes in proportion."""
    order = torch.randperm(len(labels), generator=draw)
    by_class = order[torch.argsort(labels[order], stable=True)]
    sizes = torch.bincount(labels, minlength=classes)
    starts = sizes.cumsum(0) - sizes
    # Where a sample stands within its class, from 0 to 1: the first of all classes are as their sizes are.
    place = (torch.arange(len(labels)) - starts[labels[by_class]] + 0.5) / sizes[labels[by_class]]
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[by_class[torch.argsort(place, stable=True)[: round(fraction * len(labels))]]] = True
    return held


def image_encoding(config: DataConfig) -> str:
    """Return how the images that `load_data` reads are stored: ``"as published"``, ``"PNG"``, ``"JPEG, quality 75"``.

    Of class folders and archives, the first image tells. Accuracies on images that lost detail are not those on the
    published ones.

    Raises
    ------
    SettingError
        If there is no such data set.

    Examples
    --------
    >>> image_encoding(DataConfig("digits"))
    'as published'
    """
    if config.name == "digits" or (config.name not in DATA_SETS and kind_of(config.name) != "images"):
        return "as published"
    if config.name not in DATA_SETS:
        return encoding(find_source("data", Path(config.name).expanduser(), False))
    return encoding(find_source(config.name, _root(config), config.download))


def _own(config: DataConfig) -> ImageSets:
    if kind_of(config.name) == "images":
        if config.task == "regression":
            why = ": folders of images have classes; targets come with Parquet, NumPy or a function of yours."
            raise SettingError(owner="DataConfig", field="task", value=config.task, reason=why)
        path = Path(config.name).expanduser()
        return _decoded(config, find_source("data", path, False), path.name.partition(".")[0], channels=3)
    root = None
    if config.name.startswith("torchvision:"):
        root = _root(config)
    regression = config.task == "regression"
    sets = read_own(config.name, root=root, download=config.download, label=config.label, regression=regression)
    images, labels = sets.train
    if sets.test is not None:
        return ImageSets(images, labels, *sets.test, sets.classes)
    strata = torch.zeros(len(labels), dtype=torch.int64) if regression else labels
    held = _held_out(strata, len(sets.classes), config.test_ratio, generator(0, "data: test part"))
    if not bool(held.any()) or len(strata[~held].unique()) < len(strata.unique()):
        why = f" of {len(labels)} samples: a part would be empty, or have no sample of a class."
        raise refused("DataConfig.test_ratio", config.test_ratio, why)
    return ImageSets(images[~held], labels[~held], images[held], labels[held], sets.classes)


def _from_source(config: DataConfig) -> ImageSets:
    root = _root(config)
    source = find_source(config.name, root, config.download)
    if source.kind == "torchvision":
        return read_torchvision(config.name, root, config.download)
    return _decoded(config, source, config.name, channels=1 if config.name == "mnist" else 3)


def _decoded(config: DataConfig, source: Source, name: str, *, channels: int) -> ImageSets:
    def build() -> _cache.Contents:
        sets = decode(source, channels=channels)
        tensors = {field: value for field, value in sets._asdict().items() if field != "classes"}
        return tensors, {"classes": list(sets.classes)}

    folder = Path(config.cache).expanduser() if config.cache else user_cache("DataConfig.cache") / "decoded"
    state = fingerprint(source)
    key = hashlib.blake2b(os.fsencode(state["path"]), digest_size=8).hexdigest()
    # The warnings point at the caller of load_data.
    tensors, notes = _cache.cached(folder / f"{name}-{key}.tensors", state, build, stacklevel=5)
    return ImageSets(**tensors, classes=tuple(notes["classes"]))


def user_cache(where: str) -> Path:
    """Return this package's folder in the user's cache (XDG base directory specification 0.8).

    Parameters
    ----------
    where
        The setting that stands for it where it is not given.

    Raises
    ------
    SettingError
        If there is no such folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            raise SettingError(f"{where}: this user has no home folder; give a path.") from error
    return base / "ht-ray"


def _scikit_learns_digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the pixels, 0 to 16, and the labels."""
    package = find_spec("sklearn")
    for folder in package.submodule_search_locations or () if package is not None else ():
        # Importing scikit-learn takes seconds, and its file a hundredth of one.
        if (file := Path(folder, "datasets", "data", "digits.csv.gz")).is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels


def _digits() -> ImageSets:
    pixels, labels = _scikit_learns_digits()
    images = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    targets = torch.from_numpy(labels.astype(np.int64))
    is_test = torch.zeros(len(targets), dtype=torch.bool)
    is_test[_balanced_order(targets, 10, "digits")[:_DIGITS_TEST]] = True
    return ImageSets(images[~is_test], targets[~is_test], images[is_test], targets[is_test], tuple("0123456789"))


def _limit(
    images: torch.Tensor, labels: torch.Tensor, classes: int, limit: int | None, split: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if limit is None:
        return images, labels
    if limit > len(labels):
        raise refused(
            f"DataConfig.{split}_limit", limit, f": the set has {len(labels)} {split} images; accepted is None for all."
        )
    chosen = _balanced_order(labels, classes, split)[:limit].sort().values
    return images[chosen], labels[chosen]


def _balanced_order(labels: torch.Tensor, classes: int, purpose: str) -> torch.Tensor:
    """Return a fixed permutation of the indices that goes round the classes, so that every beginning is balanced."""
    order = torch.randperm(len(labels), generator=generator(0, f"data: {purpose}"))
    if labels.is_floating_point():
        return order
    by_class = torch.argsort(labels[order], stable=True)
    counts = torch.bincount(labels, minlength=classes)
    starts = counts.cumsum(0) - counts
    turn = torch.empty_like(order)
    turn[by_class] = torch.arange(len(labels)) - starts[labels[order[by_class]]]
    return order[torch.argsort(turn * classes + labels[order])]


def _statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of ``images / 255``, from exact counts of the 256 values.

    Of a table: per feature, in double precision.
    """
    if images.is_floating_point():
        values = images.double()
        spread = values.std(0, correction=0)
        spread = torch.where(images.amax(0) > images.amin(0), spread, torch.ones_like(spread))
        # Of numbers that differ in their last bits only, which float32 would divide by zero.
        spread = torch.where(spread < torch.finfo(torch.float32).tiny, torch.ones_like(spread), spread)
        return tuple(values.mean(0).tolist()), tuple(spread.tolist())
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        std = (share * (values - mean).square()).sum().sqrt().item()
        means.append(mean.item())
        stds.append(std if channel.min() != channel.max() else 1.0)
    return tuple(means), tuple(stds)
