"""Prune a BPE vocabulary by use: what is seldom used goes, and no way to what stays is broken."""

import heapq
import json
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from lep.corpus.read import batches, cut_at_lines
from lep.errors import TokenizerError
from lep.tokenizer.parts import Merge, Parts

BATCH_CHARACTERS, PIECE_CHARACTERS = (
    4_000_000,
    100_000,
)  # encoded at once (some 80 bytes each), and in one piece


def token_counts(tokenizer: Tokenizer, texts: Iterable[str], size: int) -> np.ndarray:
    """How often each id occurs in the texts: (size,) int64."""
    counts = np.zeros(size, dtype=np.int64)
    for batch in batches(cut_at_lines(texts, PIECE_CHARACTERS), BATCH_CHARACTERS):
        for encoded in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            counts += np.bincount(encoded.ids, minlength=size)
    return counts


def last_merges(parts: Parts) -> list[tuple[int, int] | None]:
    """For each id the two tokens that become it when its own bytes are tokenised; None where merges do not lead there.

    (Base symbols, added tokens, tokens that only a whole-word shortcut reaches.)
    """
    ranks = {
        (m.left, m.right): (rank, m.result) for rank, m in reversed(list(enumerate(parts.merges)))
    }
    ways: dict[int, list[tuple[int, int]]] = {}
    for merge in parts.merges:
        ways.setdefault(merge.result, []).append((merge.left, merge.right))
    ordinary = [content is not None for content in parts.contents]
    letters = {
        name: i
        for i, name in enumerate(parts.names)
        if name is not None and len(name) == 1 and ordinary[i]
    }
    return [
        _last_merge([letters.get(c, -1) for c in parts.names[i] or ""], i, ranks)
        if i in ways
        else None
        for i in range(len(parts.names))
    ]


def kept_tokens(parts: Parts, counts: np.ndarray, keep: int, protected: np.ndarray) -> np.ndarray:
    """Which ids stay when `keep` do: (size,) bool.

    The least used token on which no other depends is dropped again and again; its uses go to the two tokens of
    which it was made. Added tokens, base symbols and byte tokens stay, and those that `protected`, (size,) bool,
    marks, with all that lead to them. So a text whose tokens all stay is tokenised as before.

    Raises `TokenizerError` when more than `keep` must stay.
    """
    parents, uses = last_merges(parts), counts.astype(np.int64).copy()
    used = np.array([name is not None for name in parts.names])
    fixed = protected & used
    tokens = parts.vocabulary.tokens
    for i, name in enumerate(parts.names):
        token = tokens[i]
        if token is not None and name is not None:
            fixed[i] |= token.added or token.is_byte or len(name) == 1
    pending = np.flatnonzero(fixed).tolist()
    while pending:
        for parent in parents[pending.pop()] or ():
            if not fixed[parent]:
                fixed[parent] = True
                pending.append(parent)
    if fixed.sum() > keep:
        raise TokenizerError(
            f"{keep:,} tokens shall stay, but {fixed.sum():,} must: added tokens, single characters, bytes, and what "
            f"protected texts use ({(protected & used).sum():,}): ask for a larger vocabulary or protect less"
        )
    children = np.zeros(len(uses), dtype=np.int64)
    for i in np.flatnonzero(used).tolist():
        for parent in parents[i] or ():
            children[parent] += 1
    heap = [(int(uses[i]), -i) for i in np.flatnonzero(used & ~fixed & (children == 0)).tolist()]
    heapq.heapify(heap)
    kept = used.copy()
    surplus = int(used.sum()) - keep
    while surplus > 0:
        count, negative = heapq.heappop(heap)
        index = -negative
        if count != uses[index]:  # uses of its own pieces came to it since
            heapq.heappush(heap, (int(uses[index]), negative))
            continue
        kept[index] = False
        surplus -= 1
        for parent in parents[index] or ():
            uses[parent] += count
            children[parent] -= 1
            if children[parent] == 0 and not fixed[parent]:
                heapq.heappush(heap, (int(uses[parent]), -parent))
    return kept


def pruned(parts: Parts, kept: np.ndarray, *, in_place: bool = False) -> Parts:
    """The parts without the dropped tokens: ids closed up, or with the freed ids unused (`in_place`)."""
    names = [name if kept[i] else None for i, name in enumerate(parts.names)]
    merges = [m for m in parts.merges if kept[m.left] and kept[m.right] and kept[m.result]]
    if not in_place:
        numbers = np.cumsum(kept) - 1
        names = [name for name in names if name is not None]
        merges = [Merge(*(int(numbers[i]) for i in merge)) for merge in merges]
    return Parts.of(Tokenizer.from_str(json.dumps(parts.assemble(names, merges))))


def _last_merge(
    ids: list[int], goal: int, ranks: dict[tuple[int, int], tuple[int, int]]
) -> tuple[int, int] | None:
    """BPE on a few symbols, by its definition, up to the merge that would give `goal` alone."""
    while len(ids) > 2:
        found = min(
            ((*ranks[pair], place) for place, pair in enumerate(pairwise(ids)) if pair in ranks),
            key=lambda entry: (entry[0], entry[2]),
            default=None,
        )
        if found is None:
            return None
        _, result, place = found
        ids[place : place + 2] = [result]
    pair = (ids[0], ids[1]) if len(ids) == 2 else None
    return pair if pair in ranks and ranks[pair][1] == goal else None
