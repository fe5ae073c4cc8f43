"""Scoring functions that the task files name: `{metric: (unit, value)}` of a model's answers."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from lep.benchmark import metrics
from lep.tokenizer.load import load_tokenizer

average = metrics.Metric()
f1_macro, mcc, paired, grade = map(metrics.metric, ("f1_macro", "mcc", "both_orders", "grade"))
Row = dict[str, Any]
Scores = dict[str, tuple[str, Any]]
Likelihoods = list[tuple[float, bool]]  # of each choice: log p in nats, whether it is greedy


def _likeliest(results: Likelihoods) -> int:
    return max(range(len(results)), key=lambda i: results[i][0])


def _right(doc: Row, results: Likelihoods) -> tuple[str, float]:
    return doc["unit"], float(_likeliest(results) == doc["label"])


def _classes(doc: Row, results: Likelihoods) -> tuple[str, list[int]]:
    return doc["unit"], [doc["label"], _likeliest(results)]


def accuracy(doc: Row, results: Likelihoods) -> Scores:
    return {"acc": _right(doc, results)}


def accuracy_per_byte(doc: Row, results: Likelihoods) -> Scores:
    """Likelihoods are compared per byte, so that short choices do not win by being short."""
    pairs = zip(results, doc["choices"], strict=True)
    return accuracy(doc, [(nats / len(text.encode()), best) for (nats, best), text in pairs])


def accuracy_and_f1(doc: Row, results: Likelihoods) -> Scores:
    return {"acc": _right(doc, results), "f1_macro": _classes(doc, results)}


def accuracy_and_mcc(doc: Row, results: Likelihoods) -> Scores:
    return {"acc": _right(doc, results), "mcc": _classes(doc, results)}


def both_orders(doc: Row, results: Likelihoods) -> Scores:
    return {"both_orders": _right(doc, results)}


def good_first(doc: Row, results: Likelihoods) -> Scores:
    """Minimal pairs: the right sentence comes first, and should be the likelier one."""
    return {"acc": (doc["unit"], float(results[0][0] > results[1][0]))}


def best_sentences(doc: Row, results: Likelihoods) -> Scores:
    """Rank sentences by log-likelihood per byte, which favours no length and no tokenizer."""
    pairs = zip(results, doc["sentences"], strict=True)
    likely = [nats / max(1, len(sentence.encode())) for (nats, _), sentence in pairs]
    return {"r_precision": (doc["unit"], metrics.r_precision(doc["relevant"], likely))}


def answer_overlap(doc: Row, results: list[str]) -> Scores:
    """The best score over all right answers."""
    unit, given, gold = doc["unit"], results[0].strip(), doc["answers"]
    exact = max(float(metrics.words(given) == metrics.words(each)) for each in gold)
    return {"f1": (unit, max(metrics.token_f1(given, each) for each in gold)), "em": (unit, exact)}


def exam(doc: Row, results: list[str]) -> Scores:
    points = metrics.exam_points(doc["form"], doc["number"], doc["answer"], results[0].strip())
    return {"grade": (doc["unit"], points)}


def summary(doc: Row, results: list[str]) -> Scores:
    recalls = {n: metrics.rouge_recall(doc["summary"], results[0], n) for n in (1, 2)}
    return {f"rouge{n}_recall": (doc["unit"], recall) for n, recall in recalls.items()}


def copy_whole(doc: Row, results: list[str]) -> Scores:
    whole = metrics.copied(results[0].strip(), doc["text"].strip())
    return {"copied": (doc["unit"], float(whole))}


def copy_length(doc: Row, results: list[str]) -> Scores:
    """Count the copy's tokens as written: a model that ignores its new tokens writes more."""
    length, copy = _length(doc["tokenizer"]), results[0].strip()
    written = getattr(results[0], "tokens", None) if doc["tokenizer"] else None
    n = length(copy) if written is None else written - _before(results[0], length)
    ratio = metrics.token_ratio(n, doc["text"].strip(), length) if copy else 0.0
    return {"length_ratio": (doc["unit"], ratio)}


@cache
def _length(model: str) -> Callable[[str], int]:
    """Length in tokens of the model, or in characters where the run does not name one."""
    if not model:
        return len
    tokenizer = load_tokenizer(Path(model))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _before(text: str, length: Callable[[str], int]) -> int:
    """Length of the line ends that a base model writes before its answer."""
    space = text[: len(text) - len(text.lstrip())]
    return length(space[: space.rindex("\n") + 1]) if "\n" in space else 0
