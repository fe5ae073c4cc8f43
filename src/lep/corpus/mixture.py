"""Interleave streams of token pieces, so that each training step sees all of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, a part of one, or a conversation; its first `prompt_tokens` are not learned."""

    ids: list[int]
    prompt_tokens: int = 1
    stream: str = "text"

    def __len__(self) -> int:
        return len(self.ids)


def interleaved(
    streams: Mapping[str, Iterator[Piece]], shares: Mapping[str, float], tokens: int
) -> Iterator[Piece]:
    """Pieces of endless streams up to `tokens`; each next one is of the stream that lacks most.

    After every piece, each stream has its share of the tokens to within the longest piece. Shares
    are relative to each other.

    >>> streams = {name: iter([Piece([0], 1, name)] * 9) for name in "ab"}
    >>> "".join(piece.stream for piece in interleaved(streams, {"a": 2, "b": 1}, 6))
    'abaaba'
    """
    whole, total = sum(shares[name] for name in streams), 0
    given = dict.fromkeys(streams, 0)
    while total < tokens:
        due = {name: shares[name] / whole * total - given[name] for name in streams}
        name = max(due, key=due.__getitem__)
        piece = next(streams[name])
        given[name] += len(piece)
        total += len(piece)
        yield piece


def endless(read: Callable[[int], Iterable[Piece]]) -> Iterator[Piece]:
    """The pieces of `read(0)`, then of `read(1)`, and so on: one pass over a stream after another.

    Raises `ValueError` for a stream without pieces.
    """
    number = 0
    while True:
        empty = True
        for piece in read(number):
            empty = False
            yield piece
        if empty:
            raise ValueError("a stream without pieces")
        number += 1
