"""Turn documents into training blocks without losing a token; pieces start with a paragraph."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sized
from typing import TYPE_CHECKING, TypeVar

from lep.corpus.read import Documents, batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LONGEST = 1_000_000  # characters of one text for the tokenizer
BATCH_TEXTS, BATCH_CHARACTERS = 256, 4_000_000  # tokenised at once
OPEN_BLOCKS = 512  # blocks that wait for a piece that fits
T = TypeVar("T", bound=Sized)


def token_pieces(
    documents: Documents, tokenizer: "PreTrainedTokenizerFast", block_size: int
) -> Iterator[list[int]]:
    """Token ids of each document, with the tokenizer's own start (BOS) and one EOS at the end.

    A document longer than a block is cut at line ends into the longest pieces that fit, each with
    its own BOS. A line longer than a block is cut where the block ends.
    """
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    parts = (part for document in documents for part in _parts(document.text))
    for batch in batches(parts, BATCH_CHARACTERS, most=BATCH_TEXTS, length=lambda p: len(p[0])):
        encoded = tokenizer([text for text, _ in batch])["input_ids"]
        for (text, last), ids in zip(batch, encoded, strict=True):
            fits = len(ids) + len(end) <= block_size
            pieces = [ids] if fits else _cut(text, tokenizer, block_size - len(end))
            if last and end and pieces[-1][-1:] != end:
                pieces[-1] = pieces[-1] + end
            yield from filter(None, pieces)  # a tokenizer may drop all characters


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Parts of bounded length, cut at line ends if possible, and whether each is the last."""
    start = 0
    while len(text) - start > LONGEST:
        stop = text.rfind("\n", start, start + LONGEST) + 1 or start + LONGEST
        yield text[start:stop], False
        start = stop
    yield text[start:], True


def _cut(text: str, tokenizer: "PreTrainedTokenizerFast", limit: int) -> list[list[int]]:
    lines = text.splitlines(keepends=True)
    lengths = [len(ids) for ids in tokenizer(lines, add_special_tokens=False)["input_ids"]]
    first = tokenizer.num_special_tokens_to_add(pair=False)
    groups, start, stop, filled = list[str](), 0, 0, 0
    for line, length in zip(lines, lengths, strict=True):
        if stop > start and first + filled + length > limit:
            groups.append(text[start:stop])
            start, filled = stop, 0
        stop += len(line)
        filled += length
    groups.append(text[start:])
    return [  # lines together can be more tokens than one by one
        ids[start : start + limit]
        for ids in tokenizer(groups)["input_ids"]
        for start in range(0, len(ids), limit)
    ]


def packed(
    pieces: Iterable[T], block_size: int, open_blocks: int = OPEN_BLOCKS
) -> Iterator[list[T]]:
    """Blocks of whole pieces, up to `block_size` tokens; a piece goes where it leaves least room.

    So many `open_blocks` wait for a piece; with fewer, pieces stay closer to their order.

    (Best fit; Ding et al. 2024, "Fewer Truncations Improve Language Modeling".) Raises `ValueError`
    for a piece longer than a block.

    >>> list(packed([[1, 2, 3], [4, 5], [6], [7, 8]], 4))
    [[[1, 2, 3], [6]], [[4, 5], [7, 8]]]
    """
    room: list[tuple[int, int]] = []  # of open blocks: free tokens, number
    blocks: dict[int, list[T]] = {}
    number = 0
    for piece in pieces:
        if len(piece) > block_size:
            message = f"a piece of {len(piece)} tokens is longer than a block of {block_size}"
            raise ValueError(message)
        if not room or room[-1][0] < len(piece):
            if len(room) == open_blocks:
                yield blocks.pop(room.pop(0)[1])  # the fullest
            insort(room, (block_size, number))
            blocks[number] = []
            number += 1
        free, best = room.pop(bisect_left(room, (len(piece), 0)))
        blocks[best].append(piece)
        if free == len(piece):
            yield blocks.pop(best)
        else:
            insort(room, (free - len(piece), best))
    yield from blocks.values()
