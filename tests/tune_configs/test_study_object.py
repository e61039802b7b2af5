"""The studies as an object: the same study as from the command line, its results, and what it refuses."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from study_files import all_reports, table

from ht_ray import Results, Study
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.methods import METHODS
from ht_ray.sweep import StudyResult, SweepConfig
from ht_ray.vision import make_model
from tune_configs import ablation, command_line, continual, warm_start
from tune_configs import study as study_module
from tune_configs.ablation import AblationSettings
from tune_configs.continual import ContinualSettings
from tune_configs.warm_start import WarmStartSettings

SMALL = {"epochs": 2, "phases": 2, "train_limit": 200, "seeds": 2, "access": "full"}
FLAGS = ["--epochs", "2", "--phases", "2", "--train-limit", "200", "--seeds", "2", "--access", "full"]


def test_importing_the_package_imports_nothing_else() -> None:
    program = (
        "import sys, time; import ht_ray; assert time.process_time() < 0.3, time.process_time()\n"
        "heavy = {'torch', 'ray', 'numpy', 'tune_configs'} & set(sys.modules); assert not heavy, heavy\n"
        "from ht_ray import Study; assert Study.__name__ == 'Study' and 'ray' not in sys.modules\n"
        "def net(shape, num_classes): ...\n"
        "try: Study(model=net)\nexcept ValueError as error: print(error)\n"
        "try: ht_ray.Studdy\nexcept AttributeError: print('none')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # What the script itself defines cannot be imported by the workers.
    assert done.stdout.startswith("Study: model = net: it is defined in the script or notebook itself")
    assert done.stdout.endswith("none\n")


def test_keywords_are_the_flags() -> None:
    study = Study(methods=["plain", "redo"], data=Path("digits"), **SMALL, redo_threshold=0.1, pack=4, max_concurrent=1)
    settings = ContinualSettings(
        methods=("plain", "redo"),
        epochs=2,
        phases=2,
        train_limit=200,
        seeds=2,
        access=("full",),
        redo_threshold=0.1,
        pack="4",
    ).resolved()
    assert (study.settings, study.running.max_concurrent) == (settings, 1)
    assert study.trials == continual.trials(settings)
    assert (
        Study("ablation", search="random", samples=3).settings
        == AblationSettings(search="random", samples=3).resolved()
    )
    other = Study("warm_start", compare="methods", methods="fresh", seeds=1)
    assert other.settings == WarmStartSettings(compare="methods", methods=("fresh",), seeds=1).resolved()
    assert repr(study) == "<Study continual: 4 trials, data 'digits'>"


class Callback(tune.Callback):
    pass


def test_callbacks_are_objects_classes_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def run_study(study: Any, config: SweepConfig, *, callbacks: Any, **others: Any) -> StudyResult:
        given.append((study, config, callbacks))
        return StudyResult(str(tmp_path), 0, 0, 0, 1, True, 0.0)

    monkeypatch.setattr(command_line, "run_study", run_study)
    mine = Callback()
    study = Study(callbacks=[mine, "my_module:Mine", Callback], **SMALL, results_dir=str(tmp_path / "new"))
    assert study.running.callback == ("my_module:Mine",)
    monkeypatch.setattr("ht_ray.sweep.study.config.load_part", lambda *path: Callback)
    with pytest.raises(KeyboardInterrupt):
        study.run(quiet=True)
    (_, config, callbacks) = given.pop()
    assert (config.callback, callbacks) == (("my_module:Mine",), [mine, Callback])
    with pytest.raises(SettingError, match=r"Study: callbacks = 3: accepted is a class derived from ray\.tune"):
        Study(callbacks=[3])
    with pytest.raises(SettingError, match=r"Study: callback = 'mine': accepted is 'package\.module:name'"):
        Study(callbacks=["mine"])


@pytest.mark.parametrize(("pack", "packed", "told"), [("auto", False, True), ("2", True, False)])
def test_with_wandb_packs_are_made_where_they_are_asked_for(
    pack: str, packed: bool, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def run_study(study: Any, config: SweepConfig, **others: Any) -> StudyResult:
        given.append(study)
        return StudyResult(str(tmp_path), 0, 0, 0, 1, True, 0.0)

    monkeypatch.setattr(command_line, "run_study", run_study)
    monkeypatch.setattr("ht_ray.sweep.study.config._installed", lambda package: True)
    study = Study(methods="plain", wandb="mine", pack=pack, **SMALL, results_dir=str(tmp_path / "new"))
    with warnings.catch_warnings(record=True) as caught, pytest.raises(KeyboardInterrupt):
        warnings.simplefilter("always", SettingWarning)
        study.run(quiet=True)
    assert [trial.pack is not None for trial in given[0].trials] == [packed] * 2
    assert any("wandb: trials are trained alone" in str(warning.message) for warning in caught) == told


def test_a_grid_is_put_into_the_methods_that_have_its_settings() -> None:
    methods = ["plain", "hare_tortoise+l2:l2_strength=0.01", "adam", "l2"]
    grid = {"reset_interval": [1, 5], "l2_strength": [0.1], "adam_betas": [(0.9, 0.9), (0.9, 0.99)], "momentum": [0.9]}
    study = Study(methods=methods, grid=grid)
    assert study.settings.methods == (
        "plain",
        "hare_tortoise+l2:l2_strength=0.01,reset_interval=1,momentum=0.9",
        "hare_tortoise+l2:l2_strength=0.01,reset_interval=5,momentum=0.9",
        "adam:adam_betas=0.9/0.9",
        "adam:adam_betas=0.9/0.99",
        "l2:l2_strength=0.1",
    )
    assert {trial.config["method"]["l2_strength"] for trial in study.trials if "+l2" in trial.id} == {0.01}
    grid = {"momentum": [0.5, 0.9], "reset_interval": [2]}
    assert (found := Study("ablation", grid=grid).settings).momenta == (0.5, 0.9) and found.reset_intervals == (2,)
    found = Study(
        "warm_start", compare="methods", methods=["fresh", "redo"], grid={"redo_interval": [None, 2]}
    ).settings
    assert found.methods == ("fresh", "redo:redo_interval=none", "redo:redo_interval=2")


def test_objects_of_modules_are_passed_by_their_names() -> None:
    assert study_module._by_name("model", make_model) == f"{make_model.__module__}:make_model"
    study = Study(methods=[METHODS["redo"], "plain"], seeds=1, access="full")
    assert [trial.settings["method"] for trial in study.trials] == ["redo", "plain"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kind": "continuel"}, "Study: kind = 'continuel': accepted are .* Did you mean 'continual'"),
    ({"momentm": 0.9}, "Study: 'momentm' is no setting of a continual study. Did you mean 'momentum'"),
    ({"kind": "ablation", "methods": ["plain"]}, "Study: 'methods' is no setting of an ablation study"),
    ({"resume": "x"}, "Study.resume"),
    ({"momentum": 1.5}, "^Study: momentum = 1.5: accepted is a number with 0 <= momentum < 1"),
    ({"methods": ["plan"]}, "^Study: methods = 'plan': .*Did you mean 'plain'"),
    ({"methods": []}, "^Study: methods = .*at least one value"),
    ({"epochs": "many"}, "^Study: epochs = 'many': accepted is a whole number"),
    ({"epochs": 2.5}, "^Study: epochs = 2.5"),
    ({"data": "mnsit"}, "^Study: data = 'mnsit': .*Did you mean 'mnist'"),
    ({"gpus_per_trial": -1}, "^Study: gpus_per_trial = -1"),
    ({"address": ""}, "^Study: address = ''"),
    ({"results_dir": "a", "resume_or_start": "b"}, "Study: results_dir = 'a' and resume_or_start = 'b'"),
    ({"grid": {"momentum": 0.9}}, r"grid\['momentum'\] = 0.9: accepted is a list"),
    ({"grid": {"momentum": []}}, "accepted is a list"),
    ({"grid": {"momentm": [0.9]}}, r"grid\['momentm'\]: .*none of the methods.*Did you mean 'momentum'"),
    ({"grid": {"redo_interval": [1]}}, r"grid\['redo_interval'\]: it is a setting of none of the methods"),
    ({"kind": "ablation", "grid": {"redo_interval": [1]}}, "Study: grid = 'redo_interval': accepted are 'momentum'"),
    ({"grid": {"momentum": [0.9, 0.9]}}, "it is given twice"),
    ({"model": lambda shape, num_classes: None}, "Study: model = <function .*<lambda>.*by its name"),
    ({"model": functools.partial(make_model, seed=0)}, "by its name"),
    ({"buffer_size": 0}, "^Study: buffer_size = 0"),
]


@pytest.mark.parametrize(
    ("given", "said"), REFUSED, ids=[f"{next(iter(given))}-{number}" for number, (given, _) in enumerate(REFUSED)]
)
def test_what_cannot_work_is_refused_when_the_object_is_made(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Study(**given)


@pytest.fixture(scope="module")
def both(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    """A study by the object, and the same from the command line."""
    root = tmp_path_factory.mktemp("both")
    grid = {"momentum": [0.5], "reset_interval": [1, 2]}
    results = Study(methods=["plain", "hare_tortoise"], grid=grid, **SMALL, results_dir=root / "object").run()
    methods = ["plain", *(f"hare_tortoise:momentum=0.5,reset_interval={interval}" for interval in (1, 2))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ht_ray.report.write._figures", lambda part: {})  # which take most of the time
        assert continual.main(["--methods", *methods, *FLAGS, "--results-dir", str(root / "flags")]) == 0
    return results, root / "flags"


def test_the_object_trains_what_the_command_line_trains(both: tuple[Results, Path]) -> None:
    results, flags = both
    assert isinstance(results.directory, Path) and results.complete
    assert table(results.directory) == table(flags)
    assert all_reports(results.directory) == all_reports(flags)
    settings = [json.loads((path / "config.json").read_text())["settings"] for path in (results.directory, flags)]
    assert settings[0] == settings[1]


def test_what_a_result_has(both: tuple[Results, Path]) -> None:
    results = both[0]
    assert isinstance(results.directory, Path)
    frame = results.table()
    assert list(frame["label"]) == ["Plain", "Hare & Tortoise m=0.5 r=1", "Hare & Tortoise m=0.5 r=2"]
    trials = results.table("results")
    assert len(trials) == 6 and set(trials["status"]) == {"finished"}
    means = trials.groupby("label")["average_accuracy"].mean()
    assert frame.set_index("label")["average_accuracy_mean"].to_dict() == pytest.approx(means.to_dict())
    best = results.best(method="hare_tortoise")
    assert (best.chosen_on, best.of) == ("test", 2)
    assert best.test["average_accuracy"] == pytest.approx(max(v for k, v in means.items() if k != "Plain"))
    assert results.table("choice")["label"].tolist() == [best.label]
    assert all(Path(path).stat().st_size for path in results.figures) and "epoch_curves.png" in str(results.figures)
    assert list(Path(results.to_tensorboard()).rglob("events.out.*"))
    assert Path(results.report).read_text().startswith("<!DOCTYPE html>")
    assert Results(str(results.directory)) == results
    there = Results(results.directory.as_uri())
    assert there.directory == results.directory.as_uri() and there.best(method="hare_tortoise") == best
    assert there.table().equals(frame) and str(there.figures[0]).startswith("file:///")
    with pytest.raises(SettingError, match="Did you mean 'results'"):
        results.table("result")
    with pytest.raises(SettingError, match="there is no such directory"):
        Results(str(results.directory / "nowhere"))


def test_the_screen_is_one_table_and_five_lines(
    both: tuple[Results, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ht_ray.report.write._figures", lambda part: {})
    capsys.readouterr()
    Study.resume(both[1]).run()  # nothing is left to train
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines[-5:]] == ["report", "figures", "TensorBoard", "resume", "time"]
    assert lines[-2] == "resume       nothing is missing"
    assert lines[-1].endswith("trials: 6 finished")
    assert [line for line in lines if line.startswith("* best average accuracy, chosen on test data")]


def test_a_study_is_resumed_and_another_one_is_not_taken_for_it(both: tuple[Results, Path], tmp_path: Path) -> None:
    location = both[1]
    again = Study(methods=["plain"], **SMALL, resume_or_start=location)
    with pytest.raises(SettingError, match=r"Study: methods = .*: the study that is resumed has .* and keeps it"):
        again.run()
    with pytest.raises(SettingError, match="'momentum' is no setting of how a study is run"):
        Study.resume(location, momentum=0.9)
    with pytest.raises(SettingError, match="Did you mean 'max_concurrent'"):
        Study.resume(location, max_concurent=1)
    with pytest.raises(SettingError, match="there is no such directory"):
        Study.resume(tmp_path / "nowhere")
    assert Study.resume(location, max_concurrent=1).trials == Study.resume(location).trials


def test_ctrl_c_is_raised_after_the_study_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(study: Any, config: SweepConfig, **options: Any) -> StudyResult:
        return StudyResult(str(config.results_dir), 1, 0, 0, unfinished=1, interrupted=True, seconds=3.0)

    monkeypatch.setattr(command_line, "run_study", interrupted)
    study = Study(methods=["plain"], seeds=2, access="full", results_dir=tmp_path / "s")
    with pytest.raises(KeyboardInterrupt, match=r"to go on: Study.resume\('.*s'\).run\(\)"):
        study.run()
    out = capsys.readouterr().out
    assert "Interrupted: everything reported is kept." in out
    assert f"resume       Study.resume('{tmp_path / 's'}').run()" in out


def test_kinds_are_the_modules() -> None:
    assert set(study_module._KINDS) == {
        module.__name__.rpartition(".")[2] for module in (ablation, continual, warm_start)
    }


def test_with_validation_data_everything_is_compared_by_them() -> None:
    """The progress lines' best, ASHA, PBT and Optuna take the study's metric."""
    assert AblationSettings().metric == "average_accuracy"
    assert AblationSettings(validation=0.1).metric == "average_val_accuracy"
    assert AblationSettings(validation=0.1, stream="warm_start").metric == "final_val_accuracy"
    assert AblationSettings(validation=0.0).metric == "average_accuracy"
