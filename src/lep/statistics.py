"""Statistics with 95% intervals: bootstrap over units, and Student's t over seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

NORMAL = 1.959963984540054  # 97.5th percentile of the normal distribution
FEW_UNITS = 15  # resamples of fewer say how much an estimate varies, and not their own percentiles
Statistic = Callable[[np.ndarray], float]
Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% bootstrap interval over `count` units; a single unit has no interval."""

    value: float
    low: float
    high: float
    count: int

    @property
    def has_interval(self) -> bool:
        return self.count > 1 or self.low < self.high


def estimate(
    numerators: Values,
    denominators: Values | None = None,
    *,
    shares: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """`sum(numerators) / sum(denominators)`, or the mean without denominators, over the units.

    `shares`: the numerators are shares; where all are 0 or all are 1, the interval is Wilson's.
    """
    values, statistic = np.asarray(numerators, dtype=np.float64), mean
    if shares and denominators is None and (certain := wilson(values)):
        return certain
    if denominators is not None:
        values = np.stack([values, np.asarray(denominators, dtype=np.float64)], axis=1)
        statistic = ratio
    drawn = draws([values], statistic, resamples, seed)
    interval = bounds(statistic(values), drawn, len(values))
    return of_shares(interval) if shares else interval


def draws(
    arrays: Sequence[np.ndarray], statistic: Statistic, resamples: int, seed: int
) -> np.ndarray:
    """The statistic of one array, or its difference between two, on each resample: (resamples,).

    Every resample draws the same units, with replacement, from each array. The units depend only on
    their number and the seed, so that differences are paired.
    """
    rng, count = np.random.default_rng(seed), len(arrays[0])
    drawn = np.empty(resamples)
    for i in range(resamples):
        units = rng.integers(count, size=count)
        first, *second = (statistic(array[units]) for array in arrays)
        drawn[i] = first - sum(second)
    return drawn


def bounds(value: float, drawn: np.ndarray, count: int) -> Estimate:
    """A value with a 95% interval from its draws.

    Percentiles of the draws of few units are too narrow. Their levels are expanded by Student's t
    and the variance that a resample lacks (Hesterberg 2015, 1411.5279); below `FEW_UNITS`, the
    interval is the value and t standard errors of the draws, to both sides.
    """
    from scipy.special import ndtr, stdtrit

    if np.isfinite(value) and np.isfinite(drawn).any():  # resamples may have nothing to divide by
        drawn = drawn[np.isfinite(drawn)]
    if count < 2:
        return Estimate(float(value), float(drawn.min()), float(drawn.max()), count)
    errors = stdtrit(count - 1, 0.975) * np.sqrt(count / (count - 1))
    if count < FEW_UNITS:
        half = errors * np.std(drawn)
        return Estimate(float(value), float(value - half), float(value + half), count)
    tail = 100 * ndtr(-errors)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Estimate(float(value), float(low), float(high), count)


def of_shares(interval: Estimate) -> Estimate:
    """The interval of a share: it ends at 0 and at 1."""
    return replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))


def wilson(shares: np.ndarray) -> Estimate | None:
    """Wilson's 95% interval (1927) of shares that are all 0 or all 1; otherwise None.

    Resamples of such shares are all alike, as if five right answers of five were certain.

    >>> round(wilson(np.ones(5)).low, 4)
    0.5655
    """
    if shares.ndim != 1 or not len(shares) or not (shares == shares[0]).all():
        return None
    share = float(shares[0])
    return _wilson(share, len(shares)) if share in (0.0, 1.0) else None


def _wilson(share: float, count: int) -> Estimate:
    """Wilson's interval of a share of `count` items."""
    part = NORMAL**2 / count
    centre = (share + part / 2) / (1 + part)
    half = np.sqrt(part * share * (1 - share) + part**2 / 4) / (1 + part)
    return of_shares(Estimate(share, float(centre - half), float(centre + half), count))


def paired_difference(differences: np.ndarray) -> Estimate | None:
    """The 95% interval of the mean of differences that are all 1, 0 or -1; otherwise None.

    Each of two models is right or wrong in each item. Resamples know nothing of losses that no item
    showed: one item gained and none lost of 20 would exclude all losses. The shares gained and lost
    have Wilson's intervals, from which that of their difference follows (MOVER, Zou & Donner 2008,
    with the correlation of two shares of the same items).

    >>> gain = paired_difference(np.array([1.0] + 19 * [0.0]))
    >>> round(gain.low, 2), round(gain.high, 2)
    (-0.12, 0.24)
    """
    if differences.ndim != 1 or not len(differences) or not np.isin(differences, (-1, 0, 1)).all():
        return None
    gained, lost = (_wilson(float((differences == s).mean()), len(differences)) for s in (1, -1))
    sure = max(gained.value, lost.value) == 1
    odds = [each.value / (1 - each.value) for each in (gained, lost)] if not sure else [0, 0]
    correlation = -np.sqrt(odds[0] * odds[1])
    below = gained.value - gained.low, lost.high - lost.value
    above = gained.high - gained.value, lost.value - lost.low
    halves = [np.sqrt(a**2 + b**2 - 2 * correlation * a * b) for a, b in (below, above)]
    value = gained.value - lost.value
    low, high = max(-1.0, value - halves[0]), min(1.0, value + halves[1])
    return Estimate(value, float(low), float(high), len(differences))


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def ratio(values: np.ndarray) -> float:
    """Sum of the first column over the sum of the second."""
    top, bottom = values.sum(0)
    return float(top / bottom)


def student_half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of a mean of independent values (Student 1908); needs two values.

    >>> round(student_half_width([1.0, 2.0, 3.0]), 3)
    2.484
    """
    from scipy.stats import sem, t

    return float(sem(values) * t.ppf(0.975, len(values) - 1))
