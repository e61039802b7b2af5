"""The plugins train as the plain loop does, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ht_ray.diagnostics import IndicatorConfig
from ht_ray.vision import METHODS as ALL
from ht_ray.vision import (
    ContinualConfig,
    Diverged,
    MethodConfig,
    ModelConfig,
    Network,
    TrainingConfig,
    WarmStartConfig,
    fit,
    make_model,
    make_stream,
)
from strategies import MeasurePlugin, make_strategy, stream_benchmark

METHODS = [
    MethodConfig("plain"),
    MethodConfig("ema", momentum=0.8),
    MethodConfig("ema", momentum=0.8, recalibrate_batchnorm=2),
    MethodConfig("hare_tortoise", momentum=0.8, reset_interval=2),
    MethodConfig("hare_tortoise", momentum=0.8, reset_interval=3, reset_unit="steps", optimizer_state="clear"),
    MethodConfig("hare_tortoise", momentum=0.8, reset_interval=1, reset_at_phase_end=False),
    MethodConfig("hare_tortoise", momentum=0.8, reset_interval=2, recalibrate_batchnorm=1),
    MethodConfig("hare_tortoise", momentum=0.8, momentum_warmup=1.0, reset_only=("backbone",), reset_schedule=(1, 2)),
    MethodConfig("shrink_perturb", shrink_perturb_ratio=0.6, shrink_perturb_noise=0.01),
    MethodConfig("shrink_perturb", toward="fresh"),
    MethodConfig("shrink_perturb", shrink_perturb_ratio=0.6, shrink_perturb_perturb=0.1),
    MethodConfig("head_reset"),
    MethodConfig("head_reset", toward="fresh"),
    MethodConfig("shrink_perturb+head_reset", shrink_perturb_noise=0.01),
    MethodConfig("hare_tortoise+shrink_perturb+head_reset", momentum=0.8, reset_interval=1, shrink_perturb_noise=0.01),
    MethodConfig("head_reset+hare_tortoise", momentum=0.8, reset_interval=2, reinitialize_tortoise=False),
    MethodConfig("ema+shrink_perturb", momentum=0.8),
    MethodConfig("l2", l2_strength=0.5),
    MethodConfig("l2", l2_strength=1e-3, l2_coupling="loss"),
    MethodConfig("augment"),
    MethodConfig("spectral_decoupling", spectral_decoupling_strength=0.01),
    MethodConfig("regenerative"),
    MethodConfig("regenerative", regenerative_norm="l1"),
    MethodConfig("l2_init", regenerative_coupling="decoupled", regenerative_strength=0.5),
    MethodConfig("regenerative", regenerative_toward="fresh"),
    MethodConfig("redo", redo_threshold=0.7, redo_interval=1),
    MethodConfig("redo", redo_threshold=0.7, redo_interval=3, redo_unit="steps", redo_batches=1),
    MethodConfig("redo", redo_threshold=0.7, redo_interval=2, redo_unit="steps", redo_step_count="per_weight"),
    MethodConfig("redo", redo_threshold=0.7, redo_interval=1, redo_step_count="reset"),
    MethodConfig("regrama+hare_tortoise", regrama_threshold=0.5, regrama_interval=2, momentum=0.8),
    MethodConfig("regrama", regrama_threshold=0.5, regrama_interval=3, regrama_unit="steps"),
    MethodConfig("crelu"),
    MethodConfig("crelu+redo", redo_threshold=0.7, redo_interval=1),
    MethodConfig("deep_fourier"),
    MethodConfig("aid"),
    MethodConfig("aid+hare_tortoise+redo", aid_keep=0.7, momentum=0.8, reset_interval=1, redo_interval=1),
    MethodConfig("snr+ema", snr_longest=20, snr_interval=2, momentum=0.8),
    MethodConfig("snr", snr_longest=40, snr_interval=3, snr_unit="steps", snr_step_count="per_weight"),
    MethodConfig("trac", trac_initial=0.01),
    MethodConfig("weight_consolidation"),
    MethodConfig("muon"),
    MethodConfig("muon", muon_learning_rate=0.02, muon_scale="original"),
    MethodConfig("muon+redo+plasticity_injection", redo_threshold=0.7, redo_interval=1, redo_step_count="per_weight"),
    MethodConfig("layer_norm"),
    MethodConfig("self_distillation", momentum=0.8),
    MethodConfig("self_distillation", momentum=0.8, self_distillation_temperature=3.0, recalibrate_batchnorm=1),
    MethodConfig("optimizer_reset"),
    MethodConfig("optimizer_reset", optimizer_reset_interval=3, optimizer_reset_unit="steps"),
    MethodConfig("adam"),
    MethodConfig("continual_backprop", continual_backprop_replacement_rate=0.1, continual_backprop_maturity=2),
    MethodConfig("plasticity_injection"),
    MethodConfig("plasticity_injection", plasticity_injection_times=None),
    MethodConfig("weight_clipping", weight_clipping_factor=0.7),
    MethodConfig("upgd"),
    MethodConfig("fire"),
    MethodConfig("fire+hare_tortoise", fire_strength=0.7, fire_optimizer_state="keep", momentum=0.8, reset_interval=1),
    MethodConfig("dash"),
    MethodConfig("dash+ema", dash_floor=0.3, dash_optimizer_state="keep", momentum=0.8),
    MethodConfig("parseval"),
    MethodConfig("spectral_regularization", spectral_regularization_strength=0.01),
    MethodConfig("wasserstein"),
    MethodConfig("normalize_and_project"),
    MethodConfig("normalize_and_project+layer_norm"),
    # Everything that can meet, in no order.
    MethodConfig(
        "upgd+redo+augment+self_distillation+l2+hare_tortoise+spectral_decoupling+head_reset+weight_clipping+adam"
        "+plasticity_injection+regenerative+optimizer_reset+shrink_perturb+continual_backprop+dash+fire+parseval"
        "+spectral_regularization+wasserstein+normalize_and_project+muon+aid+snr",
        snr_longest=40,
        snr_interval=2,
        momentum=0.8,
        reset_interval=1,
        redo_threshold=0.7,
        redo_interval=2,
        continual_backprop_replacement_rate=0.1,
        continual_backprop_maturity=2,
        noise=0.01,
    ),
    MethodConfig(
        "hare_tortoise+plasticity_injection+redo+continual_backprop",
        momentum=0.8,
        reset_interval=3,
        reset_unit="steps",
        redo_threshold=0.7,
        redo_interval=1,
        reinitialize_tortoise=False,
    ),
]
MLP = ModelConfig("mlp", hidden=(12, 8))
CONV = ModelConfig("resnet18", width=0.05)
VIT = ModelConfig("vit_tiny", width=0.1)  # with dropout


def both(
    data: Any, config: Any, model: ModelConfig, method: MethodConfig, training: TrainingConfig, **measuring: Any
) -> list[Any]:
    """Return (rows, tensors) of the plain loop and of the strategy."""
    stream = make_stream(data.train_labels, data.num_classes, config, seed=3)
    results = []
    for loop in ("plain", "strategy"):
        torch.manual_seed(len(loop))  # the global generator must not matter
        network: nn.Module = make_model(method.model(model), shape=data.shape, num_classes=data.num_classes, seed=3)
        rows: list[dict[str, float]] = []
        if loop == "plain":
            fit(network, data, stream, method=method, training=training, seed=3, on_epoch=rows.append, **measuring)
        else:
            benchmark = stream_benchmark(data, stream, augment=method.training(training, data.shape).augment)
            strategy = make_strategy(
                network, data, method=method, training=training, seed=3, on_epoch=rows.append, **measuring
            )
            for phase, experience in zip(stream, benchmark.train_stream, strict=True):
                strategy.train_epochs = phase.epochs
                strategy.train(experience)
                strategy.eval(benchmark.test_stream)
            measure = next(plugin for plugin in strategy.plugins if isinstance(plugin, MeasurePlugin))
            assert isinstance(measure, MeasurePlugin)
            assert measure.rows == rows
        results.append((rows, {name: value.clone() for name, value in network.state_dict().items()}))
    return results


def assert_same(results: list[Any], differing: Any, epochs: int) -> None:
    (rows, tensors), (other_rows, other_tensors) = results
    assert len(rows) == epochs
    assert rows == other_rows
    assert differing(tensors, other_tensors) == []


def test_no_method_is_forgotten() -> None:
    assert {part for method in METHODS for part in method.parts} == set(ALL)


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "kept"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_method(image_data, differing, method, fresh) -> None:
    config = ContinualConfig(phases=3, epochs=2, access="full" if fresh else "buffer", buffer_size=20)
    training = TrainingConfig(batch_size=8, learning_rate=0.01, fresh_optimizer=fresh)
    assert_same(both(image_data, config, MLP, method, training), differing, 6)


@pytest.mark.parametrize("model", [CONV, VIT], ids=lambda m: m.name)
@pytest.mark.parametrize(
    "training",
    [
        TrainingConfig(batch_size=16, augment="crop_flip"),
        TrainingConfig(batch_size=16, augment="crop", precision="bf16", clip=None),
        TrainingConfig(batch_size=16, channels_last=True, warmup_ratio=0, fresh_optimizer=False),
    ],
    ids=["crop_flip", "bf16", "channels_last"],
)
def test_networks_and_training(image_data, differing, model, training, matching_layouts) -> None:
    config = ContinualConfig(phases=2, epochs=2, access="buffer", buffer_size=10)
    method = MethodConfig("hare_tortoise+head_reset", momentum=0.7, reset_interval=1)
    assert_same(both(image_data, config, model, method, training), differing, 4)
    assert max(matching_layouts) > matching_layouts[0] > 0


def test_warm_start_with_epochs_that_differ(image_data, differing) -> None:
    config = WarmStartConfig(subset_ratio=0.3, epochs=2, warm_epochs=3)
    method = MethodConfig("shrink_perturb+hare_tortoise", momentum=0.7, reset_interval=2)
    assert_same(both(image_data, config, MLP, method, TrainingConfig(batch_size=16)), differing, 5)


def test_seldom_tested(image_data, differing) -> None:
    config = WarmStartConfig(subset_ratio=0.3, epochs=4, warm_epochs=5)
    method = MethodConfig("hare_tortoise", momentum=0.7, reset_interval=2)
    indicators = IndicatorConfig(every=4, names=("weights",))
    results = both(
        image_data, config, MLP, method, TrainingConfig(batch_size=16), evaluate_every=3, indicators=indicators
    )
    assert_same(results, differing, 5)
    assert [(row["step"], row["epoch"]) for row in results[0][0]] == [(3, 3), (4, 4), (5, 5), (8, 3), (9, 4)]


def test_last_batches_of_one_sample(image_data, differing) -> None:
    # 30 and 60 samples: the second phase ends with a batch of one, which neither loop uses.
    config = ContinualConfig(phases=3, epochs=1)
    method = MethodConfig("ema", momentum=0.7)
    assert_same(both(image_data, config, MLP, method, TrainingConfig(batch_size=59)), differing, 3)


def test_divergence_is_reported_alike(image_data) -> None:
    config = ContinualConfig(phases=1, epochs=2)
    training = TrainingConfig(batch_size=8, learning_rate=1e30, clip=None)
    stream = make_stream(image_data.train_labels, 3, config, seed=0)
    messages = []
    for loop in ("plain", "strategy"):
        network: Network = make_model(ModelConfig("mlp", hidden=()), shape=image_data.shape, num_classes=3, seed=0)
        with pytest.raises(Diverged) as caught:
            if loop == "plain":
                fit(network, image_data, stream, training=training)
            else:
                strategy = make_strategy(network, image_data, training=training, epochs=2)
                strategy.train(stream_benchmark(image_data, stream).train_stream)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.data
def test_on_real_images(differing) -> None:
    import os

    from ht_ray.vision import DataConfig, load_data

    data = load_data(DataConfig("mnist", root=os.environ["HT_RAY_DATA"], train_limit=400, test_limit=200))
    config = ContinualConfig(phases=2, epochs=2)
    method = MethodConfig("hare_tortoise", momentum=0.9, reset_interval=1)
    assert_same(both(data, config, ModelConfig(), method, TrainingConfig(batch_size=64)), differing, 4)
