"""The Atari-100k study: what is planned, what is refused, and small studies on a real Ray and real games."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import study_files

from ht_ray.agents import ATARI_100K_GAMES
from ht_ray.agents.drq.config import VARIANTS, DrQConfig
from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.training import train as plain_loop
from ht_ray.errors import SettingError
from ht_ray.report import human_normalized, load_study, paper_scores
from ht_ray.report.atari.study import variants_of
from ht_ray.sweep import Diverged, Report, Study
from ht_ray.sweep.study.plan import create_study
from tune_configs import atari100k
from tune_configs.atari100k import AtariSettings, schedule_warnings, trials
from tune_configs.atari_trial import AtariTrial

# Seconds instead of hours: a small network, and games that are cut off early.
SMALL = (
    "--hidden 16 --batch-size 8 --n-step 3 --learning-starts 10 --epsilon-decay-steps 10 --replay-capacity 200 "
    "--steps 60 --evaluate-every 30 --checkpoint-every 20 --evaluation-episodes 2 --max-steps 25"
)
AGENT = {"hidden": 16, "batch_size": 8, "n_step": 3, "learning_starts": 10, "epsilon_decay_steps": 10}
AGENT["replay_capacity"] = 200
TORTOISE = {"momentum": 0.5, "reset_interval": 7}


def small(**settings: Any) -> AtariSettings:
    given: dict[str, Any] = {"games": ("breakout",), "variants": ("drq+ht",), "seeds": 1, **TORTOISE, **AGENT}
    given |= {"steps": 60, "evaluate_every": 30, "checkpoint_every": 20, "evaluation_episodes": 2, "max_steps": 25}
    return AtariSettings(**{**given, **settings}).resolved()


def test_the_whole_study_is_the_papers() -> None:
    settings = AtariSettings().resolved()
    planned = trials(settings)
    assert len(planned) == 26 * 6 * 5
    Study("atari100k", "a:b", planned, settings.metric)  # which refuses an id that is no file name or comes twice
    names = dict.fromkeys(spec.settings["variant"] for spec in planned)
    assert list(names) == [name for name in paper_scores() if name.startswith("DrQ")]
    assert {spec.settings["game"] for spec in planned} == set(ATARI_100K_GAMES)
    assert {(spec.settings["steps"], spec.settings["episodes"]) for spec in planned} == {(100_000, 100)}
    assert all(spec.config["differs"] == [] for spec in planned)
    assert all(DrQConfig(**spec.config["agent"]) in VARIANTS.values() for spec in planned)
    assert all(AtariConfig(**spec.config["env"]) == AtariConfig() for spec in planned)
    # A study that is stopped has whole seeds.
    assert [spec.settings["seed"] for spec in planned] == sorted(spec.settings["seed"] for spec in planned)
    assert schedule_warnings(settings) == []


def test_a_label_names_the_game() -> None:
    assert {
        spec.label for spec in trials(small(games=("ms_pacman",), variants=("drq",), **dict.fromkeys(TORTOISE)))
    } == {"DrQ, MsPacman"}


def test_grid_is_beside_plain_drq() -> None:
    settings = AtariSettings(games=("Pong",), momenta=(0.99, 0.995), reset_intervals=(1000, 4000), seeds=1).resolved()
    found = [
        (spec.settings["variant"], spec.settings["momentum"], spec.settings["reset_interval"])
        for spec in trials(settings)
    ]
    assert found == [
        ("DrQ", None, None),
        ("DrQ + H&T m=0.99 r=1000", 0.99, 1000),
        ("DrQ + H&T m=0.99 r=4000", 0.99, 4000),
        ("DrQ + H&T m=0.995 r=1000", 0.995, 1000),
        ("DrQ + H&T m=0.995 r=4000", 0.995, 4000),
    ]
    assert len({spec.id for spec in trials(settings)}) == 5


def test_one_side_of_the_grid_takes_the_papers_other() -> None:
    settings = AtariSettings(momenta=(0.9,), variants=("drq+hr40k+ht",))
    assert [agent.name for agent in settings.agents] == ["DrQ + HR 40k + H&T m=0.9 r=4000"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"shrink_perturb_interval": 1500}, ["DrQ + S&P 1500"]),
        ({"head_reset_interval": 5000, "variants": ("drq+hr20k",)}, ["DrQ + HR 5k"]),
        ({"momentum": 0.99, "variants": ("drq", "drq+ht")}, ["DrQ", "DrQ + H&T m=0.99 r=4000"]),
        ({"optimizer_state": "clear", "variants": ("drq", "drq+ht")}, ["DrQ", "DrQ + H&T (optimizer_state=clear)"]),
        ({"toward": "initial", "variants": ("drq+sp",)}, ["DrQ + S&P (toward=initial)"]),
    ],
)
def test_a_setting_of_a_method_is_in_the_names_of_those_that_have_it(changes: dict[str, Any], names: list[str]) -> None:
    settings = AtariSettings(**{"variants": ("drq+sp",), **changes})
    assert [agent.name for agent in settings.agents] == names
    assert settings.differs == []


OTHER = {
    "value": "two_hot",
    "padding": "same",
    "optimizer_state": "clear",
    "toward": "initial",
    "momentum": 0.9,
    "reset_interval": 10,
    "shrink_perturb_interval": 10,
    "head_reset_interval": 10,
    "momentum_warmup": 0.5,
    "reset_only": ("head",),
    "reset_schedule": (5, 10),
    "methods": "redo",
    "method_settings": {"redo_interval": 500},
}


def another(setting: str) -> Any:
    default = getattr(DrQConfig, setting)
    if setting in OTHER:
        return OTHER[setting]
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, int) else default / 2


@pytest.mark.parametrize("setting", [field.name for field in fields(DrQConfig)])
def test_nothing_that_is_not_the_papers_goes_by_its_name(setting: str) -> None:
    changes = {setting: another(setting)}
    if setting in ("bins", "value_limit"):
        changes["value"] = "two_hot"
    if setting == "method_settings":
        changes["methods"] = "redo"
    variants = [name for name in VARIANTS if setting != "head_reset_interval" or name != "drq+hr40k"]
    settings = AtariSettings(variants=tuple(variants), **changes)
    changed = [agent for agent, name in zip(settings.agents, variants, strict=True) if agent.config != VARIANTS[name]]
    assert changed
    for agent in changed:
        assert all(getattr(agent.config, name) == value for name, value in changes.items())
        assert agent.name not in paper_scores() or any(setting in sentence for sentence in settings.differs)


def test_what_else_differs_is_said() -> None:
    settings = AtariSettings(learning_rate=1e-3, max_steps=500, precision="bf16", evaluation_episodes=3, steps=10)
    assert settings.differs == [
        "learning_rate = 0.001 instead of 0.0001",
        "max_steps = 500 instead of 27000",
        "precision = bf16 instead of fp32",
    ]


def test_a_run_too_short_is_told() -> None:
    (told,) = schedule_warnings(AtariSettings(variants=("drq", "drq+ht"), steps=2000))
    assert told == (
        "DrQ + H&T: a reset of Hare & Tortoise every 4000 gradient steps, and a run has 400: it never happens."
    )
    (nothing,) = schedule_warnings(AtariSettings(steps=1600))
    assert "nothing is learned" in nothing
    (soon,) = schedule_warnings(AtariSettings(variants=("drq+ht",), momentum=0.999, reset_interval=2))
    assert soon.startswith("DrQ + H&T m=0.999 r=2: ")


REFUSED = {
    "--games pogn": ("--games", "'pogn'", "Did you mean 'Pong'?"),
    "--games": ("--games = ()", "at least one"),
    "--games pong ALE/Pong-v5": ("--games = 'ALE/Pong-v5'", "'pong'"),
    "--variants drq-ht": ("--variants = 'drq-ht'", "Did you mean 'drq+ht'?"),
    "--variants drq drq": ("--variants = 'drq'", "twice"),
    "--head-reset-interval 5000": ("--variants = 'drq+hr40k'", "the same as 'drq+hr20k'"),
    "--momenta 0.9 1": ("--momenta = 1.0", "momenta < 1"),
    "--reset-intervals 0": ("--reset-intervals = 0",),
    "--momenta 0.9 0.9": ("--momenta = 0.9", "twice"),
    "--momenta 0.9 --momentum 0.99": ("--momentum = 0.99", "--momenta = (0.9,)"),
    "--variants drq --momenta 0.9": ("--momenta = (0.9,)", "none of the variants drq"),
    "--variants drq drq+ht --toward initial": ("--toward = 'initial'", "none of the variants drq, drq+ht"),
    "--bins 7": ("--bins = 7", "--value = 'scalar'"),
    "--learning-rate -1": ("--learning-rate = -1.0",),
    "--n-step 0": ("--n-step = 0",),
    "--steps 0": ("--steps = 0",),
    "--evaluate-every 0": ("--evaluate-every = 0",),
    "--evaluate-every 70 --steps 60": ("--evaluate-every = 70", "--steps = 60"),
    "--gpus-per-trial 99": ("--gpus-per-trial = 99.0", "on this machine", "--address"),
    "--evaluation-episodes 0": ("--evaluation-episodes = 0",),
    "--max-steps 0": ("--max-steps = 0",),
    "--seeds 0": ("--seeds = 0",),
    "--device tpu": ("--device = 'tpu'",),
    "--device cuda": ("--device = 'cuda'", "--gpus-per-trial"),
    "--precision fp16": ("--precision = 'fp16'",),
    "--value hl_gaus": ("--value", "hl_gaus"),
    "--resume {tmp}/nowhere": ("--resume = '{tmp}/nowhere'", "no such directory"),
    "--resume {tmp}/study --steps 70": ("--steps = 70", "has 60"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """What came of each of `REFUSED`, all run in one process that has imported neither ray nor avalanche."""
    tmp = tmp_path_factory.mktemp("refusals")
    settings = small()
    create_study(tmp / "study", Study("atari100k", "a:b", trials(settings), settings.metric, settings=asdict(settings)))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HT_RAY_"))}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("many_command_lines.py"))],
        input=json.dumps([["atari100k", line.format(tmp=tmp).split()] for line in REFUSED]),
        env={**kept, "HT_RAY_RESULTS": str(tmp / "results"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp / "results").exists()
    return tmp, dict(zip(REFUSED, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_work_is_refused(line: str, refusals: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    tmp, results = refusals
    found = results[line]
    assert found["code"] == 2, found
    assert found["out"] == ""
    assert "Traceback" not in found["err"]
    assert "Config" not in found["err"] and "Settings" not in found["err"], "a field's name instead of its flag"
    message = " ".join(found["err"].replace("│", " ").split())
    for part in REFUSED[line]:
        assert part.format(tmp=tmp) in message
    assert found["heavy"] == []


def test_settings_survive_json() -> None:
    settings = small(momentum=None, reset_interval=None, momenta=(0.5,), reset_intervals=(7,))
    assert AtariSettings.from_json(json.loads(json.dumps(asdict(settings)))) == settings
    with pytest.raises(SettingError, match="another script"):
        AtariSettings.from_json({"phases": 3})


def advanced(trial: AtariTrial, parts: int) -> list[Report]:
    return [trial.advance() for _ in range(parts)]


def rows(found: list[Report], curve: str) -> list[dict[str, float]]:
    return [row for report in found for row in report.curves[curve]]


def test_a_trial_is_the_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, the last of them by another trial that continued from a file."""
    # The loss of so few steps tells whether the weights are the same.
    monkeypatch.setattr(plain_loop, "_LOSS_STEPS", 7)
    (spec,) = trials(small())
    first = AtariTrial(spec.config)
    found = advanced(first, 3)
    first.save(tmp_path)
    second = AtariTrial(spec.config)
    second.load(tmp_path)
    found += advanced(second, 1)
    assert [report.progress for report in found] == [20 / 60, 0.5, 40 / 60, 1]
    record = plain_loop.train(
        "Breakout",
        DrQConfig(**TORTOISE, **AGENT),
        steps=60,
        env=AtariConfig(max_steps=25),
        evaluate_every=30,
        evaluation_episodes=2,
    )
    assert [(row["step"], row["score"]) for row in rows(found, "evaluation")] == [
        (played.step, played.score) for played in record.evaluations
    ]
    assert rows(found, "training_games") == record.games
    assert rows(found, "training") == record.losses
    assert len(record.losses) == 7
    assert found[-1].summary["final_score"] == record.final_score
    assert found[-1].summary["final_human_normalised"] == human_normalized("Breakout", record.final_score or 0)
    assert found[-1].summary["updates"] == record.updates == 50
    assert asdict(second.run.record) == asdict(record)
    assert all(report.summary.keys() == found[0].summary.keys() for report in found)
    assert second.run.agent.tortoise is not None and second.run.agent.tortoise.resets == 7


def test_a_loss_without_bounds_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_loop, "_LOSS_STEPS", 20)
    (spec,) = trials(small(learning_rate=1e30))
    with pytest.raises(Diverged, match="training loss"):
        advanced(AtariTrial(spec.config), 4)


STUDY = shlex.split(f"--games breakout --variants drq drq+ht --seeds 1 --momentum 0.5 --reset-interval 7 {SMALL}")


@pytest.fixture(scope="module")
def study(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("atari") / "study"
    assert atari100k.main([*STUDY, "--results-dir", str(directory)]) == 0
    return directory


@pytest.mark.timeout(900)
def test_study_has_scores_beside_the_papers(study: Path) -> None:
    page = (study / "table.md").read_text()
    for part in ("IQM", "DrQ + H&T m=0.5 r=7", "Breakout", "60 of 100 000 steps", "2 of 100 evaluation episodes"):
        assert part in page
    assert "max_steps = 25 instead of 27000" in page
    assert {"atari_aggregates.csv", "atari_games.csv"} <= {path.name for path in study.iterdir()}
    assert (study / "figures" / "atari_efficiency.png").is_file()
    for trial in ("drq-Breakout-seed0", "drq+ht-Breakout-seed0"):
        assert len(list(study.glob(f"checkpoints/{trial}/*/manifest.json"))) == 1
    variants = variants_of(load_study(study))
    assert [variant.name for variant in variants] == ["DrQ", "DrQ + H&T m=0.5 r=7"]
    assert [variant.curves()[0].tolist() for variant in variants] == [[30, 60]] * 2
    record = plain_loop.train(
        "Breakout", DrQConfig(**AGENT), steps=60, env=AtariConfig(max_steps=25), evaluation_episodes=2
    )
    assert variants[0].raw["Breakout"].tolist() == [record.final_score]
    assert [name for name in study_files.scalars(study, "drq-Breakout-seed0") if name.startswith("evaluation/")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stopped_within_a_trial_it_goes_on_to_the_same_results(study: Path, tmp_path: Path) -> None:
    directory = tmp_path / "study"

    def interrupt() -> None:
        end = time.monotonic() + 600
        while time.monotonic() < end and not list(directory.glob("trials/*/results.jsonl")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    stopper = threading.Thread(target=interrupt)
    stopper.start()
    code = atari100k.main([*STUDY, "--max-concurrent", "1", "--results-dir", str(directory)])
    stopper.join()
    assert code == 130
    stopped = study_files.all_reports(directory)
    whole = study_files.all_reports(study)
    assert stopped and stopped != whole
    assert atari100k.main(["--resume", str(directory)]) == 0
    assert study_files.all_reports(directory) == whole
    assert study_files.table(directory) == study_files.table(study)
