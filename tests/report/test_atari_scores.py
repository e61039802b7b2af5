"""Atari-100k scores against scipy, plain loops, and rliable: its numbers, and, where it is installed, itself."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ht_ray.errors import SettingError
from ht_ray.report import human_normalized, paper_scores
from ht_ray.report.atari.reference import atari_games, reference_scores
from ht_ray.report.atari.scores import (
    METRICS,
    aggregate_scores,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)

RAGGED = st.dictionaries(
    st.sampled_from(atari_games()), st.lists(st.floats(-1, 20), min_size=1, max_size=7), min_size=1, max_size=8
)


def matrix(runs, games, seed=0):
    return np.random.default_rng(seed).lognormal(-1, 1, (runs, games)) - 0.1


def by_game(scores):
    return {game: scores[:, column] for column, game in enumerate(atari_games()[: scores.shape[1]])}


def points(found):
    return [getattr(found, metric).value for metric in METRICS]


def test_the_published_rows_of_random_play_and_of_the_human_are_0_and_1():
    for row, expected in enumerate((0.0, 1.0)):
        scores = {game: human_normalized(game, [both[row]] * 2) for game, both in reference_scores().items()}
        assert len(scores) == 26
        found = aggregate_scores(scores, resamples=100)
        assert points(found) == [expected, expected, expected, 1 - expected]
        assert (found.iqm.low, found.iqm.high) == (expected, expected)


def test_an_unknown_game_is_refused():
    with pytest.raises(SettingError, match="Did you mean 'Pong'"):
        human_normalized("Pnog", 1.0)


def test_the_paper_is_as_published():
    rows = paper_scores()
    assert len(rows) == 9
    best = max(rows.values(), key=lambda row: row.iqm)
    assert (best.variant, best.median, best.mean, best.optimality_gap) == ("BBF", 0.755, 2.175, 0.377)
    assert rows["DrQ + HR 40k + H&T"].median == 0.329


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_interquartile_mean_as_in_scipy(values):
    assert float(interquartile_mean(values)) == pytest.approx(stats.trim_mean(values, 0.25), rel=1e-12, abs=1e-12)


@settings(deadline=None)
@given(RAGGED)
def test_points_as_in_numpy_and_scipy(scores):
    means = [np.mean(runs) for runs in scores.values()]
    pooled = np.concatenate([*scores.values()])
    gaps = [1 - np.mean([min(run, 1) for run in runs]) for runs in scores.values()]
    expected = [stats.trim_mean(pooled, 0.25), np.median(means), np.mean(means), np.mean(gaps)]
    np.testing.assert_allclose(points(aggregate_scores(scores, resamples=1)), expected, rtol=1e-12, atol=1e-12)


def test_intervals_as_by_a_loop_over_resamples():
    scores = matrix(4, 6)
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(2000):
        sample = np.stack([rng.choice(scores[:, game], 4) for game in range(6)], axis=1)
        means = sample.mean(axis=0)
        drawn.append(
            [
                stats.trim_mean(sample, 0.25, axis=None),
                np.median(means),
                means.mean(),
                1 - np.minimum(sample, 1).mean(),
            ]
        )
    found = aggregate_scores(by_game(scores), resamples=20_000, interval="bootstrap")
    for metric, ends in zip(METRICS, np.quantile(drawn, [0.025, 0.975], axis=0).T, strict=True):
        own = getattr(found, metric)
        assert (own.low, own.high) == pytest.approx(tuple(ends), abs=0.02), metric


def test_the_interval_of_the_mean_as_the_exact_distribution_has_it():
    # Two runs per game: of each game's mean a quarter, a half and a quarter are known.
    scores = {"Pong": [0.0, 1.0], "Boxing": [0.0, 2.0]}
    found = aggregate_scores(scores, level=0.5, resamples=20_000, interval="bootstrap")
    exact = sorted((a + b) / 2 for a in (0, 0.5, 0.5, 1) for b in (0, 1, 1, 2))
    assert (found.mean.low, found.mean.high) == pytest.approx(tuple(np.quantile(exact, [0.25, 0.75])), abs=1e-12)


def test_resampling_stays_within_a_game():
    found = aggregate_scores({"Pong": [0.0, 0.0], "Boxing": [4.0, 4.0]}, resamples=100)
    for metric in METRICS:
        own = getattr(found, metric)
        assert own.low == own.value == own.high


def test_same_seed_same_interval_in_any_chunks(monkeypatch):
    scores = by_game(matrix(3, 5))
    first = aggregate_scores(scores, resamples=500, interval="bootstrap")
    assert first == aggregate_scores(scores, resamples=500, interval="bootstrap")
    assert first != aggregate_scores(scores, resamples=500, seed=1, interval="bootstrap")
    monkeypatch.setattr("ht_ray.report.atari.scores.CHUNK", 150)
    assert first == aggregate_scores(scores, resamples=500, interval="bootstrap")


def test_few_runs_of_one_game_have_the_t_interval_of_their_mean():
    runs = [0.2, 0.9, 0.5]
    found = aggregate_scores({"Pong": runs})
    expected = stats.t.interval(0.95, 2, np.mean(runs), stats.sem(runs))
    for own in (found.mean, found.median, found.iqm):
        assert (own.low, own.high) == pytest.approx(expected, rel=1e-9)
    assert (found.optimality_gap.low, found.optimality_gap.high) == pytest.approx((1 - expected[1], 1 - expected[0]))


def test_variances_of_games_add_up_as_welch_has_them():
    first, second = [1.0, 2.0, 4.0], [0.0, 5.0, 9.0, 3.0]
    found = aggregate_scores({"Pong": first, "Boxing": second}).mean
    # Half the sum of the games' means: the interval of a difference, whose degrees are rounded down.
    welch = stats.ttest_ind(first, [-value for value in second], equal_var=False)
    degrees = math.floor(welch.df)
    half = stats.t.ppf(0.975, degrees) * math.hypot(stats.sem(first), stats.sem(second)) / 2
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-9)


def test_the_interval_of_the_interquartile_mean_is_that_of_trimmed_means():
    runs = np.random.default_rng(3).normal(size=16)
    found = aggregate_scores({"Pong": runs}).iqm
    # Tukey and McLaughlin: the standard deviation of the winsorised values over the share that is kept.
    winsorised = stats.mstats.winsorize(runs, (0.25, 0.25))
    half = stats.t.ppf(0.975, 15) * np.std(np.asarray(winsorised), ddof=1) / (0.5 * math.sqrt(16))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=1e-9)


def test_from_twenty_runs_of_each_game_on_it_is_the_bootstrap():
    rng = np.random.default_rng(4)
    many = {"Pong": rng.normal(size=20), "Boxing": rng.normal(size=25)}
    assert aggregate_scores(many, resamples=200) == aggregate_scores(many, resamples=200, interval="bootstrap")
    fewer = {**many, "Pong": many["Pong"][:19]}
    assert aggregate_scores(fewer) == aggregate_scores(fewer, interval="t")


@pytest.mark.parametrize(("games", "runs"), [(1, 3), (4, 3), (26, 2), (26, 5)])
def test_intervals_of_few_runs_hold_what_they_are_meant_to(games, runs):
    rng = np.random.default_rng(games * 10 + runs)
    level, spread = rng.normal(0, 1, games), np.exp(rng.normal(-1, 0.4, games))
    held = 0
    for _ in range(1000):
        drawn = rng.normal(level[:, None], spread[:, None], size=(games, runs))
        found = aggregate_scores({str(game): own for game, own in enumerate(drawn)})
        held += found.mean.low <= level.mean() <= found.mean.high
    assert 0.92 <= held / 1000 <= 0.985


def test_where_every_run_wins_the_interval_is_unknown():
    found = probability_of_improvement({"Pong": [3.0, 4.0]}, {"Pong": [1.0, 2.0]})
    assert found.value == 1.0 and math.isnan(found.low) and math.isnan(found.high)
    some = probability_of_improvement({"Pong": [1.5, 4.0, 2.5]}, {"Pong": [1.0, 2.0, 3.0]})
    assert 0.0 <= some.low < some.value < some.high <= 1.0


def test_a_single_run_has_no_interval():
    scores = {"Pong": [0.5], "Boxing": [1.0, 2.0]}
    found = aggregate_scores(scores)
    assert found.mean.value == 1.0
    assert math.isnan(found.iqm.low) and math.isnan(found.mean.high)
    assert np.isnan(performance_profile(scores, [0.5]).low).all()
    assert math.isnan(probability_of_improvement(scores, scores).low)


@settings(deadline=None)
@given(RAGGED, st.lists(st.floats(-1, 20), min_size=1, max_size=6))
def test_profiles_count_runs(scores, thresholds):
    found = performance_profile(scores, thresholds, resamples=20)
    for index, threshold in enumerate(thresholds):
        shares = [sum(run > threshold for run in runs) / len(runs) for runs in scores.values()]
        assert found.share[index] == pytest.approx(np.mean(shares), abs=1e-12)
    known = ~np.isnan(found.low)
    assert (found.low <= found.high)[known].all()


def test_the_band_of_a_profile_is_the_binomial_one():
    # One game, a share of 3 / 10: the number of runs above is binomial.
    found = performance_profile({"Pong": [*range(10)]}, [6.5], resamples=20_000, interval="bootstrap")
    expected = stats.binom.ppf([0.025, 0.975], 10, 0.3) / 10
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(expected))


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_probability_of_improvement_as_in_scipy(ours, theirs):
    found = probability_of_improvement({"Pong": ours}, {"Pong": theirs}, resamples=20)
    expected = stats.mannwhitneyu(ours, theirs, alternative="greater").statistic / (len(ours) * len(theirs))
    assert found.value == pytest.approx(expected, abs=1e-12)
    back = probability_of_improvement({"Pong": theirs}, {"Pong": ours}, resamples=20)
    assert back.value == pytest.approx(1 - expected, abs=1e-12)


def test_the_interval_of_improvement_as_by_a_loop():
    ours, theirs = matrix(4, 3), matrix(5, 3, seed=1)
    rng = np.random.default_rng(2)
    drawn = []
    for _ in range(2000):
        games = []
        for game in range(3):
            first, second = rng.choice(ours[:, game], 4), rng.choice(theirs[:, game], 5)
            games.append(np.mean(first[:, None] > second))
        drawn.append(np.mean(games))
    found = probability_of_improvement(by_game(ours), by_game(theirs), resamples=20_000, interval="bootstrap")
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)


@pytest.mark.parametrize("scores", [{}, {"Pong": []}, {"Pong": [math.nan]}, {"Pong": [[1.0]]}])
def test_scores_that_are_none_are_refused(scores):
    for compute in (aggregate_scores, lambda own: performance_profile(own, [0.5])):
        with pytest.raises(SettingError, match="scores"):
            compute(scores)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(SettingError, match="only one of the two has Boxing"):
        probability_of_improvement({"Pong": [1.0], "Boxing": [1.0]}, {"Pong": [1.0]})
    with pytest.raises(SettingError, match="level"):
        aggregate_scores({"Pong": [1.0]}, level=1.0)


def fixed(runs, games, shift=0):
    run, game = np.indices((runs, games))
    return ((37 * run**2 + 11 * game**2 + 23 * run * game + 5 * game + shift) % 101) / 40 - 0.2


def test_rliables_numbers():
    """On `fixed`, computed by rliable 1.2.0 (NumPy 2.4.6) with::

    np.random.seed(0)
    aggregates = lambda x: np.array([aggregate_iqm(x), aggregate_median(x), aggregate_mean(x),
                                     aggregate_optimality_gap(x)])
    library.get_interval_estimates({"ours": fixed(5, 6)}, aggregates, reps=50_000)
    library.create_performance_profile({"ours": fixed(5, 6)}, np.array([0.0, 0.5, 1.0, 2.0]))
    metrics.probability_of_improvement(fixed(5, 6), fixed(4, 6, 9))
    """
    ours = by_game(fixed(5, 6))
    found = aggregate_scores(ours, interval="bootstrap")
    expected = [0.9578125000000001, 0.9824999999999999, 1.0425000000000002, 0.31499999999999995]
    np.testing.assert_allclose(points(found), expected, rtol=0, atol=1e-12)
    lows, highs = [0.61871, 0.6975, 0.77833, 0.1925], [1.39219, 1.3675, 1.3125, 0.4425]
    np.testing.assert_allclose([getattr(found, metric).low for metric in METRICS], lows, rtol=0, atol=0.01)
    np.testing.assert_allclose([getattr(found, metric).high for metric in METRICS], highs, rtol=0, atol=0.01)
    profile = performance_profile(ours, [0.0, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(profile.share, [14 / 15, 2 / 3, 0.4, 0.2], rtol=0, atol=1e-12)
    improvement = probability_of_improvement(ours, by_game(fixed(4, 6, 9)), resamples=10)
    assert improvement.value == pytest.approx(0.55, abs=1e-12)


@pytest.mark.parametrize(("runs", "games"), [(5, 26), (3, 7), (2, 2)])
def test_as_in_rliable(runs, games):
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    scores = matrix(runs, games)
    names = ("aggregate_iqm", "aggregate_median", "aggregate_mean", "aggregate_optimality_gap")
    np.random.seed(0)  # noqa: NPY002 (rliable draws from it)
    expected, ends = library.get_interval_estimates(
        {"ours": scores}, lambda x: np.array([getattr(metrics, name)(x) for name in names]), reps=5000
    )
    found = aggregate_scores(by_game(scores), interval="bootstrap")
    np.testing.assert_allclose(points(found), expected["ours"], rtol=0, atol=1e-12)
    # Most of this is rliable's own noise, at a tenth of the resamples.
    bounds = np.array([(getattr(found, metric).low, getattr(found, metric).high) for metric in METRICS]).T
    np.testing.assert_allclose(bounds, ends["ours"], rtol=0, atol=0.02)
    other = matrix(runs + 1, games, seed=1)
    improvement = probability_of_improvement(by_game(scores), by_game(other), resamples=10)
    assert improvement.value == pytest.approx(metrics.probability_of_improvement(scores, other), abs=1e-12)
