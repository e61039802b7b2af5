"""Figures of many methods: a panel for each, and lines with styles of their own."""

import html
import re

import numpy as np
import pytest

from ht_ray.report import load_study
from ht_ray.report.continual.curves import epoch_curves, phase_curves
from ht_ray.report.continual.maps import heat_map
from ht_ray.report.style.curve_lines import MANY, line_styles

GREY = "0.8"


@pytest.fixture
def many_trials(planned):
    rng = np.random.default_rng(1)
    methods = ["plain", *(f"method{index}" for index in range(9)), "hare_tortoise"]
    return [
        planned(method.capitalize(), seed, rng.uniform(0.5, 0.6, (3, 4)).tolist(), method)
        for method in methods
        for seed in (0, 1)
    ]


def means(trials, curve):
    found = {}
    for label in dict.fromkeys(trial.label for trial in trials):
        values = np.array([trial.phases for trial in trials if trial.label == label])
        found[label] = 100 * (values[:, :, -1] if curve == "phase" else values.reshape(len(values), -1)).mean(axis=0)
    return found


@pytest.mark.parametrize(("draw", "curve"), [(epoch_curves, "epoch"), (phase_curves, "phase")])
def test_each_method_stands_before_the_baseline_and_the_others(write_study, many_trials, drawn, tmp_path, draw, curve):
    draw(load_study(write_study(many_trials)), tmp_path / "curves.svg")
    expected = means(many_trials, curve)
    axes = drawn[0].axes
    assert [axis.get_title(loc="left") for axis in axes] == list(expected)[1:]
    assert len({axis.get_ylim() for axis in axes}) == len({axis.get_xlim() for axis in axes}) == 1
    for axis in axes:
        label = axis.get_title(loc="left")
        lines = [line for line in axis.lines if len(line.get_xdata()) > 2]
        (baseline,) = (line for line in lines if line.get_color() == "black")
        grey = [line for line in lines if line.get_color() == GREY]
        (own,) = (line for line in lines if line is not baseline and line not in grey)
        np.testing.assert_allclose(own.get_ydata(), expected[label])
        np.testing.assert_allclose(baseline.get_ydata(), expected["Plain"])
        others = [mean for other, mean in expected.items() if other not in ("Plain", label)]
        np.testing.assert_allclose([line.get_ydata() for line in grey], others)
        assert own.get_zorder() > baseline.get_zorder() > max(line.get_zorder() for line in grey)
        assert axis.collections, "a band"
    text = html.unescape(" ".join(re.findall(r">([^<]+)<", (tmp_path / "curves.svg").read_text(encoding="utf-8"))))
    assert "each method in colour, Plain in black, the others in grey" in text


def test_without_a_baseline_nothing_is_black(write_study, many_trials, drawn, tmp_path):
    study = load_study(write_study(many_trials[2:]))
    phase_curves(study, tmp_path / "curves.svg", labels=study.labels)
    assert len(drawn[0].axes) == len(study.labels) > MANY
    assert not any(line.get_color() == "black" for axis in drawn[0].axes for line in axis.lines)
    assert " in black" not in (tmp_path / "curves.svg").read_text(encoding="utf-8")


def test_a_panel_says_which_seeds_are_wanting(write_study, many_trials, drawn, tmp_path):
    many_trials[4].status = "failed"
    phase_curves(load_study(write_study(many_trials)), tmp_path / "curves.png")
    assert drawn[0].axes[1].get_title(loc="left") == "Method1\n(1 of 2 seeds)"


def test_up_to_eight_labels_share_a_picture(write_study, many_trials, drawn, tmp_path):
    study = load_study(write_study(many_trials))
    phase_curves(study, tmp_path / "curves.png", labels=study.labels[:MANY])
    (axis,) = drawn[0].axes
    expected = means(many_trials, "phase")
    assert {line.get_label() for line in axis.lines} == set(study.labels[:MANY])
    for line in axis.lines:
        np.testing.assert_allclose(line.get_ydata(), expected[line.get_label()])


@pytest.mark.parametrize("count", range(1, 31))
def test_styles_differ(count):
    methods = ["plain", "hare_tortoise", *(f"method{index}" for index in range(28))][:count]
    styles = line_styles(methods)
    assert len({(style["color"], style["linestyle"], style["marker"]) for style in styles}) == count
    if count > MANY:
        assert [style["color"] for style in styles].count(styles[0]["color"]) == 1
        assert [style["color"] for style in styles].count(styles[1]["color"]) == 1
        assert styles[1]["linewidth"] > styles[0]["linewidth"] > max(style["linewidth"] for style in styles[2:])


def test_many_other_methods_stand_in_columns_next_to_the_grid(write_study, grid_trials, many_trials, drawn, tmp_path):
    path = tmp_path / "map.svg"
    others = [trial for trial in many_trials if trial.method.startswith("method")]
    heat_map(load_study(write_study([*grid_trials, *others])), "final_accuracy", path)
    text = path.read_text(encoding="utf-8")
    for label in {trial.label for trial in others}:
        assert label in text
    strip = next(axis for axis in drawn[0].axes if axis.get_title() == "Other methods")
    corners = [(patch.get_x(), patch.get_y()) for patch in strip.patches]
    assert sorted(corners) == [(x, y) for x in (0, 1) for y in range(6)]
