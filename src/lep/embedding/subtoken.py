"""Rows of new tokens put together from the source tokens that spell them: which of them, with which weights."""

from collections.abc import Callable, Sequence
from random import Random

# `lengths[row]` is the number of bytes that a source row's token spells, 0 where it is no ordinary token.
Mixture = tuple[list[int], list[float]]  # source rows of one target row, and their weights


def mean(pieces: list[int], lengths: Sequence[int], rng: Random) -> Mixture:
    """1/K on each of K pieces; one that occurs twice counts twice (Tikhomirov & Chernyshev 2024, eq. 1-2)."""
    return pieces, [1.0 / len(pieces)] * len(pieces)


def length_weighted(pieces: list[int], lengths: Sequence[int], rng: Random) -> Mixture:
    """Weights by the bytes that each piece spells: a long piece says more about the token than a letter."""
    total = sum(lengths[piece] for piece in pieces)
    return pieces, [lengths[piece] / total for piece in pieces] if total else mean(
        pieces, lengths, rng
    )[1]


def first(pieces: list[int], lengths: Sequence[int], rng: Random) -> Mixture:
    """The first piece alone: what the model had to predict where the token now stands (EEVE, for output rows)."""
    return pieces[:1], [1.0]


def last(pieces: list[int], lengths: Sequence[int], rng: Random) -> Mixture:
    """The last piece alone: what the model read last before it went on."""
    return pieces[-1:], [1.0]


def random(pieces: list[int], lengths: Sequence[int], rng: Random) -> Mixture:
    """Some source row, whatever the token spells: the control that a sensible method has to beat."""
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
