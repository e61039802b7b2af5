"""Avalanche benchmarks as streams of `ht_ray.vision`: experiences become phases over one data set in memory."""

from __future__ import annotations

import inspect
import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from avalanche.benchmarks import classic
from avalanche.benchmarks.classic.cmnist import PixelsPermutation
from avalanche.benchmarks.datasets import default_dataset_location
from avalanche.benchmarks.utils.flat_data import FlatData
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Normalize, ToTensor
from torchvision.transforms.functional import to_pil_image

from ht_ray._checks import check_choice, check_number, refused
from ht_ray._parts import is_path_of_part, load_part
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms import derive_seed, isolated_rng
from ht_ray.vision.data.benchmark_stream import BenchmarkStreamConfig, with_labels_of
from ht_ray.vision.data.dataset import DataConfig, ImageData, load_data
from ht_ray.vision.data.streams import Phase, Stream
from ht_ray.vision.data.transforms import Permute

__all__ = ["BenchmarkStreams", "benchmark_streams", "stream_from_benchmark"]

# The data sets of which both have readers, by the function that reads them in Avalanche.
_READERS = {"get_mnist_dataset": "mnist", "get_cifar10_dataset": "cifar10", "get_cifar100_dataset": "cifar100"}
# Arguments that are no text.
_TRANSFORMS = ("train_transform", "eval_transform")
# Where a function asks for a number of experiences, and none is given.
_EXPERIENCES = 5


class BenchmarkStreams(NamedTuple):
    """A benchmark's images, its experiences of each seed, and its training transforms that are not in the images."""

    data: ImageData
    streams: Mapping[int, Stream]
    augmentation: tuple[str, ...]


def stream_from_benchmark(benchmark: Any, *, epochs: int = 1) -> tuple[ImageData, Stream]:
    """Return the images of an Avalanche benchmark and its experiences as a stream, for `ht_ray.vision.fit`.

    Each experience of ``train_stream`` is a phase that is tested on its experience of ``test_stream``; where that
    stream has one experience, all phases are tested on it. Class order, labels and permutations are the benchmark's.
    With task labels, each task has outputs of its own (a head), and no others count in it.

    Images are read once, with the evaluation transforms. Training transforms that are not among these, such as random
    crops, are left out, and a warning names them: `ht_ray.vision.TrainingConfig.augment` stands in their place.

    Parameters
    ----------
    benchmark
        With ``train_stream`` and ``test_stream`` of classification.
    epochs : int, default 1
        Of each experience.

    Returns
    -------
    data : ImageData
        The images, uint8, normalised as the benchmark's last transform does; vectors are a table.
    stream : Stream
        The phases over them.

    Raises
    ------
    SettingError
        If the benchmark has no such streams, or its images have several sizes or are not of 8 bits.

    Warns
    -----
    SettingWarning
        If training transforms are left out.
    """
    check_number("stream_from_benchmark: epochs", epochs, low=1, integer=True)
    made = _converted({0: benchmark}, epochs, type(benchmark).__name__)
    if made.augmentation:
        warnings.warn(
            f"stream_from_benchmark: the training transforms {', '.join(made.augmentation)} are left out; augment of "
            "TrainingConfig is in their place.",
            SettingWarning,
            stacklevel=2,
        )
    return made.data, made.streams[0]


def benchmark_streams(config: BenchmarkStreamConfig, seeds: Sequence[int], sources: DataConfig) -> BenchmarkStreams:
    """Return the images and, for each seed, the stream of the benchmark that `config` names.

    Parameters
    ----------
    config : BenchmarkStreamConfig
        The benchmark, and its arguments. A seed that is given there is that of all.
    seeds : sequence of int
        Each is the benchmark's ``seed``, if it takes one.
    sources : DataConfig
        Of which ``root``, ``cache`` and ``download`` say where the images are.

    Raises
    ------
    SettingError
        If there is no such benchmark, it does not take an argument, its data are not there, or it cannot be a stream.
    """
    function, given = _function(config, sources)
    seeded = "seed" in inspect.signature(function).parameters and "seed" not in given
    distinct = list(seeds) if seeded else list(seeds)[:1]
    readers = {name: _reader(name, data, sources) for name, data in _READERS.items()}
    benchmarks = {}
    for seed in distinct:
        with _read_by(function, readers), _without_downloads() as asked, redirect_stdout(None):
            try:
                with isolated_rng(derive_seed(seed, "benchmark")):
                    benchmarks[seed] = function(**given, **({"seed": seed} if seeded else {}))
            except SettingError:
                raise
            except Exception as error:  # of Avalanche's or a user's own code, whatever it raises
                if asked:
                    raise _not_there(config, sources) from error
                text = f"{type(error).__name__}: {error}".splitlines()[0]
                why = ": making the benchmark raised {text}."
                raise refused("VisionSettings.stream", config.path, why, text=text) from error
    try:
        made = _converted(benchmarks, config.value("task_epochs"), config.benchmark.rpartition(":")[2])
    except SettingError as error:
        raise error.of("VisionSettings", "stream", config.path) from error
    return made._replace(streams={seed: made.streams[seed if seeded else distinct[0]] for seed in seeds})


# --- the benchmark's function


def _function(config: BenchmarkStreamConfig, sources: DataConfig) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the function and what it is called with, but for a seed."""
    if is_path_of_part(config.benchmark):
        function = load_part("VisionSettings", "stream", config.benchmark)
    else:
        known = {name: one for name, one in vars(classic).items() if inspect.isfunction(one) and name[0].isupper()}
        try:
            function = known[check_choice("VisionSettings.stream", config.benchmark, known)]
        except SettingError as error:
            raise error.of("VisionSettings", "stream", config.path) from error
    if not callable(function):
        why = ": accepted is a function that returns an Avalanche benchmark; it is {what!r}."
        raise refused("VisionSettings.stream", config.path, why, what=function)
    taken, given = inspect.signature(function).parameters, config.given
    settable = [name for name in taken if name not in ("dataset_root", *_TRANSFORMS)]
    for name in given:
        if name == "dataset_root":
            raise refused("VisionSettings.stream_args", name, ": the data are at {DataConfig.root}.")
        if name in _TRANSFORMS:
            why = ": transforms have no text; accepted are {DataConfig.root} and {TrainingConfig.augment}, or a "
            raise refused("VisionSettings.stream_args", name, why + "function of yours, avalanche:my_module:make.")
        check_choice("VisionSettings.stream_args", name, settable)
    if "n_experiences" in taken and taken["n_experiences"].default is inspect.Parameter.empty:
        given.setdefault("n_experiences", _EXPERIENCES)
    if sources.root is not None:
        root = Path(sources.root).expanduser()
        if not root.exists():
            raise refused("DataConfig.root", sources.root, " does not exist.")
        if "dataset_root" in taken:
            given["dataset_root"] = str(root)
        elif not is_path_of_part(config.benchmark):
            why = ": {VisionSettings.stream} = {path!r} takes no folder of data."
            raise refused("DataConfig.root", sources.root, why, path=config.path)
    return function, given


class _Images(Dataset[tuple[Any, int]]):
    """Images in memory, in the place of a data set of Avalanche's: floats of MNIST, and PIL images of others."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.targets = labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> tuple[Any, int]:
        image = self.images[item]
        return image.float() / 255 if len(image) == 1 else to_pil_image(image), self.targets[item]


def _reader(name: str, data: str, sources: DataConfig) -> Callable[..., tuple[_Images, _Images]]:
    """Return what stands in for Avalanche's reader of a data set: it takes all places and layouts of ours, once."""
    found: list[tuple[_Images, _Images]] = []

    def read(_: Any = None) -> tuple[_Images, _Images]:
        if not found:
            own = default_dataset_location(data)
            root = str(own) if sources.root is None and own.is_dir() else sources.root
            sets = load_data(DataConfig(data, root=root, cache=sources.cache, download=sources.download))
            found.append((_Images(sets.train_images, sets.train_labels), _Images(sets.test_images, sets.test_labels)))
        return found[0]

    return read


@contextmanager
def _read_by(function: Callable[..., Any], readers: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Let a function of `avalanche.benchmarks.classic` read its images by `readers` within the block."""
    names: dict[str, Any] = getattr(inspect.unwrap(function), "__globals__", {})
    kept = {name: names[name] for name in readers if name in names and function.__module__.startswith("avalanche.")}
    names.update({name: readers[name] for name in kept})
    try:
        yield
    finally:
        names.update(kept)


@contextmanager
def _without_downloads() -> Iterator[list[str]]:
    """Refuse this thread the addresses of other machines within the block, and yield those that it asked for.

    Data sets of Avalanche are downloaded without a question.
    """
    asked: list[str] = []
    resolve, thread = socket.getaddrinfo, threading.get_ident()

    def guarded(host: Any, *rest: Any, **more: Any) -> Any:
        if threading.get_ident() != thread:
            return resolve(host, *rest, **more)
        asked.append(str(host))
        raise OSError(f"{host} is not asked for data")

    socket.getaddrinfo = guarded
    try:
        yield asked
    finally:
        socket.getaddrinfo = resolve


def _not_there(config: BenchmarkStreamConfig, sources: DataConfig) -> SettingError:
    folder = "Avalanche's own folder" if sources.root is None else os.fspath(sources.root)
    why = (
        ": its data are not in {folder}, and nothing is downloaded for it. Let Avalanche do so once, by calling the "
        "function in Python, or name the folder with {DataConfig.root}."
    )
    return refused("VisionSettings.stream", config.path, why, folder=folder)


# --- its experiences


class _Part(NamedTuple):
    """Samples of an experience that come from one data set through the same transforms."""

    rows: np.ndarray[Any, Any]
    source: Any
    places: np.ndarray[Any, Any]
    transforms: tuple[Any, ...]


def _parts(data: Any, rows: Any, places: Any, outer: tuple[Any, ...], group: str) -> Iterator[_Part]:
    """Yield where samples of a data set lie below Avalanche's subsets, concatenations and transforms."""
    if not isinstance(data, FlatData):
        yield _Part(rows, data, places, outer)
        return
    if data._indices is not None:
        places = np.fromiter(data._indices, np.int64, len(data._indices))[places]
    own: list[Any] = []
    for name in ("_frozen_transform_groups", "_transform_groups"):
        groups = getattr(data, name, None)
        if groups is not None and groups[group] is not None:
            own += groups[group].flat_transforms(0)
    ends = np.asarray(data._cumulative_sizes)
    number = np.searchsorted(ends, places, side="right")
    for index, part in enumerate(data._datasets):
        here = number == index
        if here.any():
            start = ends[index - 1] if index else 0
            yield from _parts(part, rows[here], places[here] - start, (*own, *outer), group)


def _unfit(reason: str, **values: Any) -> SettingError:
    return refused("stream_from_benchmark: benchmark", values.pop("name", None), reason, **values)


class _Task(NamedTuple):
    """An experience: its parts, labels, and task label; and the order in which it has the pixels, if one of its own."""

    parts: list[_Part]
    labels: Tensor
    task: int
    order: Tensor | None
    normalize: Any


def _task(experience: Any, name: str) -> _Task:
    data: Any = getattr(experience, "dataset", None)
    try:
        labels = torch.tensor([int(target) for target in data.targets], dtype=torch.int64)
    except (AttributeError, TypeError, ValueError) as error:
        why = ": its samples have no class each; accepted is a benchmark of classification."
        raise _unfit(why, name=name) from error
    tasks = set(experience.task_labels)
    if not len(labels) or int(labels.min()) < 0 or len(tasks) != 1:
        why = ": an experience has {what}; accepted are samples with labels from 0 on, of one task."
        what = "no samples" if not len(labels) else f"task labels {sorted(tasks)}" if len(tasks) != 1 else "labels < 0"
        raise _unfit(why, name=name, what=what)
    every = np.arange(len(labels))
    parts, orders, last = [], [], []
    for part in _parts(data._flat_data, every, every, (), "eval"):
        kept, order, normalize = _taken_out(part.transforms)
        parts.append(part._replace(transforms=kept))
        orders.append(order)
        last.append(normalize)
    if any(repr(one) != repr(last[0]) for one in last):
        raise _unfit(": its images are normalised in several ways.", name=name)
    if not all(_same_order(one, orders[0]) for one in orders):
        raise _unfit(": an experience has pixels in several orders.", name=name)
    return _Task(parts, labels, tasks.pop(), orders[0], last[0])


def _same_order(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and one.equal(other))


def _taken_out(transforms: tuple[Any, ...]) -> tuple[tuple[Any, ...], Tensor | None, Any]:
    """Return transforms without a last normalisation and an order of pixels, which a stream has itself; and both."""
    kept = list(transforms)
    normalize = kept.pop() if kept and isinstance(kept[-1], Normalize) else None
    found = [number for number, one in enumerate(kept) if isinstance(one, PixelsPermutation)]
    # What comes after must act on each pixel alone.
    if len(found) == 1 and all(isinstance(one, ToTensor) for one in kept[found[0] + 1 :]):
        order = torch.as_tensor(kept.pop(found[0]).permutation, dtype=torch.int64)
        return tuple(kept), order, normalize
    return tuple(kept), None, normalize


class _Pool:
    """The samples of all experiences of a split, each of them once."""

    def __init__(self, tasks: Sequence[_Task], name: str) -> None:
        wanted: dict[Any, list[_Part]] = {}
        for task in tasks:
            for part in task.parts:
                wanted.setdefault(self._key(part), []).append(part)
        self._blocks: dict[Any, tuple[int, np.ndarray[Any, Any]]] = {}
        blocks, size = [], 0
        for key, parts in wanted.items():
            places = np.unique(np.concatenate([part.places for part in parts]))
            blocks.append(_read(parts[0], places, name))
            self._blocks[key] = size, places
            size += len(places)
        if len({block.shape[1:] for block in blocks}) > 1:
            raise _several_sizes(name, [block.shape[1:] for block in blocks])
        self.samples = torch.cat(blocks) if len(blocks) > 1 else blocks[0]

    @staticmethod
    def _key(part: _Part) -> Any:
        return id(part.source), tuple(map(id, part.transforms))

    def indices(self, task: _Task) -> Tensor:
        """Return where the samples of an experience are."""
        found = np.empty(len(task.labels), np.int64)
        for part in task.parts:
            start, places = self._blocks[self._key(part)]
            found[part.rows] = start + np.searchsorted(places, part.places)
        return torch.from_numpy(found)


def _read(part: _Part, places: np.ndarray[Any, Any], name: str) -> Tensor:
    """Return samples through their transforms: images are uint8 ``(n, C, H, W)``, vectors float32 ``(n, F)``."""
    if isinstance(part.source, _Images) and all(isinstance(one, ToTensor) for one in part.transforms):
        return part.source.images if len(places) == len(part.source) else part.source.images[torch.from_numpy(places)]
    samples = []
    for place in places.tolist():
        try:
            sample = part.source[place][0]
            for transform in part.transforms:
                sample = transform(sample)
            samples.append(_sample(sample))
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            why = ": a sample cannot be read through its evaluation transforms: {text}."
            raise _unfit(why, name=name, text=text) from error
        if samples[-1].shape != samples[0].shape:
            raise _several_sizes(name, [samples[0].shape, samples[-1].shape])
    return torch.stack(samples)


def _sample(sample: Any) -> Tensor:
    if not isinstance(sample, Tensor):
        array = np.array(sample if getattr(sample, "mode", "L") in ("L", "RGB") else sample.convert("RGB"))
        if array.ndim not in (2, 3) or array.dtype != np.uint8:
            raise TypeError(f"it is no image of 8 bits, but {type(sample).__name__}")
        return torch.from_numpy(array).reshape(*array.shape[:2], -1).permute(2, 0, 1).contiguous()
    if sample.ndim == 1 and sample.is_floating_point():
        return sample.float()
    if sample.ndim != 3:
        raise TypeError(f"its shape is {tuple(sample.shape)}; accepted are images (C, H, W) and vectors")
    if sample.dtype == torch.uint8:
        return sample
    levels = sample.double() * 255
    whole = levels.round()
    if float((levels - whole).abs().max()) > 1e-3 or float(whole.min()) < 0 or float(whole.max()) > 255:
        raise TypeError("its pixels are not k/255, before a last Normalize: accepted are images of 8 bits")
    return whole.to(torch.uint8)


def _several_sizes(name: str, shapes: Sequence[Any]) -> SettingError:
    sizes = " and ".join(sorted({"x".join(map(str, shape)) for shape in shapes})[:2])
    return _unfit(": its samples have several sizes, {sizes}; accepted is one.", name=name, sizes=sizes)


def _converted(benchmarks: Mapping[int, Any], epochs: int, name: str) -> BenchmarkStreams:
    tasks: dict[int, tuple[list[_Task], list[_Task]]] = {}
    for seed, benchmark in benchmarks.items():
        found: dict[str, Any] = {part: getattr(benchmark, f"{part}_stream", None) for part in ("train", "test")}
        if not all(found.values()):
            missing = " and ".join(part for part, stream in found.items() if not stream)
            why = ": it has no {missing} stream; accepted is an Avalanche benchmark with both."
            raise _unfit(why, name=name, missing=missing)
        train, test = ([_task(experience, name) for experience in stream] for stream in found.values())
        if len(test) not in (1, len(train)):
            why = ": it has {train} experiences and {test} to test on; accepted is one for each, or one for all."
            raise _unfit(why, name=name, train=len(train), test=len(test))
        tasks[seed] = train, test
    every = [task for sides in tasks.values() for side in sides for task in side]
    if len({repr(task.normalize) for task in every}) > 1:
        raise _unfit(": its images are normalised in several ways.", name=name)
    pools = [_Pool([task for sides in tasks.values() for task in sides[side]], name) for side in (0, 1)]
    heads = {seed: _heads(*sides, name) for seed, sides in tasks.items()}
    outputs = max(
        len(own) if own else 1 + max(int(task.labels.max()) for side in tasks[seed] for task in side)
        for seed, own in heads.items()
    )
    streams = {
        seed: Stream(name, tuple(_phases(*sides, pools, heads[seed], outputs, epochs, name)))
        for seed, sides in tasks.items()
    }
    first = next(iter(benchmarks))
    shape = pools[0].samples.shape[1:]
    if pools[1].samples.shape[1:] != shape:
        raise _several_sizes(name, [shape, pools[1].samples.shape[1:]])
    data = ImageData(
        name,
        pools[0].samples,
        torch.zeros(len(pools[0].samples), dtype=torch.int64),
        pools[1].samples,
        torch.zeros(len(pools[1].samples), dtype=torch.int64),
        tuple(map(str, range(outputs))),
        *_normalisation(every[0].normalize, shape[0]),
    )
    if len(tasks[first][1]) == 1:  # of which no phase has the labels
        (tested,) = tasks[first][1]
        data.test_labels[pools[1].indices(tested)] = tested.labels
    return BenchmarkStreams(with_labels_of(data, streams[first]), streams, _left_out(benchmarks[first]))


def _normalisation(normalize: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the benchmark's normalisation; without one, inputs stay as they are."""
    if normalize is None:
        return (0.0,) * channels, (1.0,) * channels
    values = (torch.as_tensor(one, dtype=torch.float64).flatten() for one in (normalize.mean, normalize.std))
    mean, std = (tuple(one.expand(channels).tolist()) for one in values)
    return mean, std


def _heads(train: Sequence[_Task], test: Sequence[_Task], name: str) -> dict[tuple[int, int], int]:
    """Return the output of each class of each task, where experiences have task labels; nothing where all have one."""
    if len({task.task for task in train}) == 1:
        return {}
    if len(test) != len(train):
        raise _unfit(": its experiences have task labels, and one test set; accepted is one for each.", name=name)
    pairs = {(task.task, label) for side in (train, test) for task in side for label in task.labels.unique().tolist()}
    return {pair: number for number, pair in enumerate(sorted(pairs))}


def _phases(
    train: Sequence[_Task],
    test: Sequence[_Task],
    pools: Sequence[_Pool],
    heads: Mapping[tuple[int, int], int],
    outputs: int,
    epochs: int,
    name: str,
) -> Iterator[Phase]:
    for index, task in enumerate(train):
        tested = test[index] if len(test) == len(train) else test[0]
        if task.task != tested.task and heads:
            raise _unfit(": an experience and what it is tested on have different task labels.", name=name)
        if not _same_order(task.order, tested.order):
            raise _unfit(": an experience and what it is tested on have pixels in different orders.", name=name)
        mask = None
        if heads:
            mask = torch.zeros(outputs, dtype=torch.bool)
            mask[[number for (own, _), number in heads.items() if own == task.task]] = True
        own_test = None if len(test) == 1 else tested
        yield Phase(
            index,
            epochs,
            pools[0].indices(task),
            _labels(task, heads),
            0.0,
            len(task.labels),
            transform=None if task.order is None else Permute(task.order),
            outputs=mask,
            test_indices=None if own_test is None else pools[1].indices(own_test),
            test_labels=None if own_test is None else _labels(own_test, heads),
        )


def _labels(task: _Task, heads: Mapping[tuple[int, int], int]) -> Tensor:
    if not heads:
        return task.labels
    return torch.tensor([heads[task.task, label] for label in task.labels.tolist()])


def _left_out(benchmark: Any) -> tuple[str, ...]:
    """Return the first experience's training transforms that are not among its evaluation transforms."""
    data = benchmark.train_stream[0].dataset._flat_data
    one = np.zeros(1, np.int64)
    of = {group: [repr(t) for part in _parts(data, one, one, (), group) for t in part.transforms] for group in _GROUPS}
    return tuple(text for text in of["train"] if text not in of["eval"])


_GROUPS = ("train", "eval")
