"""Avalanche benchmarks as streams of the studies: what is planned, trained, recorded and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ht_ray.errors import Interrupted, SettingError
from ht_ray.report import load_study
from ht_ray.vision import ModelConfig, TrainingConfig, fit, make_model
from tune_configs import command_line, continual, prepare
from tune_configs.ablation import AblationSettings
from tune_configs.continual import ContinualSettings
from tune_configs.packs import packed
from tune_configs.study import Study
from tune_configs.vision_trial import VisionTrial, data_of, stream_of

MODULE = """
import torch
from avalanche.benchmarks import nc_benchmark
from torchvision.transforms import Compose, Normalize, RandomCrop

class Set(torch.utils.data.Dataset):
    def __init__(self, count, seed):
        self.targets = (torch.arange(count) % 6).tolist()
        patterns = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        noise = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) / 4
        self.images = ((patterns[self.targets] * 0.75 + noise) * 255).to(torch.uint8)
    def __len__(self): return len(self.images)
    def __getitem__(self, item): return self.images[item].float() / 255, self.targets[item]

def split(n_experiences, seed=None, crop=False, class_ids_from_zero_from_first_exp=False):
    normal = Normalize((0.4,), (0.3,))
    train = Compose([RandomCrop(4, padding=1), normal]) if crop else normal
    return nc_benchmark(Set(72, 1), Set(36, 2), n_experiences, task_labels=False, seed=seed, train_transform=train,
        eval_transform=normal, class_ids_from_zero_from_first_exp=class_ids_from_zero_from_first_exp)
"""
STREAM = "avalanche:own_split:split"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_split.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "own_split", raising=False)
    return tmp_path


def settings_of(**given: Any) -> ContinualSettings:
    usual = {"stream": STREAM, "stream_args": ("n_experiences=3",), "methods": ("plain",), "seeds": 2, "batch_size": 8}
    return ContinualSettings(**{**usual, **given}).resolved()


def trained(config: dict[str, Any], shared: Any) -> list[Any]:
    trial, reports = VisionTrial(json.loads(json.dumps(config)), shared), []
    while not reports or reports[-1].progress < 1:
        reports.append(trial.advance())
    return reports


def test_a_benchmark_is_planned_trained_and_measured_as_the_plain_loop_does(folder: Path) -> None:
    numbered = "class_ids_from_zero_from_first_exp=true"
    settings = settings_of(
        methods=("plain", "hare_tortoise"), task_epochs=2, stream_args=("n_experiences=3", numbered), pack="4"
    )
    planned = continual.trials(settings)
    assert planned[0].id == "avalanche_own_split_split-plain-seed0" and settings.metric == "stream_accuracy"
    assert planned[-1].settings["reset_interval"] == 2 and settings.data == STREAM
    prepared = prepare.prepare_vision(settings, planned)
    grouped, said = packed(settings, planned, shape=(1, 4, 4), num_classes=6)
    assert {spec.pack for spec in grouped} == {None} and "its tasks have test sets of their own" in said[0]

    spec = planned[1]  # of seed 1: the benchmark's order of classes is another than that of the first seed
    data = data_of(spec.config, prepared.shared)
    stream = stream_of(spec.config, data.train_labels, 6, prepared.shared["streams"])
    other = stream_of(planned[0].config, data.train_labels, 6, prepared.shared["streams"])
    assert stream[0].indices.tolist() != other[0].indices.tolist()
    assert all((data.train_labels[phase.indices] == phase.labels).all() for phase in stream)
    reports = trained(spec.config, prepared.shared)
    model = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=6, seed=1)
    training = TrainingConfig(batch_size=8, weight_decay=1e-4, learning_rate=1e-3)
    rows = fit(model, data, stream, training=training, seed=1, accuracy_matrix=True)
    assert [report.curves["phase"][0] | {"step": 0} for report in reports] == [row | {"step": 0} for row in rows[1::2]]
    assert not any("_on_" in name for report in reports for row in report.curves["epoch"] for name in row)
    last = rows[-1]
    assert reports[-1].summary["stream_accuracy"] == last["test_stream_accuracy"]
    assert reports[-1].summary["task_forgetting"] == pytest.approx(
        np.mean([rows[2 * k + 1][f"test_accuracy_on_{k + 1}"] - last[f"test_accuracy_on_{k + 1}"] for k in (0, 1)])
    )


def test_a_trial_that_is_stopped_within_the_first_experience_ends_as_one_that_is_not(folder: Path) -> None:
    settings = settings_of(task_epochs=2, seeds=1)
    (spec,) = continual.trials(settings)
    shared = prepare.prepare_vision(settings, (spec,)).shared
    whole = trained(spec.config, shared)
    first = VisionTrial(spec.config, shared)
    first.interrupt()
    with pytest.raises(Interrupted):
        first.advance()
    first.save(folder)
    second = VisionTrial(spec.config, shared)
    second.load(folder)
    rest = [second.advance() for _ in range(3)]
    assert [report.summary for report in rest] == [report.summary for report in whole]
    assert [report.curves["phase"] for report in rest] == [report.curves["phase"] for report in whole]


def test_versions_of_avalanche_and_of_the_benchmark_are_recorded_and_held_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(seeds=1)
    planned = continual.trials(settings)
    recorded = prepare.prepare_vision(settings, planned).recorded
    assert recorded["versions"][0].startswith("stream avalanche-lib ") and len(recorded["versions"]) == 1
    saved = type(settings).from_json(json.loads(json.dumps({**vars(settings), **recorded})))
    prepare.prepare_vision(saved, planned)
    other = settings_of(seeds=1, stream_args=("n_experiences=2",))
    with pytest.raises(SettingError, match=r"the study that is resumed has .*n_experiences=3"):
        command_line.check_same(saved, other)
    monkeypatch.setattr(prepare, "version", lambda name: "99.0")
    with pytest.raises(SettingError, match="it is not what it was when the study began"):
        prepare.prepare_vision(saved, planned)


def test_training_transforms_that_are_left_out_are_told_unless_the_study_has_the_same(folder: Path) -> None:
    for augment, told in {"none": 1, "crop": 0}.items():
        settings = settings_of(seeds=1, augment=augment, stream_args=("n_experiences=2", "crop=true"))
        said = prepare.prepare_vision(settings, continual.trials(settings)).warnings
        assert sum("RandomCrop" in text and f"--augment {augment} is in" in text for text in said) == told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": "mnist"}, "data = 'mnist': it has no meaning for .*, which makes its own data"),
        ({"train_limit": 10}, "train_limit = 10: it has no meaning"),
        ({"validation": 0.1}, "validation = 0.1: it has no meaning"),
        ({"phases": 3}, "phases = 3: it has no meaning"),
        ({"tasks": 3}, "tasks = 3: it has no meaning"),
        ({"task": "regression"}, "it has no meaning"),
        ({"task_epochs": 0}, "accepted is a whole number with 1 <= task_epochs"),
        ({"stream_args": ("n_experiences",)}, "accepted is name=value"),
        ({"stream_args": ("seed=1", "seed=2")}, "'seed=2': seed is given twice|'seed=2': 'seed' is given twice"),
        ({"stream": "avalanche:"}, "accepted is avalanche:NAME"),
        ({"stream": "permuted"}, "stream_args = .*only for benchmarks"),
        ({"stream": "permuted", "stream_args": (), "data": "digits", "settings": "published"}, "none are known"),
    ],
)
def test_settings_that_do_not_go_with_a_benchmark_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        settings_of(**given)


def test_a_command_line_refuses_before_ray_starts_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stream, args, text in [
        ("avalanche:SplitMINST", [], "Did you mean 'SplitMNIST'?"),
        (STREAM, ["--stream-args", "n_experience=3"], "Did you mean 'n_experiences'?"),
        (STREAM, ["--data-root", str(folder / "nowhere")], "--data-root"),
        ("avalanche:SplitMNIST", ["--data-root", str(folder), "--no-download"], "holds no 'mnist'"),
    ]:
        assert continual.main(["--stream", stream, *args]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1 and error.startswith("continual.py: error: --")


def test_studies_in_python_and_ablations_take_benchmarks() -> None:
    study = Study(stream="avalanche:SplitMNIST", stream_args={"n_experiences": 5, "fixed_class_order": [1, 0]}, seeds=1)
    assert study.settings.stream_args == ("n_experiences=5", "fixed_class_order=1/0")
    assert (study.settings.model, study.settings.batch_size) == ("mlp", 256)
    settings = AblationSettings(stream="avalanche:SplitCIFAR100").resolved()
    assert (settings.model, settings.augment, settings.metric) == ("vit_tiny", "crop_flip", "stream_accuracy")
    assert AblationSettings(stream="avalanche:SplitCUB200").resolved().model == "mlp"


def test_other_streams_of_tasks_have_a_matrix_if_they_are_asked_for_one() -> None:
    given = {"data": "digits", "train_limit": 60, "seeds": 1, "batch_size": 16, "stream_args": (), "pack": "2"}
    settings = settings_of(**given, stream="permuted", tasks=2, accuracy_matrix=True, methods=("plain", "l2"))
    planned = continual.trials(settings)
    prepared = prepare.prepare_vision(settings, planned)
    assert settings.metric == "average_accuracy"
    assert {spec.pack for spec in packed(settings, planned, shape=(1, 8, 8), num_classes=10)[0]} == {None}
    *_, last = trained(planned[0].config, prepared.shared)
    assert {"stream_accuracy", "task_forgetting", "forward_transfer", "average_accuracy"} <= last.summary.keys()
    plain = settings_of(**given, stream="continual", accuracy_matrix=True)
    with pytest.raises(SettingError, match="accepted are tasks with tests of their own"):
        prepare.prepare_vision(plain, continual.trials(plain))


@pytest.mark.slow
def test_a_study_of_a_benchmark_is_run_resumed_and_reported(
    folder: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--stream", STREAM, "--stream-args", "n_experiences=3", "--methods", "plain", "l2", "--seeds", "2"]
    flags += ["--address", cluster, "--batch-size", "8", "--results-dir", str(folder / "study")]
    assert continual.main(flags) == 0
    study = load_study(folder / "study")
    assert [trial.status for trial in study.trials] == ["finished"] * 4
    assert {"task_forgetting", "backward_transfer", "forward_transfer"} <= study.trials[0].summary.keys()
    assert (folder / "study" / "figures" / "accuracy_matrix.png").is_file()
    assert (folder / "study" / "transfer.csv").read_text().count("\n") == 3
    (folder / "own_split.py").write_text(MODULE + "# changed\n")
    assert continual.main(["--resume", str(folder / "study"), "--address", cluster]) == 2
    assert "it is not what it was when the study began" in capsys.readouterr().err
