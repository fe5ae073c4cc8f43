"""Find duplicate documents: exact ones by hash, near ones by MinHash."""

import hashlib
from collections.abc import Sequence

import numpy as np
import regex

from lep.corpus.language import UNSPACED, is_unspaced

SHINGLE_WORDS = 5
# Two documents are compared if all hashes of a band agree: 99% of the pairs that share 0.7 of their
# shingles, and 6% of those that share 0.3. The last hashes are in no band.
PERMUTATIONS, BANDS, BAND_HASHES, SEED = 128, 25, 5, 42
MOST_SETS = 20  # of a run, with one key, that a set is compared with
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd and without a pattern (Knuth 1998, 6.4)
EXACT, NEAR = "exact duplicate", "near duplicate"
_WORD = regex.compile(r"\w+")
_CHARACTER = regex.compile(rf"[{UNSPACED}]\p{{M}}*|[\w--[{UNSPACED}]]+", regex.V1)


class Duplicates:
    """Remembers documents by a hash of each, and about 430 bytes to find near duplicates."""

    def __init__(self, method: str, threshold: float) -> None:
        """`method`: exact, minhash (near ones too, by Jaccard similarity of shingles), or none."""
        self.method = method
        self.keys: set[bytes] = set()
        self.signatures = Signatures(threshold) if method == "minhash" else None

    def verdicts(self, texts: Sequence[str]) -> list[str | None]:
        """`EXACT`, `NEAR` or None for each text, in order."""
        if self.method == "none":
            return [None] * len(texts)
        words = [words_of(text) for text in texts]
        verdicts = [EXACT if self._repeated(text) else None for text in words]
        if self.signatures is not None:
            rest = [i for i, verdict in enumerate(verdicts) if verdict is None]
            new = self.signatures.add([shingles(words[i]) for i in rest])
            for i, is_new in zip(rest, new, strict=True):
                verdicts[i] = None if is_new else NEAR
        return verdicts

    def _repeated(self, words: list[str]) -> bool:
        key = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
        known = key in self.keys
        self.keys.add(key)
        return known


class Signatures:
    """MinHash signatures of sets of strings, looked up by their bands (Leskovec et al. 2020, 3.4).

    Holds a byte of each hash, which two sets share by chance once in 256 times, and a key for each
    band in sorted runs. Runs of equal length are merged, so a key moves only as often as the number
    of sets doubles.

    In templated text thousands of sets share the keys of the template and are no duplicates. So at
    most `MOST_SETS` sets of a run are compared for each band, and the work for a set grows with the
    number of runs, the logarithm of the number of sets. Near duplicates share keys of the rest of
    their text as well, by which they are found; some are missed that are nearly all template.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.size = 0
        self.bytes = np.zeros((1 << 10, PERMUTATIONS), dtype=np.uint8)
        self.runs: list[tuple[np.ndarray, np.ndarray]] = []  # sorted keys, and the sets they are of

    def add(self, sets: Sequence[list[str]]) -> list[bool]:
        """Whether each set is new: less similar than the threshold to all that were new before."""
        from rensa import RMinHash

        if not sets:
            return []
        hashes = RMinHash.digests_from_token_sets(sets, PERMUTATIONS, SEED)
        digests = np.array(hashes, dtype=np.uint32)
        signatures, keys = digests.astype(np.uint8), band_keys(digests)
        stored = [_candidates(keys, *run) for run in self.runs]
        batch = _candidates(keys, *_sorted(keys, np.arange(len(sets))))
        new: list[bool] = []
        for i, signature in enumerate(signatures):
            earlier = [j for j in batch[i].tolist() if j < i and new[j]]
            similar = [self.bytes[candidates[i]] for candidates in stored] + [signatures[earlier]]
            shares = (np.concatenate(similar) == signature).mean(1)
            new.append(not (shares >= self.threshold).any())
        self._remember(signatures[new], keys[new])
        return new

    def _remember(self, signatures: np.ndarray, keys: np.ndarray) -> None:
        end = self.size + len(signatures)
        if end > len(self.bytes):
            room = np.zeros((max(len(self.bytes), end), PERMUTATIONS), np.uint8)
            self.bytes = np.concatenate([self.bytes, room])
        self.bytes[self.size : end] = signatures
        run = _sorted(keys, np.arange(self.size, end))
        while self.runs and len(self.runs[-1][0]) <= len(run[0]):
            run = _sorted(*map(np.concatenate, zip(self.runs.pop(), run, strict=True)))
        self.runs.append(run)
        self.size = end


def _candidates(keys: np.ndarray, run: np.ndarray, sets: np.ndarray) -> list[np.ndarray]:
    """For each row of `keys`, sets of the run that have one of its keys, each once.

    Of more than `MOST_SETS` with the same key, those that were added first.
    """
    first, last = run.searchsorted(keys, "left"), run.searchsorted(keys, "right")
    last = np.minimum(last, first + MOST_SETS)
    matches = [sets[a:b] for a, b in zip(first.flat, last.flat, strict=True)]
    bands = (matches[i : i + BANDS] for i in range(0, len(matches), BANDS))
    return [np.unique(np.concatenate(band)) for band in bands]


def band_keys(digests: np.ndarray) -> np.ndarray:
    """A key for the hashes of each band, (n, 128) uint32 to (n, 25) uint64; bands share none."""
    bands = digests[:, : BANDS * BAND_HASHES].reshape(-1, BANDS, BAND_HASHES).astype(np.uint64)
    keys = np.broadcast_to(np.arange(BANDS, dtype=np.uint64), bands.shape[:2])
    for hashes in np.moveaxis(bands, 2, 0):
        keys = (keys ^ (keys >> np.uint64(32)) ^ hashes) * MULTIPLIER
    return keys


def _sorted(keys: np.ndarray, sets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort keys, (n, 25) or flat, and give the set of each; `sets` has one entry a row or key."""
    flat = keys.reshape(-1)
    order = flat.argsort(kind="stable")
    return flat[order], sets.repeat(len(flat) // max(1, len(sets))).astype(np.uint32)[order]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, by which duplicates are compared.

    In scripts without spaces each character counts as one.
    """
    return (_CHARACTER if is_unspaced(text) else _WORD).findall(text.lower())


def shingles(words: list[str]) -> list[str]:
    """Every run of five words, or all words of a shorter text."""
    starts = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return [" ".join(words[i : i + SHINGLE_WORDS]) for i in starts]
