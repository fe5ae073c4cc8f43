"""Byte-pair encoding learned further on counted words, with arrays instead of lists of words.

All words lie one after another in one array of symbols, as a doubly linked list. For each pair of neighbours the
places where it occurs are known, so that a merge touches these places only, all at once.
"""

import heapq
from collections.abc import Callable, Iterable

import numpy as np

from lep.tokenizer.parts import Merge

MINIMUM_COUNT = 2  # a pair that occurs once teaches nothing
DEAD, END = -2, -1  # a symbol that was merged into its left neighbour; what stands between words
BITS = 21  # of an id within a pair's key: two million tokens


def continue_bpe(
    words: Iterable[tuple[list[int], int]],
    contents: list[bytes | None],
    known_merges: Iterable[Merge],
    new_tokens: int,
    accept: Callable[[bytes], bool],
) -> tuple[list[Merge], list[bytes | None]]:
    """Merges learned on counted words that are already split into known tokens.

    `words` holds (ids, count); `contents` the bytes of each known id (None where it may not be merged). The most
    frequent acceptable pair is merged, ties by the smaller ids, until `new_tokens` tokens are new or no pair
    occurs twice. A pair that spells a known token becomes a merge to it and no new token; what the merges
    already known then do with that token is done at once, as the tokenizer will.

    Returns the new merges in order, and `contents` with the new tokens at its end.
    """
    contents = list(contents)
    known = {
        content: i for i, content in reversed(list(enumerate(contents))) if content is not None
    }
    results = {
        _key(merge.left, merge.right): (rank, merge.result)
        for rank, merge in enumerate(known_merges)
    }
    target, state = len(contents) + new_tokens, _Words(words)
    heap = state.heap()
    merges: list[Merge] = []
    while heap and len(contents) < target:
        negative, key = heapq.heappop(heap)
        count = state.counts.get(key, 0)
        if count < MINIMUM_COUNT:
            continue
        if (
            -negative != count
        ):  # other merges have taken some of its places since: back with what is left
            heapq.heappush(heap, (-count, key))
            continue
        left, right = contents[key >> BITS], contents[key & (1 << BITS) - 1]
        if left is None or right is None or not accept(left + right):
            continue
        result = known.get(left + right)
        fresh = result is None
        if result is None:
            result = known[left + right] = len(contents)
            contents.append(left + right)
        results[key] = (len(results), result)
        merges.append(Merge(key >> BITS, key & (1 << BITS) - 1, result))
        touched = state.merge(key, result)
        if not fresh:
            touched = _cascade(state, touched, results)
        for changed in touched:
            if state.counts.get(changed, 0) >= MINIMUM_COUNT:
                heapq.heappush(heap, (-state.counts[changed], changed))
    return merges, contents


def _cascade(state: "_Words", touched: set[int], results: dict[int, tuple[int, int]]) -> set[int]:
    """Apply the known merges, first ones first, to the pairs that appeared; returns all pairs that did."""
    while due := [(results[key], key) for key in touched if key in results and key in state.counts]:
        (_, result), key = min(due)
        touched = touched | state.merge(key, result)
    return touched


def _key(left: int, right: int) -> int:
    return left << BITS | right


class _Words:
    """The words as linked symbols, the count of each pair, and where it occurs."""

    def __init__(self, words: Iterable[tuple[list[int], int]]) -> None:
        symbols: list[int] = [END]
        lengths, weights = [1], [0]
        for ids, count in words:
            symbols += ids
            symbols.append(END)
            lengths.append(len(ids) + 1)
            weights.append(count)
        self.symbols = np.array(symbols, dtype=np.int32)
        self.weights = np.repeat(np.array(weights, dtype=np.int64), lengths)
        self.next = np.arange(1, len(symbols) + 1, dtype=np.int32)
        self.previous = np.arange(-1, len(symbols) - 1, dtype=np.int32)
        self.marked = np.zeros(len(symbols) + 1, dtype=bool)
        places = np.flatnonzero((self.symbols[:-1] >= 0) & (self.symbols[1:] >= 0)).astype(np.int32)
        self._order, self._keys, self._starts, sums = _group(
            self._pairs(places, places + 1), places, self.weights
        )
        self.counts: dict[int, int] = dict(zip(self._keys.tolist(), sums.tolist(), strict=True))
        self._later: dict[int, list[np.ndarray]] = {}

    def heap(self) -> list[tuple[int, int]]:
        """(-count, key) of each pair that occurs often enough, as a heap."""
        entries = [(-count, key) for key, count in self.counts.items() if count >= MINIMUM_COUNT]
        heapq.heapify(entries)
        return entries

    def merge(self, key: int, result: int) -> set[int]:
        """Replace a pair by `result` wherever it occurs; returns the keys of the pairs that are new there."""
        left, right = key >> BITS, key & (1 << BITS) - 1
        first = self._take_places(key)
        second = self.next[first]
        valid = (self.symbols[first] == left) & (self.symbols[second] == right)
        first, second = first[valid], second[valid]
        if left == right:
            first, second = _without_overlaps(first, second)
        before, after = self.previous[first], self.next[second]
        self.marked[second] = True
        with_left = (self.symbols[before] >= 0) & ~self.marked[
            before
        ]  # a marked one counts as the other's right pair
        with_right = self.symbols[after] >= 0
        gone = np.concatenate(
            [
                self._pairs(before[with_left], first[with_left]),
                self._pairs(second[with_right], after[with_right]),
            ]
        )
        weights = np.concatenate([self.weights[first[with_left]], self.weights[first[with_right]]])
        self.marked[second] = False
        self._subtract(np.append(gone, key), np.append(weights, self.weights[first].sum()))
        self.symbols[first], self.symbols[second] = result, DEAD
        self.next[first], self.previous[after] = after, first
        before, after = self.previous[first], self.next[first]
        self.marked[first] = True
        with_left = (self.symbols[before] >= 0) & ~self.marked[before]
        self.marked[first] = False
        with_right = self.symbols[after] >= 0
        return self._add(np.concatenate([before[with_left], first[with_right]]))

    def _pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return self.symbols[first].astype(np.int64) << BITS | self.symbols[second]

    def _take_places(self, key: int) -> np.ndarray:
        found = self._later.pop(key, [])
        index = int(np.searchsorted(self._keys, key))
        if index < len(self._keys) and self._keys[index] == key:
            found = [self._order[self._starts[index] : self._starts[index + 1]], *found]
        places = np.concatenate(found)
        return np.sort(places) if key >> BITS == key & (1 << BITS) - 1 else places

    def _subtract(self, keys: np.ndarray, weights: np.ndarray) -> None:
        _, keys, _, sums = _group(keys, np.arange(len(keys)), weights)
        for key, total in zip(keys.tolist(), sums.tolist(), strict=True):
            if left := self.counts[key] - total:
                self.counts[key] = left
            else:
                del self.counts[key]

    def _add(self, places: np.ndarray) -> set[int]:
        if not len(places):
            return set()
        order, keys, starts, sums = _group(
            self._pairs(places, self.next[places]), places, self.weights
        )
        for key, total, start, stop in zip(
            keys.tolist(), sums.tolist(), starts, starts[1:], strict=False
        ):
            self.counts[key] = self.counts.get(key, 0) + total
            self._later.setdefault(key, []).append(order[start:stop].copy())
        return set(keys.tolist())


def _group(
    keys: np.ndarray, places: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sort places by their key: the places, each key once, where its places start (and end), its sum of weights."""
    order = np.argsort(keys, kind="stable")
    keys, places = keys[order], places[order]
    starts = (
        np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        if len(keys)
        else np.zeros(0, dtype=np.int64)
    )
    sums = np.add.reduceat(weights[places], starts) if len(keys) else np.zeros(0, dtype=np.int64)
    return places, keys[starts], np.append(starts, len(keys)), sums


def _without_overlaps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs of twice the same symbol that overlap, as in `aaa`, every other one from the left."""
    continues = np.append(False, first[1:] == second[:-1])
    starts = np.flatnonzero(~continues)
    within = np.arange(len(first)) - np.repeat(starts, np.diff(np.append(starts, len(first))))
    return first[within % 2 == 0], second[within % 2 == 0]
