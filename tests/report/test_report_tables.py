"""Tables: the numbers, what is marked, and what fits on a line."""

import csv
import io
import json
import math

import numpy as np
import pytest

from ht_ray.errors import SettingError
from ht_ray.report import MissingDataError, load_study
from ht_ray.report.continual.tables import drops_table, summary_table


def csv_rows(table):
    return {row["label"]: row for row in csv.DictReader(io.StringIO(table.to_csv()))}


def test_numbers_are_numpys(write_study, planned):
    plain, ema = [0.50, 0.52, 0.57], [0.61, 0.60, 0.66]
    trials = [planned("Plain", seed, [[value]]) for seed, value in enumerate(plain)]
    trials += [planned("EMA", seed, [[value]], "ema") for seed, value in enumerate(ema)]
    table = summary_table(load_study(write_study(trials)), metrics=("final_accuracy",))
    row = csv_rows(table)["EMA"]
    gains = np.subtract(ema, plain)
    quantile = 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))  # of t with 2 degrees of freedom, in closed form
    half_width = quantile * gains.std(ddof=1) / math.sqrt(3)
    expected = {
        "seeds_finished": 3,
        "seeds_planned": 3,
        "final_accuracy_n": 3,
        "final_accuracy_mean": np.mean(ema),
        "final_accuracy_sd": np.std(ema, ddof=1),
        "final_accuracy_minus_baseline_n": 3,
        "final_accuracy_minus_baseline_mean": gains.mean(),
        "final_accuracy_minus_baseline_low": gains.mean() - half_width,
        "final_accuracy_minus_baseline_high": gains.mean() + half_width,
    }
    assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=1e-12)
    assert row["study"] == "study"
    assert csv_rows(table)["Plain"]["final_accuracy_minus_baseline_mean"] == ""
    text = table.to_text()
    assert "62.33 ± 3.21*" in text
    assert f"+9.33 ± {100 * half_width:.2f}" in text


def test_every_label_that_shows_the_best_digits_is_marked(write_study, planned):
    trials = [planned("A", 0, [[0.70001]]), planned("B", 0, [[0.70002]]), planned("C", 0, [[0.69]])]
    text = summary_table(load_study(write_study(trials)), ("final_accuracy",), baseline=None).to_text()
    assert text.count("70.00*") == 2
    assert text.count("*") == 2


def test_the_smaller_loss_is_the_better(write_study, planned):
    trials = [planned(label, 0, [[0.5]], summary={"test_loss": loss}) for label, loss in (("A", 1.25), ("B", 2.0))]
    assert "1.2500*" in summary_table(load_study(write_study(trials)), ("test_loss",), None).to_text()


def test_a_metric_of_unknown_direction_marks_nothing(write_study, planned):
    trials = [planned(label, 0, [[0.5]], summary={"rank": 3.0}) for label in "AB"]
    root = write_study(trials)
    assert "*" not in summary_table(load_study(root), ("rank",), None).to_text()


def test_only_finished_trials_count_and_the_best_has_all_seeds(write_study, planned):
    trials = [
        planned("Plain", 0, [[0.5]]),
        planned("Plain", 1, [[0.6]]),
        planned("Lucky", 0, [[0.9]]),
        planned("Lucky", 1, [[0.1]], status="diverged", error="loss is NaN"),
        planned("Gone", 0, [[0.9]], status="missing"),
        planned("Gone", 1, [[0.9]], status="missing"),
    ]
    table = summary_table(load_study(write_study(trials)), ("final_accuracy",), baseline="Plain")
    rows = csv_rows(table)
    assert float(rows["Lucky"]["final_accuracy_mean"]) == 0.9
    assert float(rows["Lucky"]["final_accuracy_minus_baseline_mean"]) == pytest.approx(0.4)
    assert rows["Lucky"]["final_accuracy_sd"] == ""
    assert rows["Gone"]["final_accuracy_mean"] == ""
    text = table.to_text()
    assert "55.00 ± 7.07*" in text
    assert "1 of 2" in text and "0 of 2" in text
    assert "- Lucky, seed 1: diverged: loss is NaN." in text
    assert "- Gone, seeds 0, 1: not started." in table.to_markdown()


def test_a_finished_trial_without_a_value_is_counted_out_loud(write_study, planned):
    trials = [planned("Plain", seed, [[0.5 if seed else None]]) for seed in range(3)]
    table = summary_table(load_study(write_study(trials)), ("final_accuracy",), None)
    assert "50.00 ± 0.00 (n=2)" in table.to_text()
    assert "*" not in table.to_text()


def test_the_baseline_is_found_by_label_or_method_or_refused(write_study, grid_trials):
    study = load_study(write_study(grid_trials))
    assert summary_table(study, baseline="Plain") == summary_table(study, baseline="plain")
    with pytest.raises(SettingError, match=r"'ema' is 'EMA m=0\.9', 'EMA m=0\.99': name one"):
        summary_table(study, baseline="ema")
    with pytest.raises(SettingError, match="Did you mean 'head_reset'"):
        summary_table(study, baseline="head_rest")
    with pytest.raises(SettingError, match="Did you mean 'final_accuracy'"):
        summary_table(study, metrics=("final_acuracy",))


def test_two_trials_of_one_label_and_seed_are_refused(write_study, planned):
    trials = [planned("Plain", 0, [[0.5]], settings={"access": access}) for access in ("full", "buffer")]
    with pytest.raises(SettingError, match="both have seed 0"):
        summary_table(load_study(write_study(trials)))


def test_text_fits_the_width_and_loses_nothing(write_study, grid_trials, planned):
    long = "Hare & Tortoise m=0.9999 r=100 + Shrink & Perturb ratio 0.8 + Head Reset + L2 0.001"
    trials = [*grid_trials, *(planned(long, seed, [[0.5]] * 3) for seed in (0, 1))]
    table = summary_table(load_study(write_study(trials)))
    for width in (60, 80, 100, 200):
        text = table.to_text(width)
        assert max(map(len, text.splitlines())) <= width
        shown = " ".join(text.split())
        for row in table.rows:
            assert all(cell.text in shown for cell in row[1:])
        assert all(word in shown for word in long.split())
    assert long in table.to_text(200)


def test_markdown_is_a_table(write_study, planned):
    trials = [planned("A | B", 0, [[0.5]]), planned("Plain", 0, [[0.4]])]
    lines = summary_table(load_study(write_study(trials)), ("final_accuracy",)).to_markdown().splitlines()
    assert lines[2] == "| method | seeds | final accuracy (%) | minus Plain (95% interval) |"
    assert lines[3] == "| --- | ---: | ---: | ---: |"
    assert lines[4] == "| A \\| B | 1 | **50.00** | +10.00 |"
    assert lines[0] == "## Summary of study: CIFAR-10, ResNet-18, seed 0"


def test_a_difference_that_rounds_to_nothing_has_no_sign(write_study, planned):
    trials = [planned("Plain", 0, [[0.5]]), planned("A", 0, [[0.499999]])]
    table = summary_table(load_study(write_study(trials)), ("final_accuracy",))
    assert table.rows[1][-1].text == "0.00"


def test_drops_are_those_of_the_curves(write_study, planned):
    trials = [
        planned("Plain", 0, [[0.5, 0.6], [0.6, 0.7], [0.65, 0.7]]),
        planned("Plain", 1, [[0.5, 0.6], [0.5, 0.6], [0.6, 0.7]]),
        planned("Reset", 0, [[0.5, 0.6], [0.2, 0.3], [0.1, 0.4]]),
        planned("Reset", 1, [[0.5, 0.6], [0.2, 0.3], [0.1, 0.4]]),
        planned("Failed", 0, [[0.5, 0.6], [0.0, 0.0]], status="failed"),
    ]
    table = drops_table(load_study(write_study(trials)))
    rows = csv_rows(table)
    # Seed 0 drops by 0 and 0.05, seed 1 by 0.1 and 0: means 0.025 and 0.05.
    assert float(rows["Plain"]["drop_mean"]) == pytest.approx(0.0375)
    assert float(rows["Plain"]["drop_sd"]) == pytest.approx(np.std([0.025, 0.05], ddof=1))
    assert float(rows["Plain"]["drop_worst"]) == pytest.approx(0.1)
    assert float(rows["Plain"]["epochs_to_recover_median"]) == 0.5
    assert rows["Plain"]["changes_not_recovered"] == "0"
    # 0.6 -> 0.2 and never back; 0.3 -> 0.1 and back after one epoch.
    assert float(rows["Reset"]["drop_worst"]) == pytest.approx(0.4)
    assert rows["Reset"]["epochs_to_recover_median"] == "inf"
    assert (rows["Reset"]["changes_not_recovered"], rows["Reset"]["changes"]) == ("2", "4")
    assert rows["Failed"]["drop_mean"] == ""
    text = table.to_text()
    assert "3.75 ± 1.77*" in text
    assert "not in time" in text
    assert "2 of 4" in text


def test_a_stream_of_one_phase_has_no_drops(write_study, planned):
    with pytest.raises(MissingDataError, match="two phases"):
        drops_table(load_study(write_study([planned("Plain", 0, [[0.1, 0.2]])])))


def keep_epochs(root, kept):
    """Leave only these steps in the curve by epoch."""
    for path in root.glob("trials/*/results.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["curves"]["epoch"] = [point for point in row["curves"]["epoch"] if point["step"] in kept]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_drops_of_epochs_that_were_not_tested_are_said_to_be_unseen(write_study, planned):
    trial = planned("Plain", 0, [[0.5] * 4, [0.1, 0.6, 0.6, 0.7], [0.1, 0.2, 0.3, 0.8]])
    root = write_study([trial])
    dense = drops_table(load_study(root))
    assert [cell.values for cell in dense.rows[0][2:]] == [
        (1, pytest.approx(0.5), pytest.approx(math.nan, nan_ok=True)),
        (pytest.approx(0.6),),
        (2.0,),
        (0, 2),
    ]
    assert "Not every epoch was tested" not in " ".join(dense.notes)
    keep_epochs(root, {2, 4, 6, 8, 10, 12})
    sparse = drops_table(load_study(root))
    # No drop is seen at the first change; at the second the test of epoch 4 is the first to be back.
    assert sparse.rows[0][4].values == (pytest.approx((0 + 3) / 2),)
    assert sparse.rows[0][3].values == (pytest.approx(0.5),)
    assert "Not every epoch was tested" in " ".join(sparse.notes)


def test_having_no_drop_is_no_distinction_where_most_have_none(write_study, planned):
    def best(*drops):
        trials = [planned(f"m{index}", 0, [[0.5], [0.5 - drop, 0.6]]) for index, drop in enumerate(drops)]
        table = drops_table(load_study(write_study(trials, name=f"study{len(drops)}")))
        return [row[2].best for row in table.rows]

    assert best(0.0, 0.0, 0.1) == [False] * 3
    assert best(0.0, 0.2, 0.1, 0.1) == [True, False, False, False]
