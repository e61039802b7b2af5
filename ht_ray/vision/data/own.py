"""Data sets of a user's own: of modules, NumPy and Parquet files, Hugging Face sets, and torchvision's classes.

All become arrays first (`Arrays`), and then tensors in one place, where what is wrong with them is said.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ht_ray._checks import did_you_mean, refused
from ht_ray._parts import is_path_of_part, load_part
from ht_ray.errors import SettingError
from ht_ray.vision.data.sources import ARCHIVES

__all__ = ["Arrays", "OwnSets", "is_own_data", "kind_of", "read_own"]

# Names of columns that are taken for the labels, and for what tells training from test samples.
_LABELS = ("label", "labels", "target", "class", "y")
_SPLIT = "split"
_TRAIN, _TEST = ("train", "training"), ("test", "val", "validation", "valid")
_NPZ = "x_train, y_train, x_test and y_test, or x and y"


class Arrays(NamedTuple):
    """Samples and labels, with those to test on if they are given, and the names of the classes."""

    x: Any
    y: Any
    x_test: Any = None
    y_test: Any = None
    classes: tuple[str, ...] | None = None


class OwnSets(NamedTuple):
    """Two sets of samples with labels; `test` is None where the test part is still to be chosen."""

    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor] | None
    classes: tuple[str, ...]


def is_own_data(name: str) -> bool:
    """Whether the name is no data set's of this package: a module's function, a class of torchvision, or a path."""
    return is_path_of_part(name) or os.sep in name or bool(Path(name).suffix) or Path(name).expanduser().exists()


def kind_of(name: str) -> str:
    """Return how `name` is read: ``"torchvision"``, ``"module"``, ``"npz"``, ``"parquet"``, ``"hugging face"``,
    ``"images"``.

    Raises
    ------
    SettingError
        If there is no such file or folder, or it is of no kind that is read.
    """
    if name.startswith("torchvision:"):
        return "torchvision"
    if is_path_of_part(name):
        return "module"
    path = Path(name).expanduser()
    if not path.exists():
        siblings = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        raise _refused(name, " does not exist.{near}", near=did_you_mean(path.name, siblings))
    if path.is_dir():
        marks = ("dataset_dict.json", "dataset_info.json", "state.json")
        if any((path / mark).is_file() for mark in marks):
            return "hugging face"
        if any(path.glob("*.parquet")):
            return "parquet"
        if not (path / "train").is_dir():
            why = ": it holds no train/<class>/<image>, no Parquet file and no Hugging Face set: accepted is one."
            raise _refused(name, why)
        return "images"
    endings = {".npz": "npz", ".parquet": "parquet", ".pq": "parquet"}
    if path.suffix.lower() not in endings and not path.name.lower().endswith(ARCHIVES):
        known = ", ".join([*dict.fromkeys(endings), *ARCHIVES])
        raise _refused(name, ": a file of this kind is not read; accepted are {known}.", known=known)
    return endings.get(path.suffix.lower(), "images")


def _refused(name: str, reason: str, **values: Any) -> SettingError:
    return refused("DataConfig.name", name, reason, **values)


def read_own(name: str, *, root: Path | None, download: bool, label: str | None, regression: bool = False) -> OwnSets:
    """Return the samples that `name` stands for.

    Parameters
    ----------
    name
        As `is_own_data` and `kind_of` know it, but for folders and archives of images.
    root, download
        For torchvision.
    label
        The column of the labels; None looks for one.
    regression
        Whether labels are numbers to predict, and no classes.

    Raises
    ------
    SettingError
        If they cannot be read, or do not fit together.
    """
    kind = kind_of(name)
    try:
        if kind == "module":
            arrays = _from_module(name)
        elif kind == "torchvision":
            assert root is not None
            arrays = _from_torchvision(name, root, download)
        elif kind == "npz":
            arrays = _from_npz(name)
        elif kind == "parquet":
            arrays = _from_parquet(name, label)
        else:
            arrays = _from_hugging_face(name, label)
    except SettingError:
        raise
    except Exception as error:  # of readers over damaged files, and of a user's own code
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise _refused(name, ": it cannot be read: {text}.", text=text.rstrip(".")) from error
    return _tensors(name, arrays, regression)


def _from_module(name: str) -> Arrays:
    load = load_part("DataConfig", "name", name)
    if not callable(load):
        raise _refused(name, ": accepted is a function without arguments; it is {what!r}.", what=load)
    loaded = load()
    if isinstance(loaded, Mapping):
        return _from_mapping(name, loaded)
    if isinstance(loaded, tuple) and len(loaded) in (2, 4):
        return Arrays(*loaded)
    why = (
        f": it returned {{kind}}; accepted are arrays (x, y), (x_train, y_train, x_test, y_test), or a dict of {_NPZ}."
    )
    raise _refused(name, why, kind=type(loaded).__name__)


def _from_mapping(name: str, found: Mapping[str, Any]) -> Arrays:
    classes = tuple(str(one) for one in found["classes"]) if "classes" in found else None
    names: tuple[str, ...] = ("x", "y")
    if "x_train" in found:
        names = ("x_train", "y_train", "x_test", "y_test")
    missing = [one for one in names if one not in found]
    if missing:
        why = f": it has no {{missing}}; it has {{has}}. Accepted are {_NPZ}."
        raise _refused(name, why, missing=" and no ".join(missing), has=", ".join(map(str, found)) or "nothing")
    return Arrays(*(found[one] for one in names))._replace(classes=classes)


def _from_npz(name: str) -> Arrays:
    with np.load(Path(name).expanduser(), allow_pickle=False) as found:
        if not isinstance(found, Mapping):
            raise _refused(name, f": it holds one array; accepted is a file with {_NPZ}.")
        return _from_mapping(name, {one: found[one] for one in found})


def _from_torchvision(name: str, root: Path, download: bool) -> Arrays:
    from torchvision import datasets

    own = name.partition(":")[2]
    known = [one for one in datasets.__all__ if isinstance(getattr(datasets, one), type)]
    if own not in known:
        raise _refused(name, ": torchvision has no such data set.{near}", near=did_you_mean(own, known))
    reader = getattr(datasets, own)
    parts = []
    for train in (True, False):
        given = (
            {"split": "train" if train else "test"} if "split" in reader.__init__.__annotations__ else {"train": train}
        )
        parts.append(reader(str(root), download=download, **given))
    samples: list[Any] = []
    for part in parts:
        held, targets = getattr(part, "data", None), getattr(part, "targets", getattr(part, "labels", None))
        if held is None or targets is None:
            pairs = [part[number] for number in range(len(part))]
            held = _stacked(name, [np.asarray(image) for image, _ in pairs])
            targets = [target for _, target in pairs]
        samples += [np.asarray(held), np.asarray(targets)]
    classes = getattr(parts[0], "classes", None)
    return Arrays(*samples)._replace(classes=tuple(map(str, classes)) if classes else None)


def _stacked(name: str, images: list[Any]) -> Any:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        why = ": its images have several sizes, {one} and {other}; accepted is one."
        one, other = sorted(shapes)[:2]
        raise _refused(name, why, one=one, other=other)
    return np.stack(images)


def _from_parquet(name: str, label: str | None) -> Arrays:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise _refused(name, ": reading Parquet needs pyarrow; pip install pyarrow.") from error
    path = Path(name).expanduser()
    return _from_table(name, parquet.read_table(path), label)


def _from_hugging_face(name: str, label: str | None) -> Arrays:
    try:
        import datasets
    except ImportError as error:
        raise _refused(name, ": datasets is not installed; pip install 'ht-ray[datasets]'.") from error
    found = datasets.load_from_disk(str(Path(name).expanduser()))
    parts = dict(found) if isinstance(found, Mapping) else {"train": found}
    trains = [parts[one] for one in _TRAIN if one in parts]
    tests = [parts[one] for one in _TEST if one in parts]
    if not trains:
        raise _refused(name, ": it has the parts {has}; accepted is one called 'train'.", has=", ".join(parts))
    arrays = [_from_table(name, part.with_format("arrow")[:], label) for part in (trains[0], *tests[:1])]
    feature = trains[0].features.get(label or next((one for one in _LABELS if one in trains[0].features), ""))
    classes = tuple(getattr(feature, "names", None) or ()) or None
    test = (arrays[1].x, arrays[1].y) if tests else (None, None)
    return Arrays(arrays[0].x, arrays[0].y, *test)._replace(classes=classes)


def _from_table(name: str, table: Any, label: str | None) -> Arrays:
    """Return the samples of a table of pyarrow: images in one column, or all columns but the labels' as features."""
    columns = list(table.column_names)
    if label is not None and label not in columns:
        why = ": {name} has no such column; it has {has}.{near}"
        values = {"name": name, "has": ", ".join(columns[:20]), "near": did_you_mean(label, columns)}
        raise refused("DataConfig.label", label, why, **values)
    target = label or next((one for one in _LABELS if one in columns), None)
    if target is None:
        why = ": it has no column called {names}; it has {has}. Name that of the labels with {DataConfig.label}."
        raise _refused(name, why, names=", ".join(_LABELS), has=", ".join(columns[:20]))
    if table[target].null_count:
        raise _refused(name, ": column {column!r} has labels that are missing.", column=target)
    labels = table[target].to_numpy()
    rest = [one for one in columns if one not in (target, _SPLIT)]
    images = [one for one in rest if _holds_images(table.schema.field(one).type)]
    if len(images) == 1:
        samples = _stacked(
            name, [_decoded(name, number, cell) for number, cell in enumerate(table[images[0]].to_pylist())]
        )
    elif images:
        raise _refused(name, ": it has several columns of images, {has}; accepted is one.", has=", ".join(images))
    else:
        samples = _features(name, table, rest)
    if _SPLIT not in columns:
        return Arrays(samples, labels)
    split = np.array([str(one).lower() for one in table[_SPLIT].to_pylist()])
    test = np.isin(split, _TEST)
    if unknown := sorted(set(split[~test & ~np.isin(split, _TRAIN)])):
        raise _refused(name, ": column 'split' has {given!r}; accepted are 'train' and 'test'.", given=str(unknown[0]))
    return Arrays(samples[~test], labels[~test], samples[test], labels[test])


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _decoded(name: str, number: int, cell: Any) -> Any:
    from PIL import Image

    data = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if data is None:
        raise _refused(name, ": row {number} has no image.", number=number)
    try:
        with Image.open(BytesIO(data)) as image:
            return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    except OSError as error:
        raise _refused(name, ": the image in row {number} cannot be decoded.", number=number) from error


def _features(name: str, table: Any, columns: list[str]) -> Any:
    from pyarrow import types

    if not columns:
        raise _refused(name, ": it has no column besides the labels'.")
    found = []
    for one in columns:
        column = table[one]
        if not (types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type)):
            why = ": column {column!r} holds {kind}; accepted are numbers. Leave it out, or encode it as numbers."
            raise _refused(name, why, column=one, kind=str(column.type))
        values = (
            column.to_numpy().astype(np.float64)
            if not column.null_count
            else column.to_pandas().astype("float64").to_numpy()
        )
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            what = "nothing" if column[int(bad[0])].as_py() is None else str(values[bad[0]])
            why = ": column {column!r} has {what} in row {row}; accepted are finite numbers."
            raise _refused(name, why, column=one, what=what, row=int(bad[0]))
        found.append(values)
    return np.stack(found, axis=1)


def _tensors(name: str, arrays: Arrays, regression: bool) -> OwnSets:
    train = _samples(name, arrays.x, "")
    labels = np.asarray(arrays.y)
    test = None if arrays.x_test is None else _samples(name, arrays.x_test, " to test on")
    test_labels = None if arrays.y_test is None else np.asarray(arrays.y_test)
    if (test is None) != (test_labels is None):
        raise _refused(name, ": there are samples to test on without labels, or labels without samples.")
    if test is not None and test.shape[1:] != train.shape[1:]:
        why = ": samples to train on are {one}, those to test on {other}; accepted is one shape."
        raise _refused(name, why, one=tuple(train.shape[1:]), other=tuple(test.shape[1:]))
    for samples, given in ((train, labels), (test, test_labels)):
        if samples is not None and given is not None and given.shape != (len(samples),):
            why = ": {count} samples have labels of shape {shape}; accepted is one label each."
            raise _refused(name, why, count=len(samples), shape=given.shape)
    if regression:
        targets = [None if given is None else _targets(name, given) for given in (labels, test_labels)]
        assert targets[0] is not None
        both = None if test is None or targets[1] is None else (test, targets[1])
        return OwnSets((train, targets[0]), both, ("target",))
    numbers, classes = _numbered(name, labels, test_labels, arrays.classes)
    return OwnSets((train, numbers[0]), None if test is None else (test, numbers[1]), classes)


def _samples(name: str, given: Any, which: str) -> torch.Tensor:
    array = given.numpy(force=True) if isinstance(given, torch.Tensor) else np.asarray(given)
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        if array.ndim == 3:
            array = array[:, None]
        elif array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        if array.shape[1] not in (1, 3):
            why = ": its images{which} are {shape}; accepted are grey or RGB: (N, H, W), (N, H, W, C) or (N, C, H, W)."
            raise _refused(name, why, which=which, shape=array.shape)
        return torch.from_numpy(np.ascontiguousarray(array))
    if array.ndim != 2 or array.dtype.kind not in "fiub" or not array.shape[1]:
        why = (
            ": its samples{which} are {kind} of shape {shape}; accepted are images, uint8 (N, H, W[, C]), or features, "
        )
        raise _refused(name, why + "numbers (N, F).", which=which, kind=str(array.dtype), shape=array.shape)
    features = array.astype(np.float32)
    bad = np.argwhere(~np.isfinite(features))
    if len(bad):
        why = ": feature {column} of sample {row}{which} is {given}; accepted are finite numbers."
        row, column = map(int, bad[0])
        raise _refused(name, why, column=column, row=row, which=which, given=str(features[row, column]))
    return torch.from_numpy(features)


def _targets(name: str, labels: Any) -> torch.Tensor:
    """Return the numbers that a regression predicts, float64."""
    if not len(labels):
        raise _refused(name, ": it has no samples.")
    if labels.dtype.kind not in "fiub":
        kind = "text" if labels.dtype.kind in "OUS" else str(labels.dtype)
        raise _refused(name, ": its labels are {kind}; accepted for a regression are numbers.", kind=kind)
    values = labels.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        why = ": the label of sample {row} is {given}; accepted for a regression are finite numbers."
        raise _refused(name, why, row=int(bad[0]), given=str(values[bad[0]]))
    if len(values) > 1 and np.ptp(values) == 0:
        raise _refused(name, ": all its labels are {given}; there is nothing to predict.", given=str(values[0]))
    return torch.from_numpy(values)


def _numbered(
    name: str, labels: Any, test: Any, classes: tuple[str, ...] | None
) -> tuple[list[torch.Tensor], tuple[str, ...]]:
    """Return labels as indices into the classes, whose order is that of their values."""
    if not len(labels):
        raise _refused(name, ": it has no samples.")
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.rint(labels)):
        value = labels[labels != np.rint(labels)][0]
        why = (
            ": a label is {given}; accepted are classes: whole numbers, or text. Numbers are predicted with "
            "{DataConfig.task} = 'regression'."
        )
        raise _refused(name, why, given=str(value))
    values = np.unique(labels if labels.dtype.kind != "O" else labels.astype(str))
    if len(values) < 2:
        raise _refused(name, ": all its labels are {given}; accepted are two classes and more.", given=str(values[0]))
    if classes is not None and labels.dtype.kind in "iu":
        if int(values[-1]) >= len(classes) or int(values[0]) < 0:
            why = ": a label is {given}, and it names {count} classes; accepted are 0 to {last}."
            value = values[0] if values[0] < 0 else values[-1]
            raise _refused(name, why, given=int(value), count=len(classes), last=len(classes) - 1)
        values = np.arange(len(classes))
    # A target of many values is a number to predict, not a class.
    if classes is None and len(values) > max(1000, len(labels) // 2):
        why = (
            ": its labels have {count} values in {rows} samples; accepted are classes, of which each has several. "
            "Numbers are predicted with {DataConfig.task} = 'regression'."
        )
        raise _refused(name, why, count=len(values), rows=len(labels))
    found = []
    for given in (labels, test):
        if given is None:
            continue
        given = given.astype(str) if given.dtype.kind == "O" else given
        missing = sorted(set(given.tolist()).difference(values.tolist()))
        if missing:
            why = ": a test sample has the class {given!r}, which no training sample has."
            raise _refused(name, why, given=str(missing[0]))
        found.append(torch.from_numpy(np.searchsorted(values, given).astype(np.int64)))
    plain = values.astype(np.int64) if values.dtype.kind == "f" else values
    return found, classes or tuple(map(str, plain.tolist()))
