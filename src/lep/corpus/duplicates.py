"""Duplicates among documents: exact ones by hash, near ones by MinHash."""

import hashlib
from collections.abc import Sequence

import regex

SHINGLE_WORDS, PERMUTATIONS = 5, 128
_WORD = regex.compile(r"\w+")


class Duplicates:
    """Remembers the documents that it has seen: eight bytes of each, and a signature for near ones."""

    def __init__(self, kind: str, threshold: float) -> None:
        """`kind`: exact, minhash (exact and near, by the Jaccard similarity of five-word shingles), or none."""
        self.kind = kind
        self.seen: set[bytes] = set()
        self.near = None
        self.count = 0
        if kind == "minhash":
            from rensa import RMinHashDeduplicator

            self.near = RMinHashDeduplicator(threshold=threshold, num_perm=PERMUTATIONS, use_lsh=True)

    def verdicts(self, texts: Sequence[str]) -> list[str | None]:
        """`exact duplicate`, `near duplicate` or None for each text, in order; what is None is remembered."""
        found: list[str | None] = [None] * len(texts)
        if self.kind == "none":
            return found
        words = [_WORD.findall(text.lower()) for text in texts]
        for i, own in enumerate(words):
            key = hashlib.blake2b(" ".join(own).encode(), digest_size=8).digest()
            if key in self.seen:
                found[i] = "exact duplicate"
            self.seen.add(key)
        if self.near is not None:
            asked = [i for i, verdict in enumerate(found) if verdict is None]
            pairs = [(str(self.count + i), shingles(words[i])) for i in asked]
            for i, fresh in zip(asked, self.near.add_pairs(pairs), strict=True):
                found[i] = None if fresh else "near duplicate"
        self.count += len(texts)
        return found


def shingles(words: list[str]) -> list[str]:
    """Every run of five words; all of them for a shorter text."""
    return [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))]
