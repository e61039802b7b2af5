"""The paper's values: looked up, shown next to ours where the protocol is its own, and withheld where it is not."""

import csv
import io
import math

import numpy as np
import pytest

from ht_ray.errors import SettingError
from ht_ray.report import MissingDataError, bootstrap_interval, grid_value, load_study, mean_interval, method_value
from ht_ray.report.continual.tables import summary_table
from ht_ray.report.continual.warm_start_grid import grid_cells_table, grid_table
from ht_ray.report.data.paper import SETTINGS

LIMITS = {"data": "cifar10", "train_limit": None, "test_limit": None}


def rows_of(table):
    return list(csv.DictReader(io.StringIO(table.to_csv())))


def test_every_cell_of_tables_4_and_5_is_there():
    found = [
        grid_value(data, model, subset_ratio=ratio, label_noise=noise, split=split)
        for data, model in SETTINGS
        for split in ("train", "test")
        for ratio in (0.1, 0.2, 0.4, 0.6, 0.8, 1)
        for noise in (0, 0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    assert len(found) == 288 and all(value is not None and 0 < value.mean <= 1 for value in found)
    # Read off the published tables: Tiny ImageNet's test accuracy at the ends.
    tiny = [
        grid_value("tiny-imagenet", "vgg16", subset_ratio=ratio, label_noise=noise, split="test").mean
        for ratio, noise in ((0.1, 0.0), (0.1, 0.5), (1.0, 0.0), (1.0, 0.5))
    ]
    assert tiny == [0.18, 0.12, 0.43, 0.30]
    assert grid_value("mnist", "mlp", subset_ratio=0.3, label_noise=0.0, split="test") is None
    with pytest.raises(SettingError, match="Did you mean 'test'"):
        grid_value("mnist", "mlp", subset_ratio=0.1, label_noise=0.0, split="tset")


def test_methods_are_found_in_any_order():
    assert method_value("cifar10", "resnet18", method="plain", split="test").mean == 0.704
    assert method_value("cifar100", "vit_tiny", method="augment+fresh", split="train").mean == 0.852
    assert method_value("cifar10", "resnet18", method="hare_tortoise", split="test") is None
    assert method_value("cifar10", "resnet18", method="l2+augment", split="test") is None
    assert method_value("mnist", "mlp", method="plain", split="test") is None


def test_the_bootstrap_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(5).normal(0.7, 0.02, size=8)
    own = bootstrap_interval(values)
    other = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    assert own == pytest.approx(other, abs=5e-4)
    assert bootstrap_interval(values) == own
    assert all(math.isnan(end) for end in bootstrap_interval([0.5]))
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    narrow = bootstrap_interval(values, level=0.5)
    assert own[0] < narrow[0] < values.mean() < narrow[1] < own[1]


def test_the_summary_shows_the_papers_value_and_the_difference(write_study, warm):
    trials = [warm("Plain", seed, value, data="cifar10", train=0.996) for seed, value in enumerate((0.69, 0.70, 0.71))]
    trials += [warm("Fresh", seed, 0.83, data="cifar10", method="fresh") for seed in range(3)]
    trials += [warm("Hare", seed, 0.8, data="cifar10", method="hare_tortoise") for seed in range(3)]
    study = load_study(write_study(trials, metric="final_accuracy", settings=LIMITS))
    table = summary_table(study, ("final_accuracy", "final_train_accuracy"))
    rows = {row["label"]: row for row in rows_of(table)}
    assert float(rows["Plain"]["final_accuracy_paper"]) == 0.704
    assert float(rows["Plain"]["final_accuracy_minus_paper"]) == pytest.approx(-0.004)
    assert float(rows["Plain"]["final_train_accuracy_paper"]) == 0.998
    assert float(rows["Fresh"]["final_accuracy_minus_paper"]) == pytest.approx(0.83 - 0.835)
    assert rows["Hare"]["final_accuracy_paper"] == "" and rows["Hare"]["final_accuracy_minus_paper"] == ""
    low, high = mean_interval([0.69, 0.70, 0.71])
    assert (float(rows["Plain"]["final_accuracy_low"]), float(rows["Plain"]["final_accuracy_high"])) == (low, high)
    text = " ".join(table.to_text().split())
    assert "appendix B.3" in text and "budget" not in text and "Not compared" not in text


@pytest.mark.parametrize(
    ("changes", "limits", "said"),
    [
        ({"epochs": 20}, {}, "20 of 100 epochs"),
        ({"epochs": 20, "warm_epochs": 200}, {}, "20 of 100 epochs."),
        ({"warm_epochs": 50}, {}, "50 epochs of warm-starting, where an equal number of updates takes 1000"),
        ({}, {"train_limit": 5000}, "5000 training images only"),
    ],
)
def test_another_budget_is_noted_with_the_value(write_study, warm, changes, limits, said):
    trials = [warm("Plain", seed, 0.7, data="cifar10", **changes) for seed in range(2)]
    table = summary_table(load_study(write_study(trials, settings=LIMITS | limits)), ("final_accuracy",), None)
    assert rows_of(table)[0]["final_accuracy_paper"] == "0.704"
    assert any(note.startswith("Other budget") and said in note for note in table.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 128}, "batch_size = 128 (paper: 256)"),
        ({"betas": [0.5, 0.999]}, "betas = [0.5, 0.999]"),
        ({"augment": "crop_flip"}, "augment = crop_flip (paper: none)"),
        ({"width": 0.5}, "width = 0.5"),
        ({"noise_rule": "other"}, "noise_rule = other"),
    ],
)
def test_under_another_protocol_the_value_is_withheld_with_a_note(write_study, warm, changes, said):
    trials = [warm("Plain", 0, 0.7, data="cifar10", **changes)]
    table = summary_table(load_study(write_study(trials, settings=LIMITS)), ("final_accuracy",), None)
    assert "final_accuracy_paper" not in rows_of(table)[0]
    assert any(note.startswith("Not compared") and said in note for note in table.notes)


def test_settings_of_a_method_are_the_protocol_of_that_method_alone(write_study, warm):
    trials = [warm(name, 0, 0.7, data="cifar10", method=name, ratio=0.1) for name in ("l2", "shrink_perturb")]
    for trial in trials:
        trial.config["method"]["toward"] = "fresh"
    table = summary_table(load_study(write_study(trials, settings=LIMITS)), ("final_accuracy",), None)
    assert [row["final_accuracy_paper"] for row in rows_of(table)] == ["0.735", ""]


def test_a_trial_whose_configuration_is_lost_has_no_comparison(write_study, warm):
    trials = [warm("Plain", 0, 0.7, data="cifar10")]
    trials[0].config = {"stream": trials[0].config["stream"]}
    table = summary_table(load_study(write_study(trials, settings=LIMITS)), ("final_accuracy",), None)
    assert "training is not recorded" in " ".join(table.notes)
    assert "final_accuracy_paper" not in rows_of(table)[0]


def test_other_streams_and_networks_have_no_value(write_study, warm, planned):
    other = warm("Plain", 0, 0.7, data="cifar10")
    other.settings["model"] = "vgg16"
    table = summary_table(load_study(write_study([other, planned("EMA", 0, [[0.5]])])), ("final_accuracy",), None)
    assert "final_accuracy_paper" not in rows_of(table)[0]
    assert "aper" not in " ".join(table.notes)


@pytest.fixture
def grid(warm):
    """Two ratios, two noises; five seeds in the corner at ratio 1, noise 0."""
    cells = {
        (0.1, 0.0): [0.975],
        (0.1, 0.5): [0.955],
        (1.0, 0.0): [0.98, 0.982, 0.984, 0.981, 0.983],
        (1.0, 0.5): [0.97],
    }
    return [
        warm(f"ratio {ratio:g} noise {noise:g}", seed, value, ratio=ratio, noise=noise, train=0.999)
        for (ratio, noise), values in cells.items()
        for seed, value in enumerate(values)
    ]


def test_the_grid_is_a_matrix_with_the_papers_values_and_the_largest_difference(write_study, grid):
    study = load_study(write_study(grid, settings=LIMITS))
    text = " ".join(grid_table(study).to_text(160).split())
    assert "0.1 97.50 (98, -0.50) 95.50 (97, -1.50)" in text
    assert "1 98.20 ± 0.16 (98, +0.20) 97.00 (97, 0.00)" in text
    assert "Largest difference to the paper: -1.50 points at ratio 0.1, noise 0.5; 1 of 4 differ by more than 1" in text
    train = " ".join(grid_table(study, "final_train_accuracy").to_text().split())
    assert "99.90 (100, -0.10)" in train and "table 4" in train
    rows = rows_of(grid_cells_table(study, ("final_accuracy", "final_train_accuracy")))
    assert len(rows) == 8
    corner = next(
        row for row in rows if (row["split"], row["subset_ratio"], row["label_noise"]) == ("test", "1.0", "0.0")
    )
    values = [0.98, 0.982, 0.984, 0.981, 0.983]
    assert float(corner["accuracy_mean"]) == pytest.approx(np.mean(values))
    assert float(corner["accuracy_sd"]) == pytest.approx(np.std(values, ddof=1))
    assert (float(corner["paper_mean"]), float(corner["paper_sd"])) == (0.98, 0.0011)
    assert float(corner["accuracy_minus_paper"]) == pytest.approx(0.002)
    repeated = rows_of(grid_cells_table(study, ("final_accuracy",), repeated=True))
    assert [row["subset_ratio"] for row in repeated] == ["1.0"]


def test_a_grid_with_holes_says_so_and_keeps_the_others(write_study, grid):
    grid[0].status = "missing"
    grid[1].status, grid[1].error = "failed", "RuntimeError: no memory"
    grid[2].status = "running"
    table = grid_table(load_study(write_study(grid, settings=LIMITS)))
    text = " ".join(table.to_text(160).split())
    assert "0.1 – –" in text
    assert "(n=4) (98," in text
    assert "ratio 0.1 noise 0, seed 0: not started." in text
    assert "no memory" in text
    assert "0 of 2 differ" in text


def test_two_trials_in_one_cell_with_one_seed_are_no_grid(write_study, grid, warm):
    duplicate = warm("twin", 0, 0.5, ratio=0.1, noise=0.0)
    with pytest.raises(MissingDataError, match=r"no grid: .* must name one trial"):
        grid_table(load_study(write_study([*grid, duplicate], settings=LIMITS)))
