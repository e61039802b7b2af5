from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from torch.optim import SGD

from ht_ray.errors import SettingError
from ht_ray.vision import ContinualConfig, MethodConfig, ModelConfig, TrainingConfig, make_model, make_stream
from strategies import make_strategy, stream_benchmark
from strategies.plugins import (
    AugmentPlugin,
    ContinualBackpropPlugin,
    EMAPlugin,
    ReDoPlugin,
    SelfDistillationPlugin,
)


class Batches(SupervisedPlugin):
    """Keeps the inputs of the training batches as the network sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []
        self.evaluated: list[torch.Tensor] = []

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.seen.append(strategy.mb_x.clone())

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        self.evaluated.append(strategy.mb_x.clone())


def black(data: Any) -> list[float]:
    return [-mean / std for mean, std in zip(data.mean, data.std, strict=True)]


def benchmark_of(data: Any, augment: str = "none") -> Any:
    stream = make_stream(data.train_labels, 3, ContinualConfig(phases=3, epochs=2), seed=1)
    return stream_benchmark(data, stream, augment=augment)


def mlp(data: Any) -> Any:
    return make_model(ModelConfig("mlp", hidden=(12, 8)), shape=data.shape, num_classes=3, seed=1)


@pytest.mark.parametrize("kind", ["crop", "crop_flip"])
def test_as_the_loader_augments_bit_for_bit(image_data, differing, kind) -> None:
    training = TrainingConfig(batch_size=16, augment="none")
    ends, batches = [], []
    for by_plugin in (False, True):
        record = Batches()
        plugin = AugmentPlugin(kind=kind, fill=black(image_data), seed=3)
        method = MethodConfig("plain") if by_plugin else MethodConfig("augment", augment_kind=kind)
        plugins = [plugin, record] if by_plugin else [record]
        strategy = make_strategy(
            mlp(image_data), image_data, method=method, training=training, seed=3, epochs=2, plugins=plugins
        )
        strategy.train(benchmark_of(image_data).train_stream)
        ends.append(dict(strategy.model.state_dict()))
        batches.append(record.seen)
    assert len(batches[0]) == len(batches[1]) > 6
    assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))
    assert differing(*ends) == []


def naive(data: Any, plugins: list[Any], **kwargs: Any) -> Naive:
    model = mlp(data)
    return Naive(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        train_mb_size=16,
        train_epochs=2,
        plugins=plugins,
        evaluator=None,
        **kwargs,
    )


def test_evaluation_is_not_augmented_and_training_is(image_data) -> None:
    results = []
    for plugins in ([], [AugmentPlugin(fill=black(image_data))]):
        record = Batches()
        strategy = naive(image_data, [*plugins, record])
        benchmark = benchmark_of(image_data)
        torch.manual_seed(0)
        strategy.train(benchmark.train_stream[0])
        strategy.eval(benchmark.test_stream)
        results.append((record.seen, record.evaluated))
    (plain, tested), (augmented, tested_too) = results
    assert all(torch.equal(one, other) for one, other in zip(tested, tested_too, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(plain, augmented, strict=True))


def test_epochs_differ_and_the_global_generator_does_not_matter(image_data) -> None:
    seen = []
    for seed in (1, 2):
        record = Batches()
        strategy = naive(image_data, [AugmentPlugin(kind="crop"), record])
        benchmark = benchmark_of(image_data)
        shifts: list[torch.Tensor] = []
        # All batches alike: what differs is the augmentation.
        fix = SupervisedPlugin()
        fix.before_training_iteration = lambda strategy, **kwargs: strategy.mbatch.__setitem__(
            0, torch.arange(16.0 * 2 * 64).view(16, 2, 8, 8)[: len(strategy.mbatch[0])]
        )
        strategy.plugins.insert(0, fix)
        torch.manual_seed(seed)
        strategy.train(benchmark.train_stream[0])
        seen.append(record.seen)
        del shifts
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))
    half = len(seen[0]) // 2
    assert not any(torch.equal(seen[0][step], seen[0][step + half]) for step in range(half))


def test_what_looks_at_the_batch_sees_it_augmented_wherever_it_stands(image_data, differing) -> None:
    ends = []
    for place in range(5):
        plugins: list[Any] = [
            EMAPlugin(momentum=0.8, recalibrate_batchnorm=2),
            SelfDistillationPlugin(),
            ReDoPlugin(threshold=0.8, interval=1),
            ContinualBackpropPlugin(replacement_rate=0.1, maturity=2),
        ]
        plugins.insert(place, AugmentPlugin(fill=black(image_data)))
        strategy = naive(image_data, plugins)
        torch.manual_seed(1)
        strategy.train(benchmark_of(image_data).train_stream[:2])
        ends.append(dict(strategy.model.state_dict()))
    assert all(differing(ends[0], end) == [] for end in ends[1:])


def test_deepcopy(image_data, differing) -> None:
    benchmark = benchmark_of(image_data)
    strategy = naive(image_data, [AugmentPlugin()])
    strategy.train(benchmark.train_stream[0])
    ends = []
    for one in (copy.deepcopy(strategy), strategy):
        torch.manual_seed(1)
        one.train(benchmark.train_stream[1])
        ends.append(dict(one.model.state_dict()))
    assert differing(*ends) == []


def test_augmenting_twice_is_refused(image_data) -> None:
    training = TrainingConfig(augment="crop")
    strategy = make_strategy(mlp(image_data), image_data, training=training, plugins=[AugmentPlugin()])
    with pytest.raises(SettingError, match="loader has augment = 'crop' already"):
        strategy.train(benchmark_of(image_data, "crop").train_stream)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "flip"}, "AugmentPlugin: kind = 'flip'.*crop_flip"),
        ({"kind": "none"}, "AugmentPlugin: kind = 'none'"),
        ({"seed": 0.5}, r"AugmentPlugin: seed = 0\.5"),
        ({"fill": 0.5}, r"AugmentPlugin: fill = 0\.5"),
        ({"fill": [0.5, "x"]}, "AugmentPlugin: fill = 'x'"),
        ({"fill": [float("nan")]}, "AugmentPlugin: fill = nan"),
    ],
)
def test_wrong_settings_are_refused_at_construction(settings, message) -> None:
    with pytest.raises(SettingError, match=message):
        AugmentPlugin(**settings)


def test_what_is_no_image_or_has_other_channels_is_refused(image_data, make_network, make_benchmark) -> None:
    with pytest.raises(SettingError, match=r"fill of shape \(3,\): accepted is \(2,\)"):
        naive(image_data, [AugmentPlugin(fill=[0.0, 0.0, 0.0])]).train(benchmark_of(image_data).train_stream)
    network = make_network()
    strategy = Naive(
        model=network, optimizer=SGD(network.parameters(), lr=0.1), plugins=[AugmentPlugin()], evaluator=None
    )
    with pytest.raises(SettingError, match=r"accepted is \(B, C, H, W\)"):
        strategy.train(make_benchmark().train_stream)
