"""Read documents from txt, jsonl (also gz and zst) and parquet files, or folders of them."""

import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import zstandard

from lep.errors import CorpusError

TXT_SUFFIXES = (".txt", ".txt.gz", ".txt.zst")
SUFFIXES = (*TXT_SUFFIXES, ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
PIECE_CHARACTERS = 1_000_000
SHEET = "sheet.json"  # beside a corpus: what happened to its documents
HUB = "hub:"  # prefix of a hub data set among paths
Paths = Iterable[str | Path]
Record = dict[str, Any]  # a jsonl line or parquet row
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


Documents = Iterable[Document]


def corpus_files(paths: Paths) -> list[Path]:
    """All corpus files under `paths`, sorted within a folder; `CorpusError` when there are none."""
    return [file for path in paths for file in _files(Path(path))]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise CorpusError(f"corpus path {path} does not exist: check the spelling")
    suffixes = ", ".join(SUFFIXES)
    if not path.is_dir():
        if not path.name.endswith(SUFFIXES):
            raise CorpusError(f"corpus file {path} is none of {suffixes}: convert it first")
        return [path]
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
    if not files:
        raise CorpusError(f"corpus folder {path} holds no {suffixes} file: check the path")
    return files


def file_stamps(paths: Paths) -> list[list[Any]]:
    """Path, size and time of files (or all files of folders), to notice changes without reading."""
    trees = (sorted(p.rglob("*")) if p.is_dir() else [p] for p in map(Path, paths))
    files = [file for tree in trees for file in tree if file.is_file()]
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def read_lines(path: Path) -> Iterator[str]:
    """Stream the lines of a UTF-8 file: plain, gzip or zstd."""
    try:
        with path.open("rb") as raw:
            stream: Any = raw
            if path.suffix == ".zst":
                stream = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            elif path.suffix == ".gz":
                stream = gzip.GzipFile(fileobj=raw)
            yield from io.TextIOWrapper(stream, encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 ({error.reason}): convert it with iconv") from error
    except (zstandard.ZstdError, gzip.BadGzipFile, EOFError) as error:
        suffix = path.suffix[1:]
        message = f"{path} is not a readable {suffix} file ({error}): compress it again"
        raise CorpusError(message) from error


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Number and record of each jsonl line or parquet row; blank lines are skipped."""
    if path.suffix == ".parquet":
        yield from enumerate(_read_parquet(path), start=1)
        return
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield number, _decoded(line, f"{path}, line {number}")


def _decoded(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{where}: not JSON ({error.msg})") from error
    if "\\ud" in line or "\\uD" in line:  # perhaps half a character, which no file can hold
        halves = json.dumps(record, ensure_ascii=False).encode("utf-16", "surrogatepass")
        record = json.loads(halves.decode("utf-16", "replace"))
    if not isinstance(record, dict):
        raise CorpusError(f"{where}: a {type(record).__name__} where an object was expected")
    return record


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1_000):
            yield from batch.to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CorpusError(f"{path} is not a readable parquet file ({reason})") from error


def read_documents(paths: Paths, *, group: Group | None = None) -> Iterator[Document]:
    """Yield the non-empty documents under `paths` in a fixed order.

    A document is a txt file, or the field `text` of a jsonl line or parquet row. Documents of equal
    `group(source, record)` belong together (default: the record's `group` or `author`, or its id).

    Raises `CorpusError` for missing paths, broken lines (named), and a corpus without any text.
    """
    files = corpus_files(paths)
    documents = (d for file in files for d in read_file(file, group) if d.text.strip())
    yield from _not_empty(documents, files)


def stream_texts(paths: Paths) -> Iterator[str]:
    """The texts of `read_documents`, long txt files in pieces that end with a line."""
    files = corpus_files(paths)
    texts = (text for file in files for text in _file_texts(file) if text.strip())
    yield from _not_empty(texts, files)


def _not_empty(items: Iterable[T], files: list[Path]) -> Iterator[T]:
    empty = True
    for item in items:
        empty = False
        yield item
    if empty:
        names = ", ".join(map(str, files)) or "no paths given"
        raise CorpusError(f"the corpus holds no text at all: {names}")


def _file_texts(file: Path) -> Iterator[str]:
    if file.name.endswith(TXT_SUFFIXES):
        return map("".join, batches(read_lines(file), PIECE_CHARACTERS))
    return (document.text for document in read_file(file))


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
    """Texts in pieces of `characters` or a little more, each from the first word of a line."""
    for text in texts:
        start = 0
        while start < len(text):
            line = _LINE.search(text, start + characters)
            stop = line.end() if line else len(text)
            yield text[start:stop]
            start = stop


def read_file(file: Path, group: Group | None = None) -> Iterator[Document]:
    """The documents of one file, including empty ones."""
    if file.name.endswith(TXT_SUFFIXES):
        name = file.name.split(".txt")[0]
        yield Document(id=name, text="".join(read_lines(file)), source=file.parent.name, group=name)
        return
    source = file.name.split(".jsonl")[0].removesuffix(".parquet")
    for number, record in read_records(file):
        yield _document(source, record, number, f"{file}, line {number}", group)


def _document(
    source: str, record: Record, number: int, where: str, group: Group | None = None
) -> Document:
    text = record.get("text")
    if not isinstance(text, str):
        raise CorpusError(f"{where}: no field 'text' (fields: {', '.join(record) or 'none'})")
    name = record.get("id", number)
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
    try:
        records = load_dataset(path, config or None, split=split or "train", streaming=True)
        for number, record in enumerate(islice(records, limit), start=1):
            yield _document(source, record, number, f"{name}, record {number}")
    except (OSError, ValueError, RuntimeError) as error:  # what datasets and the hub's client raise
        reason = str(error).strip().partition("\n")[0]
        advice = "check name, configuration and split, or download it and give the folder"
        raise CorpusError(f"{name} cannot be read ({reason}): {advice}") from error


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
