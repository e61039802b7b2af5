from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, task_incremental_benchmark, with_classes_timeline
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, concat_datasets
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from torch import nn
from torch.optim import SGD
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms import v2

from ht_ray.errors import SettingError
from ht_ray.vision import ContinualConfig, ImageData, InMemoryLoader, ModelConfig, Stream, make_model, make_stream
from strategies import ImagePool, InMemoryLoading, LimitedBufferPlugin, Plain, PoolDataset, stream_benchmark
from strategies import loading as loading_module


class FastNaive(InMemoryLoading, Naive):
    """What the documentation shows."""


class Batches(SupervisedPlugin):
    """Keeps what each epoch of training, and each evaluation, was given."""

    def __init__(self) -> None:
        super().__init__()
        self.train: list[list[Any]] = []
        self.eval: list[list[Any]] = []

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.train.append([])

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.train[-1].append([part.clone() for part in strategy.mbatch])

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.eval.append([])

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.eval[-1].append([part.clone() for part in strategy.mbatch])


def multiset(batches: list[Any]) -> Counter[Any]:
    return Counter(
        tuple(tuple(part[row].flatten().tolist()) for part in batch)
        for batch in batches
        for row in range(len(batch[0]))
    )


@pytest.fixture
def run(make_network) -> Callable[..., tuple[Any, Batches]]:
    """Train and evaluate a strategy class on a benchmark; returns it and what it was given."""

    def run(kind: Any, benchmark: Any, *, network: nn.Module | None = None, train: Any = None, **kwargs: Any) -> Any:
        network = network or make_network(seed=1, dropout=0.3)
        batches = Batches()
        plugins = [*kwargs.pop("plugins", []), batches]
        kwargs = {"train_mb_size": 8, "eval_mb_size": 7, "train_epochs": 2, "evaluator": None} | kwargs
        strategy = kind(model=network, optimizer=SGD(network.parameters(), lr=0.05), plugins=plugins, **kwargs)
        torch.manual_seed(4)
        strategy.train(benchmark.train_stream, **(train or {}))
        strategy.eval(benchmark.test_stream)
        return strategy, batches

    return run


@pytest.fixture
def stream(image_data: ImageData) -> Stream:
    return make_stream(image_data.train_labels, 3, ContinualConfig(phases=3, epochs=2), seed=0)


def mlp(seed: int = 0) -> nn.Module:
    return make_model(ModelConfig("mlp", hidden=(8,)), shape=(2, 8, 8), num_classes=3, seed=seed)


@pytest.mark.parametrize(("tasks", "aware"), [(False, False), (False, True), (True, False)])
def test_same_samples_as_avalanches_loader(run, make_benchmark, tasks, aware) -> None:
    benchmark = make_benchmark(tasks=tasks, aware=aware)
    _, stock = run(Naive, benchmark)
    strategy, fast = run(FastNaive, benchmark, seed=2)
    assert len(stock.train) == len(fast.train) == 6
    for one, other in zip(stock.train, fast.train, strict=True):
        # Where an experience has no task labels, a task label in an item is not used.
        parts = len(other[0])
        assert parts == (3 if tasks else 2)
        assert multiset([batch[:parts] for batch in one]) == multiset(other)
        assert [len(batch[0]) for batch in one] == [len(batch[0]) for batch in other]
    assert len(stock.eval) == len(fast.eval) == 3
    for one, other in zip(stock.eval, fast.eval, strict=True):
        for a, b in zip(one, other, strict=True):
            assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=False))
    assert strategy._said == set()


def test_order_depends_on_seed_experience_and_epoch_alone(run, make_benchmark) -> None:
    benchmark = make_benchmark()
    _, first = run(FastNaive, benchmark, seed=2)
    torch.randn(7)
    _, again = run(FastNaive, make_benchmark(), seed=2)
    _, other = run(FastNaive, benchmark, seed=3)
    order = [torch.cat([batch[0] for batch in epoch]) for epoch in first.train]
    assert all(torch.equal(a, torch.cat([b[0] for b in e])) for a, e in zip(order, again.train, strict=True))
    assert not any(torch.equal(a, torch.cat([b[0] for b in e])) for a, e in zip(order, other.train, strict=True))
    assert not torch.equal(order[0], order[1])
    shuffled = InMemoryLoader(
        torch.arange(24.0), torch.arange(24), torch.arange(24), normalise=None, batch_size=24, seed=2
    )
    assert not torch.equal(next(iter(shuffled))[0], torch.arange(24.0))


@pytest.mark.parametrize("tasks", [False, True])
def test_same_metrics_as_avalanches_loader(run, make_benchmark, make_network, tasks) -> None:
    benchmark = make_benchmark(tasks=tasks)
    results = []
    for in_memory in (False, True):
        evaluator = EvaluationPlugin(
            accuracy_metrics(experience=True, stream=True), loss_metrics(experience=True, stream=True), loggers=[]
        )
        network = make_network(seed=1)
        strategy = FastNaive(
            model=network,
            optimizer=SGD(network.parameters(), lr=0.05),
            eval_mb_size=7,
            evaluator=evaluator,
            in_memory=in_memory,
        )
        results.append(strategy.eval(benchmark.test_stream))
        results.append(strategy.eval(benchmark.train_stream))
    assert results[0] == results[2]
    assert results[1] == results[3]
    assert len(results[0]) == 8


@pytest.mark.parametrize("kind", ["plain", "growing"])
def test_not_in_memory_it_is_stock_naive(run, make_benchmark, make_network, picture_of, differing, kind) -> None:
    pictures = []
    for strategy_class, settings in ((Naive, {}), (Plain, {}), (FastNaive, {"in_memory": False})):
        network = make_network(kind, seed=1, dropout=0.3)
        strategy, batches = run(strategy_class, make_benchmark(), network=network, eval_every=1, **settings)
        pictures.append((picture_of(strategy), batches))
    for picture, batches in pictures[1:]:
        assert [name for name in differing(pictures[0][0], picture) if not name.startswith("pointer")] == []
        for one, other in zip(pictures[0][1].train, batches.train, strict=True):
            assert all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))


def test_stock_naive_trains_on_stream_benchmark(run, image_data, stream) -> None:
    benchmark = stream_benchmark(image_data, stream)
    _, stock = run(Naive, benchmark, network=mlp())
    _, fast = run(FastNaive, benchmark, network=mlp())
    for phase, one, other in zip([p for p in stream for _ in range(2)], stock.train, fast.train, strict=True):
        assert multiset(one) == multiset(other)
        assert Counter(torch.cat([b[1] for b in one]).tolist()) == Counter(phase.labels.tolist())
    for a, b in zip(stock.eval[0], fast.eval[0], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
def test_augmented_streams_are_gathered_and_augmented_in_batches(run, image_data, stream, augment) -> None:
    benchmark = stream_benchmark(image_data, stream, augment=augment)
    strategy, fast = run(FastNaive, benchmark, network=mlp(), seed=5, channels_last=True)
    assert strategy._said == set()
    loader = InMemoryLoader(
        image_data.train_images,
        stream[1].indices,
        stream[1].labels,
        normalise=strategy_normalise(image_data),
        batch_size=8,
        augment=augment,
        seed=5,
        phase=1,
        channels_last=True,
    )
    for epoch in fast.train[2:4]:
        for (images, labels), batch in zip(loader, epoch, strict=True):
            assert torch.equal(images, batch[0])
            assert batch[0].is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(labels, batch[1])
            assert batch[2].tolist() == [0] * len(labels)
    plain, _ = run(FastNaive, stream_benchmark(image_data, stream), network=mlp(), seed=5)
    assert not torch.equal(next(iter(plain.model.parameters())), next(iter(strategy.model.parameters()))), (
        "augmentation was to change training"
    )


def strategy_normalise(data: ImageData) -> Any:
    from ht_ray.vision import Normalise

    return Normalise(data.mean, data.std)


def test_evaluation_is_not_augmented(run, image_data, stream) -> None:
    _, fast = run(FastNaive, stream_benchmark(image_data, stream, augment="crop_flip"), network=mlp())
    images = torch.cat([batch[0] for batch in fast.eval[0]])
    assert torch.equal(images, strategy_normalise(image_data)(image_data.test_images))


def test_subsets_and_buffers_of_streams_are_gathered_by_position(run, image_data, stream) -> None:
    benchmark = stream_benchmark(image_data, stream)
    strategy, fast = run(FastNaive, benchmark, network=mlp(), plugins=[LimitedBufferPlugin(10, seed=1)])
    _, stock = run(Naive, benchmark, network=mlp(), plugins=[LimitedBufferPlugin(10, seed=1)])
    assert strategy._said == set()
    for one, other in zip(stock.train, fast.train, strict=True):
        assert len(multiset(one)) > 0
        dropped = multiset(one) - multiset(other)  # a last batch of one sample
        assert multiset(other) - multiset(one) == Counter()
        assert dropped.total() <= 1


def test_images_of_several_pools_are_read_one_by_one(run, image_data, stream) -> None:
    other = replace(image_data, train_images=255 - image_data.train_images, mean=(0.3, 0.3))
    sets = [b.train_stream[0].dataset for b in (stream_benchmark(image_data, stream), stream_benchmark(other, stream))]
    benchmark = with_classes_timeline(benchmark_from_datasets(train=[concat_datasets(sets)], test=[sets[1]]))
    strategy, fast = run(FastNaive, benchmark, network=mlp())
    _, stock = run(Naive, benchmark, network=mlp())
    assert strategy._said == set()
    # Without task labels of the experience, those of the items are not passed on.
    assert multiset([batch[:2] for batch in stock.train[0]]) == multiset(fast.train[0])


def test_images_without_task_labels(run, image_data, stream) -> None:
    pool = ImagePool(image_data.train_images, image_data.mean, image_data.std)
    targets = DataAttribute(stream[0].labels.tolist(), "targets")
    dataset = AvalancheDataset([PoolDataset(pool, stream[0].indices, stream[0].labels)], data_attributes=[targets])
    benchmark = benchmark_from_datasets(train=[dataset], test=[dataset])
    strategy, fast = run(FastNaive, benchmark, network=mlp(), channels_last=True)
    _, stock = run(Naive, benchmark, network=mlp())
    assert multiset(stock.train[0]) == multiset(fast.train[0])
    for one, other in zip(stock.eval[0], fast.eval[0], strict=True):
        assert other[0].is_contiguous(memory_format=torch.channels_last)
        assert len(one) == len(other) == 2
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    assert strategy._said == set()


def test_task_labels_of_streams(run, image_data, stream) -> None:
    benchmark = task_incremental_benchmark(stream_benchmark(image_data, stream), reset_task_labels=True)
    strategy, fast = run(FastNaive, benchmark, network=mlp())
    for index, epoch in enumerate(fast.train):
        assert {int(task) for batch in epoch for task in batch[2]} == {index // 2}
    assert strategy._said == set()


def test_streams_whose_tasks_are_mixed_are_left_to_avalanche(run, image_data, stream) -> None:
    benchmark = task_incremental_benchmark(stream_benchmark(image_data, stream), reset_task_labels=True)
    with pytest.warns(UserWarning, match="mixes tasks"):
        _, fast = run(FastNaive, benchmark, network=mlp(), plugins=[LimitedBufferPlugin(10)], train_mb_size=10)
    assert {int(task) for batch in fast.train[-1] for task in batch[2]} == {0, 1, 2}


def test_extra_parts_of_items_are_kept(run, image_data, stream) -> None:
    benchmark = stream_benchmark(image_data, stream)
    sets = []
    for experience in benchmark.train_stream:
        extra = DataAttribute(list(range(len(experience.dataset))), "extra", use_in_getitem=True)
        sets.append(experience.dataset.update_data_attribute("extra", extra))
    extended = benchmark_from_datasets(train=sets, test=[e.dataset for e in benchmark.test_stream])
    with pytest.warns(UserWarning, match="items are not a tensor, a label and a task label"):
        _, fast = run(FastNaive, with_classes_timeline(extended), network=mlp())
    assert all(len(batch) == 4 for batch in fast.train[0])


def test_random_transforms_are_left_to_avalanche_with_one_warning(run, make_benchmark) -> None:
    noisy = v2.Lambda(lambda x: x + 0.01 * torch.randn(x.shape))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, fast = run(FastNaive, make_benchmark(train=noisy))
    said = [str(w.message) for w in caught if "in-memory loading" in str(w.message)]
    assert said == ["in-memory loading is not used: its transforms are random; Avalanche's own loader is."]
    epochs = [multiset([[batch[0]] for batch in epoch]) for epoch in fast.train[:2]]
    assert epochs[0] != epochs[1]  # drawn anew in each epoch
    assert len(fast.eval) == 3


def test_rare_random_transforms_are_noticed(run, make_benchmark) -> None:
    rare = v2.RandomApply([v2.Lambda(lambda x: -x)], p=0.1)
    with pytest.warns(UserWarning, match="transforms are random"):
        run(FastNaive, make_benchmark(train=rare, per_class=40))


def test_fixed_transforms_are_applied_once_for_all(run, make_benchmark) -> None:
    calls = []

    def double(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return 2 * x

    strategy, fast = run(FastNaive, make_benchmark(train=v2.Lambda(double)), train_epochs=6)
    _, stock = run(Naive, make_benchmark(train=v2.Lambda(double)), train_epochs=6)
    assert strategy._said == set()
    assert multiset(fast.train[5]) == multiset(stock.train[5])
    first = next(iter(make_benchmark().train_stream)).dataset
    assert max(float(batch[0].max()) for batch in fast.train[0]) == 2 * max(float(item[0].max()) for item in first)


def test_reading_moves_no_generator(make_benchmark, make_network) -> None:
    wasteful = v2.Lambda(lambda x: x + 0 * torch.rand(()))
    network = make_network()
    strategy = FastNaive(model=network, optimizer=SGD(network.parameters(), lr=0.1), train_mb_size=8, evaluator=None)
    before = torch.get_rng_state()
    strategy.train(make_benchmark(train=wasteful).train_stream)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("max_bytes", "fits"), [(24 * 6 * 4, True), (24 * 6 * 4 - 1, False), (0, False)], ids=["exactly", "less", "none"]
)
def test_large_data_sets_are_left_to_avalanche(run, make_benchmark, max_bytes, fits) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(FastNaive, make_benchmark(), max_bytes=max_bytes)
    said = {str(w.message) for w in caught if "more than max_bytes allows" in str(w.message)}
    assert bool(said) is not fits


def test_mixed_tasks_are_left_to_avalanche(run, make_benchmark, make_network) -> None:
    benchmark = make_benchmark(tasks=True)
    mixed = AvalancheDataset([e.dataset for e in benchmark.train_stream[:2]])
    streams = benchmark_from_datasets(train=[mixed], test=[e.dataset for e in benchmark.test_stream])
    from avalanche.benchmarks import with_task_labels

    with pytest.warns(UserWarning, match="an experience mixes tasks, which Avalanche balances"):
        _, fast = run(FastNaive, with_task_labels(with_classes_timeline(streams)))
    assert all(sorted(set(batch[2].tolist())) == [0, 1] for batch in fast.train[0])


class Ragged(Dataset[Any]):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, item: int) -> Any:
        return torch.zeros(6 if item == 50 else 4), 0


class Texts(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: int) -> Any:
        return "text", 0


def collate(items: list[Any]) -> list[torch.Tensor]:
    return [torch.stack([torch.as_tensor(item[part]) for item in items]) for part in (0, 1)]


@pytest.mark.parametrize(
    ("dataset", "options", "reason"),
    [
        (TensorDataset(torch.randn(9, 6), torch.randn(9)), {}, "labels are not class numbers"),
        (TensorDataset(torch.randn(9, 6), torch.zeros(9, 2).long()), {}, "labels are not class numbers"),
        (TensorDataset(torch.randn(9, 6)), {}, "items are not a tensor"),
        (Texts(), {}, "items are not a tensor"),
        (Ragged(), {}, "inputs have different shapes"),
        (TensorDataset(torch.randn(9, 6), torch.zeros(9).long()), {"collate_fn": collate}, "items are not a tensor"),
        (TensorDataset(torch.randn(0, 6), torch.zeros(0).long()), {}, "the data set is empty"),
    ],
)
def test_what_cannot_be_held_is_left_to_avalanche(make_network, dataset, options, reason) -> None:
    targets = DataAttribute([0] * len(dataset), "targets")
    data = AvalancheDataset([dataset], data_attributes=[targets], **options)
    benchmark = benchmark_from_datasets(train=[data], test=[data])
    network = make_network()
    strategy = FastNaive(model=network, optimizer=SGD(network.parameters(), lr=0.1), evaluator=None)
    strategy.experience = benchmark.test_stream[0]
    strategy.eval_dataset_adaptation()
    with pytest.warns(UserWarning, match=f"in-memory loading is not used: {reason}"):
        strategy.make_eval_dataloader()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy.make_eval_dataloader()  # said once


def test_shuffle_and_drop_last_are_honoured(run, make_benchmark) -> None:
    benchmark = make_benchmark()
    _, ordered = run(FastNaive, benchmark, train={"shuffle": False})
    wanted = torch.stack([item[0] for item in benchmark.train_stream[0].dataset])
    assert torch.equal(torch.cat([batch[0] for batch in ordered.train[0]]), wanted)
    _, dropped = run(FastNaive, benchmark, train={"drop_last": True}, train_mb_size=10)
    assert [len(batch[0]) for batch in dropped.train[0]] == [10, 10]


def test_with_replay(run, make_benchmark, make_network) -> None:
    _, fast = run(FastNaive, make_benchmark(), plugins=[ReplayPlugin(mem_size=16)])
    assert [len(batch[0]) for batch in fast.train[0]] == [8, 8, 8]
    assert {len(batch[0]) for batch in fast.train[-1]} == {16}


def test_readings_for_evaluation_are_kept_while_their_data_lives(run, make_benchmark) -> None:
    reads = []

    class Counting(TensorDataset):
        def __getitem__(self, item: Any) -> Any:
            reads.append(item)
            return super().__getitem__(item)

    def sets() -> Iterator[AvalancheDataset]:
        for _ in range(2):
            labels = torch.arange(20) % 6
            yield AvalancheDataset(
                [Counting(torch.randn(20, 6), labels)], data_attributes=[DataAttribute(labels.tolist(), "targets")]
            )

    gc.collect()
    before = len(loading_module._MATERIALISED)
    benchmark = with_classes_timeline(benchmark_from_datasets(train=list(sets()), test=list(sets())))
    strategy, fast = run(FastNaive, benchmark)
    reads.clear()
    strategy.eval(benchmark.test_stream)
    assert reads == []
    for one, other in zip(fast.eval[:2], fast.eval[2:], strict=True):
        assert all(torch.equal(a[0], b[0]) for a, b in zip(one, other, strict=True))
    assert len(loading_module._MATERIALISED) == before + 2
    strategy.plugins.clear()
    del benchmark, strategy, fast
    gc.collect()
    assert len(loading_module._MATERIALISED) == before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_outputs_are_float32(run, make_benchmark, make_network, precision) -> None:
    dtypes = []
    spy = SupervisedPlugin()
    spy.after_forward = lambda strategy, **kwargs: dtypes.append((inner[-1], strategy.mb_output.dtype))
    network = make_network()
    inner: list[torch.dtype] = []
    network.classifier.register_forward_hook(lambda module, args, output: inner.append(output.dtype))
    run(FastNaive, make_benchmark(), network=network, precision=precision, plugins=[spy])
    assert set(dtypes) == {(torch.bfloat16 if precision == "bf16" else torch.float32, torch.float32)}


def test_double_precision_networks_stay_double(run, make_benchmark, make_network) -> None:
    spy = SupervisedPlugin()
    dtypes = set()
    spy.after_forward = lambda strategy, **kwargs: dtypes.add(strategy.mb_output.dtype)
    benchmark = make_benchmark(train=v2.Lambda(lambda x: x.double()))
    network = make_network().double()
    strategy = FastNaive(
        model=network, optimizer=SGD(network.parameters(), lr=0.1), plugins=[spy], train_mb_size=8, evaluator=None
    )
    strategy.train(benchmark.train_stream)
    assert dtypes == {torch.float64}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1.5}, "InMemoryLoading: seed = 1.5"),
        ({"max_bytes": -1}, "max_bytes = -1"),
        ({"precision": "fp16"}, "precision = 'fp16'"),
        ({"augment": "flip"}, "augment = 'flip'"),
    ],
)
def test_wrong_settings_are_refused_at_construction(make_network, settings, message) -> None:
    network = make_network()
    with pytest.raises(SettingError, match=message):
        FastNaive(model=network, optimizer=SGD(network.parameters(), lr=0.1), **settings)


@pytest.mark.parametrize("max_bytes", [0, 1 << 20], ids=["avalanches_loader", "held"])
def test_evaluation_moves_no_generator(make_benchmark, make_network, max_bytes) -> None:
    network = make_network("growing")
    strategy = FastNaive(
        model=network, optimizer=SGD(network.parameters(), lr=0.1), train_mb_size=8, max_bytes=max_bytes, evaluator=None
    )
    benchmark = make_benchmark()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy.train(benchmark.train_stream[0])
        before = torch.get_rng_state()
        strategy.eval(benchmark.test_stream)  # loaders draw seeds, new units initial weights
    assert network.classifier.classifier.out_features == 6
    assert torch.equal(before, torch.get_rng_state())
