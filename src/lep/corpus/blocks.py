"""Turn documents into training blocks: no token is lost, every piece starts where a paragraph starts."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from lep.corpus.read import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LONGEST, BATCH_TEXTS, BATCH_CHARACTERS = (
    1_000_000,
    256,
    4_000_000,
)  # what the tokenizer is given at once
OPEN_BLOCKS = 512  # blocks that still wait for a piece that fits


def token_pieces(
    documents: Iterable[Document], tokenizer: "PreTrainedTokenizerFast", block_size: int
) -> Iterator[list[int]]:
    """Token ids of each document, with whatever the tokenizer puts first (BOS) and one EOS at the end.

    A document longer than a block is cut at line ends into pieces as long as fit, each with its own BOS; a line longer
    than a block is cut where the block ends.
    """
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for batch in _batches(text for document in documents for text in _texts(document.text)):
        texts = [text for text, _ in batch]
        for (text, last), ids in zip(batch, tokenizer(texts)["input_ids"], strict=True):
            parts = (
                [ids]
                if len(ids) + len(end) <= block_size
                else _cut(text, tokenizer, block_size - len(end))
            )
            if last and end and parts[-1][-1:] != end:
                parts[-1] = parts[-1] + end
            yield from parts


def _texts(text: str) -> Iterator[tuple[str, bool]]:
    """A text in parts that are not too long, cut at line ends where there are some; and whether each is the last."""
    start = 0
    while len(text) - start > LONGEST:
        cut = text.rfind("\n", start, start + LONGEST) + 1 or start + LONGEST
        yield text[start:cut], False
        start = cut
    yield text[start:], True


def _batches(texts: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    size = 0
    for part in texts:
        batch.append(part)
        size += len(part[0])
        if len(batch) == BATCH_TEXTS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def packed(pieces: Iterable[list[int]], block_size: int) -> Iterator[list[list[int]]]:
    """Blocks of whole pieces, at most `block_size` tokens together: each piece goes where the least room is left.

    (Best fit; Ding et al. 2024, "Fewer Truncations Improve Language Modeling".) Raises `ValueError` for a piece longer
    than a block.

    >>> list(packed([[1, 2, 3], [4, 5], [6], [7, 8]], 4))
    [[[1, 2, 3], [6]], [[4, 5], [7, 8]]]
    """
    room: list[tuple[int, int]] = []  # of open blocks: free tokens, number
    blocks: dict[int, list[list[int]]] = {}
    number = 0
    for piece in pieces:
        if len(piece) > block_size:
            raise ValueError(
                f"a piece of {len(piece)} tokens is longer than a block of {block_size}"
            )
        place = bisect_left(room, (len(piece), 0))
        if place == len(room):
            if len(room) == OPEN_BLOCKS:
                yield blocks.pop(room.pop(0)[1])  # the fullest
            insort(room, (block_size, number))
            blocks[number] = []
            number += 1
            place = bisect_left(room, (len(piece), 0))
        free, chosen = room.pop(place)
        blocks[chosen].append(piece)
        if free == len(piece):
            yield blocks.pop(chosen)
        else:
            insort(room, (free - len(piece), chosen))
    yield from blocks.values()


def _cut(text: str, tokenizer: "PreTrainedTokenizerFast", limit: int) -> list[list[int]]:
    lines = text.splitlines(keepends=True)
    lengths = [len(ids) for ids in tokenizer(lines, add_special_tokens=False)["input_ids"]]
    first = tokenizer.num_special_tokens_to_add(pair=False)
    groups, filled = [""], 0
    for line, length in zip(lines, lengths, strict=True):
        if groups[-1] and first + filled + length > limit:
            groups, filled = [*groups, ""], 0
        groups[-1] += line
        filled += length
    found = []
    for ids in tokenizer(groups)["input_ids"]:  # lines together can be more tokens than one by one
        found += [ids[start : start + limit] for start in range(0, len(ids), limit)]
    return found
