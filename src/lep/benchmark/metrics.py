"""Metrics: the score of one answer, and how a task combines the scores of its items."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from lep.corpus.language import is_unspaced
from lep.errors import LepError
from lep.statistics import Statistic, mean

LEAST_LCS = 0.99  # the paper's bound for a copied paragraph (section 4)
EXAM_POINTS = 34  # of a whole USE variant
TWO_POINT_TASK = "16"  # of the USE: one point for one of two right sentences


def _confusion(pairs: np.ndarray) -> np.ndarray:
    gold, predicted = pairs.astype(np.int64).T
    classes = int(pairs.max()) + 1
    counts = np.bincount(gold * classes + predicted, minlength=classes**2)
    return counts.reshape(classes, classes)


def macro_f1(pairs: np.ndarray) -> float:
    """Mean over the classes that occur, gold or predicted, of 2 tp / (2 tp + fp + fn)."""
    table = _confusion(pairs)
    sums = table.sum(0) + table.sum(1)
    seen = sums > 0
    return float((2 * np.diag(table)[seen] / sums[seen]).mean())


def matthews(pairs: np.ndarray) -> float:
    """Matthews' correlation of the classes; 0 if one is constant (Gorodkin 2004)."""
    table = _confusion(pairs).astype(np.float64)
    total, right, gold, predicted = table.sum(), np.trace(table), table.sum(1), table.sum(0)
    spread = (total**2 - predicted @ predicted) * (total**2 - gold @ gold)
    return float((right * total - gold @ predicted) / np.sqrt(spread)) if spread > 0 else 0.0


@dataclass(frozen=True)
class Metric:
    """How items (unit, value) become one figure: values are combined by unit, then a statistic.

    It is called with the items, as lm-evaluation-harness calls an aggregation.
    """

    statistic: Statistic = mean
    combine: Callable[[list[Any]], Any] = lambda values: values[0]

    def units(self, items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """The value of each unit, in the order of their first items."""
        grouped: dict[str, list[Any]] = {}
        for unit, value in items:
            grouped.setdefault(unit, []).append(value)
        return {unit: self.combine(values) for unit, values in grouped.items()}

    def __call__(self, items: Sequence[tuple[str, Any]]) -> float:
        return self.statistic(np.asarray(list(self.units(items).values()), dtype=np.float64))


# by the names that the task files give them; every other metric is a mean over items
METRICS = {
    "f1_macro": Metric(macro_f1),
    "mcc": Metric(matthews),
    "both_orders": Metric(combine=min),  # a pair counts only if right in both orders of its options
    "grade": Metric(combine=lambda points: sum(points) / EXAM_POINTS),  # mean over exam variants
}


def metric(name: str) -> Metric:
    return METRICS.get(name, Metric())


def length_ratio(n: int, m: int) -> float:
    """`min(n/m, m/n)` of the lengths of a copy and its original; 0 for an empty one."""
    return min(n / m, m / n) if n and m else 0.0


def token_ratio(written: int, original: str, length: Callable[[str], int]) -> float:
    """`length_ratio` of the tokens in which a copy was written, and those of its original.

    A template may or may not put a space before an answer: the nearer tokenisation counts.
    """
    return max(length_ratio(written, length(text)) for text in (original, " " + original))


def common_subsequence(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the longest common subsequence, bit-parallel (Crochemore et al. 2001).

    >>> common_subsequence("abcde", "abxe")
    3
    """
    positions: dict[Any, int] = {}
    for i, character in enumerate(a):
        positions[character] = positions.get(character, 0) | 1 << i
    row = mask = (1 << len(a)) - 1
    for character in b:
        matches = row & positions.get(character, 0)
        row = ((row + matches) | (row - matches)) & mask
    return len(a) - row.bit_count()


def copied(copy: str, original: str) -> bool:
    """Whether the longest common subsequence covers at least `LEAST_LCS` of the original."""
    return common_subsequence(original, copy) >= LEAST_LCS * len(original)


_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}«»—–…“”„]")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return _PUNCTUATION.sub(" ", text.lower()).split()


@cache
def _morphology() -> Any:
    try:
        from pymorphy3 import MorphAnalyzer
    except ImportError as error:
        raise LepError("lemmas of summaries need pymorphy3: pip install '.[eval]'") from error
    return MorphAnalyzer()


@cache
def lemma(word: str) -> str:
    """The dictionary form of a Russian word; other words stay as they are."""
    return _morphology().parse(word)[0].normal_form


def rouge_recall(reference: str, text: str, n: int) -> float:
    """Share of the reference's n-grams of lemmas that the text has, with counts (Lin 2004)."""
    lemmas = ([lemma(word) for word in words(side)] for side in (reference, text))
    wanted, written = (Counter(ngrams(side, n)) for side in lemmas)
    return (wanted & written).total() / max(1, wanted.total())


def ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def token_f1(answer: str, gold: str) -> float:
    """Harmonic mean of precision and recall of the answer's words (SQuAD)."""
    given, right = Counter(words(answer)), Counter(words(gold))
    common = (given & right).total()
    return 2 * common / (given.total() + right.total()) if common else float(given == right)


def r_precision(relevant: Sequence[int], scores: Sequence[float]) -> float:
    """Share of relevant items among the first R by score, where R items are relevant."""
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[: len(relevant)]
    return len(set(best) & set(relevant)) / len(relevant)


def exam_points(form: str, number: str, answer: str, given: str) -> int:
    """Points for the answer to a task of the Unified State Exam (USE), as MERA counts them.

    `text`: one for any of the right words, which commas separate. `matching`: one for each right
    position of a list of the right length. All other forms are choices in any order: one for
    exactly the right set; in task 16, of two points, each missing or superfluous choice costs one.
    """
    right = answer.split(",")
    if form == "text":
        return int(re.sub(r"[\d\W]+", "", given).lower() in right)
    chosen = [part.strip() for part in given.split(",")]
    if form == "matching":
        pairs = zip(right, chosen, strict=False)
        return sum(a == b for a, b in pairs) if len(right) == len(chosen) else 0
    hits = len(set(right) & set(chosen))
    if number == TWO_POINT_TASK:
        return max(0, hits - max(len(chosen), len(right)) + len(right))
    return int(hits == len(set(right)) == len(set(chosen)))


def repetition(text: str, n: int = 4) -> float:
    """Share of a text's n-grams of words that repeat earlier ones; 0 for a shorter text.

    Without spaces between words they are of twice as many characters.
    """
    if is_unspaced(text):
        grams = ngrams(list("".join(text.split())), 2 * n)
    else:
        grams = ngrams(text.split(), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
