"""How near candidates stay to the original model: score, veto, and all measures with intervals."""

import math
from collections.abc import Callable, Sequence

from lep.evaluation.records import AnswerRecord, TaskRecord, TextRecord
from lep.selection.probe import Record, record_half
from lep.settings import SelectSettings
from lep.statistics import Estimate, estimate

BITS = 1 / math.log(2)
UNCHANGED = 0.99  # tokens after over before: an original language keeps at least this share
LEAST_UNITS = 5  # documents or answers below which nothing is significant

# title -> (numerator of an answer and the chosen candidate's same answer, denominator)
ANSWER_MEASURES: dict[
    str, tuple[Callable[[AnswerRecord, AnswerRecord], float], Callable[[AnswerRecord], float]]
] = {
    "score": (lambda r, _: BITS * (r.nats + r.divergence_nats), lambda r: r.bytes),
    "score less chosen": (
        lambda r, c: BITS * ((r.nats - c.nats) + (r.divergence_nats - c.divergence_nats)),
        lambda r: r.bytes,
    ),
    "answers bits/byte": (lambda r, _: BITS * r.nats, lambda r: r.bytes),
    "next-byte KL bits": (lambda r, _: BITS * r.divergence_nats, lambda r: r.borders),
    "end of turn bits": (lambda r, _: BITS * r.end_nats, lambda r: 1.0),
}


def score(records: Sequence[Record], half: str) -> float:
    """Bits per byte of the original's answers plus divergence from what it expected: low is near."""
    answers = [r for r in records if isinstance(r, AnswerRecord) and record_half(r) == half]
    nats = sum(r.nats + r.divergence_nats for r in answers)
    return nats / sum(r.bytes for r in answers) * BITS


def language_sides(records: Sequence[Record], original: Sequence[Record]) -> dict[str, str]:
    """`new` or `original` for each language: an original one takes as many tokens as before."""
    tokens: dict[str, list[int]] = {}
    for now, then in zip(records, original, strict=True):
        if isinstance(now, TextRecord) and isinstance(then, TextRecord):
            sums = tokens.setdefault(now.language, [0, 0])
            sums[0] += now.tokens
            sums[1] += then.tokens
    return {
        code: "original" if now >= UNCHANGED * then else "new"
        for code, (now, then) in tokens.items()
    }


def veto(
    records: Sequence[Record], original: Sequence[Record], half: str, settings: SelectSettings
) -> str:
    """Why a candidate is out: what gets significantly worse by more than allowed; or nothing."""
    sides = language_sides(records, original)
    groups: dict[str, list[tuple[TextRecord | AnswerRecord, float]]] = {}
    for now, then in zip(records, original, strict=True):
        if isinstance(now, TaskRecord) or isinstance(then, TaskRecord) or record_half(now) != half:
            continue
        if isinstance(now, AnswerRecord) and now.same_cuts:
            groups.setdefault("answers without new tokens", []).append((now, then.nats))
        elif isinstance(now, TextRecord) and sides[now.language] == "original":
            groups.setdefault(f"{now.language} text", []).append((now, then.nats))
    for title, pairs in groups.items():
        members = [record for record, _ in pairs]
        losses = [record.nats - (1 + settings.veto) * nats for record, nats in pairs]
        parts = by_document(members, losses)
        if len(parts) < LEAST_UNITS:
            continue
        lost = estimate(parts, resamples=settings.bootstrap, seed=settings.seed)
        if lost.low > 0:
            more = sum(r.nats for r in members) / sum(nats for _, nats in pairs) - 1
            return f"{title}: {more:+.1%} bits"
    return ""


def by_document(records: Sequence[Record], values: Sequence[float]) -> list[float]:
    """Sums over the windows of each document, which are alike; other records stay as they are.

    The windows of a single document stay apart too.
    """
    sums: dict[object, float] = {}
    for i, (record, value) in enumerate(zip(records, values, strict=True)):
        unit = record.group if isinstance(record, TextRecord) and record.group else i
        sums[unit] = sums.get(unit, 0.0) + value
    return list(sums.values() if len(sums) > 1 else values)


def all_measures(
    records: Sequence[Record], chosen: Sequence[Record], half: str, settings: SelectSettings
) -> dict[str, Estimate]:
    """All measures of a candidate on one half, with intervals over texts, answers and copies."""
    pairs = [(r, c) for r, c in zip(records, chosen, strict=True) if record_half(r) == half]

    def interval(
        members: Sequence[Record], tops: Sequence[float], bottoms: Sequence[float]
    ) -> Estimate:
        sides = by_document(members, tops), by_document(members, bottoms)
        return estimate(*sides, resamples=settings.bootstrap, seed=settings.seed)

    result: dict[str, Estimate] = {}
    answers = [
        (r, c) for r, c in pairs if isinstance(r, AnswerRecord) and isinstance(c, AnswerRecord)
    ]
    for title, (top, bottom) in ANSWER_MEASURES.items() if answers else ():
        members = [r for r, _ in answers]
        result[title] = interval(members, [top(*p) for p in answers], list(map(bottom, members)))
    texts: dict[str, list[TextRecord]] = {}
    copies: dict[str, list[TaskRecord]] = {}
    for record, _ in pairs:
        if isinstance(record, TextRecord):
            texts.setdefault(record.language, []).append(record)
        elif isinstance(record, TaskRecord):
            copies.setdefault(record.language, []).append(record)
    for code, windows in sorted(texts.items()):
        nats, sizes = [BITS * r.nats for r in windows], [r.bytes for r in windows]
        result[f"{code} bits/byte"] = interval(windows, nats, sizes)
    for code, items in sorted(copies.items()):
        result[f"{code} copied"] = interval(items, [r.exact for r in items], [1.0] * len(items))
    return result
