"""Whole studies on a real Ray, against the plain loop."""

from __future__ import annotations

import json
import shlex
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from study_files import all_reports, plain_loop, reports, rows, scalars, status, table

from ht_ray.report import load_study
from ht_ray.sweep import TrialSpec
from ht_ray.sweep.worker.drain_node import TRIAL_WORKER
from ht_ray.vision import ContinualConfig, MethodConfig, WarmStartConfig, summarise
from tune_configs import ablation, continual
from tune_configs.ablation import AblationSettings
from tune_configs.command_line import main as run_main

pytestmark = pytest.mark.usefixtures("cluster")

ABLATION = shlex.split("--momenta 0.5 --reset-intervals 1 --phases 3 --epochs 2 --train-limit 200 --seeds 2 --pack off")
METHODS = {
    "full-plain": MethodConfig("plain"),
    "full-ema-m0.5": MethodConfig("ema", momentum=0.5),
    "full-shrink_perturb": MethodConfig("shrink_perturb"),
    "full-head_reset": MethodConfig("head_reset"),
    "full-hare_tortoise-m0.5-r1e": MethodConfig("hare_tortoise", momentum=0.5, reset_interval=1),
}


@pytest.fixture(scope="module")
def study(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """A small ablation: its exit code and its directory."""
    directory = tmp_path_factory.mktemp("ablation") / "study"
    return ablation.main([*ABLATION, "--results-dir", str(directory)]), directory


def test_exit_code_and_files(study: tuple[int, Path]) -> None:
    code, directory = study
    assert code == 0
    figures = {path.name for path in (directory / "figures").iterdir()}
    assert {f"{name}.{suffix}" for name in ("epoch_curves", "phase_curves") for suffix in ("png", "pdf")} <= figures
    assert "Hare & Tortoise m=0.5 r=1" in (directory / "table.md").read_text()
    assert (directory / "drops.csv").is_file()
    assert load_study(directory).problems == ()


def test_results_table_has_a_row_for_each_trial(study: tuple[int, Path]) -> None:
    found = table(study[1])
    assert [row["id"] for row in found] == [f"{name}-seed{seed}" for name in METHODS for seed in (0, 1)]
    assert {row["status"] for row in found} == {"finished"}
    for row in found:
        summary = summarise(rows(study[1], row["id"]))
        assert {name: float(row[name]) for name in summary} == summary
    assert (found[-1]["method"], found[-1]["momentum"], found[-1]["reset_interval"]) == ("hare_tortoise", "0.5", "1")


def test_config_has_the_settings_that_were_implied(study: tuple[int, Path]) -> None:
    config = json.loads((study[1] / "config.json").read_text())
    settings = config["settings"]
    assert AblationSettings.from_json(settings) == AblationSettings.from_json(settings).resolved()
    implied = ("model", "batch_size", "learning_rate", "weight_decay", "augment")
    assert [settings[name] for name in implied] == ["mlp", 32, 1e-3, 1e-4, "none"]
    assert (settings["momenta"], settings["train_limit"], settings["seeds"]) == ([0.5], 200, 2)
    assert {"ray", "torch", "avalanche-lib"} <= set(config["versions"])


@pytest.mark.parametrize("method", METHODS)
def test_epochs_are_those_of_the_plain_loop(study: tuple[int, Path], method: str) -> None:
    for seed in (0, 1):
        expected = plain_loop(ContinualConfig(phases=3, epochs=2), METHODS[method], seed=seed, train_limit=200)
        assert rows(study[1], f"{method}-seed{seed}") == expected


def test_methods_and_seeds_do_differ(study: tuple[int, Path]) -> None:
    losses = [str([row["test_loss"] for row in rows(study[1], trial)]) for trial in all_reports(study[1])]
    assert len(set(losses)) == len(losses) == 10


def test_tensorboard_has_curves_and_hparams(study: tuple[int, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    trial = "full-hare_tortoise-m0.5-r1e-seed1"
    found = scalars(study[1], trial)
    expected = rows(study[1], trial)
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        assert found[f"epoch/{name}"] == [(n, pytest.approx(row[name])) for n, row in enumerate(expected, 1)]
        ends = expected[1::2]
        assert found[f"phase/{name}"] == [(n, pytest.approx(row[name])) for n, row in enumerate(ends, 1)]
    assert [step for step, _ in found["summary/average_accuracy"]] == [1, 2, 3]
    events = EventAccumulator(str(study[1] / "trials" / trial))
    events.Reload()
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams
    assert hparams["method"].string_value == "hare_tortoise"
    assert (hparams["momentum"].number_value, hparams["reset_interval"].number_value) == (0.5, 1)


def test_same_study_beside_a_diverging_trial(
    study: tuple[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_a_wild_one(settings: AblationSettings) -> tuple[TrialSpec, ...]:
        first, *others = ablation.trials(settings)
        training = {**first.config["training"], "learning_rate": 1e6, "clip": 1e30}
        wild = replace(first, id="wild", label="Wild", config={**first.config, "training": training})
        return (wild, first, *others)

    directory = tmp_path / "study"
    arguments = [*ABLATION, "--tensorboard", "none", "--results-dir", str(directory)]
    assert run_main("ablation", AblationSettings, with_a_wild_one, "", arguments) == 0
    out = capsys.readouterr().out
    assert "1 diverged" in out
    assert status(directory, "wild")["status"] == "diverged"
    assert "training loss" in status(directory, "wild")["error"]
    assert [problem for problem in load_study(directory).problems if "Wild" in problem and "diverged" in problem]
    assert "diverged" in (directory / "table.md").read_text()
    # The others are what they were without it, to the last bit.
    others = all_reports(directory)
    del others["wild"]
    assert others == all_reports(study[1])
    assert table(directory)[1:] == table(study[1])


COMBINED = "hare_tortoise+head_reset"


@pytest.fixture(scope="module")
def disturbed(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """A comparison of methods whose one worker is killed within the second phase of the first trial."""
    directory = tmp_path_factory.mktemp("continual") / "study"
    killer = threading.Thread(target=kill_worker, args=(directory / "trials" / "full-plain-seed0" / "results.jsonl",))
    killer.start()
    arguments = f"--methods plain {COMBINED} --momentum 0.5 --reset-interval 1 --seeds 1 --phases 3 --epochs 60"
    arguments += " --train-limit 600 --buffer-size 60 --max-concurrent 1 --pack off"
    code = continual.main([*shlex.split(arguments), "--results-dir", str(directory)])
    killer.join()
    return code, directory


def kill_worker(after: Path) -> None:
    """Kill the process that runs a trial as soon as the file `after` exists."""
    import psutil

    (raylet,) = (process for process in psutil.Process().children(recursive=True) if process.name() == "raylet")
    worker: list[psutil.Process] = []
    end = time.monotonic() + 200
    while time.monotonic() < end and not (worker and after.exists()):
        # Looking for it takes longer than a phase.
        worker = worker or [
            process
            for process in psutil.process_iter(["ppid", "cmdline"])
            if process.info["ppid"] == raylet.pid and TRIAL_WORKER in " ".join(process.info["cmdline"] or ())
        ]
        time.sleep(0.002)
    with suppress(psutil.NoSuchProcess):  # the study has ended otherwise, and the test says so
        worker[0].kill()


def test_killed_worker_changes_nothing(disturbed: tuple[int, Path]) -> None:
    code, directory = disturbed
    assert code == 0
    assert {trial: status(directory, trial)["restarts"] for trial in all_reports(directory)} == {
        "full-plain-seed0": 1,
        f"full-{COMBINED}-m0.5-r1e-seed0": 0,
        "buffer-plain-seed0": 0,
        f"buffer-{COMBINED}-m0.5-r1e-seed0": 0,
    }
    stream = ContinualConfig(phases=3, epochs=60)
    expected = plain_loop(stream, MethodConfig("plain"), seed=0, train_limit=600)
    assert rows(directory, "full-plain-seed0") == expected
    assert [n for n, _ in scalars(directory, "full-plain-seed0")["epoch/test_loss"]] == list(range(1, 181))


@pytest.mark.parametrize("access", ["full", "buffer"])
def test_both_access_modes_and_a_combination(disturbed: tuple[int, Path], access: Literal["full", "buffer"]) -> None:
    directory = disturbed[1]
    stream = ContinualConfig(phases=3, epochs=60, access=access, buffer_size=60)
    method = MethodConfig(COMBINED, momentum=0.5, reset_interval=1)
    expected = plain_loop(stream, method, seed=0, train_limit=600)
    assert rows(directory, f"{access}-{COMBINED}-m0.5-r1e-seed0") == expected
    assert (directory / "figures" / f"epoch_curves_{access}.png").is_file()
    assert [row["access"] for row in table(directory)].count(access) == 2


@pytest.mark.slow
def test_ablation_on_the_warm_start_stream(cluster: str, tmp_path: Path) -> None:
    directory = tmp_path / "study"
    arguments = (
        "--stream warm_start --momenta 0.5 --reset-intervals 1 --baselines plain --seeds 1 --epochs 2 --pack off"
    )
    assert ablation.main([*shlex.split(arguments), "--train-limit", "200", "--results-dir", str(directory)]) == 0
    trial = "warm_start-hare_tortoise-m0.5-r1e-seed0"
    method = MethodConfig("hare_tortoise", momentum=0.5, reset_interval=1)
    assert rows(directory, trial) == plain_loop(WarmStartConfig(epochs=2), method, seed=0, train_limit=200)
    assert [len(report["curves"]["epoch"]) for report in reports(directory, trial)] == [20, 2]
    assert {row["access"] for row in table(directory)} == {""}
