"""From records to figures: each metric is aggregated over units, and compared between models."""

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lep.benchmark.harness import BenchmarkRecord
from lep.benchmark.metrics import Metric, metric
from lep.evaluation.records import AnswerRecord, Record
from lep.statistics import Estimate, bounds, draws, mean, paired_difference, ratio, wilson

BITS = 1 / math.log(2)
NEW_MASS = "new token mass"  # mean probability of all new tokens where an old token is right
Key = tuple[str, str, str | None]  # metric, language, task


class Formula(NamedTuple):
    """`factor * sum(top) / sum(bottom)` over the records, or the mean of `factor * top`."""

    unit: str
    top: str
    bottom: str | None = None
    factor: float = 1.0

    def of(self, record: Record) -> Any:
        top = getattr(record, self.top) * self.factor
        return top if self.bottom is None else [top, getattr(record, self.bottom)]


METRICS: dict[str, dict[str, Formula]] = {  # by kind of record
    "text": {
        "bits per byte": Formula("bits/byte", "nats", "bytes", BITS),
        "symbols per token": Formula("characters/token", "characters", "tokens"),
        NEW_MASS: Formula("share", "new_mass", "old_tokens"),
    },
    "task": {
        "exact match": Formula("share", "exact"),
        "answer bits per byte": Formula("bits/byte", "nats", "bytes", BITS),
        "length ratio": Formula("ratio", "length_ratio"),
        "copied": Formula("share", "copied"),
    },
    "prompt": {
        "original answers bits per byte": Formula("bits/byte", "nats", "bytes", BITS),
        "ends its turn": Formula("share", "finished"),
        "repetition": Formula("share", "repetition"),
        "new tokens": Formula("share", "new_tokens", "tokens"),
    },
    "speed": {
        "prefill": Formula("characters/s", "read_characters", "prefill_seconds"),
        "generation": Formula("characters/s", "written_characters", "generation_seconds"),
        "time to first token": Formula("s", "prefill_seconds"),
        "context": Formula("characters", "context_characters", "tokens"),
        "KV cache": Formula("bytes/character", "cache_bytes", "characters"),
    },
    "answer": {
        "score": Formula("bits/byte", "score_nats", "bytes", BITS),
        "answers bits/byte": Formula("bits/byte", "nats", "bytes", BITS),
        "next-byte KL bits": Formula("bits", "divergence_nats", "borders", BITS),
        "end of turn bits": Formula("bits", "end_nats", "turns", BITS),
    },
}
WHOLE_UNITS = ("both_orders", "grade")  # metrics of a pair or an exam variant
BENCHMARK_UNITS = {"mcc": "correlation", "length_ratio": "ratio"}  # all others are shares


@dataclass(frozen=True)
class Measure:
    """One metric of one model: the value of each item (text, question, answer)."""

    metric: str
    language: str
    task: str | None
    unit: str
    values: dict[str, tuple[str, Any]]  # item -> (document, pair or exam variant, value)
    aggregation: Metric
    left_out: int = 0  # items longer than the model's context, and those that belong to them

    def array(self, items: list[str]) -> np.ndarray:
        """The values of the units that these items make up."""
        units = self.aggregation.units([self.values[item] for item in items])
        return np.asarray(list(units.values()), dtype=np.float64)

    @property
    def is_mean_share(self) -> bool:
        """Whether it is the mean of the units' shares."""
        return self.unit == "share" and self.aggregation.statistic is mean

    @property
    def key(self) -> Key:
        return self.metric, self.language, self.task


def measures(records: Iterable[Record | AnswerRecord]) -> list[Measure]:
    """Every metric by language and task; chat tasks of a language also together (task None)."""
    groups: dict[Key, list[Any]] = defaultdict(list)
    for record in records:
        task = getattr(record, "task", None)
        for part in (task, None) if record.kind == "task" else (task,):
            groups[record.kind, record.language, part].append(record)
    return [
        measure
        for (kind, language, task), members in groups.items()
        for measure in (_benchmark if kind == "benchmark" else _plain)(language, task, members)
    ]


def _plain(language: str, task: str | None, members: list[Any]) -> Iterator[Measure]:
    """Measures of records of one kind; the windows of a document are alike: one unit."""
    ids = [getattr(member, "id", str(i)) for i, member in enumerate(members)]
    if len(set(ids)) < len(ids):
        ids = list(map(str, range(len(ids))))
    documents = {getattr(member, "group", None) for member in members} - {None}
    alone = len(documents) < 2  # then windows are the units
    units = [item if alone else m.group or item for item, m in zip(ids, members, strict=True)]
    for title, formula in METRICS[members[0].kind].items():
        values = {
            item: (unit, formula.of(member))
            for item, unit, member in zip(ids, units, members, strict=True)
            if getattr(member, formula.top) is not None
        }
        sizes = [getattr(member, formula.bottom) for member in members] if formula.bottom else [1]
        if values and any(sizes):
            statistic = mean if formula.bottom is None else ratio
            sums = Metric(statistic, lambda parts: np.sum(parts, axis=0).tolist())
            yield Measure(title, language, task, formula.unit, values, sums)


def _benchmark(
    language: str, task: str | None, members: list[BenchmarkRecord]
) -> Iterator[Measure]:
    """Measures of the items of a benchmark task that fit into the context.

    Half a pair says nothing, and an exam variant without some of its tasks would lose their points:
    these are left out as a whole.
    """
    scores = {member.id: member.scores for member in members if member.scores}
    if not scores:
        yield Measure("score", language, task, "share", {}, Metric(), len(members))
        return
    incomplete = {member.unit for member in members if not member.scores}
    for name in next(iter(scores.values())):
        values = {item: each[name] for item, each in scores.items()}
        if name in WHOLE_UNITS:
            values = {item: v for item, v in values.items() if v[0] not in incomplete}
        left_out = len(members) - len(values)
        unit = BENCHMARK_UNITS.get(name, "share")
        yield Measure(name, language, task, unit, values, metric(name), left_out)


def task_score(parts: Sequence[Measure]) -> Measure:
    """A task's score: the mean of its metrics, as in the paper."""
    first = parts[0]
    if len(parts) == 1:
        return first
    columns = {item: [np.atleast_1d(p.values[item][1]) for p in parts] for item in first.values}
    widths = [len(column) for column in next(iter(columns.values()))]

    def statistic(array: np.ndarray) -> float:
        sides = zip(parts, np.split(array, np.cumsum(widths)[:-1], axis=1), widths, strict=True)
        scores = [part.aggregation.statistic(c[:, 0] if n == 1 else c) for part, c, n in sides]
        return float(np.mean(scores))

    values = {item: (item, np.concatenate(each)) for item, each in columns.items()}
    return replace(
        first, metric="score", unit="share", values=values, aggregation=Metric(statistic)
    )


@dataclass(frozen=True)
class Figure:
    """A value with its bootstrap draws, from which intervals and averages are taken."""

    value: float
    drawn: np.ndarray
    count: int
    known: Estimate | None = None  # in place of draws, where these are all alike
    limits: tuple[float, float] = (-math.inf, math.inf)  # of the value

    def estimate(self) -> Estimate:
        interval = self.known or bounds(self.value, self.drawn, self.count)
        low, high = self.limits
        return replace(interval, low=max(low, interval.low), high=min(high, interval.high))


def figure(
    measure: Measure, resamples: int, seed: int, against: Measure | None = None
) -> Figure | None:
    """The measure, or its difference from another model's over the items that both have.

    None without common items. The same measure and seed draw the same units in every model.
    """
    sides = [measure] if against is None else [measure, against]
    items = [item for item in measure.values if all(item in side.values for side in sides)]
    if not items:
        return None
    arrays = [side.array(items) for side in sides]
    statistic = measure.aggregation.statistic
    first, *second = map(statistic, arrays)
    stream = seed ^ zlib.crc32("/".join(map(str, measure.key)).encode())
    drawn = draws(arrays, statistic, resamples, stream)
    result = Figure(first - sum(second), drawn, len(arrays[0]))
    if not measure.is_mean_share:
        return result
    if second:
        known = paired_difference(arrays[0] - arrays[1])
        return replace(result, known=known, limits=(-1.0, 1.0))
    return replace(result, known=wilson(arrays[0]), limits=(0.0, 1.0))


def average(figures: Sequence[Figure]) -> Figure:
    """The mean over tasks: each counts the same, and their errors are independent.

    Its interval combines theirs (Zou & Donner 2008, MOVER), which know of few and of equal items;
    it has none where one of them has none.
    """
    value = float(np.mean([f.value for f in figures]))
    drawn = np.mean([f.drawn for f in figures], axis=0)
    parts = [f.estimate() for f in figures]
    below = math.hypot(*(part.value - part.low for part in parts)) / len(parts)
    above = math.hypot(*(part.high - part.value for part in parts)) / len(parts)
    known = all(part.has_interval for part in parts)  # of one unit nothing is known
    count = sum(part.count for part in parts) if known else 1
    low, high = (value - below, value + above) if known else (value, value)
    return Figure(value, drawn, count, Estimate(value, low, high, count))
