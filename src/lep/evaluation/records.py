"""The records behind every score; only this module encodes and decodes their form on disk."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import TypeAdapter

from lep.benchmark.harness import BenchmarkRecord
from lep.corpus.read import read_records, write_records
from lep.errors import CorpusError, foreign
from lep.files import parse_json, read_text


@dataclass(frozen=True, kw_only=True)
class TextRecord:
    """A window of held-out text: its tokens and their negative log-likelihood."""

    kind: ClassVar[str] = "text"
    language: str
    id: str
    group: str | None = None  # the document that the window is from
    nats: float
    tokens: int
    characters: int
    bytes: int
    old_tokens: int | None = None  # that the model before the extension has too
    new_mass: float | None = None  # probability of all new tokens, summed over the old tokens


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """A chat task: the greedy answer, and the nats of the right one where the template shows it."""

    kind: ClassVar[str] = "task"
    language: str
    task: str
    question: str
    expected: str
    answer: str
    finished: bool
    exact: float
    nats: float | None = None
    bytes: int | None = None
    length_ratio: float | None = None  # of copies
    copied: float | None = None  # of copies


@dataclass(frozen=True, kw_only=True)
class PromptRecord:
    """A prompt: the model's answer, and the nats of the original model's answer if that ended."""

    kind: ClassVar[str] = "prompt"
    language: str = "prompts"
    id: str
    prompt: list[dict[str, Any]]
    answer: str
    finished: float
    repetition: float
    tokens: int
    new_tokens: int  # that the original model does not have
    original_answer: str  # empty if it did not end
    nats: float | None = None
    bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class SpeedRecord:
    """Times of reading and writing a text."""

    kind: ClassVar[str] = "speed"
    language: str
    id: str
    tokens: int
    characters: int
    read_characters: int
    written_characters: int
    prefill_seconds: float
    generation_seconds: float
    cache_bytes: int
    context_characters: int  # context in tokens times `characters`


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """An answer of the original model under a candidate, for choosing a propagation."""

    kind: ClassVar[str] = "answer"
    language: ClassVar[str] = "answers"
    turns: ClassVar[int] = 1
    question: str
    answer: str
    nats: float
    end_nats: float
    bytes: int
    divergence_nats: float  # summed over the common token borders
    borders: int
    same_cuts: bool  # whether both vocabularies split the answer alike

    @property
    def score_nats(self) -> float:
        return self.nats + self.divergence_nats


Record = TextRecord | TaskRecord | PromptRecord | SpeedRecord | BenchmarkRecord
KINDS: dict[str, type[Record]] = {cls.kind: cls for cls in get_args(Record)}


@dataclass(frozen=True)
class Score:
    """`metric` in `unit` over `count` units of `language`, and of one task where it has one."""

    metric: str
    language: str
    task: str | None
    unit: str
    value: float
    low: float
    high: float
    count: int


def encode(record: Record | AnswerRecord) -> dict[str, Any]:
    """A record as a JSON object; fields without a value are left out."""
    values = {name: value for name, value in vars(record).items() if value is not None}
    if values.get("output") is not None:
        values.setdefault("tokens", None)  # of an answer whose server does not count
    return {"kind": record.kind} | values


def decode(line: dict[str, Any]) -> Record:
    """A record from a JSON object; keys that are not fields, such as `model`, are ignored."""
    cls = KINDS[line["kind"]]
    values = {field.name: line[field.name] for field in fields(cls) if field.name in line}
    _adapter(cls.kind).validate_python(values)
    return cls(**values)


@cache  # building one costs a hundred times as much as a record
def _adapter(kind: str) -> TypeAdapter[Record]:
    return TypeAdapter(KINDS[kind])


def save_records(path: Path, records: Iterable[Record]) -> None:
    write_records(path, map(encode, records))


def load_records(path: Path) -> list[Record]:
    """All records of a `records.jsonl`. Raises `CorpusError` for anything else."""
    with foreign(f"{path} holds no records", "evaluate the model again", CorpusError):
        return [decode(record) for _, record in read_records(path)]


def load_scores(path: Path) -> list[Score]:
    """The scores of a `scores.json` of one model. Raises `CorpusError` for anything else."""
    values = parse_json(read_text(path), str(path))
    with foreign(f"{path} holds no scores", "evaluate the model again", CorpusError):
        return TypeAdapter(list[Score]).validate_python(values)
