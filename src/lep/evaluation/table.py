"""Tables of models: a row per model in each language, or a row per measure with differences."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lep.benchmark.harness import BenchmarkRecord
from lep.benchmark.tasks import groups, task_names
from lep.evaluation.measures import METRICS, Figure, Measure, average, figure, measures, task_score
from lep.evaluation.records import Record, Score, load_records
from lep.settings import EvaluateSettings

# column title -> (metric, task)
COLUMNS = {
    "symbols/token": ("symbols per token", None),
    "bits/byte": ("bits per byte", None),
    "copy": ("exact match", "copy_sentence"),
    "copy paragraph": ("exact match", "copy_paragraph"),
    "exact match": ("exact match", None),
    "answer bits/byte": ("answer bits per byte", None),
}


def cells(scores: Iterable[Score]) -> dict[str, Score]:
    """The scores that the table shows, in its order: `{"bits/byte ru": score, ...}`."""
    known = {(s.metric, s.task, s.language): s for s in scores}
    languages = sorted({key[2] for key in known}, key=lambda code: (code == "en", code))
    return {
        f"{title} {language}": known[*key, language]
        for title, key in COLUMNS.items()
        for language in languages
        if (*key, language) in known
    }


def text_table(models: dict[str, list[Score]]) -> str:
    """Aligned text, a block for each language; a dash where a model has no score."""
    rows = {name: cells(scores) for name, scores in models.items()}
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    titles: dict[str, list[str]] = {}  # by language
    for column in columns:
        title, _, language = column.rpartition(" ")
        titles.setdefault(language, []).append(title)
    return "\n\n".join(_block(language, titles[language], rows) for language in titles)


def _block(language: str, titles: list[str], rows: dict[str, dict[str, Score]]) -> str:
    """The scores of the language, a line for each model."""
    lines = [[language, *(f"{title:>6}" for title in titles)]]
    for name, row in rows.items():
        scores = [row.get(f"{title} {language}") for title in titles]
        lines.append([name, *(f"{score.value:.3f}" if score else "-" for score in scores)])
    first, *widths = _widths(lines)
    return "\n".join(
        " ".join([name.ljust(first), *map(str.rjust, values, widths)]) for name, *values in lines
    )


def _widths(lines: Sequence[list[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


@dataclass(frozen=True)
class Row:
    """A measure of every model that has it, and each model's paired difference from the first."""

    title: str
    depth: int  # 0: the benchmark, 1: a group or a single measure, 2: a task of a group
    figures: dict[str, Figure]
    differences: dict[str, Figure]
    left_out: dict[str, int]  # items longer than a model's context, and those with them

    def record(self) -> dict[str, Any]:
        """The row as JSON: intervals instead of bootstrap draws."""
        figures, differences = (
            {name: asdict(figure.estimate()) for name, figure in side.items()}
            for side in (self.figures, self.differences)
        )
        return vars(self) | {"figures": figures, "differences": differences}


def comparison(records: dict[str, list[Record]], resamples: int, seed: int) -> list[Row]:
    """Micro-Avg, group scores and task scores of the benchmark, then every other measure.

    Models without items in common with the first have no difference.
    """
    by_key = {name: {m.key: m for m in measures(each)} for name, each in records.items()}
    first = next(iter(records))

    def row(title: str, depth: int, sides: dict[str, Measure]) -> Row:
        figures = {n: f for n, m in sides.items() if (f := figure(m, resamples, seed))}
        others = {n: m for n, m in sides.items() if first in sides and n != first}
        against = {n: figure(m, resamples, seed, sides[first]) for n, m in others.items()}
        left_out = {n: m.left_out for n, m in sides.items() if m.left_out}
        return Row(title, depth, figures, {n: f for n, f in against.items() if f}, left_out)

    rows: dict[str, Row] = {}
    items = (r for each in records.values() for r in each if isinstance(r, BenchmarkRecord))
    for title in dict.fromkeys(item.task for item in items):
        parts = {n: [m for m in each.values() if m.task == title] for n, each in by_key.items()}
        rows[title] = row(title, 2, {n: task_score(each) for n, each in parts.items() if each})
    lines = _benchmark_rows(rows)
    for key in dict.fromkeys(key for each in by_key.values() for key in each):
        metric, language, task = key
        if task is None:  # chat tasks together; each is in scores.json
            sides = {name: each[key] for name, each in by_key.items() if key in each}
            unit = f" ({METRICS['speed'][metric].unit})" if metric in METRICS["speed"] else ""
            lines.append(row(f"{metric} {language}{unit}", 1, sides))
    return lines


def _benchmark_rows(rows: dict[str, Row]) -> list[Row]:
    """The average, then each group with its tasks, then tasks of no group."""
    everything = [task for _, members in groups().values() for task in members]
    lines = _averaged("Micro-Avg", " tasks", 0, everything, rows)
    for title, members in groups().values():
        lines += _averaged(title, "", 1, members, rows)
        lines += [rows[task] for task in members if task in rows]
    return lines + [replace(r, depth=1) for task, r in rows.items() if task not in everything]


def _averaged(
    title: str, noun: str, depth: int, tasks: list[str], rows: dict[str, Row]
) -> list[Row]:
    """The mean over the tasks with a figure, of the models that have all of them."""
    members = [rows[task] for task in tasks if task in rows and rows[task].figures]
    if not members:
        return []
    part = f" ({len(members)} of {len(tasks)}{noun})" if len(members) < len(tasks) else ""
    figures, differences = (
        {
            name: average([s[name] for s in sides])
            for name in sides[0]
            if all(name in s for s in sides)
        }
        for sides in ([r.figures for r in members], [r.differences for r in members])
    )
    left_out: Counter[str] = sum((Counter(row.left_out) for row in members), Counter())
    return [Row(title + part, depth, figures, differences, dict(left_out))]


def comparison_table(rows: list[Row], models: list[str]) -> str:
    """A line per measure: each model's figure with its 95% interval, and its difference."""
    cells = (["  " * r.depth + r.title, *(_cell(r, name) for name in models)] for r in rows)
    table = [["", *models], *cells]
    widths = _widths(table)
    lines = [" | ".join(map(str.ljust, line, widths)).rstrip() for line in table]
    lines.insert(1, "-" * max(map(len, lines)))
    counts = [
        f"{row.title}: " + ", ".join(f"{n} of {name}" for name, n in row.left_out.items())
        for row in rows
        if row.left_out and row.title in task_names()
    ]
    if counts:
        reason = "items longer than the context, with the rest of their pair or exam variant"
        lines.append(f"{reason}, left out: {'; '.join(counts)}")
    return "\n".join(lines)


def _cell(row: Row, name: str) -> str:
    if name not in row.figures:
        return "-"
    difference = row.differences.get(name)
    return _interval(row.figures[name]) + (f"  {_interval(difference, '+')}" if difference else "")


def _interval(figure: Figure, sign: str = "") -> str:
    """`value [low, high]`; a single unit has no interval."""
    estimate = figure.estimate()
    value, low, high = (
        f"{number:{sign}.3f}" if abs(number) < 100 else f"{number:{sign},.0f}"
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]" if estimate.has_interval else value


def benchmark_table(folder: Path, models: dict[str, str], settings: EvaluateSettings) -> str:
    """The comparison of benchmark tasks from the records of each model's stage; may be empty.

    `settings` are the recipe's, for resamples and seed.
    """
    records: dict[str, list[Record]] = {}
    for name, stage in models.items():
        stored = load_records(folder / stage / "records.jsonl")
        records[name] = [record for record in stored if record.kind == "benchmark"]
    rows = comparison(records, settings.bootstrap, settings.seed) if records else []
    return comparison_table(rows, list(records)) if rows else ""
