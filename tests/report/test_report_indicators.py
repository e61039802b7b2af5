"""Plasticity indicators: what is drawn and tabulated, against numpy and scipy."""

import csv
import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ht_ray.diagnostics.indicators import INDICATORS
from ht_ray.errors import SettingError
from ht_ray.report import MissingDataError, load_study, write_report
from ht_ray.report.data.statistics import correlation
from ht_ray.report.indicators.figures import indicator_curves
from ht_ray.report.indicators.tables import correlation_table, indicator_table
from ht_ray.report.style.formats import INDICATOR_TITLES, format_significant

NAN = math.nan


@pytest.fixture
def measured_trials(planned):
    """Three methods, three seeds, four phases of two epochs; each indicator measured at the end of a phase."""
    rng = np.random.default_rng(0)

    def trial(label, method, seed, **settings):
        phases = rng.uniform(0.3, 0.9, (4, 2)).tolist()
        measured = {
            "srank": [[NAN, value] for value in rng.uniform(10, 50, 4)],
            "hessian_max": [[NAN, value] for value in 10.0 ** (np.arange(4) + rng.uniform(-0.3, 0.3, 4))],
            "my_number": [[value, value] for value in rng.normal(size=4)],
            "dead": [[NAN, 0.1]] * 4,
        }
        return planned(label, seed, phases, method, measured=measured, settings=settings)

    methods = [("Plain", "plain"), ("EMA", "ema"), ("Head Reset", "head_reset")]
    return [trial(label, method, seed) for label, method in methods for seed in range(3)]


def ends(trials, label, name):
    """Return the values at the ends of the phases: seeds x phases."""
    return np.array([[phase[-1] for phase in trial.measured[name]] for trial in trials if trial.label == label])


def by_title(figure):
    return {axis.get_title(loc="left"): axis for axis in figure.axes if axis.get_title(loc="left")}


def lines_by_label(axis):
    return {line.get_label(): line for line in axis.lines}


def test_columns_that_are_no_usual_ones_are_indicators(write_study, measured_trials, planned):
    usual = {name: [[0.1]] for name in ("train_loss", "train_accuracy", "test_loss")}
    assert load_study(write_study([planned("A", 0, [[0.5]], measured=usual)], name="usual")).indicator_names == ()
    names = load_study(write_study(measured_trials)).indicator_names
    assert set(names) == {"srank", "hessian_max", "my_number", "dead"}


def test_every_indicator_that_is_measured_has_a_title():
    assert set(INDICATORS) == set(INDICATOR_TITLES)


def test_panels_show_means_at_phase_ends_and_deviations(write_study, measured_trials, drawn, tmp_path):
    indicator_curves(load_study(write_study(measured_trials)), tmp_path / "map.svg")
    axes = by_title(drawn[0])
    assert set(axes) == {"Feature rank (srank)", "Largest Hessian eigenvalue", "My number", "Dead"}
    for title, name in (("Feature rank (srank)", "srank"), ("My number", "my_number")):
        lines = lines_by_label(axes[title])
        assert list(lines) == ["Plain", "EMA", "Head Reset"]
        for band, (label, line) in zip(axes[title].collections, lines.items(), strict=True):
            values = ends(measured_trials, label, name)
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4])
            np.testing.assert_allclose(line.get_ydata(), values.mean(axis=0))
            mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
            corners = np.concatenate([path.vertices for path in band.get_paths()])
            for x, y in zip([1, 2, 3, 4] * 2, [*(mean - sd), *(mean + sd)], strict=True):
                assert np.isclose(corners, [x, y]).all(axis=1).any()
    assert axes["Dead"].lines[0].get_color() == "#000000"
    text = (tmp_path / "map.svg").read_text(encoding="utf-8")
    for shown in ("Plain", "EMA", "Head Reset", "at the end of each phase", "mean over seeds 0–2"):
        assert shown in text


def test_an_axis_is_logarithmic_where_positive_values_span_decades(write_study, measured_trials, drawn, tmp_path):
    indicator_curves(load_study(write_study(measured_trials)), tmp_path / "a.svg")
    scales = {title: axis.get_yscale() for title, axis in by_title(drawn[0]).items()}
    assert scales == {
        "Feature rank (srank)": "linear",
        "Largest Hessian eigenvalue": "log",
        "My number": "linear",
        "Dead": "linear",
    }
    assert "Logarithmic axes" in (tmp_path / "a.svg").read_text(encoding="utf-8")
    indicator_curves(load_study(write_study(measured_trials, name="again")), tmp_path / "b.svg", names=["srank"])
    assert "Logarithmic axes" not in (tmp_path / "b.svg").read_text(encoding="utf-8")


def test_one_phase_is_drawn_over_the_epochs_that_measured(write_study, planned, drawn, tmp_path):
    trials = [
        planned("Plain", seed, [[0.1] * 6], measured={"srank": [[NAN, value, NAN, NAN, 2.0, NAN]]})
        for seed, value in enumerate([4.0, 8.0])
    ]
    indicator_curves(load_study(write_study(trials)), tmp_path / "a.png")
    (axis,) = by_title(drawn[0]).values()
    np.testing.assert_array_equal(axis.lines[0].get_xydata(), [[2, 6.0], [5, 2.0]])


def test_names_choose_panels_and_their_order(write_study, measured_trials, drawn, tmp_path):
    study = load_study(write_study(measured_trials))
    indicator_curves(study, tmp_path / "a.png", names=["dead", "srank"])
    assert list(by_title(drawn[0])) == ["Dead", "Feature rank (srank)"]
    with pytest.raises(SettingError, match="Did you mean 'srank'"):
        indicator_curves(study, tmp_path / "a.png", names=["sranks"])


def test_a_label_says_on_how_many_seeds_it_stands_or_that_it_has_none(write_study, measured_trials, tmp_path):
    measured_trials[3].status = "failed"
    for trial in measured_trials[6:]:
        trial.measured = {}
    indicator_curves(load_study(write_study(measured_trials)), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "(2 of 3 seeds)" in text
    assert "Without values: Head Reset." in text


def test_a_study_without_indicators_is_silent_about_them(write_study, planned, tmp_path):
    root = write_study([planned("Plain", seed, [[0.5, 0.6], [0.6, 0.7]]) for seed in (0, 1)])
    study = load_study(root)
    for make in (indicator_table, correlation_table, lambda study: indicator_curves(study, tmp_path / "a.png")):
        with pytest.raises(MissingDataError, match="indicator"):
            make(study)
    said = []
    written = write_report(study, log=said.append)
    assert not any("indicator" in path.name or "correlation" in path.name for path in written)
    assert not any("indicator" in text for text in [*said, (root / "table.md").read_text()])


def test_the_report_of_a_study_that_measured(write_study, measured_trials):
    root = write_study(measured_trials)
    said = []
    names = {path.name for path in write_report(root, log=said.append)}
    assert {"indicators.csv", "correlations.csv", "indicator_curves.png", "indicator_curves.pdf"} <= names
    markdown = (root / "table.md").read_text()
    assert "## Plasticity indicators of study" in markdown
    assert "## Plasticity indicators and final accuracy of study" in markdown
    assert any(text.startswith("Plasticity indicators of study") for text in said)


def test_what_only_unfinished_trials_measured_is_skipped_aloud(write_study, measured_trials, planned):
    for trial in measured_trials:
        trial.status = "failed"
    root = write_study([*measured_trials, planned("Other", 0, [[0.5, 0.5]] * 4)])
    write_report(root)
    text = (root / "table.md").read_text()
    for name in ("indicator_table", "correlation_table", "indicator_curves"):
        assert f"Skipped: {name}: no finished trial" in text
    assert not (root / "indicators.csv").exists()


def test_the_table_holds_last_values_as_numpy_has_them(write_study, measured_trials):
    table = indicator_table(load_study(write_study(measured_trials)))
    rows = {row["label"]: row for row in csv.DictReader(io.StringIO(table.to_csv()))}
    for label, row in rows.items():
        for name in ("srank", "hessian_max", "my_number", "dead"):
            last = ends(measured_trials, label, name)[:, -1]
            assert float(row[f"{name}_mean"]) == pytest.approx(last.mean(), rel=1e-12)
            assert float(row[f"{name}_sd"]) == pytest.approx(last.std(ddof=1), rel=1e-9, abs=1e-15)
            assert row[f"{name}_n"] == "3"
    assert {"method", "seeds", "feature rank (srank)", "my number"} < {column.title for column in table.columns}
    assert not any(cell.best for row in table.rows for cell in row)


def test_the_table_counts_values_that_are_wanting(write_study, planned):
    trials = [planned("Plain", seed, [[0.5]], measured={"srank": [[value]]}) for seed, value in enumerate([3.0, 5.0])]
    trials += [planned("Plain", 2, [[0.5]]), planned("EMA", 0, [[0.5]], "ema")]
    text = indicator_table(load_study(write_study(trials))).to_text()
    assert "4.0 ± 1.4 (n=2)" in text
    assert text.splitlines()[-3].split() == ["EMA", "1", "–"]


@pytest.mark.parametrize("stream", ["continual", "warm_start"])
def test_correlations_are_scipys_over_runs(write_study, measured_trials, planned, stream):
    for trial in measured_trials:
        trial.settings = {"stream": stream}
    fresh = planned("Fresh", 0, [[0.99]], "plain", measured={"srank": [[1e6]]}, settings={"stream": stream})
    study = write_study([*measured_trials, *([fresh] if stream == "warm_start" else [])])
    if stream == "warm_start":
        # A run of one phase is complete, and was not warm-started.
        results = study / "trials" / fresh.id / "results.jsonl"
        results.write_text(results.read_text().replace('"progress": 0.25', '"progress": 1.0'))
    table = correlation_table(load_study(study))
    rows = {row["indicator"]: row for row in csv.DictReader(io.StringIO(table.to_csv()))}
    final = [trial.phases[-1][-1] for trial in measured_trials]
    phase = 0 if stream == "warm_start" else -1
    for name in ("srank", "hessian_max", "my_number"):
        values = [trial.measured[name][phase][-1] for trial in measured_trials]
        assert float(rows[name]["correlation"]) == pytest.approx(stats.pearsonr(values, final).statistic, rel=1e-12)
        assert (rows[name]["runs"], rows[name]["phase"]) == ("9", "first" if stream == "warm_start" else "last")
    assert rows["dead"]["correlation"] == ""
    shown = {row[0].values[0]: row[1].text for row in table.rows}
    assert shown["dead"] == "–"
    assert shown["srank"] == f"{float(rows['srank']['correlation']):+.2f}"
    assert ("first phase (the warm start)" in table.notes[0]) == (stream == "warm_start")


def test_two_runs_do_not_correlate(write_study, planned):
    trials = [planned("Plain", seed, [[0.5 + seed / 10]], measured={"srank": [[float(seed)]]}) for seed in (0, 1)]
    (row,) = correlation_table(load_study(write_study(trials))).rows
    assert [cell.text for cell in row[1:]] == ["–", "2"]


pairs = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=3, max_size=12)


@given(pairs, st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_correlation_has_its_properties(sample, scale, shift):
    a, b = np.array(sample).T
    r = correlation(a, b)
    assert math.isnan(r) == (a.min() == a.max() or b.min() == b.max())
    if math.isnan(r) or min(np.ptp(a), np.ptp(b)) < 1e-2:
        return
    assert -1 <= r <= 1
    assert correlation(b, a) == r
    assert r == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-9)
    assert correlation(scale * a + shift, b) == pytest.approx(r, abs=1e-6)
    assert correlation(-a, b) == pytest.approx(-r, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e200])
def test_correlation_of_numbers_of_any_size(scale):
    a, b = np.array([1.0, 2.0, 4.0, 3.0]), np.array([1.0, 3.0, 2.0, 5.0])
    assert correlation(scale * a, b) == pytest.approx(stats.pearsonr(a, b).statistic, rel=1e-12)


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
def test_short_numbers_lose_less_than_their_spread(value, spread):
    mean, deviation = format_significant(value, spread).split(" ± ")
    assert float(deviation) == pytest.approx(spread, rel=0.051)
    assert float(mean) == pytest.approx(value, rel=5.1e-4, abs=0.051 * spread)


def test_parts_of_an_indicator_are_not_reported(planned, write_study, drawn, tmp_path):
    measured = {
        name: [[NAN, value]] * 2 for value, name in enumerate(["hessian_max", "hessian_2", "probe_gap", "probe_loss"])
    }
    trials = [planned("Plain", seed, [[0.1, 0.2]] * 2, "plain", measured=measured) for seed in range(2)]
    study = load_study(write_study(trials))
    assert study.indicator_names == tuple(measured)
    kept = ["largest Hessian eigenvalue", "probe: loss above a fresh network (nats; more is worse)"]
    table = indicator_table(study).to_csv()
    assert "hessian_max" in table and "probe_gap" in table
    assert "hessian_2" not in table and "probe_loss" not in table
    indicator_curves(study, tmp_path / "shown.png")
    assert len(by_title(drawn[0])) == len(kept)
    indicator_curves(study, tmp_path / "asked.png", names=["hessian_2"])
    assert len(by_title(drawn[1])) == 1


def test_one_value_for_all_has_no_scale(measured_trials, write_study, drawn, tmp_path):
    indicator_curves(load_study(write_study(measured_trials)), tmp_path / "shown.png", names=["dead", "srank"])
    axes = by_title(drawn[0])
    assert axes["Dead"].get_yticks().tolist() == pytest.approx([0.1])
    assert len(axes["Feature rank (srank)"].get_yticks()) > 2
