"""Callbacks of Ray Tune see every trial of a study by itself, once, and cannot harm it."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import pytest
from disturbed_runs import journal
from fake_tune import fake_tune
from seen import Seen
from sweep_packs import walk, walkers, walking
from sweep_trials import spec, study

from ht_ray.errors import SettingError
from ht_ray.sweep import Study, StudyResult, SweepConfig, run_study
from ht_ray.sweep.records.progress import Console

# What a report of these trials has: two epochs.
EPOCHS = 2


def run(what: Study, directory: Path, *callbacks: Any, **config: Any) -> tuple[StudyResult, str]:
    stream = io.StringIO()
    where = {} if "resume" in config else {"results_dir": str(directory)}
    settings = SweepConfig(**{"tensorboard": "none", **where, **config})
    return run_study(what, settings, console=Console(stream), callbacks=callbacks), stream.getvalue()


def rows(directory: Path, trial: str) -> list[dict[str, Any]]:
    lines = (directory / "trials" / trial / "results.jsonl").read_text().splitlines()
    return [row for line in lines for row in json.loads(line)["curves"]["epoch"]]


def test_each_trial_of_a_pack_is_seen_by_itself(tmp_path: Path) -> None:
    seen, what = Seen(), walkers()
    assert len({trial.pack for trial in what.trials}) == 1 and what.trials[0].pack is not None
    with fake_tune():
        run(what, tmp_path / "study", seen)
    ids = [trial.id for trial in what.trials]
    assert seen.events[0] == ("setup", str(len(ids))) and seen.events[-1] == ("end", str(len(ids)))
    for trial in what.trials:
        own = [event for event, of in seen.events[1:-1] if of == trial.id]
        expected = rows(tmp_path / "study", trial.id)
        assert own == ["start", *["result"] * len(expected), "complete"]
        results = seen.results[trial.id]
        assert [one["training_iteration"] for one in results] == list(range(1, len(expected) + 1))
        assert [one["epoch/accuracy"] for one in results] == [row["accuracy"] for row in expected]
        # What is known once a report is complete comes with its last row.
        assert ["summary/average" in one for one in results] == [False, True] * (len(expected) // EPOCHS)
        assert [one["done"] for one in results] == [False] * (len(expected) - 1) + [True]
        known = seen.trials[trial.id]
        assert known.config == {"label": trial.label, **trial.settings, "config": trial.config}
        assert known.last_result == results[-1] and known.status == "TERMINATED"
        assert Path(known.local_path) == tmp_path / "study" / "trials" / trial.id
    assert len({known.trial_id for known in seen.trials.values()}) == len(ids)


def test_how_a_trial_ended_is_told(tmp_path: Path) -> None:
    trials = (walk("fine"), walk("fails", seed=1, fail_at=2), walk("diverges", seed=2, diverge_at=2))
    seen = Seen()
    with fake_tune():
        run(walking(*trials), tmp_path / "study", seen)
    ends = {of: event for event, of in seen.events if event in ("complete", "error")}
    assert ends == {"fine": "complete", "fails": "error", "diverges": "complete"}


@pytest.mark.parametrize("results", [1, 3, 5])
def test_a_resumed_study_tells_what_is_new(tmp_path: Path, results: int) -> None:
    first, second, what = Seen(), Seen(), walkers()
    with fake_tune(results):
        run(what, tmp_path / "study", first)
    with fake_tune():
        run(what, tmp_path / "study", second, resume=str(tmp_path / "study"))
    for trial in what.trials:
        both = [*first.results.get(trial.id, []), *second.results.get(trial.id, [])]
        assert [one["epoch/accuracy"] for one in both] == [
            row["accuracy"] for row in rows(tmp_path / "study", trial.id)
        ]
        assert [one["training_iteration"] for one in both] == list(range(1, len(both) + 1))
        if trial.id in first.trials and trial.id in second.trials:
            assert first.trials[trial.id].trial_id == second.trials[trial.id].trial_id
    other = Seen()
    with fake_tune():
        run(what, tmp_path / "other", other)
    ids = {known.trial_id for seen in (first, second) for known in seen.trials.values()}
    assert not ids & {known.trial_id for known in other.trials.values()}


def test_a_callback_that_raises_is_called_no_more_and_harms_nothing(tmp_path: Path) -> None:
    broken, sound, what = Seen("result", at=walkers().trials[1].id), Seen(), walkers()
    with fake_tune():
        run(what, tmp_path / "undisturbed")
        result, said = run(what, tmp_path / "study", broken, sound)
    text = "Seen.on_trial_result raised OSError: made to fail in result"
    assert f"callback {text}; it is called no more, the study goes on and keeps all results" in said
    assert any(line.startswith("callback") and text in line for line in result.lines("again"))
    assert [event["detail"] for event in journal(tmp_path / "study") if event["event"] == "callback"] == [text]
    assert broken.events[-1] == ("result", what.trials[1].id)
    assert sound.events[-1] == ("end", str(len(what.trials))) and result.exit_code == 0
    for trial in what.trials:
        assert rows(tmp_path / "study", trial.id) == rows(tmp_path / "undisturbed", trial.id)


def test_a_callback_that_cannot_be_set_up_ends_the_study_before_it_begins(tmp_path: Path) -> None:
    with fake_tune(), pytest.raises(SettingError, match=r"callbacks = .*its setup raised OSError: made to fail"):
        run(walkers(), tmp_path / "study", Seen("setup"))
    assert not (tmp_path / "study" / "config.json").exists()


def test_callbacks_by_name(tmp_path: Path) -> None:
    with fake_tune():
        result, _ = run(walkers(), tmp_path / "study", callback=("seen:Seen", "seen:make_seen"))
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("seen", "accepted is 'package.module:name'"),
        ("no_such_module:Seen", "there is no module 'no_such_module'"),
        ("seen:Sen", "the module seen has no Sen. Did you mean 'Seen'"),
        ("seen:NoCallback", "accepted is a class derived from ray.tune.Callback"),
        ("seen:number", "accepted is a class derived from ray.tune.Callback"),
        ("seen:make_nothing", "it returned None"),
    ],
)
def test_what_is_no_callback_is_refused_before_ray_starts(tmp_path: Path, path: str, reason: str) -> None:
    with pytest.raises(SettingError, match=rf"SweepConfig\.callback = '{path}'.*{reason}") as raised:
        run(walkers(), tmp_path / "study", callback=(path,))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_not_there_is_named_with_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))
    with pytest.raises(SettingError, match=rf"{name} is not installed here: pip install 'ht-ray\[{name}\]'"):
        SweepConfig(**{name: "project"})


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs ht-ray[mlflow]")
def test_mlflow_has_a_run_for_each_trial_in_which_a_resumed_study_goes_on(tmp_path: Path) -> None:
    import mlflow

    uri, what = f"sqlite:///{tmp_path}/mlflow.db", walkers()
    with fake_tune(3):
        run(what, tmp_path / "study", mlflow=uri)
    with fake_tune():
        run(what, tmp_path / "study", mlflow=uri, resume=str(tmp_path / "study"))
        run(walkers(), tmp_path / "other", mlflow=uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(what.name)
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time"])
    assert len(runs) == 2 * len(what.trials) and {one.info.status for one in runs} == {"FINISHED"}
    for one in runs:
        expected = rows(tmp_path / "study", one.data.tags["trial_name"])
        history = client.get_metric_history(one.info.run_id, "epoch/accuracy")
        assert [point.step for point in history] == list(range(1, len(expected) + 1))
        assert [point.value for point in history] == [row["accuracy"] for row in expected]
        assert {"label", "seed", "config/seed"} <= one.data.params.keys()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("cluster")
def test_wandb_writes_a_run_for_each_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs ht-ray[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    what = study(spec("one"), spec("two", seed=1), spec("three", seed=2, fail_at=2))
    result, said = run(what, tmp_path / "study", wandb="team/project", max_concurrent=1)
    assert result.callbacks == (), said
    runs = sorted((tmp_path / "study").glob("trials/*/wandb/offline-run-*/run-*.wandb"))
    assert [file.parts[-4] for file in runs] == ["one", "three", "two"]
    assert all(file.stat().st_size > 0 for file in runs)
    again, _ = run(what, tmp_path / "study", wandb="team/project", resume=str(tmp_path / "study"))
    assert again.callbacks == ()
    names = [file.name for file in (tmp_path / "study").glob("trials/three/wandb/offline-run-*/run-*.wandb")]
    assert len(names) == 2 and len(set(names)) == 1  # of one run


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_run_of_wandb_that_could_not_begin_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs ht-ray[wandb]")
    from ht_ray.sweep.driver.trackers import Wandb

    class Broken:
        """Stands for the process that logs a run, where Weights & Biases refuses it."""

        def __init__(self, **settings: Any) -> None:
            pass

        def run(self) -> None:
            raise PermissionError("no such entity")

    monkeypatch.setattr(Wandb, "_logger_actor_cls", Broken)
    monkeypatch.setenv("WANDB_MODE", "offline")
    result, _ = run(study(spec("one")), tmp_path / "study", wandb="project")
    assert result.finished == 1
    (text,) = result.callbacks
    assert "1 of 1 runs are not whole: one: PermissionError: no such entity" in text
