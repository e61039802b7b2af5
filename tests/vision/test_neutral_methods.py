"""A method whose setting reads "off" trains as plain training does, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ht_ray.vision import (
    ContinualConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    TrainingConfig,
    fit,
    make_model,
    make_stream,
)

NEUTRAL = [
    MethodConfig("ema", momentum=0.8),
    MethodConfig("hare_tortoise", momentum=0.8, reset_interval=None),
    MethodConfig("shrink_perturb", shrink_perturb_ratio=0.0, shrink_perturb_noise=0.0, shrink_perturb_perturb=0.0),
    MethodConfig("l2", l2_strength=0.0),
    MethodConfig("l2", l2_strength=0.0, l2_coupling="loss"),
    MethodConfig("spectral_decoupling", spectral_decoupling_strength=0.0),
    MethodConfig("regenerative", regenerative_strength=0.0),
    MethodConfig("regenerative", regenerative_strength=0.0, regenerative_coupling="decoupled"),
    MethodConfig("self_distillation", momentum=0.8, self_distillation_strength=0.0),
    MethodConfig("redo", redo_interval=None),
    MethodConfig("regrama", regrama_interval=None),
    MethodConfig("continual_backprop", continual_backprop_replacement_rate=0.0),
    MethodConfig("optimizer_reset", optimizer_reset_interval=None),
    MethodConfig("adam", adam_eps=1e-8, adam_betas=(0.9, 0.999)),
    MethodConfig("weight_clipping", weight_clipping_factor=None),
]
NEUTRAL.append(
    MethodConfig(
        "hare_tortoise+l2+spectral_decoupling+regenerative+self_distillation+redo+continual_backprop+optimizer_reset"
        "+adam+weight_clipping+shrink_perturb",
        momentum=0.8,
        reset_interval=None,
        ratio=0.0,
        l2_strength=0.0,
        spectral_decoupling_strength=0.0,
        regenerative_strength=0.0,
        self_distillation_strength=0.0,
        redo_interval=None,
        continual_backprop_replacement_rate=0.0,
        optimizer_reset_interval=None,
        adam_eps=1e-8,
        adam_betas=(0.9, 0.999),
        weight_clipping_factor=None,
    )
)


def data() -> ImageData:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (60,), generator=draw)
    images = torch.randint(0, 256, (60, 1, 6, 6), dtype=torch.uint8, generator=draw)
    return ImageData("random", images, labels, images[:20], labels[:20], ("a", "b", "c"), (0.5,), (0.25,))


def trained(method: MethodConfig, **chosen: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    images = data()
    stream = make_stream(images.train_labels, 3, ContinualConfig(phases=3, epochs=2), seed=0)
    model = make_model(ModelConfig("mlp", hidden=(8, 6), dropout=0.2), shape=images.shape, num_classes=3, seed=0)
    # The optimiser starts afresh at each phase, where Shrink & Perturb clears its state anyway.
    training = TrainingConfig(batch_size=8, learning_rate=0.01, **chosen)
    rows = fit(model, images, stream, method=method, training=training, seed=0)
    return [row["train_loss"] for row in rows], {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("method", NEUTRAL, ids=lambda method: f"{len(method.parts)}-{method.name[:30]}")
def test_off_is_plain(method: MethodConfig) -> None:
    losses, weights = trained(MethodConfig("plain"))
    own_losses, own_weights = trained(method)
    assert own_losses == losses
    assert [name for name in weights if not torch.equal(weights[name], own_weights[name])] == []


@pytest.mark.parametrize(
    "method",
    [
        MethodConfig("l2"),
        MethodConfig("spectral_decoupling"),
        MethodConfig("regenerative"),
        MethodConfig("self_distillation", momentum=0.8),
        MethodConfig("redo", redo_threshold=0.9, redo_interval=1),
        MethodConfig("continual_backprop", continual_backprop_replacement_rate=0.2, continual_backprop_maturity=2),
        MethodConfig("optimizer_reset"),
        MethodConfig("adam"),
        MethodConfig("weight_clipping", weight_clipping_factor=0.5),
        MethodConfig("plasticity_injection"),
        MethodConfig("upgd"),
        MethodConfig("augment"),
    ],
    ids=lambda method: method.name,
)
def test_on_is_not(method: MethodConfig) -> None:
    losses, _ = trained(MethodConfig("plain"))
    assert trained(method)[0] != losses


@pytest.mark.parametrize(
    ("method", "chosen"),
    [
        (MethodConfig("adam", adam_eps=1e-3, adam_betas=(0.8, 0.7)), {"eps": 1e-3, "betas": (0.8, 0.7)}),
        (MethodConfig("augment"), {"augment": "crop"}),  # images of one channel are not mirrored
        (MethodConfig("augment", augment_kind="crop_flip"), {"augment": "crop_flip"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_settings_of_the_training_by_name(method: MethodConfig, chosen: dict[str, Any]) -> None:
    assert trained(method)[0] == trained(MethodConfig("plain"), **chosen)[0]


def test_decoupled_l2_takes_the_place_of_the_base_weight_decay() -> None:
    """As where the authors raise AdamW's own to that of the method; a penalty in the loss leaves the base decay."""
    decay = {"weight_decay": 0.5}
    losses, weights = trained(MethodConfig("l2", l2_strength=2.0), **decay)
    own_losses, own_weights = trained(MethodConfig("plain"), weight_decay=2.0)
    assert losses == pytest.approx(own_losses, rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(value, own_weights[name], rtol=1e-3, atol=1e-4)
    assert losses != pytest.approx(trained(MethodConfig("plain"), weight_decay=2.5)[0], rel=1e-3)
    assert trained(MethodConfig("l2", l2_strength=0.0), **decay)[0] == trained(MethodConfig("plain"), **decay)[0]
    penalty = MethodConfig("l2", l2_strength=1e-3, l2_coupling="loss")
    assert trained(penalty, **decay)[0] != trained(penalty, weight_decay=0.0)[0]
