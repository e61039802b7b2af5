"""A validation part, and tables in place of images, in every host that trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ht_ray.errors import Interrupted, SettingError
from ht_ray.vision import (
    ContinualConfig,
    DataConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    Normalise,
    Pack,
    TrainingConfig,
    TrainingRun,
    fit,
    hold_out,
    load_data,
    make_model,
    make_stream,
    summarise,
)

TRAINING = TrainingConfig(batch_size=32)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(DataConfig("digits", train_limit=300, test_limit=60))


@pytest.fixture(scope="module")
def table() -> ImageData:
    """Six features of three classes, of very different sizes, one of them constant."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(240) % 3
    features = torch.randn(240, 6, generator=draw) + labels.unsqueeze(1)
    features = features * torch.tensor([1e-3, 1.0, 1e3, 1.0, 1.0, 0.0]) + 5
    mean, std = features[:180].mean(0), features[:180].std(0, correction=0)
    std[5] = 1.0
    return ImageData(
        "table", features[:180], labels[:180], features[180:], labels[180:], tuple("abc"),
        tuple(mean.tolist()), tuple(std.tolist()),
    )  # fmt: skip


def trained(data: ImageData, stream_of: ImageData | None = None) -> list[dict[str, float]]:
    labels = (stream_of or data).train_labels
    stream = make_stream(labels, data.num_classes, ContinualConfig(phases=2, epochs=2), seed=0)
    model = make_model(ModelConfig(), shape=data.shape, num_classes=data.num_classes, seed=0)
    return fit(model, data, stream, training=TRAINING)


def test_the_parts_are_disjoint_whole_and_in_proportion() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    data = ImageData("x", images, labels, images[:1], labels[:1], tuple("abc"), (0.5,), (0.5,))
    training, validation = hold_out(data, 0.2, seed=3)
    assert training.val_images is not None and training.val_labels is not None
    assert sorted(torch.cat([training.train_images, training.val_images]).flatten().tolist()) == list(range(100))
    assert torch.bincount(training.val_labels).tolist() == [10, 6, 4]
    assert torch.equal(validation.test_images, training.val_images)
    assert torch.equal(validation.train_images, training.train_images)
    assert torch.equal(training.test_images, data.test_images)
    assert training.mean[0] == pytest.approx(float(training.train_images.double().mean()) / 255)
    for index, label in ((training.train_images, training.train_labels), (training.val_images, training.val_labels)):
        assert torch.equal(labels[index.flatten().long()], label)
    assert torch.equal(hold_out(data, 0.2, seed=3)[0].val_images, training.val_images)  # type: ignore[arg-type]
    assert not torch.equal(hold_out(data, 0.2, seed=4)[0].val_images, training.val_images)  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [0, -0.1, 0.6, 0.001, "0.1", float("nan")])
def test_a_fraction_that_cannot_be_held_out(digits: ImageData, fraction: Any) -> None:
    with pytest.raises(SettingError, match="fraction"):
        hold_out(digits, fraction)


def test_what_cannot_be_held_out_of(digits: ImageData) -> None:
    held, _ = hold_out(digits, 0.1)
    with pytest.raises(SettingError, match="without a validation part"):
        hold_out(held, 0.1)
    single = replace(digits, train_images=digits.train_images[:4], train_labels=torch.tensor([0, 1, 2, 3]))
    with pytest.raises(SettingError, match="no sample left to train on"):
        hold_out(single, 0.5)


def test_training_does_not_notice_the_validation_part(digits: ImageData) -> None:
    training, validation = hold_out(digits, 0.1)
    without = trained(replace(training, val_images=None, val_labels=None))
    tested_on_it = trained(validation)
    rows = trained(training)
    assert [{name: row[name] for name in without[0]} for row in rows] == without
    assert [row["val_accuracy"] for row in rows] == [row["test_accuracy"] for row in tested_on_it]
    assert [row["val_loss"] for row in rows] == [row["test_loss"] for row in tested_on_it]
    summary, of_test, of_val = summarise(rows), summarise(without), summarise(tested_on_it)
    assert summary == of_test | {
        name.replace("accuracy", "val_accuracy"): value for name, value in of_val.items() if "train" not in name
    }


@pytest.mark.parametrize("kind", ["digits", "table"])
def test_packs_measure_the_validation_part(kind: str, request: pytest.FixtureRequest) -> None:
    training, validation = hold_out(request.getfixturevalue(kind), 0.1)

    def rows(data: ImageData) -> list[dict[str, float]]:
        runs = []
        for seed in range(2):
            stream = make_stream(data.train_labels, data.num_classes, ContinualConfig(phases=2, epochs=2), seed=seed)
            model = make_model(ModelConfig(), shape=data.shape, num_classes=data.num_classes, seed=seed)
            runs.append(TrainingRun(model, data, stream, training=TRAINING, seed=seed))
        pack = Pack(runs)
        while pack.runs:
            pack.train_phase()
        return runs[0].rows

    packed, alone = rows(training), trained(training)
    assert [row["val_accuracy"] for row in packed] == [row["test_accuracy"] for row in rows(validation)]
    assert [row["train_loss"] for row in packed] == pytest.approx([row["train_loss"] for row in alone], rel=1e-3)


@pytest.mark.parametrize("kind", ["digits", "table"])
def test_the_strategy_measures_what_the_plain_loop_measures(kind: str, request: pytest.FixtureRequest) -> None:
    from strategies import make_strategy, stream_benchmark

    data, _ = hold_out(request.getfixturevalue(kind), 0.1)
    stream = make_stream(data.train_labels, data.num_classes, ContinualConfig(phases=2, epochs=2), seed=0)
    model = make_model(ModelConfig(), shape=data.shape, num_classes=data.num_classes, seed=0)
    strategy = make_strategy(model, data, training=TRAINING, epochs=2)
    for experience in stream_benchmark(data, stream).train_stream:
        strategy.train(experience, eval_streams=[])
    assert strategy.measured == trained(data)
    assert "val_accuracy" in strategy.measured[0]


def test_a_table_is_learned_whatever_the_sizes_of_its_features(table: ImageData) -> None:
    assert table.shape == (6,) and table.is_table
    normalised = Normalise(table.mean, table.std, table=True)(table.train_images)
    assert torch.allclose(normalised.mean(0), torch.zeros(6), atol=2e-3)
    assert torch.allclose(normalised.std(0, correction=0)[:5], torch.ones(5), atol=1e-3)
    rows = trained(table)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]


@pytest.mark.parametrize(("field", "value"), [("augment", "crop"), ("channels_last", True)])
def test_a_table_is_not_trained_on_as_images_are(table: ImageData, field: str, value: Any) -> None:
    stream = make_stream(table.train_labels, 3, ContinualConfig(phases=2, epochs=1), seed=0)
    model = make_model(ModelConfig(), shape=table.shape, num_classes=3, seed=0)
    with pytest.raises(SettingError, match=f"{field}.*are a table"):
        fit(model, table, stream, training=replace(TRAINING, **{field: value}))


def test_a_network_for_images_is_not_made_for_a_table(table: ImageData) -> None:
    with pytest.raises(SettingError, match="it takes images"):
        make_model(ModelConfig("resnet18"), shape=table.shape, num_classes=3, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_feature_that_is_no_number(table: ImageData, value: float) -> None:
    features: Tensor = table.train_images.clone()
    features[7, 2] = value
    with pytest.raises(SettingError, match="feature 2 of sample 7"):
        replace(table, train_images=features)


SEVERAL = MethodConfig("hare_tortoise", tortoise_momenta=(0.999, 0.9, 0.5), reset_interval=1)


def made(data: ImageData) -> tuple[torch.nn.Module, Any]:
    stream = make_stream(data.train_labels, data.num_classes, ContinualConfig(phases=2, epochs=3), seed=0)
    return make_model(ModelConfig(), shape=data.shape, num_classes=data.num_classes, seed=0), stream


def test_the_tortoise_that_validates_best_predicts(digits: ImageData) -> None:
    data, _ = hold_out(digits, 0.1)
    model, stream = made(data)
    methods = SEVERAL.build(model)
    chosen: list[int] = []
    rows = fit(
        model,
        data,
        stream,
        method=methods,
        training=TRAINING,
        on_epoch=lambda row: chosen.append(methods.tortoise.chosen),
    )
    assert 0 not in chosen  # with a half-life of many epochs
    # As chosen by hand at the end: none is better on validation data.
    run = TrainingRun(model, data, stream, training=TRAINING)
    run.begin_phase()
    tested = []
    for copied in methods.tortoise.copies:
        copied.copy_to(model)
        tested.append(run.evaluate()[1])
    assert rows[-1]["val_accuracy"] == max(one.accuracy for one in tested) == tested[chosen[-1]].accuracy
    assert rows[-1]["val_loss"] == tested[chosen[-1]].loss


def test_several_tortoises_go_on_and_are_the_strategys(digits: ImageData, tmp_path: Path) -> None:
    from strategies import make_strategy, stream_benchmark

    data, _ = hold_out(digits, 0.1)
    model, stream = made(data)
    whole = fit(model, data, stream, method=SEVERAL, training=TRAINING)
    again, _ = made(data)
    for _ in range(4):
        with pytest.raises(Interrupted):
            fit(again, data, stream, method=SEVERAL, training=TRAINING, checkpoint=tmp_path / "x.pt", stop=lambda: True)
        again, _ = made(data)
    # Each call trains an epoch at least, and a whole phase's last without asking.
    rows = fit(again, data, stream, method=SEVERAL, training=TRAINING, checkpoint=tmp_path / "x.pt")
    assert rows == whole
    model, _ = made(data)
    strategy = make_strategy(model, data, method=SEVERAL, training=TRAINING, epochs=3)
    for experience in stream_benchmark(data, stream).train_stream:
        strategy.train(experience, eval_streams=[])
    assert strategy.measured == whole


def test_several_tortoises_without_validation_data_or_in_a_pack(digits: ImageData) -> None:
    from strategies import make_strategy, stream_benchmark

    model, stream = made(digits)
    with pytest.raises(SettingError, match="validation data, and there is none"):
        fit(model, digits, stream, method=SEVERAL, training=TRAINING)
    strategy = make_strategy(made(digits)[0], digits, method=SEVERAL, training=TRAINING, epochs=3)
    with pytest.raises(SettingError, match="validation data, and there is none"):
        strategy.train(stream_benchmark(digits, stream).train_stream[0], eval_streams=[])
    data, _ = hold_out(digits, 0.1)
    with pytest.raises(SettingError, match="several tortoises are validated one after the other"):
        Pack([TrainingRun(made(data)[0], data, stream, method=SEVERAL, training=TRAINING)])
