"""How near candidates stay to the original model: score, veto, and all measures with intervals."""

from collections.abc import Sequence
from functools import partial

from lep.evaluation.measures import BITS, Measure, measures
from lep.evaluation.records import AnswerRecord, TextRecord
from lep.selection.probe import Record, record_half
from lep.settings import SelectSettings
from lep.statistics import Estimate, estimate

UNCHANGED = 0.99  # tokens after over before: an original language keeps at least this share
LEAST_UNITS = 5  # documents or answers below which nothing is significant
TITLES = {"bits per byte": "{} bits/byte", "exact match": "{} copied"}  # in a language


def score(records: Sequence[Record], half: str) -> float:
    """Bits per byte of the original's answers and divergence from what it expected; low is near."""
    answers = [r for r in records if isinstance(r, AnswerRecord) and record_half(r) == half]
    return sum(r.score_nats for r in answers) / sum(r.bytes for r in answers) * BITS


def language_sides(records: Sequence[Record], original: Sequence[Record]) -> dict[str, str]:
    """`new` or `original` for each language: an original one takes as many tokens as before."""
    tokens: dict[str, list[int]] = {}
    for now, then in zip(records, original, strict=True):
        if isinstance(now, TextRecord) and isinstance(then, TextRecord):
            after, before = tokens.get(now.language, [0, 0])
            tokens[now.language] = [after + now.tokens, before + then.tokens]
    return {
        code: "original" if after >= UNCHANGED * before else "new"
        for code, (after, before) in tokens.items()
    }


def veto(
    records: Sequence[Record], original: Sequence[Record], half: str, settings: SelectSettings
) -> str:
    """Why a candidate is out: what gets significantly worse by more than allowed; or nothing."""
    sides = language_sides(records, original)
    groups: dict[str, list[tuple[TextRecord | AnswerRecord, float]]] = {}
    for now, then in zip(records, original, strict=True):
        if isinstance(then, TextRecord | AnswerRecord) and record_half(now) == half:
            if isinstance(now, TextRecord) and sides[now.language] == "original":
                groups.setdefault(f"{now.language} text", []).append((now, then.nats))
            elif isinstance(now, AnswerRecord) and now.same_cuts:
                groups.setdefault("answers without new tokens", []).append((now, then.nats))
    for title, pairs in groups.items():
        parts = by_document(
            [record for record, _ in pairs],
            [record.nats - (1 + settings.veto) * nats for record, nats in pairs],
        )
        if len(parts) < LEAST_UNITS:
            continue
        if estimate(parts, resamples=settings.bootstrap, seed=settings.seed).low > 0:
            more = sum(r.nats for r, _ in pairs) / sum(nats for _, nats in pairs) - 1
            return f"{title}: {more:+.1%} bits"
    return ""


def by_document(records: Sequence[Record], values: Sequence[float]) -> list[float]:
    """Sums over the windows of each document, which are alike; other records stay as they are.

    The windows of a single document stay apart too.
    """
    sums: dict[object, float] = {}
    for i, (record, value) in enumerate(zip(records, values, strict=True)):
        unit = getattr(record, "group", None) or i
        sums[unit] = sums.get(unit, 0.0) + value
    return list(sums.values() if len(sums) > 1 else values)


def all_measures(
    records: Sequence[Record], chosen: Sequence[Record], half: str, settings: SelectSettings
) -> dict[str, Estimate]:
    """All measures of a candidate on one half, with intervals over texts, answers and copies."""
    interval = partial(estimate, resamples=settings.bootstrap, seed=settings.seed)
    pairs = [(r, c) for r, c in zip(records, chosen, strict=True) if record_half(r) == half]
    shown: dict[str, Measure] = {}
    for measure in measures(record for record, _ in pairs):
        if measure.language == AnswerRecord.language:
            shown[measure.metric] = measure
        elif measure.metric in TITLES and measure.task is None:
            shown[TITLES[measure.metric].format(measure.language)] = measure
    result = {}
    for title, measure in sorted(shown.items(), key=lambda pair: _rank(pair[1])):
        array = measure.array(list(measure.values))
        columns = array.T if array.ndim > 1 else [array]
        result[title] = interval(*columns)
        if title == "score":
            less = [
                BITS * ((r.nats - c.nats) + (r.divergence_nats - c.divergence_nats))
                for r, c in pairs
                if isinstance(r, AnswerRecord) and isinstance(c, AnswerRecord)
            ]
            result["score less chosen"] = interval(less, columns[1])
    return result


def _rank(measure: Measure) -> tuple[int, str]:
    """Answers, then texts, then copies, each by language."""
    if measure.language == AnswerRecord.language:
        return 0, ""
    return 1 + (measure.metric == "exact match"), measure.language
