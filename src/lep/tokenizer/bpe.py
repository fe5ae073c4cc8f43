"""Continue the training of byte-pair encoding on counted words, in arrays.

All words lie one after another in one array of symbols, a doubly linked list. The positions of each
pair of neighbours are known, so a merge touches only these, all at once.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from lep.tokenizer.parts import Merge
from lep.tokenizer.vocabulary import first_ids

MINIMUM_COUNT = 2  # a pair that occurs once teaches nothing
DEAD, END = -2, -1  # a symbol that was merged into its left neighbour; the end of a word
IDS = 1 << 21  # more than any vocabulary has: a pair's key is left * IDS + right
Array = np.ndarray


def continue_bpe(
    words: Iterable[tuple[list[int], int]],
    contents: list[bytes | None],
    known_merges: Iterable[Merge],
    new_tokens: int,
    accept: Callable[[bytes], bool],
) -> tuple[list[Merge], list[bytes | None]]:
    """Learn merges on counted words that are already split into known tokens.

    `words` holds (ids, count); `contents` the bytes of each known id (None if it must not be
    merged). The most frequent acceptable pair is merged, ties by the smaller ids, until there are
    `new_tokens` new tokens or no pair occurs twice. A pair that spells a known token becomes a
    merge to it instead of a new token; the known merges that then apply are done at once, as the
    tokenizer will do them.

    Returns the new merges in order, and `contents` with the new tokens at its end.
    """
    contents = list(contents)
    known, target = first_ids(contents), len(contents) + new_tokens
    results = {m.left * IDS + m.right: (rank, m.result) for rank, m in enumerate(known_merges)}
    state = _Words(words)
    merges: list[Merge] = []
    for key in state.frequent_pairs():
        if len(contents) >= target:
            break
        left, right = divmod(key, IDS)
        start, end = contents[left], contents[right]
        if start is None or end is None or not accept(start + end):
            continue
        result = known.setdefault(start + end, len(contents))
        results[key] = len(results), result
        merges.append(Merge(left, right, result))
        changed = state.merge(key, result)
        if result == len(contents):
            contents.append(start + end)
        else:
            _cascade(state, changed, results)
    return merges, contents


def _cascade(state: "_Words", changed: set[int], results: dict[int, tuple[int, int]]) -> None:
    """Apply the known merges, the earliest first, to the pairs that appeared."""
    while due := [(results[key], key) for key in changed if key in results and key in state.counts]:
        (_, result), key = min(due)
        changed = changed | state.merge(key, result)


class _Words:
    """The words as linked symbols, the count of each pair, and the positions where it occurs."""

    def __init__(self, words: Iterable[tuple[list[int], int]]) -> None:
        symbols, lengths, weights = [END], [1], [0]
        for ids, count in words:
            symbols += [*ids, END]
            lengths.append(len(ids) + 1)
            weights.append(count)
        self.symbols = np.array(symbols, dtype=np.int32)
        self.weights = np.repeat(np.array(weights, dtype=np.int64), lengths)
        self.next = np.arange(1, len(symbols) + 1, dtype=np.int32)
        self.previous = np.arange(-1, len(symbols) - 1, dtype=np.int32)
        self.marked = np.zeros(len(symbols) + 1, dtype=bool)
        self.counts: dict[int, int] = defaultdict(int)
        self._positions: dict[int, list[Array]] = defaultdict(list)
        self._heap: list[tuple[int, int]] = []
        first = np.flatnonzero((self.symbols[:-1] >= 0) & (self.symbols[1:] >= 0))
        self._add(first.astype(np.int32))

    def frequent_pairs(self) -> Iterator[int]:
        """The key of the most frequent pair, again after each merge, until none occurs twice."""
        while self._heap:
            negative, key = heapq.heappop(self._heap)
            count = self.counts.get(key, 0)
            if count == -negative:
                yield key
            else:  # other merges have used some of its positions since
                self._push(key, count)

    def merge(self, key: int, result: int) -> set[int]:
        """Replace a pair by `result` everywhere; returns the keys of the pairs that appear."""
        left, right = divmod(key, IDS)
        first = np.concatenate(self._positions.pop(key))  # some may have been merged since
        if left == right:
            first.sort()
        second = self.next[first]
        valid = (self.symbols[first] == left) & (self.symbols[second] == right)
        first, second = first[valid], second[valid]
        if left == right:
            first, second = _without_overlaps(first, second)
        before, after = self._neighbours(first, second)
        gone = [self._pairs(self.previous[before], before), self._pairs(after, self.next[after])]
        weights = [self.weights[before], self.weights[after], [self.weights[first].sum()]]
        self._subtract(np.concatenate([*gone, [key]]), np.concatenate(weights))
        following = self.next[second]
        self.symbols[first], self.symbols[second] = result, DEAD
        self.next[first], self.previous[following] = following, first
        before, after = self._neighbours(first, first)
        return self._add(np.concatenate([self.previous[before], after]))

    def _neighbours(self, first: Array, last: Array) -> tuple[Array, Array]:
        """Those of `first` with a symbol before them, and those of `last` with one behind them.

        Where two spans touch, their border counts once: as the right border of the left one.
        """
        before, after = self.previous[first], self.next[last]
        self.marked[last] = True
        with_left = (self.symbols[before] >= 0) & ~self.marked[before]
        self.marked[last] = False
        return first[with_left], last[self.symbols[after] >= 0]

    def _pairs(self, first: Array, second: Array) -> Array:
        return self.symbols[first].astype(np.int64) * IDS + self.symbols[second]

    def _push(self, key: int, count: int) -> None:
        if count >= MINIMUM_COUNT:
            heapq.heappush(self._heap, (-count, key))

    def _subtract(self, keys: Array, weights: Array) -> None:
        _, keys, _, sums = _group(keys, np.arange(len(keys)), weights)
        for key, total in zip(keys.tolist(), sums.tolist(), strict=True):
            self.counts[key] -= total
            if not self.counts[key]:
                del self.counts[key]

    def _add(self, positions: Array) -> set[int]:
        pairs = self._pairs(positions, self.next[positions])
        order, keys, starts, sums = _group(pairs, positions, self.weights)
        for i, (key, total) in enumerate(zip(keys.tolist(), sums.tolist(), strict=True)):
            self.counts[key] += total
            self._positions[key].append(order[starts[i] : starts[i + 1]].copy())
            self._push(key, self.counts[key])
        return set(keys.tolist())


def _group(keys: Array, positions: Array, weights: Array) -> tuple[Array, Array, Array, Array]:
    """Sort positions by key: the positions, each key once, where each begins, its sum of weights.

    `weights` are indexed by position. A last entry of the starts says where the last key ends.
    """
    order = np.argsort(keys, kind="stable")
    keys, positions = keys[order], positions[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    sums = np.add.reduceat(weights[positions], starts) if len(keys) else starts
    return positions, keys[starts], np.append(starts, len(keys)), sums


def _without_overlaps(first: Array, second: Array) -> tuple[Array, Array]:
    """Every other one, from the left, of overlapping pairs of one symbol, as in `aaa`."""
    continues = np.append(False, first[1:] == second[:-1])
    starts = np.flatnonzero(~continues)
    within = np.arange(len(first)) - np.repeat(starts, np.diff(np.append(starts, len(first))))
    return first[within % 2 == 0], second[within % 2 == 0]
