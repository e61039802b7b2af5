"""With every method, a run that is killed and continued ends as one that is not, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ht_ray.diagnostics import IndicatorConfig
from ht_ray.errors import Interrupted, SettingError
from ht_ray.mechanisms import SettingWarning
from ht_ray.vision import (
    METHODS,
    ContinualConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    Row,
    TrainingConfig,
    fit,
    make_model,
    make_stream,
)

SETTINGS = {
    "momentum": 0.8,
    "reset_interval": 2,
    "shrink_perturb_noise": 0.01,
    "redo_threshold": 0.7,
    "redo_interval": 1,
    "continual_backprop_replacement_rate": 0.1,
    "continual_backprop_maturity": 2,
    "optimizer_reset_interval": 3,
    "optimizer_reset_unit": "steps",
}
EVERYTHING = "+".join(name for name in METHODS if name not in ("plain", "ema", "layer_norm", "crelu", "deep_fourier"))


class Killed(Exception):
    pass


def data() -> ImageData:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (48,), generator=draw)
    images = torch.randint(0, 256, (48, 1, 6, 6), dtype=torch.uint8, generator=draw)
    return ImageData("random", images, labels, images[:20], labels[:20], ("a", "b", "c"), (0.5,), (0.25,))


CHOSEN = [
    *(MethodConfig(name, **SETTINGS) for name in METHODS),
    MethodConfig("plasticity_injection", plasticity_injection_times=None),
    MethodConfig("plasticity_injection+head_reset", plasticity_injection_times=None, toward="fresh"),
    MethodConfig("regenerative", regenerative_toward="fresh"),
    MethodConfig("shrink_perturb", shrink_perturb_ratio=0.6, shrink_perturb_perturb=0.1),
    MethodConfig("redo", redo_interval=2, redo_unit="steps", redo_batches=9, redo_threshold=0.7),
    MethodConfig("regrama", regrama_interval=3, regrama_unit="steps", regrama_threshold=0.5),
    MethodConfig("redo", redo_interval=2, redo_unit="steps", redo_threshold=0.7, redo_step_count="per_weight"),
    MethodConfig("ema", momentum=0.8, recalibrate_batchnorm=2),
    MethodConfig("hare_tortoise", momentum=0.9, momentum_warmup=1.0, reset_schedule=(2, 9), reset_unit="steps"),
    MethodConfig(EVERYTHING, plasticity_injection_times=None, **SETTINGS),
]


class Trained:
    """A network and its rows, trained by a method in as many calls of `fit` as it takes."""

    def __init__(self, method: MethodConfig, *, fresh_optimizer: bool) -> None:
        self.method, self.data = method, data()
        self.stream = make_stream(self.data.train_labels, 3, ContinualConfig(phases=4, epochs=2), seed=0)
        self.training = TrainingConfig(batch_size=8, learning_rate=0.01, fresh_optimizer=fresh_optimizer)

    def fit(self, **chosen: Any) -> list[Row]:
        config = self.method.model(ModelConfig("mlp", hidden=(8, 6), dropout=0.2))
        self.model = make_model(config, shape=self.data.shape, num_classes=3, seed=0)
        torch.manual_seed(99)  # the global generators of another process
        return fit(
            self.model,
            self.data,
            self.stream,
            method=self.method,
            training=self.training,
            indicators=IndicatorConfig(every=1, names=("weights", "units")),
            **chosen,
        )


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert [name for name, value in left.items() if not torch.equal(value, right[name])] == []


@pytest.mark.parametrize("fresh_optimizer", [True, False], ids=["fresh", "kept"])
@pytest.mark.parametrize("method", CHOSEN, ids=lambda method: method.name if len(method.parts) < 3 else "everything")
def test_killed_in_the_third_phase(method: MethodConfig, fresh_optimizer: bool, tmp_path: Path) -> None:
    def kill(row: Row) -> None:
        if row["phase"] == 3:
            raise Killed

    whole, resumed = (Trained(method, fresh_optimizer=fresh_optimizer) for _ in range(2))
    rows = whole.fit()
    with pytest.raises(Killed):
        resumed.fit(checkpoint=tmp_path / "state.pt", on_epoch=kill)
    assert resumed.fit(checkpoint=tmp_path / "state.pt") == rows
    assert_same(whole.model, resumed.model)


@pytest.mark.parametrize("fresh_optimizer", [True, False], ids=["fresh", "kept"])
@pytest.mark.parametrize("method", CHOSEN, ids=lambda method: method.name if len(method.parts) < 3 else "everything")
def test_stopped_wherever_it_can_be(method: MethodConfig, fresh_optimizer: bool, tmp_path: Path) -> None:
    whole, resumed = (Trained(method, fresh_optimizer=fresh_optimizer) for _ in range(2))
    rows = whole.fit()
    for phase in range(1, 5):
        with pytest.raises(Interrupted, match=f"after epoch 1 of phase {phase}"):
            resumed.fit(checkpoint=tmp_path / "state.pt", stop=lambda: True)
    assert resumed.fit(checkpoint=tmp_path / "state.pt", stop=lambda: True) == rows
    assert_same(whole.model, resumed.model)


def test_a_stop_needs_somewhere_to_go_on_from() -> None:
    with pytest.raises(SettingError, match="stop is given and checkpoint is None"):
        Trained(MethodConfig("plain"), fresh_optimizer=True).fit(stop=lambda: True)


def test_no_units_are_left_when_the_only_layer_feeds_a_frozen_head(tmp_path: Path) -> None:
    images = data()
    stream = make_stream(images.train_labels, 3, ContinualConfig(phases=3, epochs=2), seed=0)
    method = MethodConfig("redo+continual_backprop+plasticity_injection", **SETTINGS)
    model = make_model(ModelConfig("mlp", hidden=(8,)), shape=images.shape, num_classes=3, seed=0)
    with pytest.warns(SettingWarning, match="no hidden units of Network can be recycled any more .*frozen"):
        rows = fit(model, images, stream, method=method, training=TrainingConfig(batch_size=8))
    assert len(rows) == 6
