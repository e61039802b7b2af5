"""With every method, a run that is killed and continued ends as one that is not, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ht_ray.diagnostics import IndicatorConfig
from ht_ray.mechanisms import SettingWarning
from ht_ray.vision import (
    METHODS,
    ContinualConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    Network,
    Row,
    TrainingConfig,
    fit,
    make_model,
    make_stream,
)

SETTINGS = {
    "momentum": 0.8,
    "reset_interval": 2,
    "noise": 0.01,
    "redo_threshold": 0.7,
    "redo_interval": 1,
    "cbp_replacement_rate": 0.1,
    "cbp_maturity": 2,
    "optimizer_reset_interval": 3,
    "optimizer_reset_unit": "steps",
}
EVERYTHING = "+".join(name for name in METHODS if name not in ("plain", "ema", "layer_norm"))


class Killed(Exception):
    pass


def data() -> ImageData:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (48,), generator=draw)
    images = torch.randint(0, 256, (48, 1, 6, 6), dtype=torch.uint8, generator=draw)
    return ImageData("random", images, labels, images[:20], labels[:20], ("a", "b", "c"), (0.5,), (0.25,))


@pytest.mark.parametrize("fresh_optimizer", [True, False], ids=["fresh", "kept"])
@pytest.mark.parametrize(
    "method",
    [
        *(MethodConfig(name, **SETTINGS) for name in METHODS),
        MethodConfig("plasticity_injection", injection_times=None),
        MethodConfig("plasticity_injection+head_reset", injection_times=None, toward="fresh"),
        MethodConfig("regenerative", regenerative_toward="fresh"),
        MethodConfig("shrink_perturb", ratio=0.6, perturb=0.1),
        MethodConfig(EVERYTHING, injection_times=None, **SETTINGS),
    ],
    ids=lambda method: method.name if len(method.parts) < 3 else "everything",
)
def test_killed_in_the_third_phase(method: MethodConfig, fresh_optimizer: bool, tmp_path: Path) -> None:
    images = data()
    stream = make_stream(images.train_labels, 3, ContinualConfig(phases=4, epochs=2), seed=0)
    training = TrainingConfig(batch_size=8, learning_rate=0.01, fresh_optimizer=fresh_optimizer)

    def new_model() -> Network:
        config = method.model(ModelConfig("mlp", hidden=(8, 6), dropout=0.2))
        return make_model(config, shape=images.shape, num_classes=3, seed=0)

    def train(model: Network, checkpoint: Path | None, kill: bool = False) -> list[Row]:
        def note(row: Row) -> None:
            if kill and row["phase"] == 3:
                raise Killed

        return fit(
            model,
            images,
            stream,
            method=method,
            training=training,
            indicators=IndicatorConfig(every=1, names=("weights", "units")),
            checkpoint=checkpoint,
            on_epoch=note,
        )

    whole, resumed = new_model(), new_model()
    rows = train(whole, None)
    with pytest.raises(Killed):
        train(new_model(), tmp_path / "state.pt", kill=True)
    torch.manual_seed(99)  # the global generators of another process
    assert train(resumed, tmp_path / "state.pt") == rows
    left, right = whole.state_dict(), resumed.state_dict()
    assert left.keys() == right.keys()
    assert [name for name, value in left.items() if not torch.equal(value, right[name])] == []


def test_no_units_are_left_when_the_only_layer_feeds_a_frozen_head(tmp_path: Path) -> None:
    images = data()
    stream = make_stream(images.train_labels, 3, ContinualConfig(phases=3, epochs=2), seed=0)
    method = MethodConfig("redo+continual_backprop+plasticity_injection", **SETTINGS)
    model = make_model(ModelConfig("mlp", hidden=(8,)), shape=images.shape, num_classes=3, seed=0)
    with pytest.warns(SettingWarning, match="no hidden units of Network can be recycled any more .*frozen"):
        rows = fit(model, images, stream, method=method, training=TrainingConfig(batch_size=8))
    assert len(rows) == 6
