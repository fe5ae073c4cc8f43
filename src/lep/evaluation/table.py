"""Tables of models: one row a model with the columns that decide, and one row a measure with paired differences."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lep.benchmark.tasks import groups, task_names
from lep.evaluation.measures import METRICS, Figure, Measure, average, figure, measures, task_score
from lep.settings import EvaluateSettings
from lep.statistics import Estimate

# column title -> (metric, task)
COLUMNS = {
    "symbols/token": ("symbols per token", None),
    "bits/byte": ("bits per byte", None),
    "copy": ("exact match", "copy_sentence"),
    "copy paragraph": ("exact match", "copy_paragraph"),
    "exact match": ("exact match", None),
    "answer bits/byte": ("answer bits per byte", None),
}


def lower_is_better(column: str) -> bool:
    """Of a column of the table."""
    return "bits/byte" in column


def cells(scores: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`{"bits/byte ru": score, ...}` of the scores that the table shows, in its order."""
    found = {(s["metric"], s["task"], s["language"]): s for s in scores}
    languages = sorted(
        {language for _, _, language in found}, key=lambda code: (code == "en", code)
    )
    return {
        f"{title} {language}": found[metric, task, language]
        for title, (metric, task) in COLUMNS.items()
        for language in languages
        if (metric, task, language) in found
    }


def text_table(models: dict[str, list[dict[str, Any]]]) -> str:
    """The table as aligned text, two lines of heading; a dash where a model has no such score."""
    rows = {name: cells(scores) for name, scores in models.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    widths = {column: max(6, *(len(word) for word in column.rsplit(" ", 1))) for column in columns}
    first = max([5, *(len(name) for name in rows)])
    lines = [
        " ".join(
            [" " * first, *(column.rsplit(" ", 1)[0].rjust(widths[column]) for column in columns)]
        ),
        " ".join(
            [
                "model".ljust(first),
                *(column.rsplit(" ", 1)[1].rjust(widths[column]) for column in columns),
            ]
        ),
    ]
    for name, row in rows.items():
        values = [f"{row[c]['value']:.3f}" if c in row else "-" for c in columns]
        lines.append(
            " ".join(
                [
                    name.ljust(first),
                    *(v.rjust(widths[c]) for v, c in zip(values, columns, strict=True)),
                ]
            )
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Row:
    """A measure of every model that has it, and the paired difference of each from the first model."""

    title: str
    depth: int  # 0: the benchmark, 1: a group or a measure of its own, 2: a task of a group
    figures: dict[str, Estimate]
    differences: dict[str, Estimate]
    left_out: dict[str, int]  # items longer than a model's context


def comparison(records: dict[str, list[dict[str, Any]]], resamples: int, seed: int) -> list[Row]:
    """Micro-Avg, group scores and task scores of the benchmark, then every other measure."""
    own = {name: {m.key: m for m in measures(found)} for name, found in records.items()}
    tasks = _benchmark_tasks(records, own)
    first = next(iter(records))

    def row(
        title: str, depth: int, found: dict[str, Measure]
    ) -> tuple[Row, dict[str, Figure], dict[str, Figure]]:
        figures = {name: figure(m, resamples, seed) for name, m in found.items()}
        differences = {
            name: figure(m, resamples, seed, found[first])
            for name, m in found.items()
            if name != first and first in found
        }
        kept, apart = ({n: f for n, f in each.items() if f} for each in (figures, differences))
        left_out = {name: m.left_out for name, m in found.items() if m.left_out}
        return Row(title, depth, _estimates(kept), _estimates(apart), left_out), kept, apart

    rows: dict[str, Any] = {task: row(task, 2, found) for task, found in tasks.items()}
    out: list[Row] = []
    grouped = {name: [t for t in members if t in rows] for name, (_, members) in groups().items()}
    inside = [task for members in grouped.values() for task in members]
    scored = [task for task in inside if rows[task][1]]
    if scored:
        all_tasks = sum(len(members) for _, members in groups().values())
        whole = "" if len(scored) == all_tasks else f" ({len(scored)} of {all_tasks} tasks)"
        out.append(_averaged(f"Micro-Avg{whole}", 0, [rows[task] for task in scored]))
    for name, members in grouped.items():
        title, whole_group = groups()[name]
        counted = [t for t in members if t in scored]
        part = (
            "" if len(counted) == len(whole_group) else f" ({len(counted)} of {len(whole_group)})"
        )
        out += [_averaged(title + part, 1, [rows[t] for t in counted])] if counted else []
        out += [rows[t][0] for t in members]
    out += [replace(found[0], depth=1) for task, found in rows.items() if task not in inside]
    keys = dict.fromkeys(key for found in own.values() for key in found)
    for key in keys:
        if key[2] is None:  # chat tasks together; each is in scores.json
            found = {name: m[key] for name, m in own.items() if key in m}
            unit = f" ({METRICS['speed'][key[0]][0]})" if key[0] in METRICS["speed"] else ""
            out.append(row(f"{key[0]} {key[1]}{unit}", 1, found)[0])
    return out


def _benchmark_tasks(
    records: dict[str, list[dict[str, Any]]], own: dict[str, dict[Any, Measure]]
) -> dict[str, dict[str, Measure]]:
    found: dict[str, dict[str, Measure]] = {}
    for name, each in records.items():
        for task in dict.fromkeys(r["task"] for r in each if r["kind"] == "benchmark"):
            parts = [m for m in own[name].values() if m.task == task]
            if parts:
                found.setdefault(task, {})[name] = task_score(parts)
    return found


def _averaged(
    title: str, depth: int, members: list[tuple[Row, dict[str, Figure], dict[str, Figure]]]
) -> Row:
    """The mean over tasks, of the models that have all of them."""

    def mean(sides: list[dict[str, Figure]]) -> dict[str, Estimate]:
        shared = [name for name in sides[0] if all(name in side for side in sides)]
        return {name: average([side[name] for side in sides]).estimate() for name in shared}

    left_out: Counter[str] = sum((Counter(m[0].left_out) for m in members), Counter())
    return Row(
        title, depth, mean([m[1] for m in members]), mean([m[2] for m in members]), dict(left_out)
    )


def _estimates(figures: dict[str, Figure]) -> dict[str, Estimate]:
    return {name: found.estimate() for name, found in figures.items()}


def comparison_table(rows: list[Row], models: list[str]) -> str:
    """A line a measure; under each model its figure with the 95% interval, then the difference from the first model."""
    table = [["", *models]] + [
        ["  " * row.depth + row.title, *(_cell(row, name, name != models[0]) for name in models)]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in table) for i in range(len(models) + 1)]
    lines = [
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    long = [row for row in rows if row.left_out and row.title in task_names()]
    if long:
        counts = (
            f"{row.title}: " + ", ".join(f"{n} of {name}" for name, n in row.left_out.items())
            for row in long
        )
        lines.append(f"items longer than the context, left out: {'; '.join(counts)}")
    return "\n".join(lines)


def _cell(row: Row, name: str, compared: bool) -> str:
    if name not in row.figures:
        return "-"
    found, apart = row.figures[name], row.differences.get(name)
    cell = f"{_number(found.value)} [{_number(found.low)}, {_number(found.high)}]"
    if compared and apart is not None:
        cell += (
            f"  {_number(apart.value, '+')} [{_number(apart.low, '+')}, {_number(apart.high, '+')}]"
        )
    return cell


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign},.0f}"


def benchmark_table(folder: Path, models: dict[str, str]) -> str:
    """The comparison of benchmark tasks from the records of each model's stage under a run's folder; or nothing."""
    found = {}
    for name, stage in models.items():
        lines = (folder / stage / "records.jsonl").read_text(encoding="utf-8").split("\n")
        records = (json.loads(line) for line in lines if line)
        found[name] = [record for record in records if record["kind"] == "benchmark"]
    rows = (
        comparison(found, EvaluateSettings().bootstrap, EvaluateSettings().seed)
        if any(found.values())
        else []
    )
    return comparison_table(rows, list(found)) if rows else ""
