"""Prune a BPE vocabulary by use: rare tokens go, and every token that stays can be reached."""

import heapq
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from tokenizers import Tokenizer

from lep.corpus.read import batches, cut_at_lines
from lep.errors import TokenizerError
from lep.tokenizer.parts import Merge, Parts

BATCH_CHARACTERS = 4_000_000  # encoded at once, at some 80 bytes each
PIECE_CHARACTERS = 100_000  # encoded in one piece
Pair = tuple[int, int]


def token_counts(tokenizer: Tokenizer, texts: Iterable[str], size: int) -> np.ndarray:
    """How often each id occurs in the texts: (size,) int64."""
    counts = np.zeros(size, dtype=np.int64)
    for batch in batches(cut_at_lines(texts, PIECE_CHARACTERS), BATCH_CHARACTERS):
        for encoded in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            counts += np.bincount(encoded.ids, minlength=size)
    return counts


def last_merges(parts: Parts) -> list[Pair | None]:
    """The two tokens that become each id when its own bytes are tokenised.

    None for base symbols, added tokens, and tokens that only a whole-word shortcut reaches.
    """
    ranks: dict[Pair, Pair] = {}
    for rank, merge in enumerate(parts.merges):
        ranks.setdefault((merge.left, merge.right), (rank, merge.result))
    merged, contents = {merge.result for merge in parts.merges}, parts.vocabulary.contents
    named = zip(parts.names, contents, strict=True)
    letters = {n: i for i, (n, known) in enumerate(named) if n and len(n) == 1 and known}
    return [
        _last_merge([letters.get(c, -1) for c in name], i, ranks) if name and i in merged else None
        for i, name in enumerate(parts.names)
    ]


def kept_tokens(parts: Parts, counts: np.ndarray, keep: int, protected: np.ndarray) -> np.ndarray:
    """Which ids stay when `keep` do: (size,) bool.

    Repeatedly, the least used of the tokens on which no other depends is dropped; its uses go to
    the two tokens that it was merged from. Added tokens, base symbols, byte tokens and those that
    `protected`, (size,) bool, marks stay, with all that lead to them. A text whose tokens all stay
    is tokenised as before.

    Raises `TokenizerError` when more than `keep` must stay.
    """
    parents, uses = last_merges(parts), counts.tolist()
    kept = np.array([name is not None for name in parts.names])
    fixed = _fixed(parts, parents, protected & kept)
    if len(fixed) > keep:
        raise TokenizerError(
            f"{keep:,} tokens are to stay, but {len(fixed):,} must: added tokens, characters, "
            f"bytes and what protected texts use ({(protected & kept).sum():,}): keep more, "
            "protect less"
        )
    children = Counter(parent for pair in parents for parent in pair or ())
    ids = np.flatnonzero(kept).tolist()
    heap = [(uses[i], -i) for i in ids if i not in fixed and not children[i]]
    heapq.heapify(heap)
    for _ in range(len(ids) - keep):
        count, negative = heapq.heappop(heap)
        kept[-negative] = False
        for parent in parents[-negative] or ():
            uses[parent] += count
            children[parent] -= 1
            if not children[parent] and parent not in fixed:
                heapq.heappush(heap, (uses[parent], -parent))
    return kept


def pruned(parts: Parts, kept: np.ndarray, *, in_place: bool = False) -> Parts:
    """The parts without the dropped tokens: ids closed up, or (`in_place`) the freed ids unused."""
    names = [name if kept[i] else None for i, name in enumerate(parts.names)]
    merges = [merge for merge in parts.merges if all(kept[i] for i in merge)]
    if not in_place:
        numbers = (np.cumsum(kept) - 1).tolist()
        names = [name for name in names if name is not None]
        merges = [Merge(*(numbers[i] for i in merge)) for merge in merges]
    return parts.rebuilt(names, merges)


def _fixed(parts: Parts, parents: list[Pair | None], protected: np.ndarray) -> set[int]:
    """Ids that must stay, with all that lead to them."""
    pending = np.flatnonzero(protected).tolist()
    for i, (name, token) in enumerate(zip(parts.names, parts.vocabulary.tokens, strict=True)):
        if name is not None and token and (token.added or token.is_byte or len(name) == 1):
            pending.append(i)
    fixed = set[int]()
    while pending:
        if (i := pending.pop()) not in fixed:
            fixed.add(i)
            pending += parents[i] or ()
    return fixed


def _last_merge(ids: list[int], goal: int, ranks: dict[Pair, Pair]) -> Pair | None:
    """Run BPE on a few symbols up to the merge that leaves only `goal`: its pair."""
    while len(ids) > 2:
        known = [(ranks[p], i) for i, p in enumerate(pairwise(ids)) if p in ranks]
        if not known:
            return None
        (_, result), i = min(known)
        ids[i : i + 2] = [result]
    pair = (ids[0], ids[1]) if len(ids) == 2 else None
    return pair if pair in ranks and ranks[pair][1] == goal else None
