"""Regression, losses, measures and streams of a user's own in the studies."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ht_ray.errors import SettingError
from ht_ray.vision import (
    ContinualConfig,
    DataConfig,
    ModelConfig,
    TrainingConfig,
    fit,
    hold_out,
    load_data,
    make_model,
    make_stream,
    stream_config,
)
from tune_configs import command_line, continual, prepare
from tune_configs.continual import ContinualSettings
from tune_configs.packs import packed
from tune_configs.vision_trial import VisionPack, VisionTrial

MODULE = """
import torch
from ht_ray.vision import ContinualConfig, Phase, Stream, StreamConfig
from torch.nn import functional

def load():
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    return x, 1e4 + 1e3 * (x @ torch.tensor([1.0, -2.0, 0.5, 0.0]))
def load_classes(): return load()[0], torch.arange(120) % 3
def load_nan(): return load()[0], load()[1].where(load()[1] > 0, float("nan"))[:1].expand(120) * float("nan")
def load_constant(): return load()[0], torch.ones(120)
def load_text(): return load()[0].numpy(), ["a"] * 120

def absolute(outputs, labels): return (outputs[:, 0] - labels).abs().mean()
def mse(outputs, labels): return functional.mse_loss(outputs[:, 0], labels)
def negative(outputs, labels): return -(outputs[:, 0] - labels).abs().mean()
def top(outputs, labels): return (outputs.argmax(1) == labels).double().mean()
def r2(outputs, labels): return 0.0
def each(outputs, labels): return (outputs[:, 0] - labels).abs()
def without_gradient(outputs, labels): return absolute(outputs.detach(), labels)
def infinite(outputs, labels): return outputs.sum() / 0
def fails(outputs, labels): raise RuntimeError("no such luck")
def one_argument(outputs): return outputs.mean()
def text(outputs, labels): return "good"
number = 3

def phases(labels, num_classes, seed):
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return [Phase(k, 2, part, labels[part], 0.0, len(part)) for k, part in enumerate(order.chunk(3))]
class Halves(ContinualConfig):
    def make(self, labels, num_classes, *, seed):
        return Stream("halves", tuple(phases(labels, num_classes, seed)))
def no_phases(labels, num_classes, seed): return []
def no_stream(labels, num_classes, seed): return 3
def stream_fails(labels, num_classes, seed): raise ValueError("no tasks today")
def other_arguments(labels): return []
def _one(true, **given):
    values = {"index": 0, "epochs": 1, "indices": torch.arange(9), "labels": true[:9], "noise": 0.0, "new": 9}
    return [Phase(**{**values, **given})]
def far(labels, num_classes, seed): return _one(labels, indices=torch.arange(9) + 10**6)
def few(labels, num_classes, seed): return _one(labels, labels=labels[:4])
def wrong_class(labels, num_classes, seed): return _one(labels, labels=torch.full((9,), 77))
def no_epochs(labels, num_classes, seed): return _one(labels, epochs=0)
def wrong_index(labels, num_classes, seed): return _one(labels, index=4)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a module, where the command is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("own_tasks", None)
    Path("own_tasks.py").write_text(MODULE)
    return tmp_path


REGRESSION = "--data own_tasks:load --task regression"
REFUSED = {
    "numbers as classes": ("--data own_tasks:load", "Numbers are predicted with --task = 'regression'"),
    "NaN targets": ("--data own_tasks:load_nan --task regression", "the label of sample 0 is nan"),
    "constant targets": ("--data own_tasks:load_constant --task regression", "there is nothing to predict"),
    "text targets": ("--data own_tasks:load_text --task regression", "its labels are text"),
    "digits": ("--data digits --task regression", "--task = 'regression': it has no meaning for"),
    "a task": ("--task regresion", "Did you mean 'regression'?"),
    "classes": (f"{REGRESSION} --stream shuffled_classes", "--task = 'regression': --stream = 'shuffled_classes'"),
    "noise of another class": (f"{REGRESSION} --noise-rule other", "accepted for a regression is 'uniform'"),
    "no loss": (f"{REGRESSION} --loss own_tasks:mean", "has no mean."),
    "no path": (f"{REGRESSION} --loss mse", "--loss = 'mse': accepted is a function of yours"),
    "no function": (f"{REGRESSION} --loss own_tasks:number", "accepted is a function of outputs and labels"),
    "a loss of each": (f"{REGRESSION} --loss own_tasks:each", "it returned a tensor (10,)"),
    "no gradient": (f"{REGRESSION} --loss own_tasks:without_gradient", "no gradient flows"),
    "an infinite loss": (f"{REGRESSION} --loss own_tasks:infinite", "accepted is finite"),
    "a loss that fails": (f"{REGRESSION} --loss own_tasks:fails", "RuntimeError: no such luck"),
    "other arguments": (f"{REGRESSION} --loss own_tasks:one_argument", "TypeError"),
    "a measure in words": (f"{REGRESSION} --measure own_tasks:text", "accepted is one number"),
    "a measure's name": (f"{REGRESSION} --measure own_tasks:r2", "what another measure is called"),
    "no stream": ("--stream own_tasks:phasess", "Did you mean 'phases'?"),
    "no stream's module": ("--stream own_task:phases", "there is no module"),
    "no stream's function": ("--stream own_tasks:number", "accepted is a function of labels, num_classes and seed"),
    "a stream's arguments": ("--stream own_tasks:other_arguments", "it is called with labels, num_classes and seed"),
    "no phases": ("--stream own_tasks:no_phases", "it returned no phases"),
    "something else": ("--stream own_tasks:no_stream", "it returned int; accepted is a Stream"),
    "a stream that fails": ("--stream own_tasks:stream_fails", "ValueError: no tasks today"),
    "far indices": ("--stream own_tasks:far", "phase 1: an index is 1000008"),
    "few labels": ("--stream own_tasks:few", "it has (4,) labels for 9 indices"),
    "wrong classes": ("--stream own_tasks:wrong_class", "77; accepted are int64, 0 to 2"),
    "no epochs": ("--stream own_tasks:no_epochs", "its epochs are 0"),
    "a wrong index": ("--stream own_tasks:wrong_index", "its index is 4; accepted is 0"),
    "turned tables": ("--stream drifting", "--drift = 'rotate': the data are a table, not images"),
    "a setting of others": ("--stream own_tasks:phases --phases 3", "--phases = 3: it has no meaning"),
    "data for bits": ("--stream bit_flipping --data own_tasks:load", "which makes its own data"),
    "validation of bits": ("--stream bit_flipping --data digits --validation 0.1", "which makes its own data"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "run_study", lambda *_, **__: pytest.fail("Ray would have been started"))
    flags, said = REFUSED[case]
    given = [] if "--data" in flags else ["--data", "own_tasks:load_classes"]
    code = continual.main([*given, "--methods", "plain", "--results-dir", "out", *flags.split()])
    error = capsys.readouterr().err
    assert code == 2, error
    (line,) = [line for line in error.splitlines() if "error: " in line]
    assert said in line
    assert not Path("out").exists()


def settings_of(**given: Any) -> ContinualSettings:
    values: dict[str, Any] = {"methods": ("plain",), "access": ("full",), "phases": 2, "epochs": 2, "batch_size": 16}
    return ContinualSettings(**{**values, **given}).resolved()


def trained(settings: ContinualSettings, data: Any) -> list[Any]:
    (config,) = {trial.id: trial.config for trial in continual.trials(settings)}.values()
    trial, reports = VisionTrial(json.loads(json.dumps(config)), data), []
    while not reports or reports[-1].progress < 1:
        reports.append(trial.advance())
    return reports


def test_a_regression_is_normalised_trained_and_measured_by_r2(folder: Path) -> None:
    data = load_data(DataConfig("own_tasks:load", task="regression"))
    assert data.is_regression and data.num_classes == 1 and "a regression" in repr(data)
    assert abs(float(data.train_labels.mean())) < 1e-6
    assert float(data.train_labels.std(correction=0)) == pytest.approx(1, abs=1e-5)
    training, validation = hold_out(data, 0.25)
    assert len(training.val_labels) == len(validation.test_labels) == 24  # type: ignore[arg-type]
    settings = settings_of(
        data="own_tasks:load", task="regression", noise="none", learning_rate=0.02, epochs=30, validation=0.25, seeds=1
    )
    assert settings.metric == "average_val_r2"
    *_, last = trained(settings, training.to_arrays())
    assert last.summary["final_r2"] > 0.8 and last.summary["final_val_r2"] > 0.8
    assert {"train_r2", "test_r2", "val_r2"} <= last.curves["epoch"][0].keys()
    assert not any("accuracy" in name for name in [*last.summary, *last.curves["epoch"][0]])


def test_noise_redraws_targets_from_the_targets(folder: Path) -> None:
    labels = load_data(DataConfig("own_tasks:load", task="regression")).train_labels
    stream = make_stream(labels, 1, ContinualConfig(phases=2, epochs=1, noise="0.5"), seed=0)
    phase = stream[0]
    changed = phase.labels != labels[phase.indices]
    assert 0 < int(changed.sum()) <= len(phase) // 2
    assert set(phase.labels.tolist()) <= set(labels.tolist())


def test_a_loss_and_a_measure_of_ones_own_are_what_is_trained_and_reported(folder: Path) -> None:
    data = load_data(DataConfig("own_tasks:load", task="regression"))
    stream = make_stream(data.train_labels, 1, ContinualConfig(phases=1, epochs=3, noise="none"), seed=0)

    def rows(**given: Any) -> tuple[list[dict[str, float]], torch.nn.Module]:
        model = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=1, seed=0)
        return fit(model, data, stream, training=TrainingConfig(batch_size=16, **given)), model

    usual, _ = rows()
    same, _ = rows(loss="own_tasks:mse")
    assert [row["train_loss"] for row in same] == [row["train_loss"] for row in usual]
    # R2 of the outputs themselves, as no loss tells it.
    assert same[-1]["test_accuracy"] == pytest.approx(usual[-1]["test_accuracy"], abs=1e-6)
    other, model = rows(loss="own_tasks:absolute", measure="own_tasks:negative")
    with torch.no_grad():
        mean, std = torch.tensor(data.mean), torch.tensor(data.std)
        outputs = model.eval()((data.test_images - mean) / std)[:, 0]
    assert other[-1]["test_loss"] == pytest.approx(float((outputs - data.test_labels).abs().mean()), abs=1e-6)
    assert other[-1]["test_accuracy"] == pytest.approx(-other[-1]["test_loss"], abs=1e-6)
    assert other[-1]["train_loss"] != usual[-1]["train_loss"]


def test_a_measure_of_ones_own_of_classes_names_the_columns(folder: Path) -> None:
    settings = settings_of(data="own_tasks:load_classes", measure="own_tasks:top", seeds=1)
    data = load_data(settings.data_config())
    assert settings.metric == "average_top"
    *_, own = trained(settings, data.to_arrays())
    stream = make_stream(data.train_labels, 3, ContinualConfig(phases=2, epochs=2), seed=0)
    model = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=3, seed=0)
    *_, usual = fit(model, data, stream, training=TrainingConfig(batch_size=16))
    assert own.summary["final_top"] == pytest.approx(usual["test_accuracy"])
    assert own.summary["final_train_top"] == pytest.approx(usual["train_accuracy"])


def test_bit_flipping_is_a_study_also_in_packs_of_one_seed() -> None:
    settings = settings_of(
        stream="bit_flipping",
        tasks=2,
        task_samples=60,
        methods=("plain", "l2"),
        seeds=2,
        phases=10,
        epochs=20,
        eps=1e-3,  # a smaller one makes steps of gradients that are rounding alone
    )
    assert settings.data == "bit_flipping" and settings.metric == "average_r2"
    planned = continual.trials(settings)
    prepared = prepare.prepare_vision(settings, planned)
    assert prepared.shared is None
    grouped, said = packed(settings, planned, shape=(1, 1, 21), num_classes=1)
    assert said == [] and [spec.pack for spec in grouped] == ["pack1", "pack2"] * 2
    alone = VisionTrial(planned[0].config, None)
    pack = VisionPack({spec.id: spec.config for spec in grouped if spec.pack == "pack1"}, None)
    for _ in range(2):
        one, together = alone.advance(), pack.advance()[planned[0].id]
        assert together.summary == pytest.approx(one.summary, abs=1e-3)  # type: ignore[union-attr]
    assert "plasticity_slope" in one.summary


def test_a_stream_of_ones_own_is_trained_and_refused_when_it_has_changed(folder: Path) -> None:
    settings = settings_of(
        data="own_tasks:load",
        task="regression",
        stream="own_tasks:phases",
        seeds=1,
        phases=10,
        epochs=20,
    )
    planned = continual.trials(settings)
    assert planned[0].id == "own_tasks_phases-plain-seed0"
    prepared = prepare.prepare_vision(settings, planned)
    assert [text.partition(" ")[0] for text in prepared.recorded["versions"]] == ["stream", "data"]
    reports = trained(settings, prepared.shared)
    assert [report.curves["phase"][0]["phase"] for report in reports] == [1, 2, 3]
    named = settings_of(
        data="own_tasks:load", task="regression", stream="own_tasks:Halves", phases=10, epochs=20, seeds=1
    )
    assert trained(named, prepared.shared)[-1].summary == reports[-1].summary
    saved = type(settings).from_json(json.loads(json.dumps({**vars(settings), **prepared.recorded})))
    prepare.prepare_vision(saved, planned)
    Path("own_tasks.py").write_text(MODULE + "# changed\n")
    with pytest.raises(SettingError, match="not what it was when the study began"):
        prepare.prepare_vision(saved, planned)


@pytest.mark.parametrize(
    ("given", "interval"),
    [
        ({"stream": "permuted"}, 1),
        ({"stream": "permuted", "reset_interval": 5}, 5),
        ({"stream": "permuted", "reset_unit": "steps"}, 5),
        ({"stream": "random_labels"}, 5),
        ({}, 5),
    ],
)
def test_an_interval_that_is_not_given_fits_the_tasks(given: dict[str, Any], interval: int) -> None:
    (trial,) = continual.trials(settings_of(methods=("hare_tortoise",), seeds=1, phases=10, epochs=20, **given))
    assert trial.settings["reset_interval"] == interval


def test_a_table_of_targets_is_read_with_its_split(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"a": np.arange(20.0), "price": np.arange(20) * 10.0, "split": ["train"] * 15 + ["test"] * 5}
    parquet.write_table(pyarrow.table(columns), "t.parquet")
    data = load_data(DataConfig("t.parquet", label="price", task="regression"))
    center, scale = 70.0, float(np.std(np.arange(15) * 10.0))
    assert torch.allclose(data.test_labels, (torch.arange(15, 20) * 10.0 - center) / scale)


def test_features_of_a_table_are_permuted_alike_in_training_and_tests(folder: Path) -> None:
    data = load_data(DataConfig("own_tasks:load", task="regression"))
    stream = make_stream(data.train_labels, 1, stream_config("permuted", tasks=2, task_epochs=40), seed=0)
    model = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=1, seed=0)
    rows = fit(model, data, stream, training=TrainingConfig(batch_size=16, learning_rate=0.01))
    assert [row["test_accuracy"] > 0.5 for row in rows if row["epoch"] == 40] == [True, True]
