"""From records to figures: what is averaged over which units, with intervals and differences."""

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lep.benchmark.harness import BenchmarkRecord
from lep.benchmark.metrics import Metric, metric
from lep.evaluation.records import Record
from lep.statistics import Estimate, Statistic, bounds, draws, mean, ratio

BITS = 1 / math.log(2)
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
}
BENCHMARK_UNITS = {"mcc": "correlation", "length_ratio": "ratio"}  # all others are shares


def _sum(values: list[Any]) -> Any:
    return np.sum(values, axis=0).tolist()


WINDOWS = Metric(combine=_sum)  # windows of a document are alike, and are drawn together


@dataclass(frozen=True)
class Measure:
    """One metric of one model: a value for each item (text, question, answer), and how they combine."""

    metric: str
    language: str
    task: str | None
    unit: str
    values: dict[str, Any]
    statistic: Statistic
    left_out: int = 0  # items that are longer than the model's context
    units: dict[str, str] = field(default_factory=dict)  # document, pair or exam variant of items
    combination: Metric = field(default_factory=Metric)

    def array(self, items: list[str]) -> np.ndarray:
        """The values of these items, combined within units."""
        pairs = [(self.units.get(item, item), self.values[item]) for item in items]
        return np.asarray(list(self.combination.units(pairs).values()), dtype=np.float64)

    @property
    def key(self) -> Key:
        return self.metric, self.language, self.task


def measures(records: Iterable[Record]) -> list[Measure]:
    """Every metric by language and task; chat tasks of a language also together (task None)."""
    groups: dict[Key, list[Any]] = {}
    for record in records:
        kind, language = record.kind, record.language
        groups.setdefault((kind, language, getattr(record, "task", None)), []).append(record)
        if kind == "task":
            groups.setdefault((kind, language, None), []).append(record)
    return [
        measure
        for (kind, language, task), members in groups.items()
        for measure in (_benchmark if kind == "benchmark" else _plain)(language, task, members)
    ]


def _plain(language: str, task: str | None, members: list[Any]) -> list[Measure]:
    """Measures of records of one kind but the benchmark's."""
    ids = [getattr(member, "id", str(i)) for i, member in enumerate(members)]
    if len(set(ids)) < len(ids):
        ids = list(map(str, range(len(ids))))
    named = dict(zip(ids, members, strict=True))
    units = {name: member.group for name, member in named.items() if getattr(member, "group", None)}
    if len(set(units.values())) < 2:  # a single document: its windows are the units
        units = {}
    result = []
    for title, formula in METRICS[members[0].kind].items():
        known = {n: m for n, m in named.items() if getattr(m, formula.top) is not None}
        values = {name: formula.of(member) for name, member in known.items()}
        statistic = mean if formula.bottom is None else ratio
        if values:
            result.append(
                Measure(title, language, task, formula.unit, values, statistic, 0, units, WINDOWS)
            )
    return result


def _benchmark(language: str, task: str | None, members: list[BenchmarkRecord]) -> list[Measure]:
    scored = {member.id: (member.unit, member.scores) for member in members if member.scores}
    left_out = sum(not member.scores for member in members)
    if not scored:
        return [Measure("score", language, task, "share", {}, mean, left_out)]
    units = {item: unit for item, (unit, _) in scored.items()}
    count = Counter(units.values())
    result = []
    for name in next(iter(scored.values()))[1]:
        values = {item: scores[name][1] for item, (_, scores) in scored.items()}
        if name == "both_orders":  # half a pair says nothing
            values = {item: value for item, value in values.items() if count[units[item]] == 2}
        unit, known = BENCHMARK_UNITS.get(name, "share"), metric(name)
        result.append(
            Measure(name, language, task, unit, values, known.statistic, left_out, units, known)
        )
    return result


def task_score(parts: Sequence[Measure]) -> Measure:
    """A task's score: the mean of its metrics, as in the paper."""
    first = parts[0]
    if len(parts) == 1:
        return first
    widths = [np.size(next(iter(part.values.values()))) for part in parts]
    ends = np.cumsum(widths)
    values = {
        item: np.concatenate([np.atleast_1d(part.values[item]) for part in parts])
        for item in first.values
    }

    def statistic(array: np.ndarray) -> float:
        columns = np.split(array, ends[:-1], axis=1)
        sides = zip(parts, columns, widths, strict=True)
        return float(np.mean([p.statistic(c[:, 0] if n == 1 else c) for p, c, n in sides]))

    return Measure("score", first.language, first.task, "share", values, statistic, first.left_out)


@dataclass(frozen=True)
class Figure:
    """A value with its bootstrap draws, which give the interval and can be averaged with others'."""

    value: float
    drawn: np.ndarray
    count: int

    def estimate(self) -> Estimate:
        return bounds(self.value, self.drawn, self.count)


def figure(
    measure: Measure, resamples: int, seed: int, against: Measure | None = None
) -> Figure | None:
    """The measure, or its difference from another model's over the items that both have.

    None without common items. The same measure and seed draw the same units: differences are paired.
    """
    sides = [measure] if against is None else [measure, against]
    items = [item for item in measure.values if all(item in side.values for side in sides)]
    if not items:
        return None
    arrays = [side.array(items) for side in sides]
    first, *second = map(measure.statistic, arrays)
    stream = seed ^ zlib.crc32("/".join(map(str, measure.key)).encode())
    drawn = draws(arrays, measure.statistic, resamples, stream)
    return Figure(first - sum(second), drawn, len(arrays[0]))


def average(figures: Sequence[Figure]) -> Figure:
    """The mean over tasks: each counts the same, and they are resampled independently."""
    value = float(np.mean([f.value for f in figures]))
    drawn = np.mean([f.drawn for f in figures], axis=0)
    return Figure(value, drawn, sum(f.count for f in figures))
