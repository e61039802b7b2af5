"""Studies on a real Ray."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweep_driver import long_study
from sweep_trials import spec, study

from ht_ray.errors import SettingError
from ht_ray.sweep import Study, StudyResult, SweepConfig, TrialSpec, load_study_settings, run_study
from ht_ray.sweep.driver.cluster import _nodes_without
from ht_ray.sweep.records.progress import Console
from ht_ray.sweep.storage.location import lock_study
from ht_ray.sweep.study.plan import create_study
from ht_ray.sweep.worker.faults import NodeWatch

pytestmark = pytest.mark.usefixtures("cluster")

# What trials share is distinguished from nothing at all.
SHARED = np.arange(4)
# Seconds of one part of a trial that is to be disturbed.
PART = 0.2


def run(what: Study, directory: Path, **config: Any) -> tuple[StudyResult, str]:
    stream = io.StringIO()
    where = {} if "resume" in config else {"results_dir": str(directory)}
    result = run_study(what, SweepConfig(**where, **config), console=Console(stream))
    return result, stream.getvalue()


def reports(directory: Path, trial: str) -> list[dict[str, Any]]:
    lines = (directory / "trials" / trial / "results.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None, "sum": None} for line in lines]


def status(directory: Path, trial: str) -> dict[str, Any]:
    return json.loads((directory / "trials" / trial / "status.json").read_text())


def table(directory: Path) -> dict[str, dict[str, str]]:
    with (directory / "results.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def scalars(directory: Path, trial: str) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "trials" / trial), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def journal(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]


def wait_for(condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyResult, str]:
    """A study with a trial of every kind, run once."""
    root = tmp_path_factory.mktemp("mixed")
    trials = (
        spec("plain-0", seed=0),
        spec("fails", label="Broken", seed=1, fail_at=2),
        spec("diverges", label="Wild", seed=2, diverge_at=3),
        spec("plain-3", seed=3),
        spec("not-a-number", seed=4, nan=True),
        spec("dies", seed=3, die_at=3, died=str(root / "died")),
        spec("cannot-save", seed=5, save_fails_at=2),
    )
    result, said = run(study(*trials, shared=SHARED), root / "study")
    return root / "study", result, said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of `sweep_driver`, run to its end in peace."""
    directory = tmp_path_factory.mktemp("undisturbed") / "study"
    run(long_study(PART), directory)
    return directory


def test_result_counts_every_kind_of_end(mixed: tuple[Path, StudyResult, str]) -> None:
    directory, result, _ = mixed
    assert (result.finished, result.failed, result.diverged, result.unfinished) == (4, 2, 1, 0)
    assert result.location == str(directory)
    assert not result.interrupted
    assert result.exit_code == 1
    assert f"--resume {directory}" in result.describe()


def test_config_and_trials_say_what_was_planned(mixed: tuple[Path, StudyResult, str]) -> None:
    directory = mixed[0]
    config = json.loads((directory / "config.json").read_text())
    assert config["format"] == 1
    assert (config["study"], config["metric"], config["mode"]) == ("counting", "average", "max")
    assert config["settings"] == {"parts": 3, "limit": None} == load_study_settings(directory)
    assert config["command"] == sys.argv
    assert {"python", "ray", "ht-ray"} <= set(config["versions"])
    planned = json.loads((directory / "trials.json").read_text())
    assert [trial["id"] for trial in planned][:3] == ["plain-0", "fails", "diverges"]
    assert planned[1]["settings"] == {"method": "broken", "momentum": None, "on": True, "seed": 1}
    assert planned[1]["config"] == {"seed": 1, "parts": 3, "fail_at": 2}


def test_reports_are_kept_line_by_line(mixed: tuple[Path, StudyResult, str]) -> None:
    lines = reports(mixed[0], "plain-0")
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert [line["progress"] for line in lines] == [pytest.approx(n / 3) for n in (1, 2, 3)]
    assert [[row["step"] for row in line["curves"]["epoch"]] for line in lines] == [[1, 2], [3, 4], [5, 6]]
    state, seen = 0, []
    for _ in range(6):
        state = (state * 6364136223846793005 + 1442695040888963407 + int(SHARED.sum())) % 2**64
        seen.append(state / 2**64)
    assert [row["accuracy"] for line in lines for row in line["curves"]["epoch"]] == seen
    assert lines[-1]["summary"]["average"] == sum(seen) / 6
    assert status(mixed[0], "plain-0")["status"] == "finished"


def test_failed_trial_keeps_its_traceback_and_its_reports(mixed: tuple[Path, StudyResult, str]) -> None:
    directory, _, said = mixed
    found = status(directory, "fails")
    assert found["status"] == "failed"
    assert found["restarts"] == 0
    assert "Traceback" in found["error"]
    assert found["error"].rstrip().endswith("ValueError: this trial was made to fail")
    assert len(reports(directory, "fails")) == 1
    assert "ValueError: this trial was made to fail" in said


def test_trial_that_cannot_be_saved_fails_without_retries(mixed: tuple[Path, StudyResult, str]) -> None:
    found = status(mixed[0], "cannot-save")
    assert (found["status"], found["restarts"]) == ("failed", 0)
    assert "OSError: this trial was made to fail when saved" in found["error"]


def test_diverged_trial_is_no_failure(mixed: tuple[Path, StudyResult, str]) -> None:
    found = status(mixed[0], "diverges")
    assert (found["status"], found["error"]) == ("diverged", "the loss was nan in epoch 7")
    assert len(reports(mixed[0], "diverges")) == 2


def test_trial_whose_worker_died_continues_from_its_checkpoint(mixed: tuple[Path, StudyResult, str]) -> None:
    directory, _, said = mixed
    found = status(directory, "dies")
    assert (found["status"], found["restarts"]) == ("finished", 1)
    assert reports(directory, "dies") == reports(directory, "plain-3")
    assert "trial dies is restarted from its newest checkpoint (1 restart): its worker died" in said


def test_results_table(mixed: tuple[Path, StudyResult, str]) -> None:
    rows = table(mixed[0])
    assert list(rows) == ["plain-0", "fails", "diverges", "plain-3", "not-a-number", "dies", "cannot-save"]
    assert list(rows["fails"]) == [
        *("id", "label", "status", "method", "momentum", "on", "seed"),
        *("average", "threads", "restarts", "seconds", "error"),
    ]
    assert rows["fails"]["error"] == "ValueError: this trial was made to fail"
    assert (rows["dies"]["restarts"], rows["plain-0"]["momentum"]) == ("1", "")
    assert float(rows["plain-0"]["average"]) == reports(mixed[0], "plain-0")[-1]["summary"]["average"]
    assert rows["not-a-number"]["average"] == ""


def test_nan_is_null(mixed: tuple[Path, StudyResult, str]) -> None:
    assert reports(mixed[0], "not-a-number")[-1]["summary"]["average"] is None
    assert np.isnan(scalars(mixed[0], "not-a-number")["summary/average"][-1][1])


def test_one_thread_per_cpu_of_a_trial(mixed: tuple[Path, StudyResult, str]) -> None:
    assert reports(mixed[0], "plain-0")[0]["summary"]["threads"] == 1


def test_event_files_hold_curves_and_summary_once(mixed: tuple[Path, StudyResult, str]) -> None:
    directory = mixed[0]
    for trial in ("plain-3", "dies"):
        found = scalars(directory, trial)
        rows = [row for line in reports(directory, trial) for row in line["curves"]["epoch"]]
        assert [step for step, _ in found["epoch/accuracy"]] == [1, 2, 3, 4, 5, 6]
        np.testing.assert_allclose(
            [v for _, v in found["epoch/accuracy"]], [row["accuracy"] for row in rows], rtol=1e-6
        )
        assert [step for step, _ in found["phase/accuracy"]] == [1, 2, 3]
        assert [step for step, _ in found["summary/average"]] == [1, 2, 3]


def test_hparams_tab_compares_the_trials(mixed: tuple[Path, StudyResult, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, metadata

    events = EventAccumulator(str(mixed[0] / "trials" / "fails"))
    events.Reload()
    content = events.summary_metadata

    def data(tag: str) -> Any:
        return content[tag].plugin_data.content

    experiment = metadata.parse_experiment_plugin_data(data(metadata.EXPERIMENT_TAG))
    assert {info.name.tag for info in experiment.metric_infos} == {"summary/average", "summary/threads"}
    infos = {info.name: info for info in experiment.hparam_infos}
    assert set(infos["method"].domain_discrete) == {"plain", "broken", "wild"}
    assert infos["seed"].type == api_pb2.DATA_TYPE_FLOAT64
    start = metadata.parse_session_start_info_plugin_data(data(metadata.SESSION_START_INFO_TAG))
    assert start.hparams["method"].string_value == "broken"
    assert start.hparams["seed"].number_value == 1
    assert start.hparams["on"].bool_value is True
    assert "momentum" not in start.hparams
    end = metadata.parse_session_end_info_plugin_data(data(metadata.SESSION_END_INFO_TAG))
    assert end.status == api_pb2.STATUS_FAILURE


def test_progress_is_shown(mixed: tuple[Path, StudyResult, str]) -> None:
    first, last = mixed[2].splitlines()[0], mixed[2].splitlines()[-1]
    assert first.startswith("counting: 0 of 7 trials done")
    assert last.startswith("counting: 4 of 7 trials done, 2 failed, 1 diverged")
    assert "best average so far" in last
    assert "(seed 3)" in last or "(seed 0)" in last


def test_worker_that_dies_between_two_trials(tmp_path: Path) -> None:
    trials = [spec(f"t{seed}", seed=seed, died_replaced=str(tmp_path / "died")) for seed in (0, 1, 2)]
    what = study(*trials, factory="sweep_trials:DiesWhenReplaced", shared=SHARED)
    result, said = run(what, tmp_path / "study", max_concurrent=1, max_failures=1, tensorboard="none")
    assert (tmp_path / "died").exists()
    assert (result.finished, result.exit_code) == (3, 0), said
    assert [status(tmp_path / "study", f"t{seed}")["restarts"] for seed in (0, 1, 2)] == [0, 1, 0]


def test_failed_trials_run_again_when_resumed(tmp_path: Path) -> None:
    directory, gone = tmp_path / "study", str(tmp_path / "died")
    trials = study(spec("once", die_at=2, died=gone), spec("fine", seed=1))
    result, _ = run(trials, directory, max_failures=0, tensorboard="none")
    assert (result.finished, result.failed) == (1, 1)
    assert "its worker died, once (no restarts are allowed)" in status(directory, "once")["error"]
    before = (directory / "trials/fine/results.jsonl").read_bytes()
    # What a driver leaves that is killed while it deletes.
    half_deleted = directory / "checkpoints/fine/.000001-000000-0bcb6d17.93f0b362.tmp"
    half_deleted.mkdir()
    (half_deleted / "manifest.json").touch()
    result, _ = run(trials, directory, resume=str(directory), tensorboard="none")
    assert (result.finished, result.failed, result.exit_code) == (2, 0, 0)
    assert not list(directory.rglob("*.tmp"))
    assert len(reports(directory, "once")) == 3
    assert status(directory, "once")["error"] is None
    assert (directory / "trials/fine/results.jsonl").read_bytes() == before
    assert [entry["event"] for entry in journal(directory)].count("run started") == 2
    assert not list(directory.rglob("events.out.*"))
    # Nothing is left to do, and nothing changes.
    result, _ = run(trials, directory, resume=str(directory))
    assert result.finished == 2
    assert [entry["event"] for entry in journal(directory)].count("run started") == 2


def test_killed_driver_resumes_to_the_same_results(cluster: str, undisturbed: Path, tmp_path: Path) -> None:
    directory = tmp_path / "study"
    # Parts so long that both trials run at some moment, whenever their workers start.
    driver = start_driver(cluster, directory, sleep=1.5)
    wait_for(
        lambda: (
            len(list(directory.glob("checkpoints/long-1/*/manifest.json"))) >= 2
            and (directory / "trials/long-2/results.jsonl").exists()
        )
    )
    driver.kill()
    driver.communicate()
    assert status(directory, "long-1")["status"] == "running"
    # A copy that was cut off, in the size it should have, and a line that was.
    newest = sorted(directory.glob("checkpoints/long-1/[0-9]*"))[-1] / "trial/deep/state.json"
    newest.write_bytes(newest.read_bytes()[:-3] + b"\0\0\0")
    with (directory / "trials/long-2/results.jsonl").open("ab") as file:
        file.write(b'{"index": 6, "curves": {"epoch": [{"st')

    result, said = run(long_study(1.5), directory, resume=str(directory))
    assert result.finished == 2
    for trial in ("long-1", "long-2"):
        assert reports(directory, trial) == reports(undisturbed, trial)
        assert scalars(directory, trial) == scalars(undisturbed, trial)
    assert f"{newest.parents[2]} is damaged (its file trial/deep/state.json is not what was saved)" in said
    assert "trial long-2: a line of its results.jsonl was torn" in said
    damage = [line for line in journal(directory) if line["event"] == "checkpoint damaged"]
    assert [line["trial"] for line in damage] == ["long-1"]
    assert str(newest.parents[2]) in damage[0]["detail"]
    for row, peaceful in zip(table(directory).values(), table(undisturbed).values(), strict=True):
        for changing in ("seconds", "restarts"):
            del row[changing], peaceful[changing]
        assert row == peaceful


def start_driver(cluster: str, directory: Path, sleep: float = PART) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("sweep_driver.py")
    return subprocess.Popen(
        [sys.executable, str(script), str(directory), str(sleep)],
        env={**os.environ, "RAY_ADDRESS": cluster},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signal_stops_the_study_and_keeps_what_was_reported(
    cluster: str, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    directory = tmp_path / "study"
    driver = start_driver(cluster, directory)
    wait_for(lambda: (directory / "trials/long-1/results.jsonl").exists())
    driver.send_signal(number)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 130, err
    assert "Interrupted" in out
    assert f"--resume {directory}" in out
    assert "Traceback" not in err
    assert {row["status"] for row in table(directory).values()} <= {"unfinished", "finished"}
    kept = reports(directory, "long-1")
    assert kept == reports(undisturbed, "long-1")[: len(kept)]


def test_second_signal_does_not_wait_and_loses_nothing(cluster: str, tmp_path: Path) -> None:
    directory = tmp_path / "study"
    driver = start_driver(cluster, directory, sleep=30.0)
    wait_for(lambda: (directory / "trials/long-1/status.json").exists())
    driver.send_signal(signal.SIGINT)
    time.sleep(1.0)
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=20)
    assert driver.returncode == 130, err
    assert "Interrupted" in out
    assert {row["status"] for row in table(directory).values()} == {"unfinished"}


def test_second_driver_is_refused(tmp_path: Path) -> None:
    what = study(spec("one"))
    create_study(tmp_path, what)
    with lock_study(tmp_path), pytest.raises(SettingError, match="another process"):
        run(what, tmp_path, resume=str(tmp_path))


def test_nodes_that_do_not_see_the_directory_are_named(tmp_path: Path) -> None:
    import ray

    nodes = ray.nodes()
    assert _nodes_without(tmp_path, nodes) == ([], [])
    (name,) = NodeWatch(lambda event, node: None).nodes
    assert _nodes_without(tmp_path / "missing", nodes) == ([name], [])


def test_nodes_that_are_gone_or_do_not_answer_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    (node,) = ray.nodes()
    gone = {**node, "NodeID": "ab" * 28, "NodeManagerHostname": "gone"}
    assert _nodes_without(tmp_path, [node, gone]) == ([], ["gone (abababab)"])
    monkeypatch.setattr("os.path.isdir", lambda path: time.sleep(60))
    (name,) = NodeWatch(lambda event, node: None).nodes
    assert _nodes_without(tmp_path, [node], patience=1.0) == ([], [name])


def test_more_than_any_node_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"gpus_per_trial = 1.*1 node with 2 CPUs and 0 GPUs"):
        run(study(spec("one")), tmp_path / "study", gpus_per_trial=1)
    with pytest.raises(SettingError, match="cpus_per_trial = 3"):
        run(study(spec("one")), tmp_path / "study", cpus_per_trial=3)
    assert not (tmp_path / "study").exists()


def test_a_trial_without_a_gpu_sees_none(tmp_path: Path) -> None:
    seeing = TrialSpec(id="seeing", label="Seeing")
    run(Study("seeing", "sweep_trials:Seeing", (seeing,), "hidden"), tmp_path / "study")
    assert table(tmp_path / "study")["seeing"]["hidden"] == "1.0"
