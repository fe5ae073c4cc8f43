"""How near candidates stay to the original model: score, veto, and all measures with intervals."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial

from lep.evaluation.measures import BITS, METRICS, measures
from lep.evaluation.records import AnswerRecord, TextRecord
from lep.selection.probe import Record, record_half
from lep.settings import SelectSettings
from lep.statistics import Estimate, estimate

UNCHANGED = 0.99  # tokens after over before: an original language keeps at least this share
LEAST_UNITS = 5  # documents or answers below which nothing is significant
TITLES = {"bits per byte": "{} bits/byte", "exact match": "{} exact copies"}  # in a language


def score(records: Sequence[Record], half: str) -> float:
    """Bits per byte of the original model's answers, plus the divergence from it; low is near.

    Infinite where one of them is not a number.
    """
    answers = [r for r in records if isinstance(r, AnswerRecord) and record_half(r) == half]
    if not all(math.isfinite(r.score_nats) for r in answers):
        return math.inf
    return sum(r.score_nats for r in answers) / sum(r.bytes for r in answers) * BITS


def language_sides(records: Sequence[Record], original: Sequence[Record]) -> dict[str, str]:
    """`new` or `original` for each language: an original one takes as many tokens as before."""
    after, before = Counter[str](), Counter[str]()
    for tokens, side in ((after, records), (before, original)):
        for record in side:
            if isinstance(record, TextRecord):
                tokens[record.language] += record.tokens
    return {c: "original" if n >= UNCHANGED * before[c] else "new" for c, n in after.items()}


def veto(
    records: Sequence[Record], original: Sequence[Record], half: str, settings: SelectSettings
) -> str:
    """What gets significantly worse under a candidate by more than allowed; empty if nothing."""
    interval = partial(estimate, resamples=settings.bootstrap, seed=settings.seed)
    if not all(math.isfinite(getattr(record, "nats", None) or 0.0) for record in records):
        return "likelihoods that are not finite"
    sides = language_sides(records, original)
    groups: dict[str, list[tuple[TextRecord | AnswerRecord, float]]] = defaultdict(list)
    for now, then in zip(records, original, strict=True):
        if isinstance(then, TextRecord | AnswerRecord) and record_half(now) == half:
            if isinstance(now, TextRecord) and sides[now.language] == "original":
                groups[f"{now.language} text"].append((now, then.nats))
            elif isinstance(now, AnswerRecord) and now.same_cuts:
                groups["answers without new tokens"].append((now, then.nats))
    for title, pairs in groups.items():
        excess = [record.nats - (1 + settings.veto) * nats for record, nats in pairs]
        parts = by_document([record for record, _ in pairs], excess)
        if len(parts) >= LEAST_UNITS and interval(parts).low > 0:
            more = sum(r.nats for r, _ in pairs) / sum(nats for _, nats in pairs) - 1
            return f"{title}: {more:+.1%} bits"
    return ""


def by_document(records: Sequence[Record], values: Sequence[float]) -> list[float]:
    """Sums over each document's windows, which are alike, unless there is only one document.

    Other records stay as they are.
    """
    sums: dict[object, float] = defaultdict(float)
    for i, (record, value) in enumerate(zip(records, values, strict=True)):
        sums[getattr(record, "group", None) or i] += value
    return list(sums.values() if len(sums) > 1 else values)


def all_measures(
    records: Sequence[Record], chosen: Sequence[Record], half: str, settings: SelectSettings
) -> dict[str, Estimate]:
    """All measures of a candidate on one half: of answers, then of texts, then of copies."""
    interval = partial(estimate, resamples=settings.bootstrap, seed=settings.seed)
    pairs = [(r, c) for r, c in zip(records, chosen, strict=True) if record_half(r) == half]
    result, known = {}, {*METRICS["answer"], *TITLES}
    shown = [m for m in measures(r for r, _ in pairs) if m.task is None and m.metric in known]
    shown.sort(key=lambda m: (m.metric in TITLES, m.metric == "exact match", m.language))
    for measure in shown:
        title = TITLES.get(measure.metric, measure.metric).format(measure.language)
        array = measure.array(list(measure.values))
        columns = array.T if array.ndim > 1 else [array]
        result[title] = interval(*columns, shares=measure.is_mean_share)
        if title == "score":
            less = [
                BITS * ((r.nats - c.nats) + (r.divergence_nats - c.divergence_nats))
                for r, c in pairs
                if isinstance(r, AnswerRecord) and isinstance(c, AnswerRecord)
            ]
            result["score less chosen"] = interval(less, columns[1])
    return result
