"""Scores of single answers, and intervals of their averages."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_LCS = 0.99  # the paper's bound for a copied paragraph (section 4)


@dataclass(frozen=True)
class Estimate:
    """A ratio of sums with its 95% bootstrap interval."""

    value: float
    low: float
    high: float
    count: int


def estimate(
    numerators: Sequence[float], denominators: Sequence[float] | None = None, *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """`sum(numerators) / sum(denominators)` (a mean without denominators), resampled over the units.

    The interval is the 2.5th to 97.5th percentile of the ratio over `resamples` draws with replacement.
    """
    top = np.asarray(numerators, dtype=np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(top), size=(resamples, len(top)))
    low, high = np.percentile(top[draws].sum(1) / bottom[draws].sum(1), [2.5, 97.5])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high), len(top))


def length_ratio(copy: str, original: str) -> float:
    """`min(n/m, m/n)` of the lengths of a copy and its original; 0 for an empty copy."""
    n, m = len(copy), len(original)
    return min(n / m, m / n) if n and m else 0.0


def common_subsequence(a: str, b: str) -> int:
    """Length of the longest common subsequence, bit-parallel (Crochemore et al. 2001).

    >>> common_subsequence("abcde", "abxe")
    3
    """
    places: dict[str, int] = {}
    for i, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << i
    mask = (1 << len(a)) - 1
    row = mask
    for character in b:
        matches = row & places.get(character, 0)
        row = ((row + matches) | (row - matches)) & mask
    return len(a) - row.bit_count()


def copied(copy: str, original: str) -> bool:
    """Whether the longest common subsequence covers at least 99% of the original."""
    return common_subsequence(original, copy) >= LEAST_LCS * len(original)
