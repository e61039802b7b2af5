"""The study of continual RL: its plan and refusals, interruptions, and a driver that is killed and resumed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from study_files import all_reports, table

from ht_ray.agents.continual import ContinualRun, task_stream_config
from ht_ray.agents.continual.__main__ import main as plain_command
from ht_ray.agents.registry import agent_from_dict
from ht_ray.errors import Interrupted, SettingError
from ht_ray.report import load_study, write_report
from tune_configs import continual_rl
from tune_configs.continual_rl import ContinualRLSettings, trials
from tune_configs.continual_rl_trial import ContinualRLTrial

SMALL: dict[str, Any] = {
    "tasks": 2,
    "cycles": 2,
    "visit_steps": 50,
    "set": ("hidden=8", "learning_starts=10", "batch_size=8"),
    "evaluation_episodes": 1,
    "checkpoint_every": 20,
}
CHECKOUT = Path(__file__).parents[2]


def test_a_plan_has_the_methods_settings_and_seeds_outermost() -> None:
    settings = ContinualRLSettings(methods=("plain", "redo:redo_threshold=0.1"), seeds=2, first_seed=3, **SMALL)
    planned = trials(settings.resolved())
    assert [spec.id for spec in planned] == [
        "plain-seed3", "redo-redo_threshold=0.1-seed3", "plain-seed4", "redo-redo_threshold=0.1-seed4",
    ]  # fmt: skip
    assert planned[1].label == "ReDo (redo_threshold=0.1)"
    # An interval is a visit's gradient steps.
    assert planned[1].config["agent"]["method_settings"]["redo_interval"] == 50
    assert planned[0].settings["task_stream"] == "control" and planned[0].settings["cycles"] == 2
    assert json.loads(json.dumps(planned[1].config))["agent"]["hidden"] == 8


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"games": ("Pong",)}, "games = .*: it is no setting of .*stream.* = 'control'"),
        ({"set": ("hiden=3",)}, "Did you mean 'hidden'"),
        ({"set": ("hidden",)}, "accepted is NAME=VALUE"),
        ({"methods": ("plain", "plain")}, "methods = 'plain': it is given twice"),
        ({"methods": ("redoo",)}, "Did you mean 'redo'"),
        ({"stream": "contrl"}, "Did you mean 'control'"),
        ({"cycles": 0}, "cycles = 0: accepted is"),
        ({"checkpoint_every": 0}, "checkpoint_every = 0: accepted is"),
        ({"change": "colour"}, "change = 'colour': accepted are"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        ContinualRLSettings(**{**SMALL, **given})


def test_an_agent_that_does_not_fit_the_stream_is_refused_before_ray(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert continual_rl.main(["--variant", "drq", "--results-dir", str(tmp_path / "study")]) == 2
    assert capsys.readouterr().err.strip() and not (tmp_path / "study").exists()


def reports_of(config: dict[str, Any], directory: Path, interruptions: tuple[int, ...]) -> list[str]:
    """Return a trial's reports; it is interrupted when the agent has acted so often, and another object goes on."""
    acted, found, trial = 0, list[str](), ContinualRLTrial(config)

    def watch(trial: ContinualRLTrial) -> None:
        act = trial.run.agent.act

        def counting(*arguments: Any) -> Any:
            nonlocal acted
            acted += 1
            if acted in interruptions:
                trial.interrupt()
            return act(*arguments)

        trial.run.agent.act = counting  # type: ignore[method-assign]

    watch(trial)
    while True:
        try:
            report = trial.advance()
        except Interrupted:
            pass
        else:
            found.append(repr(report))
            if report.progress == 1:
                return found
        trial.save(directory)
        trial = ContinualRLTrial(config)
        trial.load(directory)
        watch(trial)


def test_an_interrupted_trial_reports_the_same_and_what_the_plain_loop_measures(tmp_path: Path) -> None:
    settings = ContinualRLSettings(methods=("hare_tortoise+redo",), seeds=1, indicators=True, **SMALL)
    (spec,) = trials(settings.resolved())
    config = json.loads(json.dumps(spec.config))
    whole = reports_of(config, tmp_path, ())
    assert len(whole) == 4 * 3 and "dormant_ratio" in whole[2]
    assert reports_of(config, tmp_path, (250, 262, 290, 500)) == whole
    stream = dict(config["stream"])
    run = ContinualRun(
        task_stream_config(stream.pop("name"), **stream),
        agent_from_dict(config["agent"]),
        evaluation_episodes=1,
        indicators=True,
    )
    while run.advance():
        pass
    assert repr(run.record.visits[-1]["area"]) in whole[-1]


def test_a_record_of_the_plain_command_has_a_report(tmp_path: Path) -> None:
    record = tmp_path / "runs.jsonl"
    given = "--tasks 2 --cycles 2 --visit-steps 30 --set hidden=8 learning_starts=10 --seeds 2 --evaluation-episodes 1"
    assert plain_command([*shlex.split(given), "--methods", "plain", "head_reset", "--record", str(record)]) == 0
    study = load_study(record)
    assert study.labels == ("Plain", "Head Reset") and study.seeds == (0, 1)
    with pytest.raises(SettingError, match="name a directory for its report"):
        write_report(study)
    before = record.read_bytes()
    written = {path.name for path in write_report(study, out=tmp_path / "report")}
    assert {"report.html", "table.csv", "visits.csv", "visits.png", "losses.png"} <= written
    rows = (tmp_path / "report" / "visits.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 * 2 and record.read_bytes() == before
    record.write_bytes(before[:-20])
    assert len(load_study(record).trials) == 3
    record.write_bytes(before[:40] + b"\n" + before)
    with pytest.raises(SettingError, match="line 1 is damaged"):
        load_study(record)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_study_resumes_to_the_same(cluster: str, tmp_path: Path) -> None:
    study = "--tasks 2 --cycles 3 --visit-steps 300 --set hidden=8 learning_starts=20 --seeds 1 --checkpoint-every 100"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert continual_rl.main([*shlex.split(study), "--results-dir", str(whole)]) == 0
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HT_RAY_"))}
    script = [sys.executable, str(CHECKOUT / "tune_configs" / "continual_rl.py")]
    process = subprocess.Popen(
        [*script, *shlex.split(study), "--results-dir", str(killed)],
        env={**kept, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 300
    while not list(killed.glob("trials/*/results.jsonl")):
        assert process.poll() is None and time.monotonic() < end, "no trial has reported"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "table.md").exists()
    assert continual_rl.main(["--resume", str(killed)]) == 0
    assert all_reports(killed) == all_reports(whole) and table(killed) == table(whole)
    for name in ("table.csv", "visits.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
