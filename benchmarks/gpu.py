"""What only a GPU can show of this package: whether it computes right there, whether it waits, and how fast it is.

Run, in the repository's root, on a machine that has torch, torchvision and numpy::

    python benchmarks/gpu.py --out gpu.jsonl

Some parts of it: ``--only methods,throughput``. A self test without a GPU: ``--device cpu --tiny``. And the
paper's own code, of which there is a checkout: ``--paper-code FOLDER``.

Every case that is measured is one line of JSON, written at once; a case that fails is recorded, and the next one runs.
Each part has a time limit of its own, and ``--budget`` holds for all of them. With an ``--out`` that exists, the cases
that it has are not measured again, so a run that was cut short is continued by the same command. At the end stand
tables of everything in the file.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import importlib
import importlib.util
import io
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic products need, before CUDA starts

import numpy as np
import torch
from torch import Tensor

from ht_ray.agents.bbf.agent import BBFAgent
from ht_ray.agents.bbf.config import BBFConfig
from ht_ray.agents.drq.agent import DrQAgent
from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.replay import FrameReplay, make_replay
from ht_ray.diagnostics import INDICATOR_GROUPS, IndicatorConfig
from ht_ray.errors import SettingWarning
from ht_ray.vision import (
    ContinualConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    Pack,
    Row,
    TrainingConfig,
    TrainingRun,
    fit,
    make_model,
    make_stream,
)

Labels = dict[str, Any]
Values = dict[str, Any]

HARE_TORTOISE: Values = {"momentum": 0.9, "reset_interval": 1}
#: Every method, in every form in which it computes something else.
METHODS: list[tuple[str, Values]] = [
    ("plain", {}),
    ("hare_tortoise", HARE_TORTOISE),
    (
        "hare_tortoise",
        {
            "momentum": 0.9,
            "reset_interval": 5,
            "reset_unit": "steps",
            "optimizer_state": "clear",
            "recalibrate_batchnorm": 2,
        },
    ),
    ("hare_tortoise+shrink_perturb+l2+redo", {**HARE_TORTOISE, "redo_interval": 1}),
    ("ema", {}),
    ("shrink_perturb", {"shrink_perturb_noise": 0.01}),
    ("head_reset", {"toward": "fresh"}),
    ("l2", {}),
    ("l2", {"l2_coupling": "loss"}),
    ("spectral_decoupling", {}),
    ("regenerative", {}),
    ("regenerative", {"regenerative_coupling": "decoupled"}),
    ("regenerative", {"regenerative_toward": "fresh"}),
    ("self_distillation", {}),
    ("upgd", {"upgd_noise": 0.0}),
    ("weight_clipping", {}),
    ("continual_backprop", {"continual_backprop_replacement_rate": 0.01, "continual_backprop_maturity": 2}),
    ("redo", {"redo_interval": 1, "redo_threshold": 0.3}),
    ("redo", {"redo_interval": 3, "redo_unit": "steps", "redo_threshold": 0.3}),
    ("optimizer_reset", {}),
    ("plasticity_injection", {}),
    ("layer_norm", {}),
    ("crelu", {}),
    ("augment", {}),
    ("adam", {}),
]
#: Precision and memory format, by how the tables call them: TF32 (None: as torch has it) and the training's settings.
PRECISIONS: dict[str, tuple[bool | None, Values]] = {
    "fp32": (False, {}),
    "as torch has it": (None, {}),
    "tf32": (True, {}),
    "bf16": (True, {"precision": "bf16"}),
    "bf16 channels_last": (True, {"precision": "bf16", "channels_last": True}),
}
OBSERVATION = (4, 84, 84)


# ---------------------------------------------------------------------------------------------- the run


class TooLate(BaseException):
    """A part's time is over; no handler of errors is to take it for one."""


@dataclass(frozen=True)
class Machine:
    """Where to measure, whether in a size that says only that it works, and where the paper's own code is."""

    device: torch.device
    tiny: bool
    paper_code: Path | None = None

    @property
    def cuda(self) -> bool:
        """Whether that is a GPU."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done everything."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def forget_peak(self) -> None:
        """Free what is not used, and count memory from here."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> Values:
        """Return the most memory in use since `forget_peak`, in GiB; nothing on a CPU."""
        return {"peak_GiB": torch.cuda.max_memory_allocated(self.device) / 2**30} if self.cuda else {}


@dataclass(frozen=True)
class Case:
    """One measurement: what tells it from the part's others, and what to call for its values."""

    labels: Labels
    measure: Callable[[], Values]


@dataclass(frozen=True)
class Part:
    """Cases that belong together, and how many seconds they may take on a GPU."""

    name: str
    limit: float
    cases: Callable[[Machine], Iterator[Case]]


PARTS: dict[str, Part] = {}


def part(limit: float) -> Callable[[Callable[[Machine], Iterator[Case]]], Callable[[Machine], Iterator[Case]]]:
    """Register a function as a part of that name; they run in the order in which they stand here."""

    def register(cases: Callable[[Machine], Iterator[Case]]) -> Callable[[Machine], Iterator[Case]]:
        PARTS[cases.__name__] = Part(cases.__name__, limit, cases)
        return cases

    return register


@dataclass
class Log:
    """The rows of a run, in a file of JSON lines."""

    path: Path
    rows: list[Values] = field(default_factory=list)

    @staticmethod
    def open(path: Path) -> Log:
        """Return the log of that file, with what it has."""
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return Log(path, rows)

    def has(self, name: str, labels: Labels) -> bool:
        """Whether this case was measured; one that raised an error or came too late was not."""
        return any(
            row["part"] == name and row["case"] == labels and "error" not in row and "late" not in row
            for row in self.rows
        )

    def add(self, name: str, labels: Labels, **values: Any) -> None:
        """Write a row, in place of an earlier one of the same case."""
        row = {"part": name, "case": labels, **values}
        if any(_same_case(row, earlier) for earlier in self.rows):
            self.rows = [earlier for earlier in self.rows if not _same_case(row, earlier)]
            self.path.write_text("".join(json.dumps(earlier) + "\n" for earlier in self.rows))
        self.rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def _same_case(row: Values, other: Values) -> bool:
    return bool(row["part"] == other["part"] and row["case"] == other["case"])


def measure(chosen: Part, machine: Machine, log: Log, seconds: float) -> bool:
    """Measure the cases of a part that `log` has not; return whether the device is still there."""
    labels: Labels = {}
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        for case in chosen.cases(machine):
            labels = case.labels
            if log.has(chosen.name, labels):
                continue
            began = time.perf_counter()
            try:
                values = case.measure()
                machine.wait()
            except Exception as error:
                values = {"ok": False, "error": _first_line(error), "at": _own_line(error)}
            log.add(chosen.name, labels, **values, seconds=round(time.perf_counter() - began, 2))
            if "error" in values and not _alive(machine):
                return False
    except TooLate:
        log.add(chosen.name, labels, ok=False, late=f"the part took more than {seconds:.0f} s")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return _alive(machine)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


def _own_line(error: Exception) -> str:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if place := _place(frame.filename, frame.lineno):
            return place
    return ""


def _place(filename: str, line: int | None) -> str:
    """Return file and line if they are the package's."""
    _, inside, rest = filename.partition("/ht_ray/")
    return f"{rest}:{line}" if inside else ""


def _alive(machine: Machine) -> bool:
    try:
        machine.wait()
        machine.forget_peak()
    except RuntimeError as error:
        print(f"the device is lost: {_first_line(error)}", file=sys.stderr)
        return False
    return True


# ------------------------------------------------------------------------------- what is trained, and how


@contextmanager
def numerics(
    *, tf32: bool | None = False, benchmark: bool = False, deterministic: Literal["no", "where possible", "yes"] = "no"
) -> Iterator[None]:
    """Set how the device computes inside a block; `tf32` None leaves TF32 as torch has it.

    Torch takes the deterministic kernels of attention only where all kernels have to be deterministic.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32, convolutions.benchmark
    if tf32 is not None:
        convolutions.allow_tf32 = products.allow_tf32 = tf32
    convolutions.benchmark = benchmark
    torch.use_deterministic_algorithms(deterministic != "no", warn_only=deterministic == "where possible")
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32, convolutions.benchmark = before
        torch.use_deterministic_algorithms(False)


@lru_cache(maxsize=4)
def images(count: int, shape: tuple[int, int, int], classes: int, *, tests: int = 128) -> ImageData:
    """Return images of classes that a network can tell apart."""
    draw = torch.Generator().manual_seed(0)
    patterns = torch.randint(128, (classes, *shape), generator=draw, dtype=torch.uint8)

    def split(number: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(classes, (number,), generator=draw)
        return patterns[labels] + torch.randint(128, (number, *shape), generator=draw, dtype=torch.uint8), labels

    names = tuple(map(str, range(classes)))
    return ImageData("patterns", *split(count), *split(tests), names, (0.5,) * shape[0], (0.22,) * shape[0])


def train(
    network: str,
    method: str,
    settings: Values,
    device: torch.device | str,
    *,
    samples: int = 250,
    graph: str = "off",
    training: Values | None = None,
    **more: Any,
) -> list[Row]:
    """Train a small network of that kind for two phases of two epochs; 250 samples end in a smaller batch."""
    shape = (1, 12, 12) if network == "mlp" else (3, 16, 16)
    data = images(samples, shape, 10)
    acting = MethodConfig(method, **settings)
    config = acting.model(ModelConfig(network, width=1.0 if network == "mlp" else 0.125, dropout=0.0))
    model = make_model(config, shape=shape, num_classes=10, seed=0)
    stream = make_stream(data.train_labels, 10, ContinualConfig(phases=2, epochs=2), seed=0)
    steps = TrainingConfig(batch_size=32, **(training or {}))
    return fit(model, data, stream, method=acting, training=steps, device=device, graph=graph, **more)


def loss_gap(rows: Sequence[Row], expected: Sequence[Row]) -> float:
    """Return the largest relative difference of the training losses."""
    pairs = zip(rows, expected, strict=True)
    return max(abs(a["train_loss"] - b["train_loss"]) / (abs(b["train_loss"]) + 1e-6) for a, b in pairs)


def accuracy_gap(rows: Sequence[Row], expected: Sequence[Row]) -> float:
    """Return the largest difference of the test accuracies."""
    return max(abs(a["test_accuracy"] - b["test_accuracy"]) for a, b in zip(rows, expected, strict=True))


def determinism(network: str) -> Literal["where possible", "yes"]:
    """Return how deterministic its kernels can be: torch counts the gradient of a maximum over windows as not."""
    return "where possible" if network == "vgg16" else "yes"


def some(machine: Machine, everything: Sequence[Any], few: int) -> Sequence[Any]:
    """Return the first few when the run is a tiny one."""
    return everything[:few] if machine.tiny else everything


# ------------------------------------------------------------------------------------------- the card


@part(limit=30)
def card(machine: Machine) -> Iterator[Case]:
    """Which card and versions, and what the card can do at most."""
    yield Case({"what": "versions"}, partial(versions, machine))
    if machine.cuda:
        yield Case({"what": "copy"}, partial(copy_rate, machine))
        for name, dtype, tf32 in (
            ("bf16", torch.bfloat16, False),
            ("tf32", torch.float32, True),
            ("fp32", torch.float32, False),
        ):
            yield Case({"what": f"product of {name}"}, partial(product_rate, machine, dtype, tf32))
        yield Case({"what": "launches"}, partial(launch_times, machine))


def versions(machine: Machine) -> Values:
    """Return names, versions, and how torch computes unless told otherwise."""
    return {
        "torch": torch.__version__,
        "card": torch.cuda.get_device_name(machine.device) if machine.cuda else "none",
        "tf32_in_convolutions": torch.backends.cudnn.allow_tf32,
        "tf32_in_products": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def _device_seconds(function: Callable[[], object], times: int) -> float:
    """Return the median time of a call on the device."""
    for _ in range(3):
        function()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    seconds = []
    for _ in range(times):
        first.record()
        function()
        last.record()
        last.synchronize()
        seconds.append(first.elapsed_time(last) * 1e-3)
    return sorted(seconds)[times // 2]


def copy_rate(machine: Machine) -> Values:
    """Return how fast memory is copied on the device, read and written."""
    source = torch.zeros(1 << 30, dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    return {"TB_per_s": 2 * source.numel() / _device_seconds(lambda: target.copy_(source), 10) / 1e12}


def product_rate(machine: Machine, dtype: torch.dtype, tf32: bool) -> Values:
    """Return the rate of a large matrix product."""
    size = 8192
    with numerics(tf32=tf32):
        matrix = torch.randn(size, size, device=machine.device, dtype=dtype)
        return {"TFLOP_per_s": 2 * size**3 / _device_seconds(lambda: matrix @ matrix, 5) / 1e12}


def launch_times(machine: Machine) -> Values:
    """Return what a small operation costs when it is launched by itself, and as a node of a graph."""
    tensor = torch.zeros(8, device=machine.device)

    def operations(count: int) -> None:
        for _ in range(count):
            tensor.add_(1)

    operations(10)
    machine.wait()
    began = time.perf_counter()
    operations(5000)
    machine.wait()
    launched = (time.perf_counter() - began) / 5000
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        operations(1000)
    graph.replay()
    machine.wait()
    began = time.perf_counter()
    graph.replay()
    machine.wait()
    return {"operation_us": launched * 1e6, "graph_node_us": (time.perf_counter() - began) / 1000 * 1e6}


# ------------------------------------------------------------------------------ vision: does it compute right


@part(limit=60)
def methods(machine: Machine) -> Iterator[Case]:
    """Every method on the device against the CPU, in float32 without TF32."""
    for name, settings in some(machine, METHODS, 3):
        yield Case({"method": name, **settings}, partial(compare_method, machine, name, settings))


def compare_method(machine: Machine, name: str, settings: Values) -> Values:
    """Return how far the losses of a method on the device are from those on the CPU."""
    with numerics():
        expected = train("mlp", name, settings, "cpu")
        rows = train("mlp", name, settings, machine.device, graph="auto")
    first, whole = loss_gap(rows[:1], expected[:1]), loss_gap(rows, expected)
    return {
        "first_epoch_loss_gap": first,
        "loss_gap": whole,
        "accuracy_gap": accuracy_gap(rows, expected),
        "ok": first < 1e-4 and whole < 0.05,
    }


@part(limit=90)
def graphs(machine: Machine) -> Iterator[Case]:
    """Steps replayed from a graph against steps launched one by one: the same bits, with deterministic kernels."""
    if not machine.cuda:
        return
    for name, settings in METHODS:
        yield Case(
            {"network": "mlp", "method": name, **settings}, partial(compare_graph, machine, "mlp", name, settings)
        )
    for network in ("resnet18", "vgg16", "vit_tiny"):
        for precision in ("fp32", "bf16 channels_last"):
            labels = {"network": network, "method": "hare_tortoise", "precision": precision}
            yield Case(labels, partial(compare_graph, machine, network, "hare_tortoise", HARE_TORTOISE, precision))


def compare_graph(machine: Machine, network: str, name: str, settings: Values, precision: str = "fp32") -> Values:
    """Return whether a run with graphs has the rows of the run without, or why there are no graphs."""
    tf32, training = PRECISIONS[precision]
    training = {**training, "augment": "crop_flip"} if network != "mlp" else training
    with numerics(tf32=tf32, deterministic=determinism(network)):
        expected = train(network, name, settings, machine.device, training=training, graph="off")
        try:
            rows = train(network, name, settings, machine.device, training=training, graph="on")
        except ValueError as refusal:  # a SettingError
            return {"graph": False, "why": str(refusal)[:200]}
    return {"graph": True, "identical": rows == expected, "loss_gap": loss_gap(rows, expected), "ok": rows == expected}


# --------------------------------------------------------------------------------------- vision: how fast


@part(limit=130)
def throughput(machine: Machine) -> Iterator[Case]:
    """Training of the four networks, their full size: precision, graph, tortoise."""
    cases: list[Labels] = []
    for network in ("resnet18", "vit_tiny", "vgg16", "mlp"):
        for precision in ("as torch has it", "bf16 channels_last"):
            cases += [
                {"network": network, "precision": precision, "graph": graph, "method": "hare_tortoise"}
                for graph in _graph_modes(machine)
            ]
    last = _graph_modes(machine)[-1]
    fast = {"precision": "bf16 channels_last", "graph": last, "method": "hare_tortoise"}
    cases += [{"network": network, **fast, "method": "plain"} for network in ("resnet18", "vit_tiny", "vgg16", "mlp")]
    cases.append({"network": "resnet18", **fast, "method": "plain", "graph": "off"})
    cases.append({"network": "resnet18", **fast, "batch": 1024})
    cases += [
        {"network": "mlp", **fast, "precision": "as torch has it", "batch": 32, "graph": graph}
        for graph in _graph_modes(machine)
    ]
    cases.append({"network": "vit_tiny", **fast, "precision": "tf32"})
    cases += [{"network": network, **fast, "cudnn_benchmark": True} for network in ("resnet18", "vgg16")]
    for labels in some(machine, cases, 3):
        yield Case(labels, partial(samples_per_second, machine, **labels))


def _graph_modes(machine: Machine) -> list[str]:
    return ["off", "on"] if machine.cuda else ["off"]


def samples_per_second(
    machine: Machine,
    *,
    network: str,
    precision: str,
    graph: str,
    method: str,
    batch: int = 256,
    steps: int = 0,
    cudnn_benchmark: bool = False,
    compiled: bool = False,
    on_row: Callable[[], None] | None = None,
    side: int = 32,
    model_settings: Values | None = None,
    augment: Literal["none", "crop_flip"] = "crop_flip",
) -> Values:
    """Return the rate of the faster one of two epochs, after one that is not counted; its test of 128 images included.

    An epoch has 25 steps when they are launched one by one and 100 when they are replayed, so that its end (the test,
    and what a method does there) weighs alike.
    """
    tf32, training = PRECISIONS[precision]
    if machine.tiny:
        batch = 16
    steps = steps or (3 if machine.tiny else 100 if graph == "on" else 25)
    classes, shape = (10, (1, 28, 28)) if network == "mlp" else (10 if network == "resnet18" else 100, (3, side, side))
    data = images(batch * steps, shape, classes)
    if model_settings is None:
        model_settings = {"width": 0.125} if machine.tiny and network != "mlp" else {}
    model = make_model(ModelConfig(network, **model_settings), shape=shape, num_classes=classes, seed=0)
    stream = make_stream(data.train_labels, classes, ContinualConfig(phases=1, epochs=3), seed=0)
    marks = [time.perf_counter()]
    more: Values = {"graph": graph}
    if compiled:
        more["forward"] = torch.compile(model)

    def note(row: Row) -> None:
        machine.wait()
        marks.append(time.perf_counter())
        if on_row is not None:
            on_row()

    machine.forget_peak()
    with numerics(tf32=tf32, benchmark=cudnn_benchmark):
        fit(
            model,
            data,
            stream,
            method=MethodConfig(method, momentum=0.99, reset_interval=2),
            training=TrainingConfig(
                batch_size=batch, augment="none" if network == "mlp" else augment, fresh_optimizer=True, **training
            ),
            device=machine.device,
            on_epoch=note,
            **more,
        )
    return {**_speed(marks, batch, steps), **machine.peak()}


def _speed(marks: Sequence[float], batch: int, steps: int) -> Values:
    """Return the rate of the fastest epoch after the first; `marks` are when epochs began, and when the last ended."""
    first, *counted = (after - before for before, after in pairwise(marks))
    best = min(counted)
    return {"samples_per_s": batch * steps / best, "ms_per_step": best / steps * 1e3, "first_epoch_s": first}


# ------------------------------------------------------------------------------------- the paper's own code

#: The network that the authors' settings for CIFAR-10 name.
PUBLISHED: Values = {"head_hidden": (512,)}


@part(limit=120)
def paper_code(machine: Machine) -> Iterator[Case]:
    """The published trainer of ResNet-18 and this package's `fit`: the trainer alone, and with its images in files."""
    if machine.paper_code is None:
        print("paper_code: give --paper-code FOLDER, a checkout of the authors' repository", file=sys.stderr)
        return
    for batches in ("in memory", "PNG files"):
        labels = {"network": "resnet18", "precision": "as torch has it", "method": "hare_tortoise", "batches": batches}
        yield Case(labels, partial(compare_paper_code, machine, machine.paper_code, batches))


def paper_code_fault(folder: Path) -> str:
    """Return why the code there cannot be run, if so; what it imports is looked for in the folder, too."""
    needed = [f"src/{name}/__init__.py" for name in ("models", "trainers", "datasets")]
    if lacking := [name for name in [*needed, "configs/b_cifar10_resnet18.yaml"] if not (folder / name).is_file()]:
        return f"--paper-code: {folder} is no checkout of dojeon-ai/Hare-Tortoise: it has no {lacking[0]}"
    sys.path.insert(0, str(folder.resolve()))
    imported: set[str] = set()
    for path in (folder / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    missing = sorted(name for name in imported - {"src", "wandb"} if importlib.util.find_spec(name) is None)
    return f"--paper-code: {folder} imports what is not installed: {', '.join(missing)}" if missing else ""


def paper_settings(folder: Path, chosen: Values) -> Any:
    """Return the published settings of CIFAR-10 with ResNet-18 for one task, as Hydra composes them, and `chosen`."""
    conf = importlib.import_module("omegaconf").OmegaConf

    def load(name: str) -> Any:
        return conf.load(folder / "configs" / f"{name}.yaml")

    network = {"backbone": load("model/backbone/resnet18"), "head": load("model/head/gap")}
    parts = {"dataset": load("dataset/cifar10"), "model": load("model/resnet18_gap"), "trainer": load("trainer/base")}
    return conf.merge(load("_base"), parts, {"model": network}, load("b_cifar10_resnet18"), chosen)


class Passes:
    """Batches that a trainer goes through once an epoch; notes when it begins to."""

    def __init__(self, batches: Any, machine: Machine) -> None:
        self.marks: list[float] = []
        self._batches, self._machine = batches, machine

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        self.mark()
        return iter(self._batches)

    def mark(self) -> None:
        """Note the time, once the device has done everything."""
        self._machine.wait()
        self.marks.append(time.perf_counter())


def compare_paper_code(machine: Machine, folder: Path, batches: str) -> Values:
    """Return how fast the published trainer is, without its tests, and `fit`, launched and from a graph."""
    batch, side = (16, 8) if machine.tiny else (256, 32)
    steps = 3 if machine.tiny else 25 if batches == "in memory" else 100
    theirs = paper_speed(machine, folder, batches, batch, steps, side)
    ours = {graph: our_speed(machine, graph, side) for graph in _graph_modes(machine)}
    compared = {f"ours_{name}": {graph: speed[name] for graph, speed in ours.items()} for name in ours["off"]}
    ratio = {graph: speed["samples_per_s"] / theirs["samples_per_s"] for graph, speed in ours.items()}
    model = make_model(ModelConfig("resnet18", **PUBLISHED), shape=(3, side, side), num_classes=10, seed=0)
    return {
        **theirs,
        **compared,
        "ratio": ratio,
        "ours_parameters": _parameters(model),
        "wandb": "a stand-in",
        "ok": math.isfinite(theirs["loss"]),
    }


def _parameters(model: torch.nn.Module) -> int:
    return sum(weights.numel() for weights in model.parameters())


@lru_cache
def our_speed(machine: Machine, graph: str, side: int) -> Values:
    """Return the rate of `fit` with the published network; both cases are compared with the same measurement."""
    labels: Values = {"network": "resnet18", "precision": "as torch has it", "graph": graph, "method": "hare_tortoise"}
    return samples_per_second(machine, **labels, side=side, model_settings=PUBLISHED, augment="none")


def paper_speed(machine: Machine, folder: Path, batches: str, batch: int, steps: int, side: int) -> Values:
    """Return the rate of the published trainer, which computes as its ``run.py`` has it; nothing is sent anywhere."""
    logged: Values = {}
    stand_in: Any = sys.modules.setdefault("wandb", ModuleType("wandb"))
    stand_in.init = lambda **settings: None
    stand_in.log = lambda values, step: logged.update(values)
    data = images(batch * steps, (3, side, side), 10)
    machine.forget_peak()
    with (
        tempfile.TemporaryDirectory() as files,
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()),  # a bar for every epoch
        torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=True, allow_tf32=True),
    ):
        settings = paper_settings(
            folder,
            {
                "dataset": {
                    "in_shape": [3, side, side],
                    "train": {"root": files},
                    "test": {"root": files},
                    "dataloader": {"batch_size": batch},
                },
                "trainer": {
                    "base_epochs": 3,
                    "base_test_every": -1,
                    "ema": 0.99,
                    "hare_tortoise": {"reset_every": 2},
                },
            },
        )
        if batches == "in memory":
            pixels = (data.train_images / 255 - 0.5) / 0.22
            loader: Any = list(zip(pixels.split(batch), data.train_labels.split(batch), strict=True))
        else:
            write_images(data, Path(files))
            (loader,), _ = importlib.import_module("src.datasets").build_dataloader(settings["dataset"])
            loader.multiprocessing_context = "fork"  # its transformations cannot be pickled
        model = importlib.import_module("src.models").build_model(settings["model"])
        passes = Passes(loader, machine)
        trainer = importlib.import_module("src.trainers").build_trainer(
            cfg=settings["trainer"],
            device=machine.device,
            train_loaders=[passes],
            test_loader=None,
            logger=importlib.import_module("src.common.logger").WandbTrainerLogger(settings),
            model=model,
        )
        trainer.train(0)
        passes.mark()
    speed = {**_speed(passes.marks, batch, steps), **machine.peak()}
    return {**speed, "parameters": _parameters(model), "loss": logged["train_loss"]}


def write_images(data: ImageData, folder: Path) -> None:
    """Write the training images as files, in a folder for each class."""
    from torchvision.io import write_png

    for index, (image, label) in enumerate(zip(data.train_images, data.train_labels.tolist(), strict=True)):
        path = folder / str(label) / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        write_png(image, str(path))


# ------------------------------------------------------------------------------------------------ packs

#: Networks of the pack's cases: side of the images, units of both hidden layers, samples of a batch.
PACKED: dict[str, tuple[int, int, int]] = {
    "digits, batches of 32": (8, 100, 32),
    "MNIST's size": (28, 100, 256),
    "MNIST's size, 400 units": (28, 400, 256),
}


@part(limit=110)
def packs(machine: Machine) -> Iterator[Case]:
    """MLPs with Hare & Tortoise: one alone, several processes, and packs; time of a trial's step."""
    graph = _graph_modes(machine)[-1]
    for network in some(machine, list(PACKED), 1):
        for mode in _graph_modes(machine):
            labels = {"network": network, "how": "alone", "graph": mode}
            yield Case(labels, partial(pack_speed, machine, network, 1, mode))
            for trials in (2,) if machine.tiny else (5, 25, 125):
                labels = {"network": network, "how": "pack", "trials": trials, "graph": mode}
                yield Case(labels, partial(pack_speed, machine, network, trials, mode))
    processes = 2 if machine.tiny else 8
    for network in some(machine, list(PACKED)[1:2], 1):
        labels = {"network": network, "how": "processes", "trials": processes, "graph": graph}
        yield Case(labels, partial(process_speed, machine, network, processes, graph))


def _packed_runs(network: str, device: str, trials: int, epochs: int, steps: int) -> list[TrainingRun]:
    side, hidden, batch = PACKED[network]
    data, runs = images(batch * steps, (1, side, side), 10), []
    for seed in range(trials):
        stream = make_stream(data.train_labels, 10, ContinualConfig(phases=1, epochs=epochs), seed=seed)
        model = make_model(ModelConfig("mlp", hidden=(hidden, hidden)), shape=data.shape, num_classes=10, seed=seed)
        method = MethodConfig("hare_tortoise", momentum=0.9 + 0.0005 * (seed % 180), reset_interval=2)
        training = TrainingConfig(batch_size=batch)
        every = epochs
        runs.append(
            TrainingRun(
                model, data, stream, method=method, training=training, seed=seed, device=device, evaluate_every=every
            )
        )
    return runs


def pack_speed(machine: Machine, network: str, trials: int, graph: str) -> Values:
    """Return what a trial's step takes, in the fastest of three epochs after the first; one trial is `fit`'s."""
    steps = 3 if machine.tiny else 25 if graph == "off" and trials == 1 else 100
    epochs = 4
    marks = [time.perf_counter()]

    def note(*row: Row) -> bool:
        machine.wait()
        marks.append(time.perf_counter())
        return False

    machine.forget_peak()
    runs = _packed_runs(network, str(machine.device), trials, epochs, steps)
    if trials == 1:
        (run,) = runs
        fit(
            run.model, run.data, run.stream, method=run.method, training=run.config, device=machine.device,
            graph=graph, on_epoch=note,
        )  # fmt: skip
    else:
        pack = Pack(runs, graph=graph)
        while pack.runs:
            pack.train_phase(stop=note)
        note()
    counted = [after - before for before, after in pairwise(marks)][1:]
    per_step = min(counted) / steps
    losses = [run.rows[-1]["train_loss"] for run in runs if run.rows]
    return {
        "us_per_trial_step": per_step / trials * 1e6,
        "ms_per_step": per_step * 1e3,
        "first_epoch_s": marks[1] - marks[0],
        **({"loss": sum(losses) / len(losses)} if losses else {}),
        **machine.peak(),
    }


def process_speed(machine: Machine, network: str, processes: int, graph: str) -> Values:
    """Return what a trial's step takes where each trial has a process of its own, all at once; starts not counted."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    steps, epochs = (3, 3) if machine.tiny else (100, 40)
    workers = [
        context.Process(
            target=_one_process, args=(network, str(machine.device), graph, epochs, steps, barrier, results)
        )
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    taken = [results.get(timeout=90) for _ in workers]
    for worker in workers:
        worker.join()
    # As many steps as one made, in the time of the slowest.
    return {"us_per_trial_step": max(taken) / ((epochs - 1) * steps) / processes * 1e6}


def _one_process(network: str, device: str, graph: str, epochs: int, steps: int, barrier: Any, results: Any) -> None:
    warnings.simplefilter("ignore", SettingWarning)
    machine = Machine(torch.device(device), False)
    (run,) = _packed_runs(network, device, 1, epochs, steps)
    marks: list[float] = []

    def begin(row: Row) -> None:
        if not marks:
            machine.wait()
            barrier.wait()
            marks.append(time.perf_counter())

    fit(
        run.model, run.data, run.stream, method=run.method, training=run.config, device=device, graph=graph,  # type: ignore[arg-type]
        on_epoch=begin,
    )  # fmt: skip
    machine.wait()
    results.put(time.perf_counter() - marks[0])


# ------------------------------------------------------------------------------------------------ agents


AGENTS: dict[str, tuple[type[DrQAgent] | type[BBFAgent], Values]] = {
    "drq": (DrQAgent, {"momentum": 0.995, "reset_interval": 50}),
    "bbf": (BBFAgent, {}),
    "bbf without SPR": (BBFAgent, {"spr_weight": 0.0}),
}


@dataclass
class Learner:
    """An agent and a replay with frames in it."""

    agent: DrQAgent | BBFAgent
    replay: FrameReplay
    config: DrQConfig | BBFConfig

    @staticmethod
    def make(name: str, device: torch.device | str, *, tiny: bool, **settings: Any) -> Learner:
        """Return an agent of that name and size; the settings are its constructor's, `graph` the replay's as well."""
        kind, chosen = AGENTS[name]
        config: DrQConfig | BBFConfig
        if kind is DrQAgent:
            config = DrQConfig(**({"batch_size": 4, "hidden": 16} if tiny else {}), **chosen)
        else:
            config = BBFConfig(**({"batch_size": 2, "width": 0.25, "hidden": 16} if tiny else {}), **chosen)
        # What is compared with a CPU is in float32, whatever the agent's default on a GPU.
        how = {"precision": "fp32", **settings}
        agent = kind(config, shape=OBSERVATION, num_actions=6, seed=0, device=device, **how)
        graph = {"graph": settings["graph"]} if "graph" in settings else {}
        replay = make_replay(
            config.replay_config(stack=OBSERVATION[0], device=str(device), **graph), frame_shape=OBSERVATION[1:], seed=0
        )
        draw = np.random.default_rng(0)

        def frame() -> np.ndarray:
            return draw.integers(0, 255, OBSERVATION[1:], dtype=np.uint8)

        replay.start(frame())
        for step in range(150 if tiny else 1500):
            ends = step % 61 == 60
            action, reward = int(draw.integers(6)), float(draw.integers(-1, 2))
            replay.add(action, reward, frame(), terminated=ends, truncated=False)
            if ends:
                replay.start(frame())
        return Learner(agent, replay, config)

    def sample(self) -> Any:
        """Draw the batches of the next updates."""
        how = self.agent.sampling()
        count = self.config.batch_size * self.config.batches_per_sample
        return self.replay.sample(count, n_step=how.n_step, discount=how.discount, sequence=how.sequence)

    def update(self, batches: Any) -> list[dict[str, Tensor]]:
        """Learn from each of them."""
        return [self.agent.update(batch) for batch in batches.split(self.config.batch_size)]

    def set_priorities(self, batches: Any, done: Sequence[dict[str, Tensor]]) -> None:
        """Give the replay what was learned, if it draws by that."""
        if self.config.prioritized:
            losses = torch.cat([values["losses"] for values in done])
            self.replay.update_priorities(batches.indices, losses.nan_to_num())

    def learn(self, updates: int) -> list[Tensor]:
        """Make at least so many updates, and return their losses."""
        losses: list[Tensor] = []
        while len(losses) < updates:
            batches = self.sample()
            done = self.update(batches)
            self.set_priorities(batches, done)
            losses += [values["loss"].clone() for values in done]
        return losses

    def state(self) -> dict[str, Any]:
        """Return what `load` takes."""
        return {"agent": self.agent.state_dict(), "replay": copy.deepcopy(self.replay.state_dict())}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        self.agent.load_state_dict(state["agent"])
        self.replay.load_state_dict(state["replay"])


def _agent_graph_modes(machine: Machine, name: str) -> list[str]:
    return ["off", "on"] if machine.cuda else ["off"]


def _graph_setting(name: str, graph: str) -> Values:
    return {"graph": graph}


def tensor_gap(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest relative difference."""
    ours, theirs = torch.stack(list(values)).cpu(), torch.stack(list(expected)).cpu()
    return float(((ours - theirs).abs() / (theirs.abs() + 1e-6)).max())


@part(limit=60)
def agents(machine: Machine) -> Iterator[Case]:
    """Small agents on the device against the CPU, with and without a graph, and continued on another device."""
    for name in ("drq", "bbf"):
        for graph in _agent_graph_modes(machine, name):
            yield Case({"agent": name, "graph": graph}, partial(compare_agent, machine, name, graph))
        if "on" in _agent_graph_modes(machine, name):
            yield Case({"agent": name, "graph": "on against off"}, partial(compare_agent_graph, machine, name))
        for first, second in ((machine.device, "cpu"), ("cpu", machine.device), (machine.device, machine.device)):
            labels = {"agent": name, "first": str(first), "second": str(second)}
            yield Case(labels, partial(continue_agent, name, first, second))


def compare_agent(machine: Machine, name: str, graph: str) -> Values:
    """Return how far losses and actions on the device are from those on the CPU."""
    with numerics():
        expected = Learner.make(name, "cpu", tiny=True)
        learner = Learner.make(name, machine.device, tiny=True, **_graph_setting(name, graph))
        gap = tensor_gap(learner.learn(8), expected.learn(8))
        draw = torch.Generator().manual_seed(1)
        seen = torch.randint(0, 255, (32, *OBSERVATION), dtype=torch.uint8, generator=draw)
        same = float((expected.agent.act(seen) == learner.agent.act(seen)).float().mean())
    return {"loss_gap": gap, "same_actions": same, "ok": gap < 0.02}


def compare_agent_graph(machine: Machine, name: str) -> Values:
    """Return whether updates that are replayed have the losses of those that are launched one by one."""
    with numerics(deterministic="where possible"):
        off, on = (Learner.make(name, machine.device, tiny=True, **_graph_setting(name, g)) for g in ("off", "on"))
        expected, losses = torch.stack(off.learn(40)), torch.stack(on.learn(40))
    same = torch.equal(losses, expected)
    return {"identical": same, "loss_gap": tensor_gap(list(losses), list(expected)), "ok": same}


def continue_agent(name: str, first: torch.device | str, second: torch.device | str) -> Values:
    """Return how far the losses of an agent that is continued on another device are from one that stays."""
    with numerics():
        source = Learner.make(name, first, tiny=True)
        source.learn(8)
        state = source.state()
        stays, moves = (Learner.make(name, device, tiny=True) for device in (first, second))
        stays.load(state)
        moves.load(state)
        gap = tensor_gap(moves.learn(4), stays.learn(4))
    return {"loss_gap": gap, "ok": gap < 1e-4}


@part(limit=90)
def agent_speed(machine: Machine) -> Iterator[Case]:
    """Updates per second of the full agents, sampling and priorities included, and the time of an action."""
    for name in some(machine, list(AGENTS), 1):
        for precision in ("bf16", "fp32"):
            for graph in reversed(_agent_graph_modes(machine, name)):
                if name == "bbf without SPR" and precision == "fp32":
                    continue
                labels = {"agent": name, "precision": precision, "graph": graph}
                yield Case(labels, partial(updates_per_second, machine, name, precision, graph))


def updates_per_second(machine: Machine, name: str, precision: str, graph: str) -> Values:
    """Return rates and memory of an agent."""
    machine.forget_peak()
    with numerics(tf32=None):
        learner = Learner.make(
            name, machine.device, tiny=machine.tiny, precision=precision, **_graph_setting(name, graph)
        )
        learner.learn(16)  # after which everything is captured
        machine.wait()
        updates = 4 if machine.tiny else 300 if graph == "on" else 100 if name == "drq" else 40
        began = time.perf_counter()
        done = len(learner.learn(updates))
        machine.wait()
        rate = done / (time.perf_counter() - began)
        observation = torch.zeros(1, *OBSERVATION, dtype=torch.uint8)
        learner.agent.act(observation)
        began = time.perf_counter()
        for _ in range(20):
            learner.agent.act(observation)
        act = (time.perf_counter() - began) / 20
    hours = 1e5 * (learner.config.updates_per_step / rate + act) / 3600
    return {"updates_per_s": rate, "act_ms": act * 1e3, "hours_of_100k_steps_without_the_game": hours, **machine.peak()}


# ------------------------------------------------------------------------------------------------- waits


class Waits:
    """Counts by our line how often the host waits for the device inside a block."""

    def __init__(self, machine: Machine) -> None:
        self.lines: Counter[str] = Counter()
        self._cuda = machine.cuda
        self._warnings = warnings.catch_warnings()

    def __enter__(self) -> Waits:
        self._warnings.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._note
        if self._cuda:
            torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *raised: object) -> None:
        if self._cuda:
            torch.cuda.set_sync_debug_mode("default")
        self._warnings.__exit__()

    def _note(self, message: Warning | str, *rest: object) -> None:
        if "synchroniz" not in str(message):
            return
        frame: FrameType | None = sys._getframe()
        while frame is not None and not _place(frame.f_code.co_filename, None):
            frame = frame.f_back
        self.lines[_place(frame.f_code.co_filename, frame.f_lineno) if frame else "elsewhere"] += 1


@part(limit=45)
def waits(machine: Machine) -> Iterator[Case]:
    """Where the host waits for the device: in a step, and in all."""
    for name, settings in some(machine, METHODS, 2):
        if settings.get("redo_unit") == "steps":
            continue  # decides on the host, in the steps in which it recycles
        labels = {"network": "mlp", "graph": "off", "method": name, **settings}
        yield Case(labels, partial(waits_of_steps, machine, "mlp", name, settings, "off"))
    for graph in _graph_modes(machine):
        for network in some(machine, ["resnet18", "vgg16", "vit_tiny"], 0):
            labels = {"network": network, "graph": graph, "method": "hare_tortoise"}
            yield Case(labels, partial(waits_of_steps, machine, network, "hare_tortoise", HARE_TORTOISE, graph))
    for agent in ("drq", "bbf"):
        for graph in _agent_graph_modes(machine, agent):
            yield Case({"agent": agent, "graph": graph}, partial(waits_of_agent, machine, agent, graph))


def waits_of_steps(machine: Machine, network: str, name: str, settings: Values, graph: str) -> Values:
    """Return what waits in a step: what a run of twice as many steps in as many epochs waits more often."""
    training = {} if network == "mlp" else {"augment": "crop_flip"}
    counted = []
    for samples in (256, 512):
        with Waits(machine) as watch:
            train(network, name, settings, machine.device, samples=samples, training=training, graph=graph)
        counted.append(watch.lines)
    steps = 2 * (128 + 256) // 32  # two epochs of each phase; the first phase has half of the samples
    step = {line: (count - counted[0][line]) / steps for line, count in counted[1].items() if count > counted[0][line]}
    return {"per_step": step, "in_all": dict(counted[1].most_common(8)), "ok": not step}


def waits_of_agent(machine: Machine, name: str, graph: str) -> Values:
    """Return what waits in sampling, an update, setting priorities, and acting."""
    learner = Learner.make(name, machine.device, tiny=True, **_graph_setting(name, graph))
    learner.learn(16)  # allocates, and captures
    machine.wait()
    observation = torch.zeros(1, *OBSERVATION, dtype=torch.uint8)
    with Waits(machine) as sampling:
        batches = learner.sample()
    with Waits(machine) as updating:
        done = learner.update(batches)
    with Waits(machine) as setting:
        learner.set_priorities(batches, done)
    with Waits(machine) as acting:
        learner.agent.act(observation)
    found = {"sample": sampling, "update": updating, "priorities": setting}
    lines = {what: dict(watch.lines) for what, watch in found.items()}
    return {**lines, "act": dict(acting.lines), "ok": not any(lines.values())}


# ------------------------------------------------------------------- vision: precision, repetition, indicators


@part(limit=60)
def precision(machine: Machine) -> Iterator[Case]:
    """How far the networks' losses are from those of the CPU in float32, by precision."""
    expected: dict[str, list[Row]] = {}
    for network in some(machine, ["resnet18", "vgg16", "vit_tiny"], 1):
        for name in some(machine, list(PRECISIONS), 1):
            yield Case(
                {"network": network, "precision": name}, partial(compare_precision, machine, network, name, expected)
            )


def compare_precision(machine: Machine, network: str, name: str, expected: dict[str, list[Row]]) -> Values:
    """Return the gaps; `expected` keeps what the CPU gave."""
    tf32, training = PRECISIONS[name]
    augment = {"augment": "crop_flip"}
    if network not in expected:
        expected[network] = train(network, "hare_tortoise", HARE_TORTOISE, "cpu", training=augment)
    with numerics(tf32=tf32):
        rows = train(
            network, "hare_tortoise", HARE_TORTOISE, machine.device, training={**augment, **training}, graph="auto"
        )
    return {
        "first_epoch_loss_gap": loss_gap(rows[:1], expected[network][:1]),
        "loss_gap": loss_gap(rows, expected[network]),
        "accuracy_gap": accuracy_gap(rows, expected[network]),
    }


@part(limit=40)
def repeated(machine: Machine) -> Iterator[Case]:
    """The same run twice, bit for bit; and a run that is continued from its checkpoint on another device."""
    for network in some(machine, ["mlp", "resnet18", "vit_tiny"], 1):
        for deterministic in (False, True):
            labels = {"network": network, "deterministic": deterministic}
            yield Case(labels, partial(repeat, machine, network, deterministic))
    continued = [
        ("hare_tortoise+redo+l2", {**HARE_TORTOISE, "redo_interval": 1}),
        ("continual_backprop", {"continual_backprop_replacement_rate": 0.01, "continual_backprop_maturity": 2}),
        ("upgd", {"upgd_noise": 0.0}),
    ]
    for first, second in ((machine.device, "cpu"), ("cpu", machine.device), (machine.device, machine.device)):
        for name, settings in some(machine, continued, 1):
            labels = {"method": name, "first": str(first), "second": str(second)}
            yield Case(labels, partial(continue_run, name, settings, first, second))


def repeat(machine: Machine, network: str, deterministic: bool) -> Values:
    """Return whether two runs of the same settings have the same rows."""
    training = {} if network == "mlp" else {"augment": "crop_flip"}
    with numerics(deterministic=determinism(network) if deterministic else "no"):
        one, other = (
            train(network, "hare_tortoise", HARE_TORTOISE, machine.device, training=training, graph="auto")
            for _ in range(2)
        )
    return {
        "identical": one == other,
        "loss_gap": loss_gap(one, other),
        **({"ok": one == other} if deterministic else {}),
    }


class _Stop(Exception):
    pass


def continue_run(name: str, settings: Values, first: torch.device | str, second: torch.device | str) -> Values:
    """Return how far a run that was begun on another device is from one that was not."""

    def stop(row: Row) -> None:
        if row["phase"] == 2:
            raise _Stop

    with tempfile.TemporaryDirectory() as folder, numerics():
        path = Path(folder) / "state.pt"
        whole = train("mlp", name, settings, second, graph="auto")
        with suppress(_Stop):
            train("mlp", name, settings, first, checkpoint=path, on_epoch=stop, graph="auto")
        rows = train("mlp", name, settings, second, checkpoint=path, graph="auto")
    return {"loss_gap": loss_gap(rows, whole), "ok": loss_gap(rows, whole) < 0.05}


@part(limit=40)
def indicators(machine: Machine) -> Iterator[Case]:
    """Every plasticity indicator on the device against the CPU."""
    for network in some(machine, ["mlp", "resnet18"], 1):
        yield Case({"network": network}, partial(compare_indicators, machine, network))


def compare_indicators(machine: Machine, network: str) -> Values:
    """Return the largest relative gaps, and the time of a measurement."""
    names = tuple(INDICATOR_GROUPS) if network == "mlp" else ("weights", "features", "units", "gradients")
    settings = IndicatorConfig(every=1, samples=128, names=names, probe_steps=5, hessian_iterations=20)
    with numerics(deterministic="where possible"):
        expected = train(network, "plain", {}, "cpu", indicators=settings)[0]
        began = time.perf_counter()
        row = train(network, "plain", {}, machine.device, indicators=settings)[0]
        seconds = time.perf_counter() - began
    gaps = {
        name: abs(row[name] - value) / (abs(value) + 1e-6) for name, value in expected.items() if math.isfinite(value)
    }
    worst = sorted(gaps, key=lambda name: -gaps[name])[:4]
    nan = [name for name, value in expected.items() if math.isnan(value) != math.isnan(row[name])]
    return {
        "measured": len(gaps),
        "worst": {name: gaps[name] for name in worst},
        "nan_differs": nan,
        "run_s": seconds,
        "ok": not nan and gaps[worst[0]] < 0.05,
    }


# -------------------------------------------------------------------------------------------- what it is made of


@part(limit=40)
def kernels(machine: Machine) -> Iterator[Case]:
    """How many kernels a step launches, and for how long the device is at work in it."""
    if machine.cuda:
        for network in ("resnet18", "vit_tiny", "vgg16", "mlp"):
            for graph in _graph_modes(machine):
                yield Case({"network": network, "graph": graph}, partial(profile_step, machine, network, graph))


def profile_step(machine: Machine, network: str, graph: str) -> Values:
    """Profile the second epoch of a run with the tortoise, its test included."""
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CUDA])
    epochs, steps = 0, 25

    def switch() -> None:
        nonlocal epochs
        epochs += 1
        if epochs == 1:
            profiler.start()
        elif epochs == 2:
            profiler.stop()

    samples_per_second(
        machine,
        network=network,
        precision="bf16 channels_last",
        graph=graph,
        method="hare_tortoise",
        steps=steps,
        on_row=switch,
    )
    events = [event for event in profiler.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.device_time for event in events)
    return {"kernels_per_step": len(events) / steps, "device_ms_per_step": busy / steps / 1e3}


@part(limit=120)
def compiled(machine: Machine) -> Iterator[Case]:
    """Training through ``torch.compile``, without graphs of ours."""
    if machine.cuda:
        for network in ("resnet18", "vit_tiny"):
            labels = {"network": network, "precision": "bf16 channels_last", "graph": "off", "method": "hare_tortoise"}
            yield Case(labels, partial(samples_per_second, machine, **labels, compiled=True))


# ----------------------------------------------------------------------------------------------- the tables


def tables(rows: Sequence[Values]) -> str:
    """Return the rows as Markdown, a table for each part, and what failed."""
    lines = []
    for name in PARTS:
        chosen = [row for row in rows if row["part"] == name]
        if not chosen:
            continue
        labels = list(dict.fromkeys(key for row in chosen for key in row["case"]))
        values = list(dict.fromkeys(key for row in chosen for key in row if key not in ("part", "case")))
        lines += [f"### {name}", "", "| " + " | ".join(labels + values) + " |", "|" + " --- |" * len(labels + values)]
        for row in chosen:
            cells = [row["case"].get(key, "") for key in labels] + [row.get(key, "") for key in values]
            lines.append("| " + " | ".join(_cell(cell).replace("|", "/") for cell in cells) + " |")
        lines.append("")
    failed = [f"- {row['part']} {json.dumps(row['case'])}" for row in rows if row.get("ok") is False]
    return "\n".join([*lines, f"{len(rows)} cases, {len(failed)} not as they should be", *failed])


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
    return str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for; return 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="where to measure (default cuda)")
    parser.add_argument("--tiny", action="store_true", help="few cases of small sizes: a self test, on a CPU too")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="the file of results (default gpu.jsonl)")
    parser.add_argument("--budget", type=float, default=470.0, help="seconds for everything (default 470)")
    parser.add_argument("--paper-code", type=Path, help="a checkout of the authors' repository, for part paper_code")
    parser.add_argument("--only", default="", help=f"parts, comma-separated: {', '.join(PARTS)}")
    chosen = parser.parse_args(arguments)
    names = [name.strip() for name in chosen.only.split(",") if name.strip()] or list(PARTS)
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"--only: there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if chosen.paper_code is not None and (fault := paper_code_fault(chosen.paper_code)):
        parser.exit(2, f"{parser.prog}: error: {fault}\n")
    began = time.monotonic()

    def too_late(*signal_and_frame: object) -> None:
        raise TooLate

    signal.signal(signal.SIGALRM, too_late)
    warnings.simplefilter("ignore", SettingWarning)  # phases of a few steps
    machine = Machine(torch.device(chosen.device), chosen.tiny, chosen.paper_code)
    log = Log.open(chosen.out)
    for name, each in PARTS.items():
        left = chosen.budget - (time.monotonic() - began)
        if name not in names:
            continue
        if left < 5:
            print(f"no time left for {name}", file=sys.stderr)
            continue
        if not measure(each, machine, log, min(each.limit, left) if machine.cuda else left):
            break
    print("\n" + tables(log.rows))
    return int(any(row.get("ok") is False for row in log.rows))


if __name__ == "__main__":
    sys.exit(main())
