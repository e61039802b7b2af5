from __future__ import annotations

import copy
from dataclasses import asdict
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics, loss_metrics
from avalanche.logging import TextLogger
from avalanche.models import SimpleMLP, as_multitask
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from torch import nn
from torch.optim import SGD, AdamW

from ht_ray.errors import SettingError
from ht_ray.mechanisms import SettingWarning, WeightCopy
from ht_ray.vision import MethodConfig, ModelConfig, TrainingConfig, make_model
from strategies import (
    EMA,
    EMAPlugin,
    HareTortoise,
    HareTortoisePlugin,
    HeadReset,
    HeadResetPlugin,
    LimitedBuffer,
    LimitedBufferPlugin,
    MeasurePlugin,
    MethodPlugin,
    PhaseTrainingPlugin,
    Plain,
    ShrinkPerturb,
    ShrinkPerturbPlugin,
    make_strategy,
)

READY: list[tuple[Any, Any, dict[str, Any]]] = [
    (Plain, None, {}),
    (HareTortoise, HareTortoisePlugin, {"momentum": 0.7, "reset_interval": 3}),
    (EMA, EMAPlugin, {"half_life": 2}),
    (ShrinkPerturb, ShrinkPerturbPlugin, {"ratio": 0.5, "noise": 0.01, "seed": 4}),
    (HeadReset, HeadResetPlugin, {"toward": "fresh", "seed": 4}),
    (LimitedBuffer, LimitedBufferPlugin, {"buffer_size": 10, "seed": 4}),
]


@pytest.mark.parametrize(("kind", "plugin", "settings"), READY, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("tasks", [False, True])
def test_they_are_naive_with_a_plugin(
    make_network, make_benchmark, picture_of, differing, kind, plugin, settings, tasks
) -> None:
    pictures = []
    for ready in (True, False):
        network = make_network("multi" if tasks else "growing", seed=2)
        optimizer = AdamW(network.parameters(), lr=0.02)
        common: dict[str, Any] = {"train_mb_size": 8, "train_epochs": 3, "eval_mb_size": 16, "evaluator": None}
        if ready:
            strategy = kind(model=network, optimizer=optimizer, **settings, **common)
            assert strategy.eval_mb_size == 16
        else:
            renamed = {"size" if k == "buffer_size" else k: v for k, v in settings.items()}
            plugins = [plugin(**renamed)] if plugin else []
            strategy = Naive(model=network, optimizer=optimizer, plugins=plugins, **common)
        benchmark = make_benchmark(tasks=tasks, per_class=11)
        torch.manual_seed(3)
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
        pictures.append(picture_of(strategy))
    assert [name for name in differing(*pictures) if not name.startswith("pointer")] == []


@pytest.mark.parametrize(("kind", "plugin", "settings"), READY, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("in_memory", [False, True])
def test_avalanches_metrics_on_a_stock_benchmark(
    make_network, make_benchmark, tmp_path, kind, plugin, settings, in_memory
) -> None:
    network = make_network("growing", seed=2)
    evaluator = EvaluationPlugin(
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, stream=True),
        forgetting_metrics(experience=True),
        loggers=[TextLogger((tmp_path / "log").open("w"))],
    )
    # Stateful parts of Avalanche (a replay memory) go along with each of them.
    strategy = kind(
        model=network,
        optimizer=SGD(network.parameters(), lr=0.05, momentum=0.9),
        train_mb_size=8,
        train_epochs=6,
        plugins=[ReplayPlugin(mem_size=30)],
        evaluator=evaluator,
        eval_every=2,
        in_memory=in_memory,
        **settings,
    )
    benchmark = make_benchmark(per_class=15)
    results = []
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[benchmark.test_stream[:1]])
        results.append(strategy.eval(benchmark.test_stream))
    key = next(name for name in results[-1] if name.startswith("Top1_Acc_Stream/eval_phase/test_stream"))
    assert results[-1][key] > (0.4 if kind in (ShrinkPerturb, HeadReset) else 0.6)
    assert results[0][key] < 0.5
    # What the metric says is what the exported tortoise, or the model, does.
    model = strategy.trained_tortoise() if hasattr(strategy, "trained_tortoise") else copy.deepcopy(network).eval()
    items = [item for experience in benchmark.test_stream for item in experience.dataset]
    inputs, labels = torch.stack([item[0] for item in items]), torch.tensor([item[1] for item in items])
    with torch.no_grad():
        accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(results[-1][key], abs=1e-6)


@pytest.mark.parametrize("kind", [HareTortoise, HeadReset, ShrinkPerturb])
def test_avalanches_own_models(make_benchmark, kind) -> None:
    model = SimpleMLP(num_classes=6, input_size=6, hidden_size=8)
    strategy = kind(model=model, optimizer=SGD(model.parameters(), lr=0.1), train_mb_size=8, evaluator=None)
    benchmark = make_benchmark()
    strategy.train(benchmark.train_stream)
    strategy.eval(benchmark.test_stream)


@pytest.mark.parametrize("kind", [HareTortoise, HeadReset, ShrinkPerturb])
def test_models_made_multi_task(make_benchmark, kind) -> None:
    model = as_multitask(SimpleMLP(num_classes=2, input_size=6, hidden_size=8), "classifier")
    settings: dict[str, Any] = {"recalibrate_batchnorm": 1, "momentum": 0.5} if kind is HareTortoise else {}
    strategy = kind(
        model=model,
        optimizer=SGD(model.parameters(), lr=0.1),
        train_mb_size=8,
        evaluator=None,
        train_epochs=2,
        **settings,
    )
    benchmark = make_benchmark(tasks=True)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    assert len(model.classifier.classifiers) == 3


def test_their_settings_are_checked() -> None:
    model = nn.Linear(2, 2)
    optimizer = SGD(model.parameters(), lr=0.1)
    for kind, settings in [
        (HareTortoise, {"momentum": 2}),
        (EMA, {"half_life": -1}),
        (ShrinkPerturb, {"ratio": 2}),
        (HeadReset, {"toward": "zero"}),
        (LimitedBuffer, {"buffer_size": 0}),
        (Plain, {"precision": "half"}),
    ]:
        with pytest.raises(SettingError, match=str(next(iter(settings.values())))):
            kind(model=model, optimizer=optimizer, **settings)


def test_trained_tortoise_of_ready_strategies(make_network) -> None:
    network = make_network()
    optimizer = SGD(network.parameters(), lr=0.1)
    for kind in (HareTortoise, EMA):
        with pytest.raises(RuntimeError, match="before the first experience"):
            kind(model=network, optimizer=optimizer, evaluator=None).trained_tortoise()


def test_criterion_is_passed_on(make_network, make_benchmark) -> None:
    network = make_network()
    losses = []

    def criterion(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses.append(nn.functional.cross_entropy(output, labels))
        return losses[-1]

    strategy = Plain(
        model=network, optimizer=SGD(network.parameters(), lr=0.1), criterion=criterion, train_mb_size=8, evaluator=None
    )
    strategy.train(make_benchmark().train_stream[0])
    assert len(losses) == 3


# Methods by name.


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("plain", {"plain"}),
        ("ema", {"ema"}),
        ("head_reset+shrink_perturb+hare_tortoise", {"hare_tortoise", "shrink_perturb", "head_reset"}),
        ("self_distillation", {"self_distillation", "ema"}),
    ],
)
def test_methods_by_name(name, kinds) -> None:
    plugin = MethodPlugin(name)
    assert {cls.name for cls in plugin.classes} == kinds
    plugin.attach(SimpleMLP(num_classes=4, input_size=8))
    assert plugin.methods.keys() == kinds


@pytest.mark.parametrize("name", ["augment", "adam", "hare_tortoise+augment"])
def test_what_no_plugin_can_do_is_refused(name) -> None:
    with pytest.raises(SettingError, match=r"(augment|adam) changes how the network is trained.*make_strategy"):
        MethodPlugin(name)


@pytest.mark.parametrize("kind", [HareTortoise, EMA])
def test_named_buffers_reach_the_plugin(kind) -> None:
    model = torch.nn.Linear(2, 2)
    strategy = kind(
        model=model, optimizer=SGD(model.parameters(), lr=0.1), average_buffers=["codebook"], evaluator=None
    )
    (plugin,) = (plugin for plugin in strategy.plugins if isinstance(plugin, MethodPlugin))
    assert plugin.settings["average_buffers"] == ["codebook"]


def test_settings_of_a_method_reach_its_plugins() -> None:
    given = {
        "momentum": 0.5,
        "reset_interval": 7,
        "reset_unit": "steps",
        "optimizer_state": "clear",
        "reset_at_phase_end": False,
        "recalibrate_batchnorm": 3,
        "shrink_perturb_ratio": 0.25,
        "shrink_perturb_noise": 0.5,
        "toward": "fresh",
        "reinitialize_tortoise": False,
    }
    model = SimpleMLP(num_classes=4, input_size=8)
    for plugin in (
        MethodPlugin(MethodConfig("hare_tortoise+shrink_perturb+head_reset", **given), seed=9),
        MethodPlugin("hare_tortoise+shrink_perturb+head_reset", seed=9, **given),
    ):
        plugin.attach(model)
        tortoise, shrink, head = plugin.methods.values()
        assert asdict(tortoise.settings) == {
            "momentum": 0.5,
            "reset_interval": 7,
            "reset_unit": "steps",
            "optimizer_state": "clear",
            "reset_at_phase_end": False,
            "recalibrate_batchnorm": 3,
            "average_buffers": (),
            "momentum_warmup": 0.0,
            "momenta": (),
            "reset_only": (),
            "reset_schedule": (),
        }
        assert (shrink.settings.ratio, shrink.settings.noise, shrink.settings.toward) == (0.25, 0.5, "fresh")
        assert (head.settings.toward, head.seed, shrink.seed) == ("fresh", 9, 9)
        assert not shrink.settings.reinitialize_tortoise
        assert not head.settings.reinitialize_tortoise


def test_settings_of_training_reach_the_strategy(image_data) -> None:
    model = make_model(ModelConfig("mlp"), shape=image_data.shape, num_classes=3, seed=0)
    training = TrainingConfig(
        batch_size=32,
        learning_rate=0.5,
        weight_decay=0.25,
        warmup_ratio=0.75,
        clip=None,
        precision="bf16",
        fresh_optimizer=False,
    )
    strategy = make_strategy(model, image_data, training=training, seed=6, epochs=4)
    phase, method, measure = strategy.plugins[:3]
    assert isinstance(method, MethodPlugin)
    assert isinstance(phase, PhaseTrainingPlugin)
    assert isinstance(measure, MeasurePlugin)
    assert (phase.warmup_ratio, phase.clip, phase.fresh_optimizer, phase.seed) == (0.75, None, False, 6)
    assert measure.autocast is torch.bfloat16
    assert (strategy.train_mb_size, strategy.train_epochs, strategy.precision) == (32, 4, "bf16")
    (group,) = strategy.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


def test_a_phase_too_short_for_the_momentum_is_told(make_network, make_benchmark) -> None:
    network = make_network()
    strategy = HareTortoise(
        model=network, optimizer=SGD(network.parameters(), lr=0.1), train_mb_size=8, train_epochs=10, evaluator=None
    )
    with pytest.warns(SettingWarning, match="longer than a phase of 30 steps"):
        strategy.train(make_benchmark().train_stream[0])
    assert isinstance(strategy.method.tortoise.weights, WeightCopy)


@pytest.mark.parametrize(("kind", "plugin", "settings"), READY)
def test_model_and_optimizer_may_be_positional(kind: Any, plugin: Any, settings: dict[str, Any]) -> None:
    model = SimpleMLP(num_classes=4, input_size=8)
    optimizer = SGD(model.parameters(), lr=0.1)
    strategy = kind(model, optimizer, evaluator=None, **settings)
    assert strategy.model is model
    assert strategy.optimizer is optimizer


def test_make_strategy_takes_more_plugins(image_data: Any) -> None:
    model = make_model(ModelConfig("mlp"), shape=image_data.shape, num_classes=image_data.num_classes, seed=0)
    mine = LimitedBufferPlugin(20)
    strategy = make_strategy(model, image_data, method=MethodConfig("ema"), plugins=[mine], eval_mb_size=7)
    kinds = [type(plugin) for plugin in strategy.plugins]
    assert kinds.index(MethodPlugin) < strategy.plugins.index(mine) < kinds.index(MeasurePlugin)
    assert strategy.eval_mb_size == 7
