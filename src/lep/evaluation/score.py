"""Score one model: every score with count, unit and interval, and a record behind each."""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

from lep.benchmark.harness import Benchmark
from lep.benchmark.metrics import copied, token_ratio
from lep.benchmark.tasks import resolve
from lep.checkpoint.reader import Checkpoint
from lep.corpus import prepare
from lep.corpus.files import Paths, Text
from lep.corpus.read import Document, read_documents
from lep.corpus.tasks import TaskItem, make_tasks
from lep.evaluation.measures import figure, measures
from lep.evaluation.records import Record, Score, TaskRecord, TextRecord, save_records
from lep.evaluation.spans import Messages, answer_nats, greedy_answers
from lep.files import write_json
from lep.inference.generate import Answer
from lep.inference.likelihood import text_losses
from lep.inference.models import load_model
from lep.result import Result
from lep.settings import EvaluateSettings
from lep.statistics import Estimate
from lep.transfer.mappings import saved_mappings

SPARE_TOKENS = 16  # beyond the longest right answer: enough to see that a model does not stop
Windows = dict[str, list[Document]]  # by language


@dataclass(frozen=True)
class Evaluation:
    """All scores of a model, and the records behind them."""

    scores: list[Score]
    records: list[Record]

    def write(self, folder: Path) -> None:
        """Write `scores.json` and `records.jsonl`."""
        write_json(folder / "scores.json", [asdict(score) for score in self.scores], indent=1)
        save_records(folder / "records.jsonl", self.records)


@dataclass(frozen=True)
class BitsPerByte(Estimate, Result):
    """Bits per byte of held-out text with a 95% interval over `count` documents (or `windows`, if
    there is only one of `documents`).
    """

    windows: int
    documents: int

    def __str__(self) -> str:
        if not self.has_interval:
            return f"{self.value:.4f} bits per byte (one window, no interval)"
        units = f"{self.documents:,} documents, {self.windows:,} windows"
        if self.documents == 1:
            units = f"{self.windows:,} windows of one document"
        interval = f"95% interval {self.low:.4f} to {self.high:.4f} over {units}"
        return f"{self.value:.4f} bits per byte ({interval})"


@dataclass(frozen=True)
class Material:
    """What every model is measured on."""

    settings: EvaluateSettings
    windows: Windows
    items: list[TaskItem]  # chat tasks made from the text
    prompts: list[Messages]
    timed: Windows = field(default_factory=dict)  # texts that speed is measured on

    @classmethod
    def of(
        cls, text: Text, settings: EvaluateSettings, prompts: Iterable[Messages] = ()
    ) -> "Material":
        """Read held-out text by language; raises `CorpusError` when it gives no window or task."""
        windows, items, tasks = {}, [], settings.tasks
        count, seed = settings.items, settings.seed
        for language, paths in text.items():
            documents, limit = list(read_documents(paths)), settings.characters
            windows[language] = prepare.windows(documents, limit, settings.window_characters)
            items += make_tasks(documents, language, tasks, count=count, seed=seed) if tasks else []
        return cls(settings, windows, items, list(prompts))


def bits_per_byte(
    model: str | Path, paths: Paths, settings: EvaluateSettings | None = None, **options: Any
) -> BitsPerByte:
    """How well a model predicts held-out text: -log2 p per byte of UTF-8, for any tokenizer.

    `paths` are text files or folders. `settings` (or its fields as options) bound the text:
    `characters` in all, in windows of `window_characters`.

    Raises `CorpusError` for text that cannot be read, `CheckpointError` for the model.
    """
    settings = EvaluateSettings.given(settings, options).model_copy(update={"tasks": []})
    material = Material.of({"text": paths}, settings)
    records = list(text_records(*load_model(model), material))
    (bits,) = (s for s in summarise(records, settings) if s.metric == "bits per byte")
    interval = (bits.value, bits.low, bits.high, bits.count)
    documents = len({record.group for record in records})
    return BitsPerByte(*interval, windows=len(records), documents=documents)


def score_model(
    model: str | Path,
    text: Text,
    settings: EvaluateSettings,
    folder: Path | None = None,
    *,
    base: bool = False,
) -> Evaluation:
    """Score a model on `text` by language; chat tasks only where it has a chat template.

    A `base` model is never asked through its template, which is there for those who tune it.
    Answers to benchmark tasks are kept in `folder`, where an interrupted run finds them again.

    Raises `LepError` for text, a model or a task that cannot be used.
    """
    if base:
        plain = settings.benchmark.model_copy(update={"chat": False})
        settings = settings.model_copy(update={"tasks": [], "benchmark": plain})
    material = Material.of(text, settings)  # its faults show before the model is loaded
    loaded, checkpoint = load_model(model, writes=True)
    tasks = resolve(settings.benchmark.tasks)
    benchmark = Benchmark(checkpoint, tasks, settings.benchmark) if tasks else None
    with tempfile.TemporaryDirectory() as temporary:
        answers = folder or Path(temporary)
        answers.mkdir(parents=True, exist_ok=True)
        records = list(model_records(loaded, checkpoint, material, benchmark, answers))
    return Evaluation(list(summarise(records, settings)), records)


def model_records(
    model: Any,
    checkpoint: Checkpoint,
    material: Material,
    benchmark: Benchmark | None,
    folder: Path,
) -> Iterator[Record]:
    """Text windows, chat tasks and benchmark items of a model; benchmark answers go to `folder`."""
    yield from text_records(model, checkpoint, material)
    if checkpoint.tokenizer.chat_template:
        yield from task_records(model, checkpoint, material)
    if benchmark is not None:
        from lep.benchmark.backend import InMemory

        backend = InMemory(model, checkpoint, benchmark.settings.batch_size)
        yield from benchmark.records(backend.answering, folder)


def text_records(model: Any, checkpoint: Checkpoint, material: Material) -> Iterator[TextRecord]:
    """A record of each text window; of an extended model also what its new tokens take."""
    size, mappings = material.settings.batch_size, saved_mappings(checkpoint, appended=True)
    new = mappings["input"].new_rows() if mappings else None
    for language, windows in material.windows.items():
        texts, label = [window.text for window in windows], f"{language} bits per byte"
        losses = text_losses(model, checkpoint.tokenizer, texts, size, label, new)
        records = window_records(language, windows, [(loss.tokens, loss.nats) for loss in losses])
        for record, loss in zip(records, losses, strict=True):
            mass = loss.new_mass if loss.old_tokens else None
            yield replace(record, old_tokens=loss.old_tokens, new_mass=mass)


def window_records(
    language: str, windows: list[Document], losses: list[tuple[int, float]]
) -> Iterator[TextRecord]:
    """The records of windows, given the tokens and nats of each."""
    for window, (tokens, nats) in zip(windows, losses, strict=True):
        name: dict[str, Any] = {"language": language, "id": window.id, "group": window.group}
        size: dict[str, Any] = {"characters": len(window.text), "bytes": len(window.text.encode())}
        yield TextRecord(**name, nats=nats, tokens=tokens, **size)


def task_records(model: Any, checkpoint: Checkpoint, material: Material) -> list[TaskRecord]:
    """The greedy answer to each task item, its scores, and the nats of the right one."""
    size, items = material.settings.batch_size, material.items
    messages = [item.record()["messages"] for item in items]
    nats = answer_nats(model, checkpoint, messages, size, "answers, bits")

    def length(text: str) -> int:
        return len(checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"])

    tasks: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        tasks[item.language, item.task].append(i)
    answers: dict[int, Answer] = {}
    for name, members in tasks.items():  # answers to one task are of similar length
        most = max(length(items[i].answer) for i in members) + 1 + SPARE_TOKENS
        prompts = [messages[i][:1] for i in members]
        group = greedy_answers(model, checkpoint, prompts, most, size, label=" ".join(name))
        answers |= zip(members, group, strict=True)
    return [task_record(item, answers[i], nats.get(i), length) for i, item in enumerate(items)]


def task_record(
    item: TaskItem, answer: Answer, nats: float | None, length: Callable[[str], int]
) -> TaskRecord:
    """The scores of an answer; `length` counts tokens.

    Composed or not, the same characters are the same answer: tokenizers compose them, or do not.
    """
    right, text = (normalize("NFC", each) for each in (item.answer, answer.text))
    name: dict[str, Any] = {"language": item.language, "task": item.task, "question": item.question}
    scores: dict[str, Any] = {"finished": answer.finished, "exact": float(text == right)}
    if nats is not None:
        scores |= {"nats": nats, "bytes": len(item.answer.encode())}
    if item.task.startswith("copy"):
        scores["length_ratio"] = token_ratio(answer.tokens, right, length)
        scores["copied"] = float(copied(text, right))
    return TaskRecord(**name, expected=item.answer, answer=answer.text, **scores)


def summarise(records: Iterable[Record], settings: EvaluateSettings) -> Iterator[Score]:
    """Every metric by language and task; chat tasks of a language also together (task None)."""
    for measure in measures(records):
        if result := figure(measure, settings.bootstrap, settings.seed):
            yield Score(*measure.key, measure.unit, **asdict(result.estimate()))
