"""Statistics of a study: means over seeds, bootstrap and t intervals, drops at phase changes.

SciPy is imported when the first interval or correlation is computed: reading a study does not need it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ht_ray._checks import check_number
from ht_ray.errors import SettingError

__all__ = [
    "Difference",
    "Drops",
    "Estimate",
    "bootstrap_interval",
    "correlation",
    "drop_and_recovery",
    "estimate",
    "interval_name",
    "mean_interval",
    "paired_difference",
    "t_quantile",
]

Seed = TypeVar("Seed")

RESAMPLES = 10_000
#: From how many values on the bootstrap is used. The percentile interval of 2, 3, 5, 10 normally distributed values,
#: meant to hold their mean 95 times in 100, holds it 51, 74, 85, 90 times.
ENOUGH = 20


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` values and their standard deviation (divisor n - 1; NaN below two values)."""

    n: int
    mean: float
    sd: float


@dataclass(frozen=True)
class Difference:
    """The mean of `n` paired differences and half the width of its t interval (NaN below two pairs)."""

    n: int
    mean: float
    half_width: float

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.mean + self.half_width


@dataclass(frozen=True)
class Drops:
    """Drops of a curve at the phase changes; see `drop_and_recovery`.

    Attributes
    ----------
    depth
        Shape ``(changes,)``, in the curve's unit: how far it fell below its level before the change; never negative.
    epochs
        Shape ``(changes,)``: for how many epochs it stayed below; ``inf`` where the phase ended before it was back.
    """

    depth: NDArray[np.float64]
    epochs: NDArray[np.float64]


def estimate(values: Iterable[float]) -> Estimate:
    """Return mean and standard deviation (divisor n - 1) of `values`.

    Examples
    --------
    >>> estimate([1.0, 2.0, 3.0])
    Estimate(n=3, mean=2.0, sd=1.0)
    """
    array = np.fromiter(values, dtype=np.float64)
    mean = float(array.mean()) if array.size else math.nan
    return Estimate(array.size, mean, float(array.std(ddof=1)) if array.size > 1 else math.nan)


def bootstrap_interval(
    values: Iterable[float], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values`; ``(nan, nan)`` below two values.

    The ends are quantiles of the means of `resamples` samples of the same size, drawn with replacement, as by
    `scipy.stats.bootstrap`. From a handful of values the interval is too narrow, as its ends cannot lie beyond them:
    take `mean_interval`.

    Parameters
    ----------
    values : iterable of float
        For instance one accuracy per seed.
    level : float, default 0.95
        The coverage, between 0 and 1.
    resamples : int, default 10000
        The number of samples drawn.
    seed : int, default 0
        The seed of NumPy's `default_rng`, which draws them: the same values give the same interval.

    Examples
    --------
    >>> low, high = bootstrap_interval([0.70, 0.72, 0.74, 0.71, 0.73])
    >>> round(low, 3), round(high, 3)
    (0.708, 0.732)
    >>> bootstrap_interval([0.7])
    (nan, nan)
    """
    check_number("bootstrap_interval: level", level, low=0, high=1, low_open=True, high_open=True)
    check_number("bootstrap_interval: resamples", resamples, low=1, integer=True)
    sample = np.fromiter(values, dtype=np.float64)
    if sample.size < 2:
        return math.nan, math.nan
    from scipy import stats

    drawn = np.random.default_rng(seed)
    options = {"confidence_level": level, "n_resamples": resamples, "method": "percentile", "random_state": drawn}
    ends = stats.bootstrap((sample,), np.mean, **options).confidence_interval
    return float(ends.low), float(ends.high)


def mean_interval(values: Iterable[float], *, level: float = 0.95) -> tuple[float, float]:
    """Return an interval for the mean of `values`; ``(nan, nan)`` below two values.

    Below 20 values the t interval, ``mean ± t * sd / sqrt(n)``, for values that are normally distributed; from there on
    the percentile bootstrap interval, for any.

    Parameters
    ----------
    values : iterable of float
        For instance one accuracy per seed.
    level : float, default 0.95
        The coverage, between 0 and 1.

    Examples
    --------
    >>> low, high = mean_interval([0.70, 0.72, 0.74, 0.71, 0.73])
    >>> round(low, 3), round(high, 3)
    (0.7, 0.74)
    """
    check_number("mean_interval: level", level, low=0, high=1, low_open=True, high_open=True)
    sample = np.fromiter(values, dtype=np.float64)
    if sample.size >= ENOUGH:
        return bootstrap_interval(sample, level=level)
    own = estimate(sample)
    half_width = _half_width(own, level)
    return own.mean - half_width, own.mean + half_width


def interval_name(values: int) -> str:
    """Return the name of the 95% interval of so many values (see `mean_interval`)."""
    return "95% bootstrap interval" if values >= ENOUGH else "95% t interval"


def _half_width(own: Estimate, level: float) -> float:
    """Return half the width of the t interval of a mean; NaN below two values."""
    return t_quantile((1 + level) / 2, own.n - 1) * own.sd / math.sqrt(own.n) if own.n > 1 else math.nan


def paired_difference(
    values: Mapping[Seed, float], baseline: Mapping[Seed, float], *, level: float = 0.95
) -> Difference:
    """Return the mean of ``values[seed] - baseline[seed]`` over the common seeds, with its t interval.

    Parameters
    ----------
    level : float, default 0.95
        The interval's coverage, for differences that are normally distributed. It is one comparison's: nothing is
        corrected for the number of methods compared.

    Examples
    --------
    >>> d = paired_difference({0: 0.8, 1: 0.9, 2: 1.0}, {0: 0.7, 1: 0.7, 2: 0.7, 3: 0.1})
    >>> d.n, round(d.mean, 6), round(d.half_width, 6)
    (3, 0.2, 0.248414)
    """
    check_number("paired_difference: level", level, low=0, high=1, low_open=True, high_open=True)
    sample = estimate(values[seed] - baseline[seed] for seed in values if seed in baseline)
    return Difference(sample.n, sample.mean, _half_width(sample, level))


def correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Return Pearson's correlation of two samples; NaN where one is constant or there are fewer than two pairs.

    Parameters
    ----------
    a, b : array_like
        The samples, shape ``(n,)``, finite.

    Examples
    --------
    >>> round(correlation([1.0, 2.0, 3.0], [2.0, 1.0, 0.0]), 12)
    -1.0
    >>> correlation([0.1, 0.1, 0.1], [1.0, 2.0, 3.0])
    nan
    """
    samples = [np.asarray(sample, dtype=np.float64) for sample in (a, b)]
    if any(sample.size < 2 or sample.min() == sample.max() for sample in samples):
        return math.nan
    from scipy import stats

    return float(stats.pearsonr(*samples).statistic)


def t_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution.

    Parameters
    ----------
    probability : float
        The share below the quantile, between 0 and 1.
    degrees : int
        The degrees of freedom, at least 1.

    Examples
    --------
    >>> round(t_quantile(0.975, 4), 4)
    2.7764
    """
    check_number("t_quantile: probability", probability, low=0, high=1, low_open=True, high_open=True)
    check_number("t_quantile: degrees", degrees, low=1, integer=True)
    from scipy import special

    return float(special.stdtrit(degrees, probability))


def drop_and_recovery(curve: ArrayLike, starts: Iterable[int]) -> Drops:
    """Measure how far a curve falls at each phase change, and how long it takes to come back.

    The level before a change is the value after the last epoch before it. The drop is that level minus the lowest value
    from the change until the curve is first back at the level or the phase ends; it is zero if the first epoch's value
    is not below the level.

    Parameters
    ----------
    curve : array_like
        A score after each epoch, shape ``(epochs,)``, the larger the better; NaN where it is unknown.
    starts : iterable of int
        Indices (from 0) into `curve` of the first epoch of each phase. A start at 0 is no change and is passed over.

    Returns
    -------
    Drops
        One entry per change, NaN where the level before it, or the whole phase, is unknown.

    Raises
    ------
    SettingError
        If `starts` do not increase, or lie outside the curve.

    Examples
    --------
    >>> drop_and_recovery([0.5, 0.6, 0.2, 0.4, 0.7, 0.7], starts=[0, 2, 5])
    Drops(depth=array([0.4, 0. ]), epochs=array([2., 0.]))
    """
    values = np.asarray(curve, dtype=np.float64)
    firsts = list(starts)
    if sorted(set(firsts)) != firsts or any(not 0 <= first < len(values) for first in firsts):
        raise SettingError(
            f"drop_and_recovery: starts = {firsts}: accepted are increasing indices below {len(values)}."
        )
    depth, epochs = [], []
    for first, end in zip(firsts, [*firsts[1:], len(values)], strict=False):
        if first == 0:
            continue
        level, phase = values[first - 1], values[first:end]
        back = np.flatnonzero(phase >= level)
        below = phase[: back[0]] if back.size else phase
        known = below[np.isfinite(below)]
        if math.isnan(level) or not np.isfinite(phase).any():
            depth.append(math.nan)
            epochs.append(math.nan)
        else:
            depth.append(float(level - known.min()) if known.size else 0.0)
            epochs.append(float(back[0]) if back.size else math.inf)
    return Drops(np.array(depth, dtype=np.float64), np.array(epochs, dtype=np.float64))
