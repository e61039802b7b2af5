"""Avalanche benchmarks as streams: samples, labels, orders and heads are the benchmark's; so are the metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, classic, nc_benchmark
from avalanche.benchmarks.classic import cmnist
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics, forward_transfer_metrics
from avalanche.evaluation.metrics.acc_matrix import AccuracyMatrixPluginMetric
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torchvision import transforms

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.vision import DataConfig, ImageData, ModelConfig, Stream, TrainingConfig, fit, make_model, transfer
from ht_ray.vision.data.benchmark_stream import BenchmarkStreamConfig
from strategies import stream_from_benchmark
from strategies.experiences import BenchmarkStreams, benchmark_streams

SIDE = 6


class Drawn(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Small grey images of 8 bits as MNIST's are in Avalanche: floats, with a pattern for each class."""

    def __init__(self, count: int, seed: int, classes: int = 6) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.targets = (torch.arange(count) % classes).tolist()
        patterns = torch.randint(256, (classes, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
        noise = torch.randint(-40, 41, (count, 1, SIDE, SIDE), generator=draw)
        self.images = (patterns[self.targets] + noise).clamp(0, 255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        return self.images[item].float() / 255, self.targets[item]


SETS = Drawn(72, 1), Drawn(36, 2)


def split(n_experiences: int, *, seed: int | None = None, **given: Any) -> Any:
    """A benchmark of a user's own."""
    plain = {"train_transform": None, "eval_transform": transforms.Normalize((0.4,), (0.3,))}
    return nc_benchmark(*SETS, n_experiences, **{"task_labels": False, "seed": seed, **plain, **given})


def inputs_of(data: ImageData, stream: Stream, phase: int, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the plain loop trains or tests a phase on: inputs as floats, and labels."""
    one = stream[phase]
    where, labels = (one.indices, one.labels) if part == "train" else (one.test_indices, one.test_labels)
    images = getattr(data, f"{part}_images")[where].float() / 255
    shape = (1, -1, 1, 1)
    images = (images - torch.tensor(data.mean).view(shape)) / torch.tensor(data.std).view(shape)
    return (images if one.transform is None else one.transform(images)), labels  # type: ignore[return-value]


def same_as_benchmark(benchmark: Any, data: ImageData, stream: Stream) -> None:
    for number, experiences in enumerate(zip(benchmark.train_stream, benchmark.test_stream, strict=True)):
        for part, experience in zip(("train", "test"), experiences, strict=True):
            images, labels = inputs_of(data, stream, number, part)
            samples = experience.dataset.eval()
            assert len(samples) == len(images)
            for place in (0, len(samples) // 2, len(samples) - 1):
                image, label = samples[place][:2]
                assert torch.allclose(images[place], image, atol=1e-5)
                assert int(labels[place]) == label


def test_experiences_are_phases_with_the_samples_labels_and_tests_of_the_benchmark() -> None:
    benchmark = split(3, seed=5, train_transform=transforms.Normalize((0.4,), (0.3,)))
    data, stream = stream_from_benchmark(benchmark, epochs=4)
    assert [phase.epochs for phase in stream] == [4, 4, 4]
    assert [set(phase.labels.tolist()) for phase in stream] == [
        set(experience.classes_in_this_experience) for experience in benchmark.train_stream
    ]
    assert (data.mean, data.std) == ((0.4,), (0.3,))
    assert len(data.train_images) == 72 and data.train_images.dtype == torch.uint8  # each image once
    same_as_benchmark(benchmark, data, stream)
    # Of the data set's labels, which indicators are measured with, too.
    assert all(torch.equal(data.train_labels[phase.indices], phase.labels) for phase in stream)


def test_classes_that_are_numbered_from_zero_in_each_experience_share_outputs_without_task_labels() -> None:
    benchmark = split(3, seed=5, class_ids_from_zero_in_each_exp=True)
    data, stream = stream_from_benchmark(benchmark)
    assert data.num_classes == 2 and all(phase.outputs is None for phase in stream)
    same_as_benchmark(benchmark, data, stream)


def test_task_labels_give_each_task_outputs_of_its_own() -> None:
    benchmark = split(
        3, seed=5, task_labels=True, class_ids_from_zero_in_each_exp=True, train_transform=None, eval_transform=None
    )
    data, stream = stream_from_benchmark(benchmark)
    assert data.num_classes == 6
    for number, phase in enumerate(stream):
        assert phase.outputs is not None and phase.outputs.nonzero().flatten().tolist() == [2 * number, 2 * number + 1]
        own = torch.tensor(list(benchmark.train_stream[number].dataset.targets))
        assert torch.equal(phase.labels, own + 2 * number)
    # A network is right on a task although outputs of others are larger.
    rows = fit(
        make_model(ModelConfig("mlp", hidden=(32,)), shape=data.shape, num_classes=6, seed=0),
        data,
        stream_from_benchmark(benchmark, epochs=30)[1],
        training=TrainingConfig(batch_size=8),
        accuracy_matrix=True,
    )
    assert min(rows[-1][f"test_accuracy_on_{task}"] for task in (1, 2, 3)) > 0.6


def permuted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Order(np.random.RandomState):
        def permutation(self, x: Any) -> Any:
            return super().permutation(SIDE * SIDE)

    monkeypatch.setattr(cmnist, "get_mnist_dataset", lambda root: SETS)
    monkeypatch.setattr(cmnist.np.random, "RandomState", Order)


def test_permutations_are_the_benchmarks_and_images_are_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    permuted(monkeypatch)
    benchmark = classic.PermutedMNIST(3, seed=7)
    data, stream = stream_from_benchmark(benchmark)
    assert len(data.train_images) == 72
    assert torch.equal(stream[1].transform.order, torch.from_numpy(_orders(7)[1]))  # type: ignore[union-attr]
    same_as_benchmark(benchmark, data, stream)


def _orders(seed: int) -> list[Any]:
    draw = np.random.RandomState(seed)
    return [draw.permutation(SIDE * SIDE) for _ in range(3)]


def test_rotations_are_in_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    permuted(monkeypatch)
    benchmark = classic.RotatedMNIST(2, seed=7)
    data, stream = stream_from_benchmark(benchmark)
    assert len(data.train_images) == 2 * 72
    same_as_benchmark(benchmark, data, stream)


def test_random_transforms_of_training_are_left_out_and_named() -> None:
    both = [transforms.RandomCrop(SIDE, padding=1), transforms.Normalize((0.4,), (0.3,))]
    benchmark = split(2, seed=0, train_transform=transforms.Compose(both))
    with pytest.warns(SettingWarning, match=r"RandomCrop\(.*\) are left out; augment of TrainingConfig"):
        data, stream = stream_from_benchmark(benchmark)
    same_as_benchmark(benchmark, data, stream)


def test_one_test_experience_is_that_of_all_phases() -> None:
    benchmark = nc_benchmark(*SETS, 3, task_labels=False, seed=5)
    both = benchmark_from_datasets(
        train=[experience.dataset for experience in benchmark.train_stream],
        test=[benchmark.test_stream[0].dataset.concat(benchmark.test_stream[1].dataset)],
    )
    from avalanche.benchmarks import with_classes_timeline, with_task_labels

    data, stream = stream_from_benchmark(with_classes_timeline(with_task_labels(both)))
    assert stream.plain and len(data.test_labels) == 24
    with pytest.raises(SettingError, match="accepted are tasks with tests of their own"):
        fit(nn.Linear(1, 1), data, stream, accuracy_matrix=True)


class Fixed(nn.Module):
    """A network whose weights are those of a moment of another's training."""

    def __init__(self, weights: Sequence[dict[str, torch.Tensor]], model: nn.Module) -> None:
        super().__init__()
        self.model, self.weights = model, weights
        self.model.load_state_dict(weights[0])
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model(inputs) + 0 * self.unused


class Loads(torch.optim.SGD):
    """Training that sets the weights which ours had after each experience."""

    def __init__(self, network: Fixed) -> None:
        super().__init__([network.unused], lr=0.0)
        self.network = network


def test_matrix_accuracy_forgetting_and_transfers_are_those_of_avalanches_own_metrics() -> None:
    benchmark = split(3, seed=5, train_transform=transforms.Normalize((0.4,), (0.3,)))
    data, stream = stream_from_benchmark(benchmark, epochs=3)

    def network() -> nn.Module:
        return make_model(ModelConfig("mlp", hidden=(16,)), shape=data.shape, num_classes=6, seed=1)

    model = network()
    weights = [{name: tensor.clone() for name, tensor in model.state_dict().items()}]

    def keep(row: dict[str, float]) -> None:
        if row["epoch"] == 3:
            weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    training = TrainingConfig(batch_size=8, learning_rate=0.01)
    rows = fit(model, data, stream, training=training, accuracy_matrix=True, on_epoch=keep)
    assert len(weights) == 4

    # The same sequence of networks, tested by Avalanche.
    fixed = Fixed(weights, network())
    matrix = AccuracyMatrixPluginMetric()
    plugin = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(stream=True),
        bwt_metrics(stream=True),
        forward_transfer_metrics(stream=True),
        matrix,
        loggers=[],
        strict_checks=False,
    )
    strategy = Naive(
        model=fixed, optimizer=Loads(fixed), train_mb_size=72, train_epochs=1, eval_mb_size=16, evaluator=plugin,
        eval_every=0,
    )  # fmt: skip
    matrix.num_training_steps = 0  # the evaluation before training is not of the matrix
    untrained = strategy.eval(benchmark.test_stream)
    matrix.num_training_steps = None
    found: dict[str, Any] = {}
    for number, experience in enumerate(benchmark.train_stream, start=1):
        strategy.train(experience)
        fixed.model.load_state_dict(weights[number])
        found = strategy.eval(benchmark.test_stream)

    ends = [row for row in rows if row["epoch"] == 3]
    ours = torch.tensor([[row[f"test_accuracy_on_{task}"] for task in (1, 2, 3)] for row in ends])
    assert torch.allclose(matrix.matrix, ours, atol=1e-6)
    for task in (1, 2, 3):
        theirs = untrained[f"Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp00{task - 1}"]
        assert ends[0][f"test_accuracy_untrained_on_{task}"] == pytest.approx(theirs)
    names = {
        "stream_accuracy": "Top1_Acc_Stream/eval_phase/test_stream/Task000",
        "task_forgetting": "StreamForgetting/eval_phase/test_stream",
        "backward_transfer": "StreamBWT/eval_phase/test_stream",
        "forward_transfer": "StreamForwardTransfer/eval_phase/test_stream",
    }
    told = transfer(rows)
    assert told.keys() == names.keys()
    for name, theirs in names.items():
        assert told[name] == pytest.approx(found[theirs], abs=1e-6), name
    assert told["task_forgetting"] > 0.1  # the numbers say something


# --- by name


def made(*arguments: str, path: str = "avalanche:SplitMNIST", seeds: Sequence[int] = (0,)) -> BenchmarkStreams:
    sources = DataConfig("mnist", root=os.environ.get("HT_RAY_DATA"), download=False)
    return benchmark_streams(BenchmarkStreamConfig(path, arguments), seeds, sources)


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of class folders in the place of MNIST."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for part in ("train", "test"):
        for digit in range(10):
            folder = tmp_path / "data" / part / str(digit)
            folder.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(draw.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / f"{number}.png")
    monkeypatch.setenv("HT_RAY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_a_benchmark_by_name_reads_any_layout_and_has_avalanches_class_order_under_its_seed(digits: Path) -> None:
    found = made(seeds=(0, 3))
    for seed, stream in found.streams.items():
        torch.manual_seed(seed)
        order = torch.randperm(10).tolist()
        assert [set(phase.labels.tolist()) for phase in stream] == [set(order[k : k + 2]) for k in range(0, 10, 2)]
    assert len(found.data.train_images) == 20  # the images of both seeds are the same
    fixed = made("n_experiences=2", "seed=3", seeds=(0, 1))
    assert fixed.streams[0] is fixed.streams[1] and len(fixed.streams[0]) == 2
    chosen = made("fixed_class_order=9/8/7/6/5/4/3/2/1/0")
    assert chosen.streams[0][0].labels.unique().tolist() == [8, 9]


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("avalanche:SplitMINST", (), r"'avalanche:SplitMINST': accepted are .* Did you mean 'SplitMNIST'\?"),
        ("avalanche:SplitMNIST", ("n_experience=5",), r"'n_experience': accepted are .* mean 'n_experiences'\?"),
        ("avalanche:SplitMNIST", ("n_experiences=3",), "making the benchmark raised"),
        ("avalanche:SplitMNIST", ("train_transform=x",), "transforms have no text"),
        ("avalanche:SplitMNIST", ("dataset_root=x",), "the data are at"),
        ("avalanche:SplitFMNIST", (), "its data are not in .*, and nothing is downloaded"),
        ("avalanche:no_such_module:make", (), "there is no module 'no_such_module'"),
        ("avalanche:own_benchmarks:detection", (), "its samples have no class each"),
        ("avalanche:own_benchmarks:no_test", (), "it has no test stream"),
        ("avalanche:own_benchmarks:nothing", (), "it has no train and test stream"),
        ("avalanche:own_benchmarks:two_sizes", (), "several sizes, 1x6x6 and 1x7x7"),
        ("avalanche:own_benchmarks:floats", (), "its pixels are not k/255"),
        ("avalanche:own_benchmarks:fails", (), "making the benchmark raised RuntimeError: no disk"),
    ],
)
def test_what_cannot_be_a_stream_is_refused_in_one_line(
    digits: Path, monkeypatch: pytest.MonkeyPatch, path: str, arguments: tuple[str, ...], message: str
) -> None:
    (digits / "own_benchmarks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(digits))
    with pytest.raises(SettingError, match=message) as refused:
        made(*arguments, path=path)
    assert "\n" not in str(refused.value)


OWN = """
from types import SimpleNamespace

import torch
from avalanche.benchmarks import nc_benchmark


def _set(images, targets):
    class Set(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, item):
            return images[item], self.targets[item]

    made = Set()
    made.targets = targets
    return made


def _split(images):
    part = _set(images, [number % 2 for number in range(len(images))])
    return nc_benchmark(part, part, 2, task_labels=False, shuffle=False)


def detection():
    experience = SimpleNamespace(dataset=SimpleNamespace(targets=[{"boxes": []}]), task_labels=[0])
    return SimpleNamespace(train_stream=[experience], test_stream=[experience])


def no_test():
    return SimpleNamespace(train_stream=[1])


def nothing():
    return 5


def two_sizes():
    return _split([torch.zeros(1, 6, 6), torch.zeros(1, 7, 7), torch.zeros(1, 6, 6), torch.zeros(1, 7, 7)])


def floats():
    return _split([torch.full((1, 6, 6), 0.1234)] * 4)


def fails():
    raise RuntimeError("no disk")
"""


def test_vectors_are_a_table(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n\ndef vectors(count):\n    return _split([torch.full((3,), 0.1 * number) for number in range(count)])\n"
    (digits / "own_vectors.py").write_text(OWN + code)
    monkeypatch.syspath_prepend(str(digits))
    monkeypatch.delenv("HT_RAY_DATA")
    found = made("count=6", path="avalanche:own_vectors:vectors")
    assert found.data.is_table and found.data.train_images.shape == (6, 3)
    assert torch.allclose(found.data.train_images[found.streams[0][1].indices, 0], torch.tensor([0.1, 0.3, 0.5]))


def test_no_other_machine_is_asked_and_other_threads_are(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    import threading

    from strategies.experiences import _without_downloads

    answers: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: "answer")
    usual = socket.getaddrinfo
    with _without_downloads() as asked:
        with pytest.raises(OSError, match="is not asked for data"):
            socket.getaddrinfo("example.org", 80)
        other = threading.Thread(target=lambda: answers.append(socket.getaddrinfo("localhost", 80)))
        other.start()
        other.join()
    assert asked == ["example.org"] and answers == ["answer"]
    assert socket.getaddrinfo is usual


@pytest.mark.data
def test_split_mnist_is_that_of_avalanche_on_the_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark: Callable[..., Any] = classic.SplitMNIST
    found = made("seed=1")
    same_as_benchmark(benchmark(5, seed=1, dataset_root=os.environ["HT_RAY_DATA"]), found.data, found.streams[0])
    assert len(found.data.train_images) == 60_000
