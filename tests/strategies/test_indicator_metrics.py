"""Plasticity indicators as Avalanche metrics: right values at the right moments, in every logger, without a trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.benchmarks.scenarios import CLScenario
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger
from avalanche.training import Naive
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, ReplayPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from ht_ray.diagnostics import INDICATOR_GROUPS, INDICATORS, IndicatorConfig, Indicators
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.vision import ContinualConfig, MethodConfig, ModelConfig, TrainingConfig, make_model, make_stream
from ht_ray.vision.data.loader import Normalise
from ht_ray.vision.training.indicators import make_indicators
from strategies import (
    HareTortoisePlugin,
    PlasticityIndicators,
    indicator_metrics,
    load_strategy,
    make_strategy,
    save_strategy,
    stream_benchmark,
)

EVERYTHING = IndicatorConfig(
    every=1,
    samples=14,
    names=tuple(INDICATOR_GROUPS),
    eigenvalues=2,
    hessian_iterations=4,
    covariance_samples=4,
    probe_steps=2,
    probe_batch_size=8,
)
DEFAULT = {name for group in IndicatorConfig().names for name in INDICATOR_GROUPS[group]}
SUFFIX = "train_phase/train_stream"


def full_name(name: str) -> str:
    return f"PlasticityIndicator/{name}/{SUFFIX}"


def trainer(model: nn.Module, metrics: list[Any], *, epochs: int = 2, loggers: Any = (), **settings: Any) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    evaluator = EvaluationPlugin(metrics, loggers=list(loggers))
    return Naive(
        model=model, optimizer=optimizer, train_mb_size=8, train_epochs=epochs, evaluator=evaluator, **settings
    )


def curve(strategy: Any, name: str) -> tuple[list[int], list[float]]:
    xs, values = strategy.evaluator.get_all_metrics()[full_name(name)]
    return xs, values


class KeepModels(SupervisedPlugin):
    """Keeps a copy of the model before the first experience and after every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.first: nn.Module | None = None
        self.models: list[nn.Module] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.first = self.first or copy.deepcopy(strategy.model)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.models.append(copy.deepcopy(strategy.model))


class Jitter:
    """A random transform that draws from all generators there are."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape) + random.random() + np.random.random()  # noqa: NPY002


# --- values and moments


@pytest.mark.parametrize("kind", ["plain", "growing", "masked"])
def test_values_are_those_of_the_model_after_each_epoch(make_network: Any, make_benchmark: Any, kind: str) -> None:
    keep = KeepModels()
    metric = PlasticityIndicators(IndicatorConfig(every=1, samples=20), seed=3)
    strategy = trainer(make_network(kind), [metric], plugins=[keep])
    strategy.train(make_benchmark().train_stream)

    assert keep.first is not None and metric.indicators is not None
    by_hand = Indicators(
        IndicatorConfig(every=1, samples=20),
        keep.first,
        metric.indicators.inputs,
        metric.indicators.labels,
        num_classes=6,
        seed=3,
    )
    assert len(keep.models) == 6
    for index, model in enumerate(keep.models):
        by_hand.module = model
        expected = by_hand.measure()
        assert {name: curve(strategy, name)[1][index] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert metric.result() == expected
    assert expected.keys() == DEFAULT


def test_weight_magnitude_and_distance_against_numpy(make_network: Any, make_benchmark: Any) -> None:
    keep = KeepModels()
    strategy = trainer(make_network(), indicator_metrics("weights"), plugins=[keep])
    strategy.train(make_benchmark().train_stream)

    assert keep.first is not None

    def flat(model: nn.Module) -> Any:
        return np.concatenate([parameter.detach().double().numpy().ravel() for parameter in model.parameters()])

    weights, first = [flat(model) for model in keep.models], flat(keep.first)
    assert curve(strategy, "weight_magnitude")[1] == pytest.approx([np.mean(w**2) for w in weights])
    assert curve(strategy, "weight_distance")[1] == pytest.approx([np.mean((w - first) ** 2) for w in weights])


def test_values_are_the_plain_loops_on_the_same_samples(image_data: Any) -> None:
    config = ContinualConfig(phases=2, epochs=3)
    stream = make_stream(image_data.train_labels, 3, config, seed=0)
    model = make_model(ModelConfig("mlp", hidden=(8, 6)), shape=image_data.shape, num_classes=3, seed=0)
    training = TrainingConfig(batch_size=16)
    normalise = Normalise(image_data.mean, image_data.std, "cpu")
    same = make_indicators(EVERYTHING, model, image_data, training=training, normalise=normalise, seed=5)
    assert same is not None
    metrics = indicator_metrics(EVERYTHING, inputs=same.inputs, labels=same.labels, num_classes=3, seed=5)
    strategy = make_strategy(
        model,
        image_data,
        method=MethodConfig("hare_tortoise", momentum=0.9, reset_interval=2),
        training=training,
        epochs=config.epochs,
        indicators=EVERYTHING,
        evaluator=EvaluationPlugin(metrics, loggers=[]),
        seed=5,
    )
    for experience in stream_benchmark(image_data, stream).train_stream:
        strategy.train(experience)
    assert len(strategy.measured) == 6
    for name in metrics[0].result():
        assert curve(strategy, name)[1] == [row[name] for row in strategy.measured], name


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3]), (2, [2, 3]), (3, [3]), (50, [3])])
def test_measured_after_every_nth_epoch_and_each_last(
    make_network: Any, make_benchmark: Any, every: int, epochs: list[int]
) -> None:
    strategy = trainer(make_network(), indicator_metrics("weights", every=every), epochs=3)
    strategy.train(make_benchmark(per_class=12).train_stream)
    # 24 samples in batches of 8: 3 iterations an epoch, 9 an experience.
    assert curve(strategy, "weight_distance")[0] == [9 * phase + 3 * epoch for phase in range(3) for epoch in epochs]


def test_groups_that_are_asked_for(make_network: Any, make_benchmark: Any) -> None:
    strategy = trainer(make_network(), indicator_metrics(EVERYTHING), epochs=1)
    results = strategy.train(make_benchmark().train_stream[0])
    absent = {f"hessian_{i}" for i in range(3, 11)}
    assert results.keys() == {full_name(name) for name in INDICATORS if name not in absent}
    assert all(isinstance(value, float) and np.isfinite(value) for value in results.values())


def test_early_stopping_is_measured_at_the_end(make_network: Any, make_benchmark: Any, differing: Any) -> None:
    class Stop(SupervisedPlugin):
        """Takes the weights of the first epoch back, and stops, before the fifth."""

        def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            if strategy.clock.train_exp_epochs == 1:
                self.state = copy.deepcopy(strategy.model.state_dict())
            if strategy.clock.train_exp_epochs == 4:
                strategy.model.load_state_dict(self.state)
                strategy.stop_training()

    strategy = trainer(make_network(), indicator_metrics("weights", every=1), epochs=9, plugins=[Stop()])
    strategy.train(make_benchmark().train_stream[0])
    xs, values = curve(strategy, "weight_distance")
    assert xs == [3, 6, 9, 12, 12]
    assert values[-1] == values[0] != values[-2]


def test_avalanches_early_stopping(make_network: Any, make_benchmark: Any) -> None:
    benchmark = make_benchmark()
    stopping = EarlyStoppingPlugin(patience=1, val_stream_name="test_stream")
    metrics = [accuracy_metrics(stream=True), indicator_metrics("weights", every=100)]
    evaluator = EvaluationPlugin(*metrics, loggers=[])
    model = make_network()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),  # nothing ever improves
        train_mb_size=8,
        train_epochs=50,
        evaluator=evaluator,
        plugins=[stopping],
        eval_every=1,
    )
    strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
    assert strategy.clock.train_exp_epochs < 50
    assert len(curve(strategy, "weight_distance")[0]) == 1


@pytest.mark.parametrize(("every", "xs"), [(1, [2, 4, 6, 8]), (3, [6])])
def test_sub_experiences_of_online_streams_count_as_epochs(
    make_network: Any, make_benchmark: Any, every: int, xs: list[int]
) -> None:
    stream = split_online_stream(make_benchmark(2, per_class=8).train_stream, experience_size=12, seed=0)
    strategy = trainer(make_network(), indicator_metrics("weights", every=every), epochs=2)
    for experience in stream:
        strategy.train(experience)
    metrics = strategy.evaluator.get_all_metrics()
    assert metrics["PlasticityIndicator/weight_distance/train_phase/train_online_stream"][0] == [2 * x for x in xs]


def test_of_hare_and_tortoise_it_is_the_hare_after_its_reset(make_network: Any, make_benchmark: Any) -> None:
    plugin = HareTortoisePlugin(momentum=0.9, reset_interval=2)
    keep = KeepModels()
    benchmark = make_benchmark()
    strategy = trainer(make_network(), indicator_metrics("weights"), plugins=[plugin, keep], eval_every=1)
    strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream])
    expected = [torch.cat([p.flatten() for p in model.parameters()]).square().mean().item() for model in keep.models]
    assert curve(strategy, "weight_magnitude")[1] == pytest.approx(expected)
    tortoise = torch.cat([p.flatten() for p in plugin.trained_tortoise().parameters()])
    assert curve(strategy, "weight_magnitude")[1][-1] == pytest.approx(tortoise.square().mean().item())
    assert expected[0] != pytest.approx(expected[1])


def test_evaluation_measures_nothing(make_network: Any, make_benchmark: Any) -> None:
    benchmark = make_benchmark()
    strategy = trainer(make_network(), indicator_metrics())
    assert strategy.eval(benchmark.test_stream) == {}
    strategy.train(benchmark.train_stream[0])
    before = len(curve(strategy, "srank")[0])
    strategy.eval(benchmark.test_stream)
    assert len(curve(strategy, "srank")[0]) == before == 2


def test_an_evaluator_that_becomes_active_later(make_network: Any, make_benchmark: Any) -> None:
    class Activate(SupervisedPlugin):
        def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            strategy.evaluator.active = True

    benchmark = make_benchmark()
    strategy = trainer(make_network(), indicator_metrics("weights"), plugins=[Activate()])
    strategy.evaluator.active = False
    assert strategy.train(benchmark.train_stream[0]) == {}
    strategy.train(benchmark.train_stream[1])
    assert curve(strategy, "weight_distance")[0] == [9, 12]


# --- the batch


def items_of(experience: Any) -> list[tuple[tuple[float, ...], int]]:
    dataset = experience.dataset.train()
    return [(tuple(item[0].flatten().tolist()), int(item[1])) for item in (dataset[i] for i in range(len(dataset)))]


def test_the_batch_is_drawn_from_the_first_experience_and_stays(make_network: Any, make_benchmark: Any) -> None:
    benchmark = make_benchmark()
    drawn = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        metric = PlasticityIndicators(IndicatorConfig(every=1, samples=10), seed=seed)
        strategy = trainer(make_network(), [metric], epochs=1)
        torch.manual_seed(noise)
        strategy.train(benchmark.train_stream)
        assert metric.indicators is not None
        inputs, labels = metric.indicators.inputs, metric.indicators.labels
        assert isinstance(inputs, Tensor)
        pairs = [(tuple(x.flatten().tolist()), int(y)) for x, y in zip(inputs, labels, strict=True)]
        assert len(set(pairs)) == 10
        assert set(pairs) <= set(items_of(benchmark.train_stream[0]))
        drawn.append(pairs)
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_random_transforms_are_read_once(make_network: Any, make_benchmark: Any) -> None:
    batches = []
    for noise in (1, 2):
        metric = PlasticityIndicators(IndicatorConfig(every=1, samples=10))
        strategy = trainer(make_network(), [metric], epochs=1)
        torch.manual_seed(noise)
        random.seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        strategy.train(make_benchmark(train=Jitter()).train_stream[0])
        assert metric.indicators is not None
        batches.append(metric.indicators.inputs)
    assert torch.equal(*batches)


def test_given_samples_are_used(make_network: Any, make_benchmark: Any) -> None:
    inputs, labels = torch.randn(9, 6), torch.arange(9) % 6
    metric = PlasticityIndicators(inputs=inputs, labels=labels)
    trainer(make_network(), [metric], epochs=1).train(make_benchmark().train_stream[0])
    assert metric.indicators is not None
    assert metric.indicators.inputs is inputs
    assert torch.equal(metric.indicators.labels, labels)
    assert metric.indicators.num_classes == 6


def test_too_small_a_first_experience_is_said(make_network: Any, make_benchmark: Any) -> None:
    strategy = trainer(make_network(), indicator_metrics(), epochs=1)
    with pytest.warns(SettingWarning, match=r"24 samples, config\.samples = 512"):
        strategy.train(make_benchmark().train_stream[0])


@pytest.mark.parametrize("given", [False, True])
def test_multi_task_models(make_network: Any, make_benchmark: Any, given: bool) -> None:
    benchmark = make_benchmark(tasks=True)
    inputs, tasks, labels = torch.randn(8, 6), torch.zeros(8, dtype=torch.int64), torch.arange(8) % 2
    samples: dict[str, Any] = {"inputs": (inputs, tasks), "labels": labels} if given else {}
    metric = PlasticityIndicators(EVERYTHING, **samples)
    keep = KeepModels()
    strategy = trainer(make_network("multi"), [metric], epochs=1, plugins=[keep])
    strategy.train(benchmark.train_stream)

    assert metric.indicators is not None
    batch, drawn_tasks = metric.indicators.inputs
    assert drawn_tasks.unique().tolist() == [0]
    ratios = []
    for model in keep.models:
        model.eval()
        features = model.encoder(batch)  # type: ignore[operator]
        ratios.append((features == 0).double().mean().item())
        loss = nn.functional.cross_entropy(model(batch, drawn_tasks), metric.indicators.labels)
        gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
        assert curve(strategy, "gradient_norm")[1][len(ratios) - 1] == pytest.approx(norm, rel=1e-5)
    assert curve(strategy, "zero_activation_ratio")[1] == pytest.approx(ratios)


def test_multi_task_models_need_task_labels(make_network: Any, make_benchmark: Any) -> None:
    metric = PlasticityIndicators(inputs=torch.randn(8, 6), labels=torch.arange(8) % 2)
    with pytest.raises(SettingError, match="multi-task"):
        trainer(make_network("multi"), [metric]).train(make_benchmark(tasks=True).train_stream[0])


def test_backbone_by_name(make_network: Any, make_benchmark: Any) -> None:
    metrics = indicator_metrics("features", backbone="encoder.0")
    strategy = trainer(make_network(), metrics, epochs=1)
    results = strategy.train(make_benchmark().train_stream[0])
    assert results[full_name("zero_activation_ratio")] == 0.0  # the encoder's input
    with pytest.raises(SettingError, match="encodr"):
        trainer(make_network(), indicator_metrics("features", backbone="encodr")).train(
            make_benchmark().train_stream[0]
        )


# --- no trace


def everything_of(strategy: Any, picture_of: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    state = picture_of(strategy)
    state = {key: value for key, value in state.items() if not key.startswith("pointer/")}
    state["python"], state["numpy"] = random.getstate(), str(np.random.get_state())  # noqa: NPY002
    return state


@pytest.mark.parametrize("kind", ["plain", "growing", "masked", "multi"])
@pytest.mark.parametrize("train", [None, Jitter()], ids=["fixed", "random"])
def test_training_is_the_same_with_the_metric(
    make_network: Any, make_benchmark: Any, picture_of: Any, differing: Any, kind: str, train: Any
) -> None:
    pictures = []
    for metrics in ([], indicator_metrics(EVERYTHING)):
        benchmark = make_benchmark(tasks=kind == "multi", train=train)
        model = make_network(kind, dropout=0.3)
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        strategy = trainer(model, metrics, plugins=[ReplayPlugin(10)] if kind == "plain" else [])
        seen = []
        for experience in benchmark.train_stream:
            strategy.train(experience)
            seen.append(everything_of(strategy, picture_of))
        pictures.append(seen)
    for without, with_metric in zip(*pictures, strict=True):
        assert not differing(without, with_metric)


# --- loggers


def test_tensorboard_reads_back(make_network: Any, make_benchmark: Any, tmp_path: Path) -> None:
    logger = TensorboardLogger(tmp_path)
    strategy = trainer(make_network(), indicator_metrics(every=2), epochs=3, loggers=[logger])
    strategy.train(make_benchmark().train_stream)
    logger.writer.close()

    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {full_name(name) for name in DEFAULT}
    for name in DEFAULT:
        xs, values = curve(strategy, name)
        read = events.Scalars(full_name(name))
        assert [event.step for event in read] == xs == [6, 9, 15, 18, 24, 27]
        assert [event.value for event in read] == pytest.approx(values, rel=1e-6)


def test_interactive_and_csv_loggers(
    make_network: Any, make_benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name, metrics in (("without", []), ("with", indicator_metrics("units"))):
        strategy = trainer(
            make_network(),
            [*accuracy_metrics(epoch=True), *metrics],
            loggers=[InteractiveLogger(), CSVLogger(str(tmp_path / name))],
        )
        torch.manual_seed(0)
        results = strategy.train(make_benchmark().train_stream[0])
        files.append((tmp_path / name / "training_results.csv").read_text())
    value = results[full_name("dormant_ratio")]
    assert f"{full_name('dormant_ratio')} = {value:.4f}" in capsys.readouterr().out
    assert files[0] == files[1]  # Avalanche's CSV has fixed columns


# --- resume, reuse, errors


def test_resumed_training_measures_the_same(make_network: Any, make_benchmark: Any, tmp_path: Path) -> None:
    benchmark: CLScenario = make_benchmark()

    def new() -> Any:
        return trainer(make_network("growing"), indicator_metrics(EVERYTHING))

    whole, parted = new(), new()
    for strategy in (whole, parted):
        torch.manual_seed(1)
        strategy.train(benchmark.train_stream[0])
    save_strategy(parted, tmp_path / "strategy.pkl")
    state = torch.get_rng_state()
    resumed, position = load_strategy(new(), tmp_path / "strategy.pkl")
    assert position == 1
    for strategy in (whole, resumed):
        torch.set_rng_state(state)
        strategy.train(benchmark.train_stream[1:])
    assert whole.evaluator.get_all_metrics() == resumed.evaluator.get_all_metrics()


def test_reset_begins_a_new_run(make_network: Any, make_benchmark: Any) -> None:
    benchmark = make_benchmark()
    [metric] = indicator_metrics("weights")
    trainer(make_network(), [metric], epochs=1).train(benchmark.train_stream[0])
    metric.reset()
    assert metric.indicators is None and metric.result() == {}
    strategy = trainer(make_network(seed=1), [metric], epochs=1)
    first = copy.deepcopy(strategy.model)
    strategy.train(benchmark.train_stream[1])
    moved = [(a - b).flatten() for a, b in zip(strategy.model.parameters(), first.parameters(), strict=True)]
    assert metric.result()["weight_distance"] == pytest.approx(torch.cat(moved).square().mean().item())


def test_names_and_configuration() -> None:
    [metric] = indicator_metrics()
    assert metric.config == IndicatorConfig(every=1)
    [metric] = indicator_metrics(IndicatorConfig(samples=99), every=4)
    assert metric.config == IndicatorConfig(every=4, samples=99)
    [metric] = indicator_metrics("probe", seed=7, num_classes=3)
    assert (metric.config.names, metric.seed, metric.num_classes) == (("probe",), 7, 3)


X, Y = torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlasticityIndicators(IndicatorConfig()), "config.every = 0"),
        (lambda: indicator_metrics(every=0), "config.every = 0"),
        (lambda: indicator_metrics("unit"), "Did you mean 'units'"),
        (lambda: indicator_metrics("units", IndicatorConfig(every=1)), "1 configurations and 1 names"),
        (lambda: indicator_metrics(IndicatorConfig(), IndicatorConfig()), "2 configurations"),
        (lambda: indicator_metrics(every=-1), "IndicatorConfig.every = -1"),
        (lambda: indicator_metrics(seed=0.5), "seed = 0.5"),
        (lambda: indicator_metrics(num_classes=0), "num_classes = 0"),
        (lambda: indicator_metrics(inputs=X), "labels = None"),
        (lambda: indicator_metrics(labels=Y), "inputs = None"),
        (lambda: indicator_metrics(inputs=X, labels=Y[:3]), "3 and 4 samples"),
        (lambda: indicator_metrics(inputs=(X, Y[:2]), labels=Y), "2 and 4 samples"),
        (lambda: indicator_metrics(inputs=X[:1], labels=Y[:1]), "1 samples"),
    ],
)
def test_wrong_settings_are_refused_at_construction(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
