"""Runs of cells on the plain loop, within a given time: chosen, trained, left and taken up again."""

from __future__ import annotations

import hashlib
import math
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ht_ray.errors import Interrupted, SettingError, SettingWarning
from ht_ray.reproduce.calls import GRAPH, noted_call
from ht_ray.reproduce.cells import IMAGES, AtariCell, Cell, Run
from ht_ray.reproduce.records import FORMAT, Record, columns
from ht_ray.vision import (
    DataConfig,
    ImageData,
    Phase,
    Row,
    Stream,
    fit,
    image_encoding,
    load_data,
    make_model,
    make_stream,
    summarise,
)

__all__ = [
    "Bench",
    "Clock",
    "DataSets",
    "Estimate",
    "Timings",
    "choose",
    "forget",
    "run_once",
]

#: A test of an image takes this share of a training step on it.
TEST_SHARE = 1 / 3
#: What a run takes beyond its steps and tests: shuffling, the start of its kernels.
MARGIN = 1.1
#: Of games: an evaluation takes as long as so many steps of training, and fewer than so many are not begun.
EVALUATION_STEPS = 10_000
AT_LEAST = 100


class Clock:
    """When to stop: before the epoch that would end too late, or once it was asked for.

    Parameters
    ----------
    seconds
        From now on.
    """

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._asked_at = math.nan
        self._interrupt: Callable[[], None] | None = None
        #: Whether to stop after the epoch that runs.
        self.asked = False

    def ask(self) -> None:
        """Ask to stop; may be called from a signal handler."""
        self.asked = True
        if self._interrupt is not None:
            self._interrupt()

    @contextmanager
    def interrupting(self, interrupt: Callable[[], None], *, margin: float) -> Iterator[None]:
        """Call `interrupt` when only `margin` seconds are left, or once it is asked for, while the block runs.

        It is called from another thread, or from a signal handler.
        """
        timer = threading.Timer(max(0.0, self.left - margin), interrupt)
        timer.daemon = True
        self._interrupt = interrupt
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._interrupt = None

    @property
    def left(self) -> float:
        """Seconds until the time is over; 0 once that was asked for."""
        return 0.0 if self.asked else max(0.0, self._deadline - time.monotonic())

    def begin(self) -> None:
        """Call where training begins: what lies before is no epoch."""
        self._asked_at = math.nan

    def stop(self) -> bool:
        """Return whether another epoch as long as the last one would be too much; called after every epoch."""
        now = time.monotonic()
        last, self._asked_at = now - self._asked_at, now
        return self.left <= (0.0 if math.isnan(last) else last)


class DataSets:
    """The data sets that runs need, each read once, and refused where it is not the published number of images.

    Parameters
    ----------
    root
        As in `DataConfig`; nothing is downloaded unless it is None.
    """

    def __init__(self, root: str | None) -> None:
        self.root = root
        self._read: dict[str, tuple[ImageData, dict[str, Any]] | SettingError] = {}

    def __call__(self, name: str) -> tuple[ImageData, dict[str, Any]]:
        """Return the images, and what a record says of them.

        Raises
        ------
        SettingError
            If they are not there, or fewer than published.
        """
        if name not in self._read:
            try:
                self._read[name] = self._load(name)
            except SettingError as error:
                self._read[name] = error
        found = self._read[name]
        if isinstance(found, SettingError):
            raise found
        return found

    def _load(self, name: str) -> tuple[ImageData, dict[str, Any]]:
        config = DataConfig(name, root=self.root, download=self.root is None)
        data = load_data(config)
        if (held := (len(data.train_labels), len(data.test_labels))) != IMAGES[name]:
            raise SettingError(f"{name}: there are {held[0]} and {held[1]} images; a cell takes all {IMAGES[name]}.")
        digest = hashlib.sha256()
        for tensor in (data.train_images, data.train_labels, data.test_images, data.test_labels):
            digest.update(tensor.contiguous().numpy().data)
        return data, {
            "name": name,
            "train_images": held[0],
            "test_images": held[1],
            "encoding": image_encoding(config),
            "digest": digest.hexdigest()[:16],
        }


@dataclass(frozen=True)
class Bench:
    """Where runs are made: device, data sets, the folder of what is underway, the time there is."""

    device: torch.device
    data: DataSets
    checkpoints: Path
    clock: Clock

    def folder(self, run: Run) -> Path:
        """Return where what is underway of `run` lies; one trained in another precision is another run."""
        cell = run.cell
        precision = cell.precision(self.device) if isinstance(cell, AtariCell) else cell.training(self.device).precision
        return self.checkpoints / f"{run.id}-{precision}"

    def check(self, cell: Cell | AtariCell) -> None:
        """Raise `SettingError` unless what the cell is trained on is there."""
        if isinstance(cell, AtariCell):
            cell.check_available()
        else:
            self.data(cell.data)


class Estimate(NamedTuple):
    """Seconds that a whole run takes, and its longest epoch."""

    run: float
    epoch: float


class Timings:
    """Estimates of runs from a few steps on this device, made once for each data set and network.

    Parameters
    ----------
    bench
        Where the steps are made.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._step_seconds: dict[tuple[str, str], float] = {}

    def __call__(self, cell: Cell | AtariCell) -> Estimate:
        """Return how long a run of `cell` takes."""
        if isinstance(cell, AtariCell):
            from ht_ray.reproduce.atari import step_seconds

            if (key := (cell.data, cell.variant)) not in self._step_seconds:
                self._step_seconds[key] = step_seconds(cell, self._bench.device)
            return Estimate(*(self._step_seconds[key] * steps for steps in (cell.steps + EVALUATION_STEPS, AT_LEAST)))
        data, _ = self._bench.data(cell.data)
        batch = cell.training(self._bench.device).batch_size
        if (key := (cell.data, cell.model)) not in self._step_seconds:
            self._step_seconds[key] = self._measure(cell, data, batch)
        seconds = MARGIN * self._step_seconds[key]
        stream = make_stream(data.train_labels, data.num_classes, cell.stream, seed=0)
        tests = sum(math.ceil(phase.epochs / cell.evaluate_every) for phase in stream)
        test_steps = len(data.test_labels) / batch * TEST_SHARE
        return Estimate(
            seconds * (tests * test_steps + sum(phase.epochs * _steps(phase, batch) for phase in stream)),
            seconds * (test_steps + max(_steps(phase, batch) for phase in stream)),
        )

    def _measure(self, cell: Cell, data: ImageData, batch: int) -> float:
        most = max(1, min(64, len(data.train_labels) // batch))
        batches = most if self._bench.device.type == "cuda" else 1  # as captured graphs are, with long epochs
        while True:
            seconds = _epoch_seconds(cell, data, batches * batch, self._bench)
            # Short epochs are measured over more batches, so that what comes once an epoch counts less.
            if seconds > 0.2 or batches == most:
                return seconds / batches
            batches = min(8 * batches, most)


def _epoch_seconds(cell: Cell, data: ImageData, samples: int, bench: Bench) -> float:
    ends: list[float] = []
    few = replace(data, test_images=data.test_images[:64], test_labels=data.test_labels[:64])
    stream = Stream("timing", (Phase(0, 3, torch.arange(samples), data.train_labels[:samples], 0.0, samples),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SettingWarning)  # of intervals longer than these epochs
        _fit(replace(cell, evaluate_every=1), 0, few, stream, bench, on_epoch=lambda row: ends.append(time.monotonic()))
    return ends[2] - ends[1]  # the first epoch starts kernels, and its end is the first that says when


def _steps(phase: Phase, batch: int) -> int:
    # As `InMemoryLoader` makes them: a last batch of one image is left out.
    whole, rest = divmod(len(phase), batch)
    return whole + (rest > 1)


def choose(
    runs: Sequence[Run], bench: Bench, timings: Callable[[Cell | AtariCell], Estimate], say: Callable[[str], None]
) -> Run | None:
    """Return the run to go on with; None if there is none of which an epoch fits the time left.

    One that is underway; else the first that fits the time left as a whole; else the first of which an epoch does, to
    be left underway. Runs whose data are not there are left out, and `say` says so.
    """
    refused: set[str] = set()
    begun: Run | None = None
    for run in sorted(runs, key=lambda run: not bench.folder(run).exists()):
        if run.cell.data in refused:
            continue
        try:
            bench.check(run.cell)
        except SettingError as error:
            refused.add(run.cell.data)
            say(f"left out: {error}")
            continue
        if bench.folder(run).exists():
            return run
        estimate = timings(run.cell)
        if estimate.run <= bench.clock.left:
            say(f"{run.id}: about {estimate.run:.0f} of {bench.clock.left:.0f} s")
            return run
        if begun is None and estimate.epoch <= bench.clock.left:
            begun = run
    if begun is None:
        say("nothing fits: no data, or not even an epoch of a run in the time left")
    else:
        say(f"{begun.id}: about {timings(begun.cell).run:.0f} s, more than the {bench.clock.left:.0f} s left")
    return begun


def run_once(run: Run, bench: Bench) -> Record | None:
    """Train one seed of a cell, from where it was left, and return its record; None if the time was over first.

    Raises
    ------
    SettingError
        If its data are not there, or what is underway is of other settings.
    Diverged
        If the training loss is no longer finite.
    """
    cell = run.cell
    if isinstance(cell, AtariCell):
        from ht_ray.reproduce.atari import play_once

        return play_once(cell, run.seed, device=bench.device, folder=bench.folder(run), clock=bench.clock)
    data, described = bench.data(cell.data)
    stream = make_stream(data.train_labels, data.num_classes, cell.stream, seed=run.seed)
    folder = bench.folder(run)
    state = folder / "state.pt"
    resumed = state.exists()
    bench.clock.begin()
    rows: list[Row] | None
    with noted_call(folder, bench.device) as calls:
        try:
            rows = _fit(cell, run.seed, data, stream, bench, checkpoint=state, stop=bench.clock.stop)
        except Interrupted:
            rows = None
        except ValueError as error:
            if not resumed:
                raise
            raise SettingError(f"{run.id} cannot go on: {error}. Remove {folder} to begin it again.") from error
    if rows is None:
        return None
    method, training = cell.method_config, cell.method_config.training(cell.training(bench.device), data.shape)
    return {
        "format": FORMAT,
        "cell": cell.id,
        "seed": run.seed,
        "data": described,
        "settings": {
            "model": asdict(cell.model_config),
            "stream": asdict(cell.stream),
            "method": {"name": cell.method, **method.flat},
            "training": training.described(),
        },
        "protocol": {
            "phases": [
                {
                    "samples": len(phase),
                    "epochs": phase.epochs,
                    "steps": phase.epochs * _steps(phase, training.batch_size),
                    "label_noise": phase.noise,
                }
                for phase in stream
            ],
            "evaluate_every": cell.evaluate_every,
        },
        "calls": calls,
        "results": summarise(rows),
        "curve": columns(rows),
    }


def forget(run: Run, bench: Bench) -> None:
    """Remove what was underway of a run whose record is written."""
    shutil.rmtree(bench.folder(run))


def _fit(cell: Cell, seed: int, data: ImageData, stream: Stream, bench: Bench, **chosen: Any) -> list[Row]:
    model = make_model(cell.model_config, shape=data.shape, num_classes=data.num_classes, seed=seed)
    chosen["graph"] = GRAPH
    return fit(
        model,
        data,
        stream,
        method=cell.method_config,
        training=cell.training(bench.device),
        seed=seed,
        device=bench.device,
        evaluate_every=cell.evaluate_every,
        **chosen,
    )
