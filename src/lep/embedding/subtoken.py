"""Rows of new tokens from the source tokens that spell them: which ones, with which weights."""

from collections.abc import Callable, Sequence
from random import Random

# Source rows of one target row, and their weights. `lengths[row]` is the number of bytes that a
# source row's token spells, 0 if it is no ordinary token.
Mixture = tuple[list[int], list[float]]


def mean(pieces: list[int], lengths: Sequence[int], rng: Random) -> Mixture:
    """1/K on each of K pieces; a repeated piece counts each time (eq. 1-2)."""
    return pieces, [1.0 / len(pieces)] * len(pieces)


def length_weighted(pieces: list[int], lengths: Sequence[int], rng: Random) -> Mixture:
    """Weights by the bytes that each piece spells: a long piece says more than a letter."""
    total = sum(lengths[piece] for piece in pieces)
    if not total:
        return mean(pieces, lengths, rng)
    return pieces, [lengths[piece] / total for piece in pieces]


def first(pieces: list[int], lengths: Sequence[int], rng: Random) -> Mixture:
    """The first piece, which the model had to predict at this position (EEVE, output rows)."""
    return pieces[:1], [1.0]


def last(pieces: list[int], lengths: Sequence[int], rng: Random) -> Mixture:
    """The last piece, which the model read before it went on."""
    return pieces[-1:], [1.0]


def random(pieces: list[int], lengths: Sequence[int], rng: Random) -> Mixture:
    """A random source row: the control that a sensible method has to beat."""
    row = rng.randrange(len(lengths))
    while not lengths[row]:
        row = rng.randrange(len(lengths))
    return [row], [1.0]


METHODS: dict[str, Callable[[list[int], Sequence[int], Random], Mixture]] = {
    "mean": mean,
    "length-weighted": length_weighted,
    "first": first,
    "last": last,
    "random": random,
}
