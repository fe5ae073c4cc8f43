"""Read documents from txt, jsonl (also gz and zst) and parquet files, or folders of them."""

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, TypeVar

from lep.corpus.files import Paths, corpus_files, is_txt, listed, raw_bytes, source_names, stem
from lep.corpus.formats import Record, read_lines, read_rows, read_txt
from lep.errors import CorpusError, foreign, note
from lep.files import check_depth
from lep.progress import progress

PIECE_CHARACTERS = 1_000_000
SAMPLE_PIECES = 200  # of a sample, so at most so many files are opened for it
HUB = "hub:"  # prefix of a hub data set among paths
Group = Callable[[str, Record], str]  # of a source and a record
T = TypeVar("T")
_LINE = re.compile(r"\n(?=\S)")


@dataclass(frozen=True)
class Document:
    """One text. `source` names its file (or folder of txt files); a `group` stays together."""

    id: str
    text: str
    source: str
    group: str


class Copy(Document):
    """A document once more, because its source has a weight above 1."""


Documents = Iterable[Document]


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Number and record of each jsonl line or parquet row; blank lines are skipped."""
    if path.suffix.lower() == ".parquet":
        yield from enumerate(read_rows(path), start=1)
        return
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield number, _decoded(line, f"{path}, line {number}")


def _decoded(line: str, where: str) -> Record:
    advice = "mend the line" if line.endswith("\n") else "the file ends early, copy it again"
    with foreign(f"{where}: not JSON", advice, CorpusError):
        record = json.loads(line.lstrip("\ufeff"))  # files with such a mark, one after the other
        check_depth(record)
    if "\\ud" in line or "\\uD" in line:  # perhaps half a character, which no file can hold
        halves = json.dumps(record, ensure_ascii=False).encode("utf-16", "surrogatepass")
        record = json.loads(halves.decode("utf-16", "replace"))
    if not isinstance(record, dict):
        raise CorpusError(f"{where}: a {type(record).__name__} where an object was expected")
    return record


def read_documents(paths: Paths, *, group: Group | None = None) -> Iterator[Document]:
    """Yield the non-empty documents under `paths` in a fixed order.

    A document is a txt file, or the field `text` of a jsonl line or parquet row. Documents of equal
    `group(source, record)` belong together (default: the record's `group` or `author`, or its id).

    Raises `CorpusError` for missing paths, broken lines (named), and a corpus without any text.
    """
    files = corpus_files(paths)
    names = source_names(files)
    contents = ((file, read_file(file, names[file], group)) for file in files)
    yield from progress(_not_empty(contents, _document_text), "documents read")


def stream_texts(paths: Paths) -> Iterator[str]:
    """The texts of `read_documents`, long txt files in pieces that end with a line."""
    files = corpus_files(paths)
    contents = ((file, _file_texts(file)) for file in files)
    yield from progress(_not_empty(contents, str), "texts read")


def sample_texts(paths: Paths, size_bytes: int) -> Iterator[str]:
    """Beginnings of files from all over the list, `size_bytes` in all, more of a larger file.

    Equal steps through the bytes of all files one after the other end in some of them; each gives
    a piece for every step. So a script's share of the sample is about its share of the text.
    """
    files = corpus_files(paths)
    ends = list(accumulate(map(raw_bytes, files)))
    steps = ((2 * step + 1) * ends[-1] // (2 * SAMPLE_PIECES) for step in range(SAMPLE_PIECES))
    pieces = Counter(bisect_right(ends, step) for step in steps) if ends[-1] else {}
    for number, count in pieces.items():
        file, left = files[number], count * size_bytes // SAMPLE_PIECES
        texts = read_lines(file) if is_txt(file) else _file_texts(file)
        for text in texts:
            piece = text[:left].encode()[:left]
            yield piece.decode(errors="ignore")
            left -= len(piece)
            if not left:
                break


def _document_text(document: Document) -> str:
    return document.text


def _not_empty(
    contents: Iterable[tuple[Path, Iterable[T]]], text: Callable[[T], str]
) -> Iterator[T]:
    """The items with text of all files; a note names the files without one."""
    empty, any_text = list[str](), False
    for file, items in contents:
        without = True
        for item in items:
            if text(item).strip():
                without = False
                yield item
        if without:
            empty.append(str(file))
        any_text |= not without
    names = listed(empty) or "no paths given"
    if not any_text:
        raise CorpusError(f"the corpus holds no text at all: {names}")
    if empty:
        note(f"there is no text in {names}")


def _file_texts(file: Path) -> Iterator[str]:
    if is_txt(file):
        return map("".join, batches(read_lines(file), PIECE_CHARACTERS))
    return (document.text for document in read_file(file, stem(file)))


def batches(
    items: Iterable[T],
    characters: int,
    *,
    most: float = float("inf"),
    length: Callable[[Any], int] = len,
) -> Iterator[list[T]]:
    """Items in lists of at least `characters`, or of `most` items; the last may be shorter."""
    batch, size = list[T](), 0
    for item in items:
        batch.append(item)
        size += length(item)
        if size >= characters or len(batch) >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def cut_at_lines(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Texts in pieces of `characters` or a little more, each from the first word of a line.

    A line above `PIECE_CHARACTERS` is cut.
    """
    for text in texts:
        start = 0
        while start < len(text):
            line = _LINE.search(text, start + characters, start + characters + PIECE_CHARACTERS)
            stop = line.end() if line else start + characters + PIECE_CHARACTERS
            yield text[start:stop]
            start = stop


def read_file(file: Path, source: str, group: Group | None = None) -> Iterator[Document]:
    """The documents of one file, including empty ones; `source` as in `source_names`."""
    if is_txt(file):
        name = stem(file)
        yield Document(id=name, text=read_txt(file), source=source, group=name)
        return
    for number, record in read_records(file):
        yield _document(source, record, number, f"{file}, line {number}", group)


def _document(
    source: str, record: Record, number: int, where: str, group: Group | None = None
) -> Document:
    text = record.get("text")
    if "text" not in record:
        raise CorpusError(f"{where}: no field 'text' (fields: {', '.join(record) or 'none'})")
    if text is None:  # as tables have it where there is none
        text = ""
    if not isinstance(text, str):
        raise CorpusError(f"{where}: the field 'text' is {json.dumps(text)[:60]}, and no string")
    name = number if record.get("id") is None else record["id"]
    if group is None and record.get("group"):
        key = str(record["group"])  # without the source: a group may lie in several files
    else:
        key = f"{source}/{group(source, record) if group else record.get('author') or name}"
    return Document(id=f"{source}/{name}", text=text, source=source, group=key)


def read_hub(name: str, limit: int | None = None) -> Iterator[Document]:
    """The first documents of a hub data set `hub:OWNER/NAME[:CONFIG][@SPLIT]` (train), streamed.

    Raises `CorpusError` when it cannot be reached, or has no field `text`.
    """
    from datasets import load_dataset

    path, _, split = name.removeprefix(HUB).partition("@")
    path, _, config = path.partition(":")
    source = path.strip("/").rpartition("/")[2]
    advice = "check name, configuration and split, or download it and give the folder"
    with foreign(f"{name} cannot be read", advice, CorpusError):
        records = load_dataset(path, config or None, split=split or "train", streaming=True)
        for number, record in enumerate(islice(records, limit), start=1):
            yield _document(source, record, number, f"{name}, record {number}")


def read_messages(path: str | Path) -> list[Record]:
    """Records `{"messages": [{"role": ..., "content": ...}, ...], ...}` of a jsonl file.

    Other fields are kept. Raises `CorpusError` for an empty file, and for the first line without
    usable messages.
    """
    records = []
    for file in corpus_files([path]):
        for number, record in read_records(file):
            _check_messages(record.get("messages"), f"{file}, line {number}")
            records.append(record)
    if not records:
        raise CorpusError(f"{path} holds no messages: it is empty")
    return records


def _check_messages(messages: Any, where: str) -> None:
    if not (isinstance(messages, list) and messages and all(map(_is_message, messages))):
        raise CorpusError(f"{where}: 'messages' must be a list of role/content objects")
    if all(message["role"] == "assistant" for message in messages):
        raise CorpusError(f"{where}: there is an answer without a question before it")


def _is_message(message: Any) -> bool:
    match message:
        case {"role": str(), "content": str()}:
            return True
    return False


def question(messages: list[Record]) -> list[Record]:
    """A conversation up to its last question."""
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write records as UTF-8 jsonl, one a line."""
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
