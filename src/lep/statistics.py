"""Statistics with 95% intervals: bootstrap over units, and Student's t over seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], float]
Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% bootstrap interval over `count` units."""

    value: float
    low: float
    high: float
    count: int


def estimate(
    numerators: Values, denominators: Values | None = None, *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """`sum(numerators) / sum(denominators)`, or the mean without denominators, over the units."""
    values, statistic = np.asarray(numerators, dtype=np.float64), mean
    if denominators is not None:
        values = np.stack([values, np.asarray(denominators, dtype=np.float64)], axis=1)
        statistic = ratio
    return bounds(statistic(values), draws([values], statistic, resamples, seed), len(values))


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
    """A value with the 2.5th and 97.5th percentile of its draws."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high), count)


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
