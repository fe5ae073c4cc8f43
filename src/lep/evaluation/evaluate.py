"""Evaluate one model on held-out text: every score with its count, unit and interval, every answer on record."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lep.benchmark.harness import Benchmark
from lep.benchmark.metrics import copied, token_ratio
from lep.benchmark.tasks import resolve
from lep.checkpoint.reader import Checkpoint
from lep.corpus import prepare
from lep.corpus.read import Document, read_documents
from lep.corpus.tasks import TaskItem, make_tasks
from lep.evaluation.measures import figure, measures
from lep.evaluation.spoken import answer_nats
from lep.inference.generate import Answer, answers
from lep.inference.likelihood import text_nats
from lep.inference.models import Description, load_model
from lep.settings import EvaluateSettings

SPARE_TOKENS = (
    16  # beyond the longest right answer of a task: enough to see that a model does not stop
)


@dataclass(frozen=True)
class Score:
    """One figure: `metric` in `unit` on `count` units of `language` (of one task, where it has one)."""

    metric: str
    language: str
    task: str | None
    unit: str
    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Evaluation:
    """All scores of a model, and a record for each text window and each answer behind them."""

    scores: list[Score]
    records: list[dict[str, Any]]


def windows(
    text: dict[str, list[str | Path]], settings: EvaluateSettings
) -> dict[str, list[Document]]:
    """The held-out text of each language in windows of bounded length, the same for every model."""
    return {
        language: prepare.windows(
            read_documents(paths), settings.characters, settings.window_characters
        )
        for language, paths in text.items()
    }


def items(text: dict[str, list[str | Path]], settings: EvaluateSettings) -> list[TaskItem]:
    """The chat tasks made from the held-out text, the same for every model."""
    return [
        item
        for language, paths in text.items()
        if settings.tasks
        for item in make_tasks(
            read_documents(paths),
            language,
            settings.tasks,
            count=settings.items,
            seed=settings.seed,
        )
    ]


def evaluate(
    model: str | Path,
    text: dict[str, list[str | Path]],
    settings: EvaluateSettings,
    place: Path | None = None,
    *,
    base: bool = False,
) -> Evaluation:
    """Score a model. Chat tasks are left out for a model without a chat template.

    A `base` model is not asked through its template, which some have for those who tune it. Answers to benchmark tasks
    are kept in the folder `place`, where a run that was ended finds them again.
    """
    if base:
        plain = settings.benchmark.model_copy(update={"chat": False})
        settings = settings.model_copy(update={"tasks": [], "benchmark": plain})
    items(text, settings)
    loaded, checkpoint = load_model(model)
    names = resolve(settings.benchmark.tasks)
    benchmark = Benchmark(checkpoint, names, settings.benchmark) if names else None
    with tempfile.TemporaryDirectory() as temporary:
        kept = place or Path(temporary)
        kept.mkdir(parents=True, exist_ok=True)
        records = list(model_records(loaded, checkpoint, text, settings, benchmark, kept))
    return Evaluation(list(summarise(records, settings)), records)


def model_records(
    model: Any,
    checkpoint: Checkpoint,
    text: dict[str, list[str | Path]],
    settings: EvaluateSettings,
    benchmark: Benchmark | None,
    place: Path,
) -> Iterator[dict[str, Any]]:
    """Text windows, chat tasks and benchmark tasks of a loaded model; the last ones' answers are kept in `place`."""
    yield from text_records(model, checkpoint, windows(text, settings), settings)
    if checkpoint.tokenizer.chat_template:
        yield from task_records(model, checkpoint, items(text, settings), settings)
    if benchmark is not None:
        from lep.benchmark.backend import InMemory

        asked = InMemory(model, checkpoint, settings.benchmark.batch_size)
        yield from benchmark.records(asked.answering, place)


def text_records(
    model: Any, checkpoint: Checkpoint, text: dict[str, list[Document]], settings: EvaluateSettings
) -> Iterator[dict[str, Any]]:
    """Nats, tokens, characters and bytes of each text window."""
    for language, documents in text.items():
        texts = [document.text for document in documents]
        found = text_nats(
            model, checkpoint.tokenizer, texts, settings.batch_size, f"{language} bits per byte"
        )
        for document, (tokens, nats) in zip(documents, found, strict=True):
            yield _text_record(language, document, tokens, nats)


def served_text_records(
    server: Any, checkpoint: Checkpoint | Description, text: dict[str, list[Document]], place: Path
) -> Iterator[dict[str, Any]]:
    """The same from a server: log-probabilities of each window as a prompt."""
    for language, documents in text.items():
        nats = server.text_nats(
            [document.text for document in documents], place / f"text-{language}.jsonl"
        )
        for document, loss in zip(documents, nats, strict=True):
            ids = checkpoint.tokenizer(document.text, add_special_tokens=False)["input_ids"]
            yield _text_record(language, document, len(ids), loss)


def _text_record(language: str, document: Document, tokens: int, nats: float) -> dict[str, Any]:
    return {
        "kind": "text",
        "language": language,
        "id": document.id,
        "group": document.group,
        "nats": nats,
        "tokens": tokens,
        "characters": len(document.text),
        "bytes": len(document.text.encode()),
    }


def task_records(
    model: Any, checkpoint: Checkpoint, tasks: list[TaskItem], settings: EvaluateSettings
) -> list[dict[str, Any]]:
    """The greedy answer to each task, how right it is, and the nats of the right one."""
    tokenizer = checkpoint.tokenizer
    messages = [task.record()["messages"] for task in tasks]
    nats = answer_nats(model, checkpoint, messages, settings.batch_size, "answers, bits")

    def length(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    given: dict[int, Answer] = {}
    for name in dict.fromkeys(
        (task.language, task.task) for task in tasks
    ):  # answers of a task are of like length
        group = [i for i, task in enumerate(tasks) if (task.language, task.task) == name]
        longest = max(length(tasks[i].answer) for i in group) + 1
        for batch in answers(
            model,
            tokenizer,
            [messages[i][:1] for i in group],
            max_new_tokens=longest + SPARE_TOKENS,
            batch_size=settings.batch_size,
            label=" ".join(name),
        ):
            given |= {group[answer.index]: answer for answer in batch}
    return [_task_record(task, given[i], nats.get(i), length) for i, task in enumerate(tasks)]


def _task_record(
    task: TaskItem, answer: Answer, nats: float | None, length: Callable[[str], int]
) -> dict[str, Any]:
    record = {
        "kind": "task",
        "language": task.language,
        "task": task.task,
        "question": task.question,
        "expected": task.answer,
        "answer": answer.text,
        "finished": answer.finished,
        "exact": float(answer.text == task.answer),
    }
    if nats is not None:
        record |= {"nats": nats, "bytes": len(task.answer.encode())}
    if task.task.startswith("copy"):
        record["length_ratio"] = token_ratio(answer.tokens, task.answer, length)
        record["copied"] = float(copied(answer.text, task.answer))
    return record


def summarise(records: list[dict[str, Any]], settings: EvaluateSettings) -> Iterator[Score]:
    """Every metric by language and task, and exact match over all tasks of a language (task None)."""
    for measure in measures(records):
        found = figure(measure, settings.bootstrap, settings.seed)
        if found is not None:
            yield Score(
                measure.metric,
                measure.language,
                measure.task,
                measure.unit,
                **asdict(found.estimate()),
            )
