from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from avalanche.training.plugins import ReplayPlugin
from torch.optim import SGD

from ht_ray.errors import SettingError
from ht_ray.vision import (
    ContinualConfig,
    MethodConfig,
    ModelConfig,
    TrainingConfig,
    make_model,
    make_stream,
)
from strategies import LimitedBufferPlugin, Plain, make_strategy, stream_benchmark


class Samples(SupervisedPlugin):
    """Keeps the inputs and labels of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[list[tuple[tuple[float, ...], int]]] = []

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.epochs.append([])

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        rows = strategy.mb_x.flatten(1).tolist()
        self.epochs[-1] += [(tuple(row), int(y)) for row, y in zip(rows, strategy.mb_y, strict=True)]


@pytest.mark.parametrize("tasks", [False, True])
def test_each_sample_once_per_epoch_and_old_ones_from_all_that_was_seen(make_network, make_benchmark, tasks) -> None:
    network = make_network()
    samples, plugin = Samples(), LimitedBufferPlugin(14, seed=3)
    strategy = Naive(
        model=network,
        optimizer=SGD(network.parameters(), lr=0.1),
        train_mb_size=8,
        train_epochs=1,
        plugins=[plugin, samples],
        evaluator=None,
    )
    benchmark = make_benchmark(6, tasks=tasks, per_class=10)
    seen: set[Any] = set()
    for index, experience in enumerate(benchmark.train_stream):
        new = {(tuple(item[0].tolist()), int(item[1])) for item in experience.dataset}
        held = set() if plugin.dataset is None else {(tuple(i[0].tolist()), int(i[1])) for i in plugin.dataset}
        strategy.train(experience)
        counts = Counter(samples.epochs[-1])
        assert set(counts) == new | held
        assert held <= seen
        assert len(held) == (0, 10, 14, 14, 14, 14)[index]
        if not tasks:  # with tasks, Avalanche's loader repeats samples to balance them
            assert max(counts.values()) == 1
        seen |= new
    assert len({label for _, label in samples.epochs[-1]}) >= 4
    strategy.eval(benchmark.test_stream)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(("batch_size", "steps"), [(8, 1), (3, 3), (20, 1)])
def test_online_streams_are_trained_on_in_as_many_steps_as_without_it(
    make_network, make_benchmark, batch_size, steps, in_memory
) -> None:
    stream = split_online_stream(make_benchmark(4, per_class=16).train_stream, experience_size=8, seed=0)
    experiences = list(stream)
    plugins: list[Any] = [LimitedBufferPlugin(20, seed=1), ReplayPlugin(mem_size=20)]
    seen = []
    for plugin in plugins:
        network, samples = make_network(), Samples()
        strategy = (Plain if in_memory else Naive)(
            model=network,
            optimizer=SGD(network.parameters(), lr=0.1),
            train_mb_size=batch_size,
            train_epochs=1,
            plugins=[plugin, samples],
            evaluator=None,
            **({"in_memory": True} if in_memory else {}),
        )
        for number, experience in enumerate(experiences, start=1):
            new = {(tuple(item[0].tolist()), int(item[1])) for item in experience.dataset}
            held = {(tuple(i[0].tolist()), int(i[1])) for i in getattr(plugin, "dataset", None) or []}
            strategy.train(experience)
            assert strategy.clock.train_iterations == number * steps
            assert strategy.train_mb_size == batch_size
            if plugin is plugins[0]:
                counts = Counter(samples.epochs[-1])
                assert max(counts.values()) == 1
                assert len(held & set(counts)) == min(8, len(held))
                assert set(counts) == new | (held & set(counts))
                seen.append(held & set(counts))
    assert len(set.union(*seen)) > 20  # they are drawn each time


def test_online_batch_size_is_put_back_after_a_loader_that_failed(make_network, make_benchmark) -> None:
    stream = list(split_online_stream(make_benchmark(2).train_stream, experience_size=8, seed=0))
    network = make_network()
    strategy = Naive(
        model=network,
        optimizer=SGD(network.parameters(), lr=0.1),
        train_mb_size=8,
        plugins=[LimitedBufferPlugin(20)],
        evaluator=None,
    )
    strategy.train(stream[0])
    with pytest.raises(ValueError, match="num_workers"):
        strategy.train(stream[1], num_workers=-1)
    strategy.train(stream[1])
    assert (strategy.train_mb_size, strategy.clock.train_iterations) == (8, 2)


def test_the_buffer_is_a_uniform_sample() -> None:
    held: Counter[int] = Counter()
    for seed in range(200):
        plugin = LimitedBufferPlugin(10, seed=seed)
        for _ in range(4):
            plugin.reservoir.add(torch.arange(10) + 10 * plugin.reservoir.rounds)
        held.update((plugin.reservoir.items // 10).tolist())
    assert held.total() == 2000
    # 500 of each chunk, with a standard deviation of about 17 (hypergeometric, 200 draws).
    assert all(abs(held[chunk] - 500) < 85 for chunk in range(4))


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_on_new_access_it_is_the_buffer_stream(image_data, differing, augment) -> None:
    ends = []
    for access in ("buffer", "new"):
        config = ContinualConfig(phases=4, epochs=2, noise="none", access=access, buffer_size=25)
        stream = make_stream(image_data.train_labels, 3, config, seed=7)
        benchmark = stream_benchmark(image_data, stream, augment=augment)
        model = make_model(ModelConfig("mlp", hidden=(8,)), shape=image_data.shape, num_classes=3, seed=1)
        strategy = make_strategy(
            model,
            image_data,
            method=MethodConfig("hare_tortoise", momentum=0.8, reset_interval=1),
            training=TrainingConfig(batch_size=16, augment=augment),
            seed=7,
            epochs=2,
        )
        if access == "new":
            strategy.plugins.insert(0, LimitedBufferPlugin(25, seed=7))
        strategy.train(benchmark.train_stream)
        assert strategy.clock.train_iterations > 0
        ends.append((dict(model.state_dict()), strategy.plugins))
    assert differing(ends[0][0], ends[1][0]) == []
    rows = [next(p.rows for p in plugins if hasattr(p, "rows")) for _, plugins in ends]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 8


def test_wrong_size_is_refused_at_construction() -> None:
    with pytest.raises(SettingError, match="size = 0"):
        LimitedBufferPlugin(0)
