"""From records to figures: what is averaged over which units, with intervals and paired differences."""

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lep.benchmark.metrics import Metric, metric
from lep.statistics import Estimate, Statistic, bounds, draws, mean, ratio

Record = dict[str, Any]

# metric -> (unit, numerator, denominator or None for a mean, factor)
METRICS: dict[str, dict[str, tuple[str, str, str | None, float]]] = {
    "text": {
        "bits per byte": ("bits/byte", "nats", "bytes", 1 / math.log(2)),
        "symbols per token": ("characters/token", "characters", "tokens", 1.0),
    },
    "task": {
        "exact match": ("share", "exact", None, 1.0),
        "answer bits per byte": ("bits/byte", "nats", "bytes", 1 / math.log(2)),
        "length ratio": ("ratio", "length_ratio", None, 1.0),
        "copied": ("share", "copied", None, 1.0),
    },
    "prompt": {
        "original answers bits per byte": ("bits/byte", "nats", "bytes", 1 / math.log(2)),
        "ends its turn": ("share", "finished", None, 1.0),
        "repetition": ("share", "repetition", None, 1.0),
        "new tokens": ("share", "new_tokens", "tokens", 1.0),
    },
    "speed": {
        "prefill": ("characters/s", "read_characters", "prefill_seconds", 1.0),
        "generation": ("characters/s", "written_characters", "generation_seconds", 1.0),
        "time to first token": ("s", "prefill_seconds", None, 1.0),
        "context": ("characters", "context_characters", "tokens", 1.0),
        "KV cache": ("bytes/character", "cache_bytes", "characters", 1.0),
    },
}


def _sum(values: list[Any]) -> Any:
    """Of the windows of a document: they are alike, and are drawn together."""
    return np.sum(values, axis=0).tolist()


BENCHMARK_UNITS = {"mcc": "correlation", "length_ratio": "ratio"}  # all others are shares


@dataclass(frozen=True)
class Measure:
    """One metric of one model: a value for each item (text, question, answer), and what becomes of them."""

    metric: str
    language: str
    task: str | None
    unit: str
    values: dict[str, Any]
    statistic: Statistic
    left_out: int = 0  # items that are longer than the model's context
    units: dict[str, str] = field(
        default_factory=dict
    )  # of items that count together: a document, a pair, a variant
    kind: Metric = field(default_factory=Metric)

    def array(self, items: list[str]) -> np.ndarray:
        """The values of these items, combined where some are of one unit."""
        found = self.kind.units([(self.units.get(item, item), self.values[item]) for item in items])
        return np.asarray(list(found.values()), dtype=np.float64)

    @property
    def key(self) -> tuple[str, str, str | None]:
        return self.metric, self.language, self.task


def measures(records: Sequence[Record]) -> list[Measure]:
    """Every metric by language and task; chat tasks of a language also together (task None)."""
    groups: dict[tuple[str, str, str | None], list[Record]] = {}
    for record in records:
        groups.setdefault((record["kind"], record["language"], record.get("task")), []).append(
            record
        )
        if record["kind"] == "task":
            groups.setdefault(("task", record["language"], None), []).append(record)
    found: list[Measure] = []
    for (kind, language, task), members in groups.items():
        if kind == "benchmark":
            found += _benchmark(language, task, members)
            continue
        ids = [member.get("id") for member in members]
        unique = None not in ids and len(set(ids)) == len(ids)
        named = {str(ids[i]) if unique else str(i): member for i, member in enumerate(members)}
        for title, (unit, top, bottom, factor) in METRICS[kind].items():
            if any(top in member for member in members):
                values = {
                    name: member[top] * factor
                    if bottom is None
                    else [member[top] * factor, member[bottom]]
                    for name, member in named.items()
                    if top in member
                }
                units = {
                    name: member["group"] for name, member in named.items() if "group" in member
                }
                if (
                    len(set(units.values())) < 2
                ):  # windows of a single document say something of it alone
                    units = {}
                statistic = mean if bottom is None else ratio
                found.append(
                    Measure(
                        title,
                        language,
                        task,
                        unit,
                        values,
                        statistic,
                        0,
                        units,
                        Metric(combine=_sum),
                    )
                )
    return found


def _benchmark(language: str, task: str | None, members: list[Record]) -> list[Measure]:
    asked = [member for member in members if "scores" in member]
    if not asked:  # all of them longer than the context
        return [Measure("score", language, task, "share", {}, mean, len(members))]
    left_out = len(members) - len(asked)
    found = []
    for name in asked[0]["scores"]:
        known, values = metric(name), {member["id"]: member["scores"][name][1] for member in asked}
        units = {member["id"]: member["unit"] for member in asked}
        if name == "both_orders":  # half a pair says nothing
            count = Counter(units.values())
            values = {item: value for item, value in values.items() if count[units[item]] == 2}
        unit = BENCHMARK_UNITS.get(name, "share")
        found.append(
            Measure(name, language, task, unit, values, known.statistic, left_out, units, known)
        )
    return found


def task_score(parts: Sequence[Measure]) -> Measure:
    """A task's score: the mean of its metrics, as the paper has it."""
    if len(parts) == 1:
        return parts[0]
    widths = [np.size(next(iter(part.values.values()))) for part in parts]
    ends = np.cumsum(widths)
    values = {
        u: np.concatenate([np.atleast_1d(part.values[u]) for part in parts])
        for u in parts[0].values
    }

    def statistic(array: np.ndarray) -> float:
        columns = [array[:, end - width : end] for end, width in zip(ends, widths, strict=True)]
        return float(
            np.mean(
                [
                    part.statistic(own[:, 0] if width == 1 else own)
                    for part, own, width in zip(parts, columns, widths, strict=True)
                ]
            )
        )

    first = parts[0]
    return Measure("score", first.language, first.task, "share", values, statistic, first.left_out)


@dataclass(frozen=True)
class Figure:
    """A value with its bootstrap draws, which make the interval and can be averaged with those of other measures."""

    value: float
    drawn: np.ndarray
    count: int

    def estimate(self) -> Estimate:
        return bounds(self.value, self.drawn, self.count)


def figure(
    measure: Measure, resamples: int, seed: int, against: Measure | None = None
) -> Figure | None:
    """The measure, or its difference from the same one of another model over the items that both have.

    None without common items. The same measure and seed draw the same units, so that differences are paired.
    """
    items = [item for item in measure.values if against is None or item in against.values]
    if not items:
        return None
    arrays = [side.array(items) for side in (measure, *([against] if against else []))]
    statistic = measure.statistic
    value = statistic(arrays[0]) - (statistic(arrays[1]) if against else 0.0)
    own = zlib.crc32("/".join(map(str, measure.key)).encode())
    return Figure(value, draws(arrays, statistic, resamples, seed ^ own), len(arrays[0]))


def average(figures: Sequence[Figure]) -> Figure:
    """The mean over tasks; each counts the same, and they are resampled on their own."""
    return Figure(
        float(np.mean([f.value for f in figures])),
        np.mean([f.drawn for f in figures], axis=0),
        sum(f.count for f in figures),
    )
