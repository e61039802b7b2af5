"""Reading study directories, whole and broken."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ht_ray.errors import SettingError
from ht_ray.report import group, load_study, seed_values, split_by_access
from ht_ray.report.continual.tables import drops_table, summary_table


def test_reads_what_was_written(write_study, planned):
    root = write_study([planned("Plain", 3, [[0.1, 0.2], [0.3, None]], settings={"momentum": None})])
    study = load_study(root)
    (trial,) = study.trials
    assert study.problems == ()
    assert (study.name, study.metric, study.mode) == ("study", "average_accuracy", "max")
    assert (trial.label, trial.seed, trial.method, trial.status, trial.finished) == (
        "Plain",
        3,
        "plain",
        "finished",
        True,
    )
    assert trial.progress == 1 and trial.seconds == 4
    np.testing.assert_array_equal(trial.curves["epoch"]["step"], [1, 2, 3, 4])
    np.testing.assert_array_equal(trial.curves["epoch"]["phase"], [1, 1, 2, 2])
    np.testing.assert_array_equal(trial.curves["epoch"]["test_accuracy"], [0.1, 0.2, 0.3, np.nan])
    np.testing.assert_array_equal(trial.curves["phase"]["test_accuracy"], [0.2, np.nan])
    assert np.isnan(trial.summary["final_accuracy"])


def test_a_column_that_some_rows_lack_is_nan_there(write_study, planned):
    root = write_study([planned("Plain", 0, [[0.1]])])
    line = {"index": 0, "curves": {"epoch": [{"step": 1, "a": 1}, {"step": 2, "b": 2}]}, "summary": {}}
    line |= {"progress": 1, "seconds": 1}
    next(root.glob("trials/*/results.jsonl")).write_text(json.dumps(line))
    curve = load_study(root).trials[0].curves["epoch"]
    np.testing.assert_array_equal(curve["a"], [1, np.nan])
    np.testing.assert_array_equal(curve["b"], [np.nan, 2])


def test_says_which_trials_are_wanting_and_why(write_study, planned):
    done, half = [[0.5]] * 4, [[0.5]] * 2
    study = load_study(
        write_study(
            [
                planned("Plain", 0, done),
                planned("Plain", 1, half, status="failed", error="Traceback ...\nRuntimeError: no memory"),
                planned("Plain", 2, half, status="diverged", error="loss is NaN"),
                planned("Plain", 3, half, status="running"),
                planned("EMA", 0, done, status="missing"),
                planned("EMA", 1, done, status="missing"),
            ]
        )
    )
    assert [trial.status for trial in study.trials] == [
        "finished",
        "failed",
        "diverged",
        "running",
        "missing",
        "missing",
    ]
    assert study.problems == (
        "Plain, seed 1: failed: RuntimeError: no memory.",
        "Plain, seed 2: diverged: loss is NaN.",
        "Plain, seed 3: not finished (50% done).",
        "EMA, seeds 0, 1: not started.",
    )
    assert seed_values(study.trials[:4], "final_accuracy") == {0: 0.5}


def test_a_results_file_torn_at_any_byte_keeps_its_whole_lines(write_study, planned):
    root = write_study([planned("Plain", 0, [[0.1, 0.2], [0.3, 0.4]], status="running")], of=3)
    path = next(root.glob("trials/*/results.jsonl"))
    whole = path.read_bytes()
    first = whole.index(b"\n")
    near_the_ends = {*range(3), first - 1, first, first + 1, *range(len(whole) - 3, len(whole))}
    for length in sorted(near_the_ends | set(range(0, len(whole), 7))):
        path.write_bytes(whole[:length])
        study = load_study(root)
        (trial,) = study.trials
        steps = trial.curves["epoch"]["step"].tolist() if trial.curves else []
        # A line is whole without its newline, too.
        expected = [1, 2, 3, 4] if length >= len(whole) - 1 else [1, 2] if length >= first else []
        assert steps == expected
        torn = length not in (0, first, first + 1, len(whole) - 1)
        assert any("torn" in text for text in study.problems) == torn


def test_a_finished_trial_whose_end_is_lost_does_not_count(write_study, planned):
    root = write_study([planned("Plain", 0, [[0.1], [0.2]])])
    path = next(root.glob("trials/*/results.jsonl"))
    path.write_bytes(path.read_bytes()[:-20])
    study = load_study(root)
    assert study.trials[0].status == "damaged"
    assert seed_values(study.trials, "final_accuracy") == {}
    assert any("torn" in text for text in study.problems)
    assert any("says finished, and its results end at 50%" in text for text in study.problems)


@pytest.mark.parametrize("damage", ["not json", '{"index": 1}', '{"index": 1, "curves": [], "summary": {}}', "[]"])
def test_damage_in_the_middle_is_said_and_nothing_after_it_is_read(write_study, planned, damage):
    root = write_study([planned("Plain", 0, [[0.1], [0.2], [0.3]])])
    path = next(root.glob("trials/*/results.jsonl"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, lines[2]]))
    study = load_study(root)
    assert study.trials[0].status == "damaged"
    assert study.trials[0].curves["epoch"]["step"].tolist() == [1]
    assert any("line 2 of results.jsonl is damaged" in text for text in study.problems)


def test_a_report_that_stands_twice_is_not_counted_twice(write_study, planned):
    root = write_study([planned("Plain", 0, [[0.1], [0.2]])])
    path = next(root.glob("trials/*/results.jsonl"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[0], lines[1]]))
    study = load_study(root)
    assert not study.trials[0].finished
    assert any("has index 0 instead of 1" in text for text in study.problems)


def test_a_damaged_status_is_said(write_study, planned):
    root = write_study([planned("Plain", 0, [[0.1]])])
    next(root.glob("trials/*/status.json")).write_text("{")
    study = load_study(root)
    assert study.trials[0].status == "damaged"
    assert any("status.json" in text for text in study.problems)


def test_refuses_what_is_no_study(tmp_path, write_study, planned):
    with pytest.raises(SettingError, match="there is no such directory"):
        load_study(tmp_path / "nowhere")
    with pytest.raises(SettingError, match=r"no config\.json and no trials\.json"):
        load_study(tmp_path)
    root = write_study([planned("Plain", 0, [[0.1]])])
    with pytest.raises(SettingError, match="It holds the studies study: name one of them"):
        load_study(tmp_path)
    config = json.loads((root / "config.json").read_text())
    for change, message in [({"format": 2}, "format = 2"), ({"mode": "best"}, 'mode is "best"')]:
        (root / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(SettingError, match=message):
            load_study(root)
    (root / "config.json").write_text("[]")
    with pytest.raises(SettingError, match=r"config\.json: it is a list, and should be an object"):
        load_study(root)
    (root / "config.json").write_text(json.dumps(config))
    (root / "trials.json").write_text('[{"id": "a"}]')
    with pytest.raises(SettingError, match=r"trials\.json: \[0\] has no .label."):
        load_study(root)
    (root / "trials.json").write_text("[")
    with pytest.raises(SettingError, match="it is no JSON"):
        load_study(root)


def test_groups_keep_the_order_and_name_unknown_settings(write_study, grid_trials):
    study = load_study(write_study(grid_trials))
    groups = group(study, ("method", "momentum"))
    assert list(groups)[:3] == [("plain", None), ("ema", 0.9), ("ema", 0.99)]
    assert [trial.seed for trial in groups[("ema", 0.9)]] == [0, 1]
    assert sum(map(len, groups.values())) == len(study.trials)
    with pytest.raises(SettingError, match="Did you mean 'momentum'"):
        group(study, "momemtum")


def test_access_modes_are_kept_apart(write_study, planned):
    trials = [
        planned("Plain", seed, [[0.5]], status=status, settings={"access": access})
        for access, status in (("full", "finished"), ("buffer", "missing"))
        for seed in (0, 1)
    ]
    study = load_study(write_study(trials))
    assert study.problems == ("Plain (buffer access), seeds 0, 1: not started.",)
    modes = split_by_access(study)
    assert list(modes) == ["full", "buffer"]
    assert all(len(part.trials) == 2 for part in modes.values())
    assert modes["full"].problems == ()
    assert modes["buffer"].problems == ("Plain, seeds 0, 1: not started.",)
    with pytest.raises(SettingError, match="must name one trial"):
        seed_values(study.trials, "final_accuracy")
    assert list(split_by_access(modes["full"])) == [None]


def test_importing_loads_neither_plotting_nor_learning_libraries():
    code = "import sys, ht_ray.report; print(*({'matplotlib', 'torch', 'ray', 'scipy', 'pandas'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def rewrite_line(root, number, change):
    path = next(root.glob("trials/*/results.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows[number])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def step(value):
    def change(row):
        row["curves"]["epoch"][0]["step"] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["curves"]["epoch"][0].pop("step"), "no 'step'"),
        (step(None), "step is null, and should be a number"),
        (step(1), "steps are whole numbers that increase"),
        (step(-3), "steps are whole numbers that increase"),
        (step(3.5), "steps are whole numbers that increase"),
        (step(10**17), "steps are whole numbers that increase"),
        (lambda row: row["summary"].update(final_accuracy=10**400), "final_accuracy is 1000"),
        (lambda row: row.pop("summary"), "no 'summary'"),
    ],
)
def test_numbers_that_cannot_be_damage_their_trial_only(write_study, planned, change, message):
    root = write_study([planned("Plain", seed, [[0.1, 0.2], [0.3, 0.4]]) for seed in (0, 1)])
    rewrite_line(root, 1, change)
    study = load_study(root)
    assert sorted(trial.status for trial in study.trials) == ["damaged", "finished"]
    assert any("line 2 of results.jsonl is damaged" in text and message in text for text in study.problems)
    drops_table(study)
    summary_table(study)


def test_files_that_cannot_be_read_damage_their_trial_only(write_study, planned):
    root = write_study([planned("Plain", seed, [[0.1], [0.2]]) for seed in (0, 1, 2)])
    first, second, _ = sorted((root / "trials").iterdir())
    (first / "results.jsonl").unlink()
    (first / "results.jsonl").mkdir()
    (second / "status.json").unlink()
    (second / "status.json").symlink_to(second / "status.json")
    study = load_study(root)
    assert [trial.status for trial in study.trials] == ["damaged", "damaged", "finished"]
    assert any("results.jsonl cannot be read" in text for text in study.problems)


def test_many_labels_that_want_the_same_share_a_sentence(write_study, planned):
    trials = [planned(f"m{index}", seed, [[0.5]], status="missing") for index in range(6) for seed in (0, 1)]
    trials[0].status = "finished"
    assert load_study(write_study(trials)).problems == (
        "m0, seed 1: not started.",
        "5 labels (m1; m2; m3; m4; m5), seeds 0, 1: not started.",
    )
