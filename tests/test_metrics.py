"""Metrics against written-out definitions and examples worked by hand."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lep.benchmark.metrics import (
    METRICS,
    Metric,
    exam_points,
    length_ratio,
    macro_f1,
    matthews,
    r_precision,
    repetition,
    rouge_recall,
    token_f1,
    token_ratio,
)

classes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


def slow_macro_f1(pairs: list[tuple[int, int]]) -> float:
    scores = []
    for label in {label for pair in pairs for label in pair}:
        right = sum(g == p == label for g, p in pairs)
        precision = right / max(1, sum(p == label for _, p in pairs))
        recall = right / max(1, sum(g == label for g, _ in pairs))
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return sum(scores) / len(scores)


def slow_matthews(pairs: list[tuple[int, int]]) -> float:
    """Correlation of the indicator vectors of all classes (Gorodkin 2004, equation 7)."""
    labels = range(4)

    def covariance(a: int, b: int) -> float:
        return sum(
            sum((pair[a] == k) * (pair[b] == k) for pair in pairs) / len(pairs)
            - sum(pair[a] == k for pair in pairs)
            * sum(pair[b] == k for pair in pairs)
            / len(pairs) ** 2
            for k in labels
        )

    spread = covariance(0, 0) * covariance(1, 1)
    return covariance(0, 1) / math.sqrt(spread) if spread > 1e-12 else 0.0


@given(classes)
def test_macro_f1(pairs) -> None:
    assert macro_f1(np.array(pairs)) == pytest.approx(slow_macro_f1(pairs))


@given(classes)
def test_matthews(pairs) -> None:
    assert matthews(np.array(pairs)) == pytest.approx(slow_matthews(pairs), abs=1e-9)


def test_class_scores_agree_with_scikit_learn() -> None:
    from sklearn.metrics import f1_score, matthews_corrcoef

    gold, given_ = np.random.default_rng(0).integers(3, size=(2, 200))
    pairs = np.stack([gold, given_], axis=1)
    assert macro_f1(pairs) == pytest.approx(f1_score(gold, given_, average="macro"))
    assert matthews(pairs) == pytest.approx(matthews_corrcoef(gold, given_))


def test_matthews_by_hand() -> None:
    # 3 true positives, 1 false negative, 1 false positive, 5 true negatives
    pairs = [(1, 1)] * 3 + [(1, 0)] + [(0, 1)] + [(0, 0)] * 5
    assert matthews(np.array(pairs)) == pytest.approx((3 * 5 - 1 * 1) / math.sqrt(4 * 4 * 6 * 6))
    assert matthews(np.array([(1, 1), (0, 1)])) == 0  # always the same answer says nothing


@pytest.mark.parametrize(
    ("form", "number", "answer", "given_", "points"),
    [
        ("text", "4", "восполнить,дополнить", "Восполнить.", 1),
        ("text", "4", "восполнить,дополнить", "2) дополнить", 1),
        ("text", "4", "восполнить", "пополнить", 0),
        ("matching", "8", "9,7,4,5,2", "9,7,4,5,2", 5),
        ("matching", "8", "9,7,4,5,2", "9, 7, 5, 4, 2", 3),
        ("matching", "26", "9,7,4,5", "9,7,4", 0),  # not a list of four
        ("multiple_choice_based_on_text", "1", "2,5", "5, 2", 1),
        ("multiple_choice_based_on_text", "1", "2,5", "2", 0),
        ("multiple_choice_based_on_text", "1", "2,5", "2,5,1", 0),
        ("multiple_choice_independent_options", "16", "3,5", "5,3", 2),
        ("multiple_choice_independent_options", "16", "3,5", "3,4", 1),
        ("multiple_choice_independent_options", "16", "3,5", "3", 1),
        ("multiple_choice_independent_options", "16", "3,5", "3,5,1", 1),
        ("multiple_choice_independent_options", "16", "3,5", "1,2,4", 0),
        ("multiple_choice_independent_options", "16", "3,5", "", 0),
    ],
)
def test_exam_points(form, number, answer, given_, points) -> None:
    assert exam_points(form, number, answer, given_) == points


def test_an_exam_is_graded_by_its_variants() -> None:
    items = [("a", 17), ("b", 0), ("a", 17), ("b", 17)]
    assert METRICS["grade"](items) == pytest.approx((34 / 34 + 17 / 34) / 2)


def test_a_pair_counts_only_in_both_orders() -> None:
    items = [
        ("1", 1.0),
        ("1", 1.0),
        ("2", 1.0),
        ("2", 0.0),
        ("3", 0.0),
        ("3", 0.0),
        ("4", 0.0),
        ("4", 1.0),
    ]
    assert METRICS["both_orders"](items) == 0.25
    assert Metric()(items) == pytest.approx(0.5)  # what single items would say: the first of each


def slow_rouge(reference: list[str], text: list[str], n: int) -> float:
    wanted = [tuple(reference[i : i + n]) for i in range(len(reference) - n + 1)]
    have = Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
    hits = 0
    for gram in wanted:
        if have[gram] > 0:
            have[gram] -= 1
            hits += 1
    return hits / len(wanted)


def test_rouge_recall_of_lemmas() -> None:
    # мама мыть рама мама | мама мыть рама
    assert rouge_recall("Мамы мыли раму. Мама!", "мама моет рамы", 1) == pytest.approx(3 / 4)
    assert rouge_recall("Мамы мыли раму. Мама!", "мама моет рамы", 2) == pytest.approx(2 / 3)
    assert rouge_recall("Мамы мыли раму", "папа спит", 1) == 0
    words = ["год", "рука", "год", "день", "рука", "год"]
    other = ["рука", "год", "год", "день"]
    for n in (1, 2):
        assert rouge_recall(" ".join(words), " ".join(other), n) == pytest.approx(
            slow_rouge(words, other, n)
        )


def test_token_f1() -> None:
    assert token_f1("в городе Москве", "Москве") == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))
    assert token_f1("Москва!", "москва") == 1
    assert token_f1("", "москва") == 0


def test_r_precision() -> None:
    assert r_precision([0, 3], [0.9, 0.8, 0.1, 0.5]) == 0.5
    assert r_precision([0, 1], [0.9, 0.8, 0.1, 0.5]) == 1
    assert r_precision([2], [0.9, 0.8, 0.1, 0.5]) == 0


def test_copies_are_measured_in_tokens_as_written() -> None:
    assert length_ratio(3, 4) == length_ratio(4, 3) == 0.75
    assert length_ratio(0, 4) == 0
    assert token_ratio(6, "abc", len) == pytest.approx(
        4 / 6
    )  # the original with a space before it is nearer
    assert token_ratio(3, "abc", len) == 1


def test_repetition() -> None:
    assert repetition("раз два три четыре пять") == 0
    assert repetition("да да да да да да да да") == pytest.approx(4 / 5)
    assert repetition("да") == 0
    # Three characters that come again and again: three different runs of eight, of 23.
    assert repetition("我喜欢" * 10) == pytest.approx(20 / 23)
    assert repetition("这条河从山里流出来") == 0
