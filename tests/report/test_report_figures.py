"""Figures: what they tell (read from the SVG's text), and what they refuse."""

import dataclasses
import html
import re

import matplotlib
import numpy as np
import pytest

from ht_ray.errors import SettingError
from ht_ray.report import MissingDataError, load_study
from ht_ray.report.continual.curves import epoch_curves, phase_curves
from ht_ray.report.continual.maps import heat_map
from ht_ray.report.continual.method_bars import method_bars
from ht_ray.report.indicators.figures import indicator_curves, indicator_scatter


def words(path):
    """Return all text of an SVG, line by line."""
    texts = re.findall(r"<(?:text|tspan)[^>]*>([^<]*)<", path.read_text(encoding="utf-8"))
    return [html.unescape(text).strip() for text in texts if text.strip()]


def test_heat_map_tells_every_cell_and_every_other_method(write_study, grid_trials, tmp_path):
    study = load_study(write_study(grid_trials))
    path = tmp_path / "map.svg"
    heat_map(study, "final_accuracy", path)
    shown = words(path)
    for trials in zip(grid_trials[::2], grid_trials[1::2], strict=True):
        values = [100 * trial.phases[-1][-1] for trial in trials]
        mean, sd = f"{np.mean(values):.2f}", f"± {np.std(values, ddof=1):.2f}"
        if trials[0].method in ("ema", "hare_tortoise"):
            assert mean in shown and sd in shown
        else:
            assert f"{mean} {sd}" in shown
            assert trials[0].label in shown
    for text in ("0.9", "0.99", "1", "10", "never (EMA)", "Reset interval (epochs)", "Momentum"):
        assert text in shown
    assert "study: CIFAR-10, ResNet-18, seeds 0, 1" in shown
    assert any(text.startswith("Final accuracy (%)") for text in shown)
    # Plain (61.5 %) is worse than all of the grid.
    assert "other methods beyond it" in " ".join(shown)


def test_heat_map_says_what_is_not_whole(write_study, grid_trials, tmp_path):
    grid_trials[7].status = "failed"  # Hare & Tortoise m=0.9 r=1, seed 1
    for trial in grid_trials[12:14]:  # Hare & Tortoise m=0.99 r=10
        trial.status = "missing"
    path = tmp_path / "map.svg"
    heat_map(load_study(write_study(grid_trials)), "final_accuracy", path)
    shown = words(path)
    assert "(1 of 2)" in shown
    assert "none finished" in shown


def test_heat_map_of_two_units_names_each(write_study, grid_trials, tmp_path):
    for trial in grid_trials[8:10]:
        trial.settings |= {"reset_interval": 4000, "reset_unit": "steps"}
    path = tmp_path / "map.svg"
    heat_map(load_study(write_study(grid_trials)), "final_accuracy", path)
    assert {"4000", "steps", "epochs", "Reset interval"} <= set(words(path))


def test_heat_map_needs_a_grid(write_study, grid_trials, tmp_path):
    study = load_study(write_study(grid_trials[:8]))
    with pytest.raises(MissingDataError, match="the study has 1"):
        heat_map(study, "final_accuracy", tmp_path / "map.png")
    with pytest.raises(SettingError, match="Did you mean 'final_accuracy'"):
        heat_map(study, "final_acuracy", tmp_path / "map.png")
    assert not (tmp_path / "map.png").exists()


def test_heat_map_refuses_two_trials_of_one_cell_and_seed(write_study, grid_trials, tmp_path, planned):
    duplicate = planned("Twin", 0, [[0.5]] * 3, "hare_tortoise", settings=dict(grid_trials[6].settings))
    with pytest.raises(MissingDataError, match=r"no grid: .* must name one trial"):
        heat_map(load_study(write_study([*grid_trials, duplicate])), "final_accuracy", tmp_path / "map.png")


@pytest.mark.parametrize("draw", [epoch_curves, phase_curves])
def test_curves_show_the_best_of_each_method_and_say_so(write_study, grid_trials, tmp_path, draw):
    path = tmp_path / "curves.svg"
    draw(load_study(write_study(grid_trials)), path)
    text = " ".join(words(path))
    assert "Hare & Tortoise m=0.99 r=10 (best of 4 by average accuracy)" in text
    assert "EMA m=0.99 (best of 2 by average accuracy)" in text
    assert "r=1 " not in text
    for label in ("Plain", "Shrink & Perturb", "Head Reset", "Test accuracy (%)", "seeds 0, 1"):
        assert label in text
    assert ("Epoch (counted over all phases)" in text) == (draw is epoch_curves)


def test_few_labels_are_all_shown(write_study, grid_trials, tmp_path):
    path = tmp_path / "curves.svg"
    epoch_curves(load_study(write_study(grid_trials[:10])), path)
    text = " ".join(words(path))
    assert "best of" not in text
    assert all(trial.label in text for trial in grid_trials[:10])


def test_labels_can_be_chosen(write_study, grid_trials, tmp_path):
    study = load_study(write_study(grid_trials))
    path = tmp_path / "curves.svg"
    phase_curves(study, path, labels=["Head Reset"])
    assert "Head Reset" in words(path)
    assert "Plain" not in words(path)
    with pytest.raises(SettingError, match="Did you mean 'Head Reset'"):
        phase_curves(study, path, labels=["Head reset"])


def test_curves_say_which_seeds_and_labels_are_wanting(write_study, grid_trials, tmp_path):
    grid_trials[0].status = "diverged"
    grid_trials[14].status = grid_trials[15].status = "failed"
    path = tmp_path / "curves.svg"
    epoch_curves(load_study(write_study(grid_trials)), path)
    text = " ".join(words(path))
    assert "(1 of 2 seeds)" in text
    assert "Without a finished trial: Shrink & Perturb." in text


def test_a_label_with_all_seeds_goes_before_a_luckier_one(write_study, grid_trials, tmp_path):
    grid_trials[13].status = "failed"  # one seed of the best cell, m=0.99 r=10
    path = tmp_path / "curves.svg"
    epoch_curves(load_study(write_study(grid_trials)), path)
    shown = words(path)
    assert "Hare & Tortoise m=0.99 r=1" in shown
    assert "Hare & Tortoise m=0.99 r=10" not in shown


def test_without_curves_there_is_no_figure(write_study, planned, tmp_path):
    study = load_study(write_study([planned("Plain", 0, [[0.1]], status="running")], of=2))
    with pytest.raises(MissingDataError, match="no finished trial"):
        epoch_curves(study, tmp_path / "curves.png")


def test_the_same_results_give_the_same_files_and_leave_the_users_settings(write_study, grid_trials, tmp_path):
    study = load_study(write_study(grid_trials))
    before = dict(matplotlib.rcParams)
    first = [tmp_path / f"first.{kind}" for kind in ("png", "pdf", "svg")]
    phase_curves(study, *first)
    matplotlib.rcParams["font.size"] = 40
    second = [tmp_path / f"second.{kind}" for kind in ("png", "pdf", "svg")]
    phase_curves(study, *second)
    assert matplotlib.rcParams["font.size"] == 40
    matplotlib.rcParams["font.size"] = before["font.size"]
    assert dict(matplotlib.rcParams) == before
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    with pytest.raises(SettingError, match="accepted are 'png', 'pdf', 'svg'"):
        phase_curves(study, tmp_path / "curves.jpg")


def test_labels_are_no_formulas(write_study, grid_trials, tmp_path):
    for trial in grid_trials:
        trial.label = trial.label.replace("Plain", "Pl $a^$").replace("Head", "$\\nope$")
        trial.measured = {"srank": [[1.0 + trial.seed, 2.0] for _ in trial.phases]}
    study = load_study(write_study(grid_trials, name="study $^$"))
    heat_map(study, "final_accuracy", tmp_path / "map.svg")
    epoch_curves(study, tmp_path / "curves.svg")
    indicator_curves(study, tmp_path / "indicators.svg")
    method_bars(study, ["final_accuracy"], tmp_path / "bars.svg")
    few = dataclasses.replace(study, trials=study.trials[:6])
    indicator_scatter(few, tmp_path / "scatter.svg")
    for path in tmp_path.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert "study $^$" in text and "Pl $a^$" in text
