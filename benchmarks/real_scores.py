"""What `real.py` measures of a model, and the table of all models."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import darumeru_data

from lep.corpus.prepare import unit_hash
from lep.corpus.read import question, read_messages, write_records
from lep.evaluation.evaluate import Subject, subject_records
from lep.evaluation.measures import Figure, Measure, figure, measures, task_score
from lep.evaluation.records import PromptRecord, Record, load_records, save_records
from lep.evaluation.score import Material
from lep.report.paired import relative
from lep.settings import BenchmarkSettings, EvaluateSettings

LONGEST_PROMPT = 400  # characters
CHAT_TASKS = ["copy_sentence", "first_word", "last_word"]
BENCHMARKS = {  # tasks and their data
    "rublimp": "rublimp",
    "daru_rucola": "rucola",
    "daru_multiq": "multiq",
    "daru_mmlu_en": "mmlu_ru",
}
RESAMPLES = 2_000
# Not the prompts of ru_user_prompts.jsonl: their answers are a text that arms may be trained on.
PROMPTS = {"ru": "ru_seed_tasks.jsonl", "en": "en_user_prompts.jsonl"}
BRIEFLY = {"ru": "Ответь одним предложением.", "en": "Answer in one sentence."}


@dataclass(frozen=True)
class Sizes:
    """How much is measured; without items or a limit, no tasks of the kind."""

    characters: int = 16_000  # of text, in each language
    items: int = 32  # of each chat task, in each language
    prompts: int = 24  # in each language
    answer_tokens: int = 96
    limit: int = 120  # items of each benchmark task


@dataclass(frozen=True)
class Column:
    """A measure of the table: of answers, tasks or text; compared as a ratio or a difference."""

    title: str
    metric: str
    language: str
    task: str | None = None
    ratio: bool = False
    digits: int = 3


BITS, ANSWERS = "bits per byte", "original answers bits per byte"
TABLES = {
    "Russian": [
        Column("characters a token", "symbols per token", "ru", ratio=True, digits=2),
        Column("text, bits a byte", BITS, "ru", ratio=True),
        Column("the original's answers, bits a byte", ANSWERS, "ru", ratio=True),
        Column("sentences copied", "exact match", "ru", "copy_sentence"),
        Column("tasks", "exact match", "ru"),
        Column("RuBLiMP", "score", "ru", "rublimp"),
    ],
    "English, and how answers end": [
        Column("en text, bits a byte", BITS, "en", ratio=True, digits=4),
        Column("en answers, bits a byte", ANSWERS, "en", ratio=True, digits=4),
        Column("en sentences copied", "exact match", "en", "copy_sentence"),
        Column("en tasks", "exact match", "en"),
        Column("new tokens on en text", "new token mass", "en", digits=4),
        Column("ru answers that end", "ends its turn", "ru"),
        Column("new tokens in ru answers", "new tokens", "ru"),
        Column("repeated in ru answers", "repetition", "ru"),
    ],
    "Other benchmarks": [
        Column("RuCoLA", "score", "ru", "daru_rucola"),
        Column("XQuAD ru", "score", "ru", "daru_multiq"),
        Column("MMLU en", "score", "en", "daru_mmlu_en"),
    ],
}
DRAWN = (
    "text, bits a byte",
    "the original's answers, bits a byte",
    "sentences copied",
    "en text, bits a byte",
    "en tasks",
)


def material(
    data: Path,
    english: str,
    output: Path,
    sizes: Sizes,
    languages: list[str],
    benchmarks: list[str],
) -> tuple[Any, Any]:
    """What every model is given, written to `output` once: text by language and settings."""
    folder, bench = output / "material", data / "bench"
    if not (folder / "prompts.jsonl").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        news = darumeru_data.lines(bench / "tg_news_ru.jsonl.zst")
        write_records(folder / "news.jsonl", ({"id": r["url"], "text": r["text"]} for r in news))
        splits = darumeru_data.data_sets(data)
        for name in (BENCHMARKS[task] for task in benchmarks):
            darumeru_data.write(folder, name, splits[name]())
        prompts = [p for code in languages for p in users_prompts(data, code, sizes.prompts)]
        write_records(folder / "prompts.jsonl", prompts)
    text = {"ru": [str(data / "eval" / "ru"), str(folder / "news.jsonl")], "en": [english]}
    text = {code: text[code] for code in languages}
    settings = EvaluateSettings(
        tasks=CHAT_TASKS if sizes.items else [],
        items=max(1, sizes.items),
        characters=sizes.characters,
        answer_tokens=sizes.answer_tokens,
        benchmark=BenchmarkSettings(
            tasks=benchmarks if sizes.limit else [], data=str(folder), limit=max(1, sizes.limit)
        ),
    )
    prompts = [question(r["messages"]) for r in read_messages(folder / "prompts.jsonl")]
    return Material.of(text, settings, prompts), settings


def users_prompts(data: Path, language: str, count: int) -> list[dict[str, Any]]:
    """Short prompts of users, in an order by hash, that ask for a short answer: it ends in time."""
    texts = []
    for line in (data / "bench" / PROMPTS[language]).open(encoding="utf-8"):
        record = json.loads(line)
        given = record["instances"][0]["input"]
        texts.append("\n\n".join(part for part in (record["instruction"], given) if part))
    short = sorted((t for t in texts if len(t) <= LONGEST_PROMPT), key=unit_hash)
    asked = [f"{text.rstrip()}\n{BRIEFLY[language]}" for text in short[:count]]
    return [{"messages": [{"role": "user", "content": text}]} for text in asked]


def scored(model: Path, original: Path, given: tuple[Any, Any], folder: Path) -> list[Record]:
    """The records of a model; those of the original must be there first."""
    saved = folder / "records.jsonl"
    if not saved.exists():
        folder.mkdir(parents=True, exist_ok=True)
        each, settings = given
        subject = Subject.parse(str(model), settings.benchmark.tasks, settings.benchmark)
        answers = None
        if model != original:
            before = load_records(folder.parent / "original" / "records.jsonl")
            answers = [r.original_answer for r in before if isinstance(r, PromptRecord)]
        vocabulary = Subject.parse(str(original), [], settings.benchmark).checkpoint.vocabulary
        began = time.monotonic()
        records = list(subject_records(subject, each, vocabulary, answers, folder))
        save_records(saved.with_suffix(".part"), records)
        saved.with_suffix(".part").rename(saved)
        print(f"{folder.name} scored in {time.monotonic() - began:.0f} s", flush=True)
    return read(folder)


def read(folder: Path) -> list[Record]:
    """The records in a folder of scores; an answer's language is that of its prompt."""
    return [
        replace(r, language=language_of(r.prompt[-1]["content"]))
        if isinstance(r, PromptRecord)
        else r
        for r in load_records(folder / "records.jsonl")
    ]


def language_of(prompt: str) -> str:
    """The language in which a prompt asks for a short answer; some Russian ones are mostly code."""
    return next((code for code, asked in BRIEFLY.items() if prompt.endswith(asked)), "en")


def by_column(records: list[Record]) -> dict[str, Measure]:
    found = list(measures(records))
    plain = {m.key: m for m in found}
    result = {}
    for column in (column for columns in TABLES.values() for column in columns):
        if column.metric == "score":
            parts = [m for m in found if m.task == column.task]
            if parts:
                result[column.title] = task_score(parts)
        elif measure := plain.get((column.metric, column.language, column.task)):
            result[column.title] = measure
    return result


def compared(column: Column, model: Measure, original: Measure) -> tuple[float, float, float]:
    """The ratio to the original's value, or the difference from it, with a 95% interval.

    It is paired, because both models' draws are of the same units.
    """
    if column.ratio:
        top, bottom = (_figure(side) for side in _common(model, original))
        change = relative(bottom, top)
        return 1 + change.value, 1 + change.low, 1 + change.high
    difference = figure(model, RESAMPLES, 0, original)
    assert difference is not None
    interval = difference.estimate()
    return interval.value, interval.low, interval.high


def cell(
    column: Column, model: Measure | None, reference: Measure | None, is_reference: bool
) -> str:
    """The value, and how it compares with that of another model, mostly the original."""
    if model is None:
        return "-"
    shown = f"{_figure(model).value:.{column.digits}f}"
    if is_reference or reference is None:
        return shown
    sign, before = ("", "x") if column.ratio else ("+", "")
    numbers = compared(column, model, reference)
    value, low, high = (f"{number:{sign}.{column.digits}f}" for number in numbers)
    return f"{shown} ({before}{value}, {low} to {high})"


def _figure(measure: Measure) -> Figure:
    found = figure(measure, RESAMPLES, 0)
    assert found is not None
    return found


def _common(*sides: Measure) -> Iterator[Measure]:
    """The measures with the items that all have."""
    items = set.intersection(*(set(side.values) for side in sides))
    for side in sides:
        yield replace(side, values={k: v for k, v in side.values.items() if k in items})


def draw(columns: dict[str, dict[str, Measure]], file: Path) -> None:
    """A panel for each measure of `DRAWN`: every arm beside the original, with its interval."""
    plt = _plots()
    shown = [c for each in TABLES.values() for c in each if c.title in DRAWN]
    arms = [arm for arm in columns if arm != "original"][::-1]
    figure_, axes = plt.subplots(1, len(shown), figsize=(12, 1 + 0.32 * len(arms)), sharey=True)
    for axis, column in zip(axes, shown, strict=True):
        for height, arm in enumerate(arms):
            value, low, high = compared(
                column, *(columns[a][column.title] for a in (arm, "original"))
            )
            axis.plot([low, high], [height, height], color="#2a6f97", alpha=0.5, linewidth=3)
            axis.plot(value, height, "o", color="#2a6f97")
        axis.axvline(1.0 if column.ratio else 0.0, color="#888888", linestyle="--", linewidth=1)
        kind = "times the original's" if column.ratio else "less the original's"
        axis.set_title(f"{column.title},\n{kind}", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(arms)), arms)
    figure_.suptitle("Dashed: the original. Lines: 95% intervals.", fontsize=9)
    figure_.tight_layout()
    figure_.savefig(file, metadata={"Date": None})


def draw_curve(tokens: list[int], lines: dict[str, list[float]], file: Path) -> None:
    """A panel for each line against the tokens of the training."""
    figure_, axes = _plots().subplots(1, len(lines), figsize=(12, 2.6))
    for axis, (name, values) in zip(axes, lines.items(), strict=True):
        axis.plot(tokens, values, "o-", color="#2a6f97", markersize=3)
        axis.set_title(f"{name}, bits a byte", fontsize=9)
        axis.set_ylim(0, 1.1 * max(values))
        axis.grid(alpha=0.3)
    figure_.supxlabel("tokens of training", fontsize=9)
    figure_.tight_layout()
    figure_.savefig(file, metadata={"Date": None})


def _plots() -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lep"  # the same figure has the same bytes
    import matplotlib.pyplot as plt

    return plt
