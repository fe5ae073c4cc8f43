"""Duplicates among documents: exact ones by hash, near ones by MinHash."""

import hashlib
from collections.abc import Sequence

import numpy as np
import regex

SHINGLE_WORDS = 5
# Two documents are compared where all hashes of a band are equal, of one band of 25: 99% of those that share 0.7 of
# their shingles, and 6% of those that share 0.3. Three of the 128 hashes are in no band.
PERMUTATIONS, BANDS, BAND_HASHES, SEED = 128, 25, 5, 42
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd and without a pattern (Knuth 1998, 6.4)
_WORD = regex.compile(r"\w+")


class Duplicates:
    """Remembers the documents that it has seen: a hash of each, and some 430 bytes for near ones."""

    def __init__(self, kind: str, threshold: float) -> None:
        """`kind`: exact, minhash (exact and near, by the Jaccard similarity of five-word shingles), or none."""
        self.kind = kind
        self.seen: set[int] = set()
        self.near = Signatures(threshold) if kind == "minhash" else None

    def verdicts(self, texts: Sequence[str]) -> list[str | None]:
        """`exact duplicate`, `near duplicate` or None for each text, in order; what is None is remembered."""
        found: list[str | None] = [None] * len(texts)
        if self.kind == "none":
            return found
        words = [_WORD.findall(text.lower()) for text in texts]
        for i, own in enumerate(words):
            key = int.from_bytes(
                hashlib.blake2b(" ".join(own).encode(), digest_size=8).digest(), "little"
            )
            if key in self.seen:
                found[i] = "exact duplicate"
            self.seen.add(key)
        if self.near is not None:
            asked = [i for i, verdict in enumerate(found) if verdict is None]
            for i, fresh in zip(
                asked, self.near.add([shingles(words[i]) for i in asked]), strict=True
            ):
                found[i] = None if fresh else "near duplicate"
        return found


class Signatures:
    """MinHash signatures of sets of strings, found again by their bands (Leskovec et al. 2020, 3.4).

    Holds a byte of each hash, which two sets share by chance once in 256 times, and a key for each band: sorted runs,
    merged when they have grown equal in length, so that a key is moved as often as the number of sets has doubled.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.size = 0
        self.bytes = np.zeros((1 << 10, PERMUTATIONS), dtype=np.uint8)
        self.runs: list[tuple[np.ndarray, np.ndarray]] = []  # sorted keys, and whose they are

    def add(self, sets: Sequence[list[str]]) -> list[bool]:
        """Remember each set that is not as similar as the threshold to one before it; whether it is remembered."""
        from rensa import RMinHash

        if not sets:
            return []
        digests = np.array(
            RMinHash.digests_from_token_sets(sets, PERMUTATIONS, SEED), dtype=np.uint32
        )
        signatures, keys = digests.astype(np.uint8), band_keys(digests)
        own = _sorted(keys, np.arange(len(sets)))
        known = [
            self._alike(keys, *run) for run in self.runs
        ]  # of each set: which of the memory may be like it
        here = self._alike(keys, *own)
        fresh: list[bool] = []
        for i, signature in enumerate(signatures):
            before = np.concatenate(
                [self.bytes[found[i]] for found in known]
                + [signatures[[j for j in here[i].tolist() if j < i and fresh[j]]]]
            )
            fresh.append(not ((before == signature).mean(1) >= self.threshold).any())
        kept = np.flatnonzero(fresh)
        self._remember(signatures[kept], keys[kept])
        return fresh

    def _alike(self, keys: np.ndarray, run: np.ndarray, whose: np.ndarray) -> list[np.ndarray]:
        """Whose keys in the run are those of each row of `keys`, each once."""
        first, last = run.searchsorted(keys, "left"), run.searchsorted(keys, "right")
        found = [whose[a:b] for a, b in zip(first.flat, last.flat, strict=True)]
        return [
            np.unique(np.concatenate(found[i : i + BANDS])) for i in range(0, len(found), BANDS)
        ]

    def _remember(self, signatures: np.ndarray, keys: np.ndarray) -> None:
        end = self.size + len(signatures)
        if end > len(self.bytes):
            self.bytes = np.concatenate(
                [self.bytes, np.zeros((max(len(self.bytes), end), PERMUTATIONS), np.uint8)]
            )
        self.bytes[self.size : end] = signatures
        run = _sorted(keys, np.arange(self.size, end))
        while self.runs and len(self.runs[-1][0]) <= len(run[0]):
            run = _sorted(*map(np.concatenate, zip(self.runs.pop(), run, strict=True)))
        self.runs.append(run)
        self.size = end


def band_keys(digests: np.ndarray) -> np.ndarray:
    """A number for the hashes of each band, (n, 128) uint32 to (n, 25) uint64; bands have different ones."""
    bands = digests[:, : BANDS * BAND_HASHES].reshape(-1, BANDS, BAND_HASHES).astype(np.uint64)
    keys = np.broadcast_to(np.arange(BANDS, dtype=np.uint64), bands.shape[:2])
    for hashes in np.moveaxis(bands, 2, 0):
        keys = (keys ^ (keys >> np.uint64(32)) ^ hashes) * MULTIPLIER
    return keys


def _sorted(keys: np.ndarray, whose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys in order, and the rows of the memory that they belong to; (n, 25) and (n,), or both flat."""
    flat = keys.reshape(-1)
    order = flat.argsort(kind="stable")
    return flat[order], whose.repeat(len(flat) // max(1, len(whose))).astype(np.uint32)[order]


def shingles(words: list[str]) -> list[str]:
    """Every run of five words; all of them for a shorter text."""
    return [
        " ".join(words[i : i + SHINGLE_WORDS])
        for i in range(max(1, len(words) - SHINGLE_WORDS + 1))
    ]
