"""Evaluate several models side by side into one folder."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lep.benchmark.harness import NEEDS_HARNESS, Benchmark
from lep.benchmark.tasks import resolve
from lep.checkpoint.reader import Checkpoint
from lep.corpus.files import Paths, Text, all_paths, file_stamps, several
from lep.corpus.read import question, read_messages, write_records
from lep.durable import sync_tree
from lep.errors import LepError
from lep.evaluation.prompts import prompt_records
from lep.evaluation.records import PromptRecord, Record, Score, encode, load_records, save_records
from lep.evaluation.score import Material, model_records, summarise, window_records
from lep.evaluation.spans import Messages
from lep.evaluation.speed import speed_records, speed_texts
from lep.evaluation.table import Row, cells, comparison, comparison_table, text_table
from lep.files import write_json, write_text
from lep.hub import short_names
from lep.inference.generate import check_prompts
from lep.inference.models import Description, context_of, load_model
from lep.progress import announce
from lep.publish import fingerprint, publishing
from lep.result import Result
from lep.settings import BenchmarkSettings, EvaluateSettings
from lep.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class Comparison(Result):
    """The scores of each model, and the rows that compare them."""

    output: Path
    scores: dict[str, list[Score]]  # by the model's name
    rows: list[Row]

    @property
    def table(self) -> str:
        """A row per model in each language with held-out text, then a row per measure."""
        shown = [text_table(self.scores)] if any(map(cells, self.scores.values())) else []
        return "\n\n".join([*shown, comparison_table(self.rows, list(self.scores))])

    def __str__(self) -> str:
        return f"{self.table}\n\nall scores and records: {self.output}"


@dataclass(frozen=True)
class Subject:
    """A model to evaluate: on disk, or behind a server."""

    source: str  # folder or hub id
    url: str | None
    checkpoint: Checkpoint | Description
    server: Any
    benchmark: Benchmark | None

    @classmethod
    def parse(cls, argument: str, tasks: list[str], settings: BenchmarkSettings) -> "Subject":
        """Read MODEL or MODEL@URL. Raises `LepError` for a missing model, server or task."""
        source, at, address = argument.partition("@http")
        checkpoint = Description(source) if at else Checkpoint(source).check()
        url, server = f"http{address}" if at else None, None
        if url:
            try:
                from lep.benchmark.backend import Server
            except ImportError as error:
                raise LepError(NEEDS_HARNESS) from error
            server = Server(checkpoint, source, url)
        benchmark = Benchmark(checkpoint, tasks, settings) if tasks else None
        return cls(source, url, checkpoint, server, benchmark)


def evaluate(
    models: Paths,
    text: Text,
    output: str | Path,
    settings: EvaluateSettings | None = None,
    **options: Any,
) -> Comparison:
    """Score models on held-out text by language, benchmark tasks and prompts, and compare them.

    `models` are folders or hub ids, or MODEL@URL behind an OpenAI-compatible server; each is also
    compared with the first, item by item. `output` gets `table.txt`, `scores.json`,
    `comparison.json` and `records.jsonl`. All models are opened and all tasks made before the first
    is scored, so that faults show at once. An interrupted run is continued.

    Raises `LepError` for a model, server, text or task that cannot be used.
    """
    output, settings = Path(output), EvaluateSettings.given(settings, options)
    sources = list(map(str, several(models)))
    tasks = resolve(settings.benchmark.tasks)
    if not (text or tasks or settings.prompts):
        kinds = "--text LANGUAGE=PATH, benchmark tasks, or --prompts"
        raise LepError(f"nothing to measure: give {kinds}")
    if settings.speed and not text:
        raise LepError("speed is measured on text: give --text LANGUAGE=PATH, or no --speed")
    subjects = [Subject.parse(source, tasks, settings.benchmark) for source in sources]
    material = Material.of(text, settings, _prompts(subjects, settings))
    original = subjects[0].checkpoint.vocabulary
    local = [each.checkpoint for each in subjects if isinstance(each.checkpoint, Checkpoint)]
    if settings.speed:
        material = replace(material, timed=speed_texts(local, material.windows, settings.speed))
    answers: list[str] | None = None  # of the first model to the prompts
    records: dict[str, list[Record]] = {}
    with publishing(output, resume_key=_resume_key(subjects, text, material)) as partial:
        for i, name in enumerate(short_names(sources)):
            folder = partial / f"checkpoint-{i}"
            saved, part = folder / "records.jsonl", partial / f"records-{i}.part"
            if not saved.exists():
                if len(sources) > 1:
                    announce(f"model {i + 1} of {len(sources)}: {name}")
                folder.mkdir(exist_ok=True)
                save_records(
                    part, subject_records(subjects[i], material, original, answers, folder)
                )
                sync_tree(folder)
                part.rename(saved)
            records[name] = load_records(saved)
            prompts = (r for r in records[name] if isinstance(r, PromptRecord))
            answers = answers or [record.original_answer for record in prompts]
        scores = {name: list(summarise(each, settings)) for name, each in records.items()}
        rows = comparison(records, settings.bootstrap, settings.seed)
        result = Comparison(output, scores, rows)
        _write(result, records, partial)
        for folder in partial.glob("checkpoint-*"):
            shutil.rmtree(folder)
    return result


def _prompts(subjects: list[Subject], settings: EvaluateSettings) -> list[Messages]:
    """The prompts to answer.

    Raises `LepError` when the first model cannot answer them here, and `CorpusError` for a prompt
    that fills the context of a model.
    """
    if not settings.prompts:
        return []
    first = subjects[0]
    if first.url or not first.checkpoint.tokenizer.chat_template:
        raise LepError(
            f"prompts are answered beside the first model, and {first.source} is behind a server "
            "or has no chat template: name the original instruct model's folder first"
        )
    prompts = [question(record["messages"]) for record in read_messages(settings.prompts)]
    for subject in subjects:
        if subject.url is None and subject.checkpoint.tokenizer.chat_template:
            context = context_of(subject.checkpoint)
            check_prompts(subject.checkpoint.tokenizer, prompts, context)
    return prompts


def _resume_key(subjects: list[Subject], text: Text, material: Material) -> str:
    """What must be the same for an interrupted run to be continued."""
    settings = material.settings
    stamps = file_stamps([*all_paths(text), *filter(None, [settings.benchmark.data])])
    models = [[subject.checkpoint.stamp(), subject.url] for subject in subjects]
    return fingerprint([*models, text, stamps, settings.model_dump(), material.prompts])


def subject_records(
    subject: Subject,
    material: Material,
    original: Vocabulary,
    answers: list[str] | None,
    folder: Path,
) -> Iterator[Record]:
    """All records of one model; benchmark answers and a server's are kept in `folder`."""
    server, benchmark = subject.server, subject.benchmark
    if server is not None:
        for language, windows in material.windows.items():
            texts, file = [window.text for window in windows], folder / f"text-{language}.jsonl"
            yield from window_records(language, windows, server.text_nats(texts, file))
        if benchmark is not None:
            yield from benchmark.records(server.answering, folder)
        return
    model, checkpoint = load_model(subject.source, writes=True)
    yield from model_records(model, checkpoint, material, benchmark, folder)
    if material.prompts and checkpoint.tokenizer.chat_template:
        yield from prompt_records(model, checkpoint, material, original, answers)
    yield from speed_records(model, checkpoint, material.timed)


def _write(result: Comparison, records: dict[str, list[Record]], folder: Path) -> None:
    scores = {name: list(map(asdict, each)) for name, each in result.scores.items()}
    rows = [row.record() for row in result.rows]
    write_json(folder / "scores.json", scores, indent=1)
    write_json(folder / "comparison.json", rows, indent=1)
    write_text(folder / "table.txt", result.table + "\n")
    lines = ({"model": name} | encode(record) for name, each in records.items() for record in each)
    write_records(folder / "records.jsonl", lines)
