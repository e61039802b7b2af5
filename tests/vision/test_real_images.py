"""A few real steps of each of the paper's settings, on the CPU: the loss falls."""

from __future__ import annotations

import os

import pytest

from ht_ray.vision import (
    ContinualConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    TrainingConfig,
    fit,
    load_data,
    make_model,
    make_stream,
)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("data_set", "network", "batch_size", "learning_rate"),
    [
        ("mnist", "mlp", 32, 1e-3),
        ("cifar10", "resnet18", 32, 1e-3),
        ("cifar10", "vit_tiny", 32, 1e-3),
        ("tiny-imagenet", "vgg16", 32, 3e-4),
    ],
)
def test_the_loss_falls_on_real_images(data_set: str, network: str, batch_size: int, learning_rate: float) -> None:
    data = load_data(DataConfig(data_set, root=os.environ["HT_RAY_DATA"], train_limit=200, test_limit=200))
    stream = make_stream(data.train_labels, data.num_classes, ContinualConfig(phases=1, epochs=4, noise="none"), seed=0)
    model = make_model(ModelConfig(network), shape=data.shape, num_classes=data.num_classes, seed=0)
    training = TrainingConfig(
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_ratio=0.0,
        augment="none" if network == "mlp" else "crop_flip",
    )
    rows = fit(
        model,
        data,
        stream,
        method=MethodConfig("hare_tortoise", momentum=0.8, reset_interval=2),
        training=training,
    )
    losses = [row["train_loss"] for row in rows]
    print(data_set, network, [round(loss, 3) for loss in losses])
    assert losses[-1] < 0.97 * losses[0]
