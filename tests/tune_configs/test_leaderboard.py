"""The leaderboard's command: what is tried, a whole run on real Ray, going on, adding methods, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ht_ray.methods import METHODS
from ht_ray.report.leaderboard import read_records
from ht_ray.vision import MethodConfig, parse_method
from tune_configs import leaderboard
from tune_configs.leaderboard import BOARDS, COMBINED, Board, candidates, main
from tune_configs.study import Study


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
@pytest.mark.parametrize("method", [*METHODS, *COMBINED])
def test_what_is_tried_are_at_most_four_different_settings(board: Board, method: str) -> None:
    tried = candidates(method, board)
    assert 1 <= len(tried) <= 4
    configs = [MethodConfig(name, **own) for name, own in map(parse_method, tried)]
    assert {config.name for config in configs} == {parse_method(method)[0]}
    assert len({str(config.flat) for config in configs}) == len(tried)


@pytest.mark.parametrize("board", [own for own in BOARDS.values() if own.settings["data"] == "digits"])
def test_boards_are_studies(board: Board) -> None:
    study = Study("continual", methods=[*METHODS, *COMBINED], seeds=2, **board.settings)
    assert len(study.trials) == 2 * (len(METHODS) + len(COMBINED))


@pytest.mark.slow
def test_missing_records_are_run_and_more_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {"data": "digits", "access": "full", "phases": 2, "epochs": 1, "train_limit": 200, "test_limit": 50}
    monkeypatch.setattr(leaderboard, "BOARDS", {"tiny": Board("tiny", "Tiny", tiny)})
    where = [
        "--out",
        str(tmp_path / "out"),
        "--studies",
        str(tmp_path / "studies"),
        "--seeds",
        "2",
        "--streams",
        "tiny",
    ]
    first = [*where, "--tuning-seeds", "1", "--methods", "plain", "l2"]
    assert main(first) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out" / "tiny").iterdir()}
    assert set(before) == {"plain.json", "l2.json"}
    tried = {record["method"]: record for record in read_records(tmp_path / "out")}
    best = max(tried["l2"]["tried"], key=lambda one: one["value"])
    assert tried["l2"]["settings"] == best["settings"]
    assert [one["value"] for one in tried["plain"]["tried"]] == [None]
    # What is compared is what a study of the chosen settings gives.
    study = Study("continual", methods=["plain"], seeds=2, results_dir=tmp_path / "again", tensorboard="none", **tiny)
    values = [trial.summary["average_accuracy"] for trial in study.run(quiet=True).load().trials]
    assert tried["plain"]["values"] == pytest.approx(values, abs=0.02)

    assert main([*where, "--tuning-seeds", "1", "--methods", "plain", "l2", "crelu"]) == 0
    after = {path.name: path.read_bytes() for path in (tmp_path / "out" / "tiny").iterdir()}
    assert before.items() <= after.items(), "what is there stays"
    assert set(after) - set(before) == {"crelu.json"}

    capsys.readouterr()
    (tmp_path / "out" / "tiny" / "l2.json").write_text(
        json.dumps({**tried["l2"], "protocol": {**tiny, "phases": 3}}), encoding="utf-8"
    )
    assert main(first) == 2
    assert "tiny, l2: it was run by another protocol" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--streams", "digit"], "accepted are"),
        (["--methods", "hare_tortise"], "Did you mean 'hare_tortoise'"),
        (["--seeds", "1"], "--seeds = 1"),
        (["--tuning-seeds", "0"], "--tuning-seeds = 0"),
        (["--seed", "x"], "--seed"),
        (["--page"], "no records"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "none").exists()
