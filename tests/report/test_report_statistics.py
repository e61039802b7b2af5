"""Statistics against published quantiles, scipy and plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ht_ray.errors import SettingError
from ht_ray.report import bootstrap_interval, drop_and_recovery, estimate, mean_interval, paired_difference
from ht_ray.report.data.statistics import t_quantile


@pytest.mark.parametrize(
    ("degrees", "upper_5_percent", "upper_2_5_percent", "upper_0_5_percent"),
    [  # NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2
        (1, 6.314, 12.706, 63.657),
        (2, 2.920, 4.303, 9.925),
        (3, 2.353, 3.182, 5.841),
        (4, 2.132, 2.776, 4.604),
        (5, 2.015, 2.571, 4.032),
        (9, 1.833, 2.262, 3.250),
        (30, 1.697, 2.042, 2.750),
        (100, 1.660, 1.984, 2.626),
    ],
)
def test_t_quantiles_as_published(degrees, upper_5_percent, upper_2_5_percent, upper_0_5_percent):
    assert round(t_quantile(0.95, degrees), 3) == upper_5_percent
    assert round(t_quantile(0.975, degrees), 3) == upper_2_5_percent
    assert round(t_quantile(0.995, degrees), 3) == upper_0_5_percent


@settings(deadline=None)
@given(probability=st.floats(0.0005, 0.9995), degrees=st.integers(1, 400))
def test_t_quantiles_as_in_scipy(probability, degrees):
    # Near the median the quantile itself goes to zero, and what counts is the absolute error.
    assert t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-10, abs=1e-10)


def test_t_quantiles_in_closed_form():
    for probability in (0.6, 0.9, 0.975, 0.9995):
        one = math.tan(math.pi * (probability - 0.5))
        two = (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
        assert t_quantile(probability, 1) == pytest.approx(one, rel=1e-12)
        assert t_quantile(probability, 2) == pytest.approx(two, rel=1e-12)
        assert t_quantile(1 - probability, 2) == pytest.approx(-two, rel=1e-12)
    assert t_quantile(0.5, 3) == 0


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 1), (1.0, 1), (math.nan, 1), (0.5, 0), (0.5, 2.0)])
def test_t_quantile_refuses(probability, degrees):
    with pytest.raises(SettingError, match="t_quantile"):
        t_quantile(probability, degrees)


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), max_size=9))
def test_estimate_as_in_numpy(values):
    found = estimate(values)
    assert found.n == len(values)
    if values:
        assert found.mean == pytest.approx(np.mean(values))
    else:
        assert math.isnan(found.mean)
    if len(values) > 1:
        assert found.sd == pytest.approx(np.std(values, ddof=1))
    else:
        assert math.isnan(found.sd)


@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=9),
    level=st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_paired_difference_as_in_scipy(pairs, level):
    values = {seed: a for seed, (a, _) in enumerate(pairs)} | {"only here": 5.0}
    baseline = {seed: b for seed, (_, b) in enumerate(pairs)} | {"only there": -5.0}
    gains = np.array([a - b for a, b in pairs])
    found = paired_difference(values, baseline, level=level)
    assert found.n == len(pairs)
    assert found.mean == pytest.approx(gains.mean(), abs=1e-15)
    half_width = stats.t.ppf((1 + level) / 2, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    assert found.high - found.low == pytest.approx(2 * half_width, rel=1e-9, abs=1e-12)
    assert (found.low + found.high) / 2 == pytest.approx(found.mean, abs=1e-12)


def test_paired_difference_with_few_pairs():
    one = paired_difference({0: 0.7, 1: 0.8}, {1: 0.5})
    assert (one.n, one.mean) == (1, pytest.approx(0.3))
    assert math.isnan(one.low)
    none = paired_difference({0: 0.7}, {1: 0.5})
    assert none.n == 0
    assert math.isnan(none.mean)
    with pytest.raises(SettingError, match="level"):
        paired_difference({}, {}, level=1.0)


def plain_drops(curve, starts):
    """Walk through each phase, as the definition says it."""
    found = []
    for first, end in zip(starts, [*starts[1:], len(curve)], strict=False):
        if first == 0:
            continue
        level, lowest, epochs = curve[first - 1], curve[first - 1], 0
        for value in curve[first:end]:
            if value >= level:
                break
            lowest, epochs = min(lowest, value), epochs + 1
        else:
            epochs = math.inf
        found.append((level - lowest, epochs))
    return found


@settings(deadline=None)
@given(st.data())
def test_drops_as_walked(data):
    phases = data.draw(st.lists(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=6), max_size=5))
    curve = [value for phase in phases for value in phase]
    starts = np.cumsum([0, *(len(phase) for phase in phases)]).tolist()[:-1]
    found = drop_and_recovery(curve, starts)
    assert list(zip(found.depth, found.epochs, strict=True)) == plain_drops(curve, starts)


def test_drops_by_hand():
    curve = [0.2, 0.6, 0.1, 0.3, 0.7, 0.7, 0.8, 0.5, 0.6]
    found = drop_and_recovery(curve, starts=[0, 2, 5, 7])
    np.testing.assert_allclose(found.depth, [0.5, 0.0, 0.3])
    np.testing.assert_array_equal(found.epochs, [2, 0, math.inf])


def test_a_fall_after_recovery_is_no_drop_of_the_change():
    found = drop_and_recovery([0.5, 0.4, 0.6, 0.1], starts=[0, 1])
    np.testing.assert_allclose(found.depth, [0.1])
    np.testing.assert_array_equal(found.epochs, [1])


def test_unknown_values_are_not_taken_for_drops():
    nan = math.nan
    found = drop_and_recovery([nan, 0.1, 0.5, nan, 0.3, 0.6, nan, nan], starts=[0, 1, 3, 6])
    np.testing.assert_allclose(found.depth, [nan, 0.2, nan])
    np.testing.assert_array_equal(found.epochs, [nan, 2, nan])


@pytest.mark.parametrize("starts", [[1, 1], [2, 1], [-1], [3]])
def test_drops_refuse_starts_outside_or_out_of_order(starts):
    with pytest.raises(SettingError, match="starts"):
        drop_and_recovery([0.1, 0.2, 0.3], starts)


@pytest.mark.parametrize("count", [2, 3, 5, 10, 30])
def test_the_interval_of_a_mean_holds_it_95_times_in_100(count):
    drawn = np.random.default_rng(count).normal(0.7, 0.02, size=(2000, count))
    ends = np.array([mean_interval(values) for values in drawn])
    held = ((ends[:, 0] <= 0.7) & (ends[:, 1] >= 0.7)).mean()
    assert 0.93 <= held <= 0.97


def test_the_interval_of_few_values_is_that_of_student():
    values = np.random.default_rng(0).normal(0.7, 0.02, size=19)
    assert mean_interval(values) == pytest.approx(stats.t.interval(0.95, 18, values.mean(), stats.sem(values)))
    narrow = mean_interval(values, level=0.5)
    assert narrow == pytest.approx(stats.t.interval(0.5, 18, values.mean(), stats.sem(values)))
    more = np.append(values, 0.7)
    assert mean_interval(more) == bootstrap_interval(more)
    assert all(math.isnan(end) for end in mean_interval([0.5]))
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5)
