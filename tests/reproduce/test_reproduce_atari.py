"""The ledger's agents on games: a run that was left is the run that was not; a study's runs are added; the page."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ht_ray.agents import AGENT_VARIANTS, AgentConfig, AtariConfig, agent_variant
from ht_ray.agents.training.evaluate import EvaluationRun
from ht_ray.agents.training.train import TrainingRun
from ht_ray.errors import SettingError
from ht_ray.report import human_normalized, paper_scores
from ht_ray.report.atari.reference import atari_games
from ht_ray.report.atari.scores import aggregate_scores
from ht_ray.reproduce import (
    AtariCell,
    Clock,
    Run,
    __main__,
    all_cells,
    atari,
    ledger_page,
    plan,
    read_records,
    run_once,
    write_record,
)
from ht_ray.reproduce.cells import TABLE_1
from ht_ray.reproduce.run import Bench, DataSets, Estimate, Timings, choose
from ht_ray.sweep import Report
from tune_configs.atari100k import AtariSettings, trials
from tune_configs.atari_trial import AtariTrial

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "learning_starts": 10,
    "epsilon_decay_steps": 10,
    "n_step": 3,
    "hidden": 8,
    "batch_size": 2,
    "replay_capacity": 100,
}
pytestmark = pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")


@dataclass(frozen=True)
class TinyCell(AtariCell):
    """A cell of seconds: few steps, short games."""

    @property
    def agent(self) -> AgentConfig:
        return agent_variant(self.variant, **SMALL)

    @property
    def env(self) -> AtariConfig:
        return AtariConfig(max_steps=12)


PONG = TinyCell("atari100k-Pong-drq", "Pong", "drq", steps=40, episodes=2)
HT = TinyCell("atari100k-Pong-drq-ht", "Pong", "drq+ht", steps=40, episodes=2)


def bench(folder: Path) -> Bench:
    return Bench(CPU, DataSets(None), folder / "underway", Clock(600))


def without_calls(record: dict[str, Any] | None) -> dict[str, Any]:
    assert record is not None
    return {name: value for name, value in record.items() if name != "calls"}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line over the tiny cells, in one seed each."""
    monkeypatch.setattr(__main__, "all_cells", lambda: (PONG, HT))
    monkeypatch.setattr(__main__, "plan", lambda cells, finished: [r for r in plan(cells, finished) if r.seed == 0])


def command(folder: Path, *more: str) -> int:
    return __main__.main(["--out", str(folder / "out"), "--checkpoints", str(folder / "underway"), *more])


# --- cells ---


def test_cells_are_the_agents_of_table_1_on_every_game() -> None:
    assert tuple(TABLE_1.values()) == tuple(paper_scores())
    assert TABLE_1.keys() <= AGENT_VARIANTS.keys()
    cells = [cell for cell in all_cells() if isinstance(cell, AtariCell)]
    assert {(cell.game, cell.variant) for cell in cells} == {(g, v) for g in atari_games() for v in TABLE_1}
    assert {(cell.steps, cell.episodes, cell.env) for cell in cells} == {(100_000, 100, AtariConfig())}
    seeds = [run.seed for run in plan(cells, [])]
    assert max(seeds) == 4 and len(seeds) == 26 * 9 * 5
    # DrQ with and without H&T follow the first four of CIFAR-10.
    assert [cell.id for cell in all_cells()[4:6]] == ["atari100k-RoadRunner-drq", "atari100k-RoadRunner-drq-ht"]
    assert [cell.precision(torch.device("cuda")) for cell in (cells[0], cells[-1])] == ["fp32", "bf16"]


def test_where_no_game_can_be_played_cells_of_games_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    monkeypatch.delitem(sys.modules, "ht_ray.agents.envs.atari")
    monkeypatch.delattr("ht_ray.agents.AtariConfig", raising=False)
    said: list[str] = []
    cell = AtariCell("atari100k-Pong-drq", "Pong", "drq")
    assert choose(plan((cell,), []), bench(tmp_path), lambda cell: Estimate(1.0, 1.0), said.append) is None
    assert said[0].startswith("left out: atari100k: games need gymnasium, ale_py and cv2 (")


# --- leaving and going on ---


def stop_training(at: int, act: Callable[[TrainingRun], None], monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrainingRun._step

    def stepping(run: TrainingRun) -> None:
        step(run)
        if run.record.steps == at:
            act(run)

    monkeypatch.setattr(TrainingRun, "_step", stepping)


@pytest.mark.parametrize("at", ["in training", "in evaluation"])
def test_a_run_out_of_time_goes_on_to_the_same_record(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(HT, 1)
    whole = run_once(run, bench(tmp_path / "whole"))
    there = bench(tmp_path)
    with monkeypatch.context() as patch:
        if at == "in training":
            stop_training(17, TrainingRun.interrupt, patch)
        else:
            play = EvaluationRun.step

            def playing(games: EvaluationRun, act: Any) -> None:
                play(games, act)
                there.clock.ask()

            patch.setattr(EvaluationRun, "step", playing)
        assert run_once(run, there) is None
    record = run_once(run, bench(tmp_path))
    assert without_calls(record) == without_calls(whole)
    assert record is not None
    assert [call["seconds"] is not None for call in record["calls"]] == [True, True]


def test_a_run_that_was_killed_goes_on_to_the_same_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    def kill(run: TrainingRun) -> None:
        raise Killed

    monkeypatch.setattr(atari, "CHECKPOINT_EVERY", 10)
    run = Run(PONG, 0)
    whole = run_once(run, bench(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stop_training(25, kill, patch)
        with pytest.raises(Killed):
            run_once(run, bench(tmp_path))
    began: list[int] = []
    with monkeypatch.context() as patch:
        stop_training(21, lambda run: began.append(21), patch)
        stop_training(20, lambda run: began.append(20), patch)
        record = run_once(run, bench(tmp_path))
    assert began == [21]
    assert without_calls(record) == without_calls(whole)
    assert record is not None
    assert [call["seconds"] is not None for call in record["calls"]] == [False, True]


def test_what_is_underway_with_other_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_training(17, TrainingRun.interrupt, patch)
        assert run_once(Run(PONG, 0), bench(tmp_path)) is None
    with pytest.raises(SettingError, match=r"Pong-drq-seed0-fp32 cannot go on: .*momentum.*Remove .*-fp32 to"):
        run_once(Run(replace(PONG, variant="drq+ht"), 0), bench(tmp_path))


def test_a_clock_interrupts_when_its_time_is_over_and_when_it_is_asked() -> None:
    interrupted = threading.Event()
    with Clock(0.2).interrupting(interrupted.set, margin=0.1):
        assert interrupted.wait(20)
    asked = threading.Event()
    clock = Clock(600)
    with clock.interrupting(asked.set, margin=0):
        assert not asked.is_set()
        clock.ask()
    assert asked.is_set() and clock.asked
    with Clock(600).interrupting(asked.clear, margin=0):
        pass
    assert asked.is_set()


def test_a_step_is_measured_by_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = Timings(bench(tmp_path))(PONG)
    assert 0 < estimate.epoch < estimate.run < 600
    monkeypatch.setattr(atari, "step_seconds", lambda cell, device: 0.5)
    assert Timings(bench(tmp_path))(PONG) == Estimate(0.5 * 10_040, 50.0)


@pytest.mark.usefixtures("tiny")
def test_the_command_runs_a_game_and_makes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "--only", "atari100k-Pong-drq-ht", "--minutes", "100") == 0
    (record,) = read_records(tmp_path / "out")
    assert record["settings"]["training"] == {"precision": "fp32"}
    assert record["settings"]["agent"] == json.loads(json.dumps(asdict(HT.agent)))
    assert record["protocol"] == {"steps": 40, "episodes": 2}
    assert record["results"]["updates"] == 30
    score = record["results"]["score"]
    assert record["results"]["human_normalised"] == human_normalized("Pong", score)
    assert record["curve"]["step"] == [40] and record["curve"]["score"] == [score]
    assert record["training_games"]["step"] == [12, 24, 36]
    assert (tmp_path / "out" / "README.md").read_text() == ledger_page(read_records(tmp_path / "out"))
    assert f"score {score:g}, human-normalised" in capsys.readouterr().out
    assert list((tmp_path / "underway").iterdir()) == []


# --- runs of a study ---


def settings() -> AtariSettings:
    given: dict[str, Any] = {"games": ("Pong",), "variants": ("drq", "drq+ht"), "seeds": 1, **SMALL}
    given |= {"steps": 40, "evaluate_every": 20, "evaluation_episodes": 2, "checkpoint_every": 20, "max_steps": 12}
    return AtariSettings(**given).resolved()


def write_study(root: Path, chosen: AtariSettings) -> Path:
    """A study as a sweep writes it, its trials trained here."""
    (root / "trials").mkdir(parents=True)
    versions = {"python": "3.11.7", "ht-ray": "0.1.0", "torch": "2.15.0"}
    config = {
        "format": 1,
        "study": "atari100k",
        "command": [],
        "created": "2026-01-01T00:00:00",
        "versions": versions,
        "metric": chosen.metric,
        "mode": "max",
        "settings": {},
    }
    (root / "config.json").write_text(json.dumps(config))
    planned = trials(chosen)
    plans = [{"id": s.id, "label": s.label, "settings": s.settings, "config": s.config} for s in planned]
    (root / "trials.json").write_text(json.dumps(plans))
    for spec in planned:
        trial, reports = AtariTrial(spec.config), list[Report]()
        while not reports or reports[-1].progress < 1:
            reports.append(trial.advance())
        folder = root / "trials" / spec.id
        folder.mkdir()
        lines = [
            {"index": i, "curves": r.curves, "summary": dict(r.summary), "progress": r.progress, "seconds": 2.0}
            for i, r in enumerate(reports)
        ]
        (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "status.json").write_text(json.dumps({"status": "finished", "error": None, "restarts": 0}))
    return root


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("studies") / "study", settings())


@pytest.mark.usefixtures("tiny")
def test_finished_runs_of_a_study_are_added_once(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = shutil.copytree(study, tmp_path / "study")
    status = study / "trials" / "drq-Pong-seed0" / "status.json"
    status.write_text(status.read_text().replace("finished", "running"))
    (tmp_path / "out").mkdir()
    assert command(tmp_path, "--add", str(study), "--machine", "x86_64 cpu") == 0
    (record,) = read_records(tmp_path / "out")
    own = run_once(Run(HT, 0), bench(tmp_path))
    assert own is not None
    # The same run, but for the evaluation in the middle.
    for part in ("cell", "settings", "protocol", "results", "training_games"):
        assert record[part] == json.loads(json.dumps(own[part])), part
    assert record["curve"]["step"] == [20, 40] and record["curve"]["score"][-1:] == own["curve"]["score"]
    assert record["calls"] == [
        {
            "device": "x86_64 cpu",
            "ht_ray": "0.1.0",
            "torch": "2.15.0",
            "python": "3.11.7",
            "graph": "auto",
            "started": "2026-01-01T00:00:00",
            "seconds": 4.0,
        }
    ]
    assert "left out: drq-Pong-seed0 is running" in capsys.readouterr().out
    assert (tmp_path / "out" / "README.md").read_text() == ledger_page(read_records(tmp_path / "out"))
    before = (tmp_path / "out" / "atari100k-Pong-drq-ht-seed0.json").stat().st_mtime_ns
    assert command(tmp_path, "--add", str(study), "--machine", "another") == 0
    assert "atari100k-Pong-drq-ht-seed0.json is there already" in capsys.readouterr().out
    assert (tmp_path / "out" / "atari100k-Pong-drq-ht-seed0.json").stat().st_mtime_ns == before


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "change",
    [
        {"steps": 50},
        {"evaluation_episodes": 1},
        {"env": {"max_steps": 10}},
        {"agent": asdict(agent_variant("drq+sp", **SMALL))},
        {"game": "Breakout"},
        {"overlap": True},
    ],
)
def test_a_run_by_another_protocol_is_none_of_a_cell(
    change: dict[str, Any], study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = shutil.copytree(study, tmp_path / "study")
    plans = json.loads((study / "trials.json").read_text())
    plans[0]["config"].update(change)
    (changed / "trials.json").write_text(json.dumps(plans))
    (tmp_path / "out").mkdir()
    assert command(tmp_path, "--add", str(changed), "--machine", "x86_64 cpu") == 0
    assert "drq-Pong-seed0 is no run of a cell" in capsys.readouterr().out
    assert [record["cell"] for record in read_records(tmp_path / "out")] == [HT.id]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--add", "."], "--add and --machine: accepted are both, or none"),
        (["--machine", "x86_64 cpu"], "--add and --machine: accepted are both, or none"),
        (["--add", "nowhere", "--machine", "x86_64 cpu"], "nowhere: there is no such directory"),
    ],
)
def test_what_cannot_be_added_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    assert command(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err


# --- records and the page ---


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = run_once(Run(PONG, 0), bench(tmp_path_factory.mktemp("record")))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("seed"), "seed is missing"),
        (lambda r: r["results"].update(score="high"), "results: score: expected int or float, got 'high'"),
        (lambda r: r["curve"]["step"].append(50), "curve: the columns have different lengths"),
        (lambda r: r["training_games"]["step"].append(50), "training_games: the columns have different lengths"),
        (lambda r: r["settings"]["training"].update(mood="good"), "settings: training: mood is unknown"),
    ],
)
def test_what_is_no_record_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, record: dict[str, Any], tmp_path: Path
) -> None:
    path = write_record(tmp_path, record)
    changed = json.loads(path.read_text())
    change(changed)
    path.write_text(json.dumps(changed))
    with pytest.raises(SettingError, match=message):
        read_records(tmp_path)


def of(record: dict[str, Any], game: str, variant: str, seed: int, normalized: float) -> dict[str, Any]:
    cell = f"atari100k-{game}-{variant.replace('+', '-')}"
    results = {**record["results"], "score": 10.0 * normalized, "human_normalised": normalized}
    return {**record, "cell": cell, "game": game, "seed": seed, "results": results}


def row(page: str, section: str, start: str) -> list[str]:
    part = page.split(f"{section}\n", 1)[1]
    line = next(line for line in part.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_has_ours_next_to_random_human_and_the_papers(record: dict[str, Any]) -> None:
    one = [of(record, "Pong", "drq", seed, value) for seed, value in enumerate((0.5, 0.7))]
    page = ledger_page(one)
    assert row(page, "### Scores by game", "Pong") == ["Pong", "-20.7", "14.6", "6.0 ± 1.4 (0.600), n=2"]
    assert row(page, "### Scores by game", "Alien") == ["Alien", "227.8", "7127.7", "to do"]
    aggregates = row(page, "## Table 1: Atari-100k", "DrQ")
    assert aggregates[1:3] == ["to do", "0.243"] and aggregates[-1] == "1 of 26"
    assert "[atari100k-Pong-drq](atari100k-Pong-drq-seed1.json) | 1 | 7.0 (0.700) | " in page
    values = {game: (number % 5) / 4 for number, game in enumerate(atari_games())}
    page = ledger_page([of(record, game, "drq", 0, value) for game, value in values.items()])
    own = aggregate_scores({game: [value] for game, value in values.items()})
    assert row(page, "## Table 1: Atari-100k", "DrQ") == [
        "DrQ",
        *(f"{own.iqm.value:.3f}", "0.243", f"{own.median.value:.3f}", "0.193"),
        *(f"{own.mean.value:.3f}", "0.468", f"{own.optimality_gap.value:.3f}", "0.642", "26 of 26"),
    ]
