"""Evaluate several models into one folder, one table."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lep.benchmark.harness import Benchmark
from lep.benchmark.quiet import NEEDS_HARNESS
from lep.benchmark.tasks import resolve
from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import file_stamps, question, read_messages, write_records
from lep.errors import LepError
from lep.evaluation.evaluate import items, model_records, served_text_records, summarise, windows
from lep.evaluation.guards import Messages, prompt_records
from lep.evaluation.speed import speed_records
from lep.evaluation.table import Row, cells, comparison, comparison_table, text_table
from lep.hub import short_names
from lep.inference.models import Description, load_model
from lep.publish import fingerprint, publishing
from lep.settings import EvaluateSettings

Records = list[dict[str, Any]]
Text = dict[str, list[str | Path]]


@dataclass(frozen=True)
class Subject:
    """A model to evaluate: its folder or hub id, and the server that it answers from when it is not loaded here."""

    source: str
    url: str | None
    checkpoint: Checkpoint | Description

    @classmethod
    def parse(cls, argument: str) -> "Subject":
        """MODEL, or MODEL@URL. Raises what opening the model raises."""
        source, at, url = argument.partition("@http")
        return (
            cls(source, "http" + url, Description(source))
            if at
            else cls(source, None, Checkpoint(source).check())
        )


def compare(models: list[str], text: Text, output: Path, settings: EvaluateSettings) -> str:
    """Write scores, records, the comparison and its table for the models to `output`; returns the table.

    Each figure of a model but the first comes with its paired difference from the first. All models are opened and all
    tasks made before the first one is scored, so that faults show at once. A run that was ended goes on where it was.
    """
    subjects = [Subject.parse(model) for model in models]
    names = resolve(settings.benchmark.tasks)
    if not (text or names or settings.prompts):
        raise LepError(
            "nothing to measure: give --text LANGUAGE=PATH, benchmark tasks, or --prompts"
        )
    items(text, settings)
    if settings.prompts and (subjects[0].url or not subjects[0].checkpoint.tokenizer.chat_template):
        raise LepError(
            f"prompts are answered beside the first model, and {subjects[0].source} is behind a server or has no chat "
            "template: name the original instruct model's folder first"
        )
    prompts = (
        [question(r["messages"]) for r in read_messages(settings.prompts)]
        if settings.prompts
        else []
    )
    servers = [_server(subject) for subject in subjects]
    benchmarks = [
        Benchmark(subject.checkpoint, names, settings.benchmark) if names else None
        for subject in subjects
    ]
    files = [path for paths in text.values() for path in paths]
    stamps = file_stamps([*files, *([settings.benchmark.data] if settings.benchmark.data else [])])
    made = [text, stamps, settings.model_dump(), prompts]
    key = fingerprint([[s.checkpoint.stamp(), s.url] for s in subjects] + made)
    found: dict[str, Records] = {}
    with publishing(output, resume_key=key) as partial:
        for i, (name, subject) in enumerate(zip(short_names(models), subjects, strict=True)):
            place = partial / f"checkpoint-{i}"
            place.mkdir(exist_ok=True)
            saved = place / "records.jsonl"
            if not saved.exists():
                first = (subjects[0], next(iter(found.values()), None))
                records = list(
                    _records(
                        subject, servers[i], text, settings, benchmarks[i], prompts, first, place
                    )
                )
                write_records(saved.with_suffix(".part"), records)
                saved.with_suffix(".part").rename(saved)
            found[name] = [
                json.loads(line) for line in saved.read_text(encoding="utf-8").split("\n") if line
            ]
        rows = comparison(found, settings.bootstrap, settings.seed)
        scores = {
            name: [asdict(score) for score in summarise(records, settings)]
            for name, records in found.items()
        }
        table = _table(scores, rows)
        (partial / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
        (partial / "comparison.json").write_text(
            json.dumps([asdict(row) for row in rows], indent=1) + "\n"
        )
        write_records(
            partial / "records.jsonl",
            ({"model": name} | record for name, records in found.items() for record in records),
        )
        (partial / "table.txt").write_text(table + "\n")
        for place in partial.glob("checkpoint-*"):
            shutil.rmtree(place)
    return table


def _server(subject: Subject) -> Any:
    if subject.url is None:
        return None
    try:
        from lep.benchmark.backend import Server
    except ImportError as error:
        raise LepError(NEEDS_HARNESS) from error
    return Server(subject.checkpoint, subject.source, subject.url)


def _records(
    subject: Subject,
    server: Any,
    text: Text,
    settings: EvaluateSettings,
    benchmark: Benchmark | None,
    prompts: list[Messages],
    first: tuple[Subject, Records | None],
    place: Path,
) -> Iterator[dict[str, Any]]:
    heldout = windows(text, settings)
    if server is not None:
        yield from served_text_records(server, subject.checkpoint, heldout, place)
        if benchmark is not None:
            yield from benchmark.records(server.answering, place)
        return
    model, checkpoint = load_model(subject.source)
    yield from model_records(model, checkpoint, text, settings, benchmark, place)
    if prompts and checkpoint.tokenizer.chat_template:
        said = (
            None
            if first[1] is None
            else [r["original_answer"] for r in first[1] if r["kind"] == "prompt"]
        )
        yield from prompt_records(
            model, checkpoint, prompts, said, first[0].checkpoint.vocabulary, settings
        )
    if settings.speed:
        yield from speed_records(model, checkpoint, heldout, settings.speed)


def _table(scores: dict[str, Any], rows: list[Row]) -> str:
    shown = [text_table(scores)] if any(cells(each) for each in scores.values()) else []
    return "\n\n".join([*shown, comparison_table(rows, list(scores))])
