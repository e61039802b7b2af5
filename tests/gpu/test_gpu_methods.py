"""Every method computes on a GPU what it computes on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
from small_runs import HARE_TORTOISE, assert_close_rows, deterministic, train

from ht_ray.diagnostics import INDICATOR_GROUPS, IndicatorConfig
from ht_ray.vision import METHODS, MethodConfig

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")]

CONFIGS = [
    *(MethodConfig(name) for name in ("aid", "deep_fourier", "muon", "trac", "weight_consolidation")),
    MethodConfig("snr", snr_longest=64, snr_interval=1),
    MethodConfig("plain"),
    MethodConfig("ema", momentum=0.9),
    HARE_TORTOISE,
    MethodConfig("hare_tortoise", momentum=0.9, reset_interval=5, reset_unit="steps", optimizer_state="clear"),
    MethodConfig("hare_tortoise", momentum=0.9, reset_interval=None, recalibrate_batchnorm=2),
    MethodConfig("hare_tortoise+shrink_perturb+l2+redo", momentum=0.9, reset_interval=1, redo_interval=1),
    MethodConfig("shrink_perturb", shrink_perturb_noise=0.01),
    MethodConfig("shrink_perturb", toward="fresh"),
    MethodConfig("head_reset"),
    MethodConfig("l2"),
    MethodConfig("l2", l2_coupling="loss", l2_strength=1e-4),
    MethodConfig("augment"),
    MethodConfig("spectral_decoupling"),
    MethodConfig("regenerative"),
    MethodConfig("regenerative", regenerative_norm="l1"),
    MethodConfig("regenerative", regenerative_coupling="decoupled"),
    MethodConfig("regenerative", regenerative_toward="fresh"),
    MethodConfig("redo", redo_interval=1, redo_threshold=0.3),
    MethodConfig("redo", redo_interval=3, redo_unit="steps", redo_threshold=0.3),
    MethodConfig("crelu"),
    MethodConfig("layer_norm"),
    MethodConfig("self_distillation", momentum=0.9),
    MethodConfig("optimizer_reset"),
    MethodConfig("adam"),
    MethodConfig("continual_backprop", continual_backprop_replacement_rate=0.01, continual_backprop_maturity=2),
    MethodConfig("plasticity_injection"),
    MethodConfig("weight_clipping"),
    MethodConfig("upgd", upgd_noise=0.0),
    MethodConfig("fire"),
    MethodConfig("dash"),
    MethodConfig("parseval"),
    MethodConfig("spectral_regularization"),
    MethodConfig("wasserstein"),
    MethodConfig("normalize_and_project"),
]


def test_no_method_is_left_out(device: torch.device) -> None:
    assert {part for config in CONFIGS for part in config.parts} == set(METHODS)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_run_has_the_losses_of_the_run_on_the_cpu(device: torch.device, config: MethodConfig) -> None:
    _, _, rows = train(device, config)
    _, _, expected = train("cpu", config)
    assert_close_rows(rows, expected, rel=1e-4, accuracy=0.02)


def test_the_noise_of_upgd_is_drawn_on_the_device_and_the_same_in_every_run(device: torch.device) -> None:
    config = MethodConfig("upgd", upgd_noise=1e-2)
    with deterministic():
        runs = [train(device, config)[2] for _ in range(2)]
    assert all(math.isfinite(row["train_loss"]) for row in runs[0])
    assert runs[0] == runs[1]
    assert runs[0] != train(device, MethodConfig("upgd", upgd_noise=0.0))[2]


@pytest.mark.parametrize("network", ["resnet18", "vgg16", "vit_tiny"])
def test_every_network_has_the_losses_it_has_on_the_cpu(device: torch.device, network: str) -> None:
    training = {"augment": "crop_flip"}
    _, _, rows = train(device, network=network, training=training, phases=1)
    _, _, expected = train("cpu", network=network, training=training, phases=1)
    assert_close_rows(rows, expected, rel=1e-2, accuracy=0.05)


@pytest.mark.parametrize("group", list(INDICATOR_GROUPS))
def test_indicators_are_those_of_the_cpu(device: torch.device, group: str) -> None:
    config = IndicatorConfig(every=1, samples=64, names=(group,), probe_steps=3, hessian_iterations=10)
    rows = [train(place, phases=1, epochs=1, indicators=config)[2][-1] for place in (device, "cpu")]
    found, expected = ({name: row[name] for name in INDICATOR_GROUPS[group] if name in row} for row in rows)
    assert found
    assert found == pytest.approx(expected, rel=1e-2, abs=1e-3, nan_ok=True)
