"""Read documents from txt, jsonl (also gz and zst) and parquet files, or folders of them, one at a time."""

import gzip
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import zstandard

from lep.errors import CorpusError

SUFFIXES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
PIECE_CHARACTERS = 1_000_000
_LINE = re.compile(r"\n(?=\S)")
SHEET = "sheet.json"  # beside a corpus: what became of its documents
HUB = "hub:"  # what names a hub data set, where it may be given


@dataclass(frozen=True)
class Document:
    """One text. `source` names its file (or folder of txt files), `group` what must not be split apart."""

    id: str
    text: str
    source: str
    group: str


def corpus_files(paths: Iterable[str | Path]) -> list[Path]:
    """All corpus files under `paths`, sorted within each folder; raises `CorpusError` when there are none."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES))
            if not found:
                raise CorpusError(
                    f"corpus folder {path} holds no {', '.join(SUFFIXES)} file: check the path"
                )
            files += found
        elif not path.exists():
            raise CorpusError(f"corpus path {path} does not exist: check the spelling")
        elif not path.name.endswith(SUFFIXES):
            raise CorpusError(
                f"corpus file {path} is none of {', '.join(SUFFIXES)}: convert it first"
            )
        else:
            files.append(path)
    return files


def file_stamps(paths: Iterable[str | Path]) -> list[list[Any]]:
    """What tells files (or all files of folders) from changed ones, without reading them."""
    files = [
        file
        for path in map(Path, paths)
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
    ]
    return [
        [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
        if file.is_file()
    ]


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a plain, gzip- or zstd-compressed UTF-8 file, streamed."""
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
        raise CorpusError(
            f"{path} is not a readable {path.suffix[1:]} file ({error}): compress it again"
        ) from error


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and record of each line of a jsonl file, or row of a parquet file; blank lines are passed over."""
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if (
            "\\ud" in line or "\\uD" in line
        ):  # an escape may be half of a character, which no file can hold
            halves = json.dumps(record, ensure_ascii=False).encode("utf-16", "surrogatepass")
            record = json.loads(halves.decode("utf-16", "replace"))
        if not isinstance(record, dict):
            raise CorpusError(
                f"{path}, line {number}: a {type(record).__name__} where an object was expected"
            )
        yield number, record


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = (
            row
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1_000)
            for row in batch.to_pylist()
        )
        yield from enumerate(rows, start=1)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise CorpusError(
            f"{path} is not a readable parquet file ({str(error).splitlines()[0]})"
        ) from error


def stream_texts(paths: Iterable[str | Path]) -> Iterator[str]:
    """The texts under `paths` in a fixed order; a long txt file comes in pieces that end with a line.

    Raises what `read_documents` raises.
    """
    files, empty = corpus_files(paths), True
    for file in files:
        texts: Iterable[str]
        if ".txt" in file.suffixes:
            texts = map("".join, batches(read_lines(file), PIECE_CHARACTERS))
        else:
            texts = (document.text for document in read_file(file))
        for text in texts:
            if text.strip():
                empty = False
                yield text
    if empty:
        raise CorpusError(
            f"the corpus holds no text at all: {', '.join(map(str, files)) or 'no paths given'}"
        )


def batches(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Texts in lists of at least so many characters (the last one may have fewer)."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def cut_at_lines(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Texts in pieces of so many characters or some more, each of which begins with the first word of a line."""
    for text in texts:
        start = 0
        while start < len(text):
            found = _LINE.search(text, start + characters)
            stop = found.end() if found else len(text)
            yield text[start:stop]
            start = stop


def read_documents(
    paths: Iterable[str | Path], *, group: Callable[[str, dict[str, Any]], str] | None = None
) -> Iterator[Document]:
    """Yield the non-empty documents under `paths` in a fixed order.

    A txt file is one document; a jsonl line or parquet row is one, its text in the field `text`.
    `group(source, record)` says which documents belong together (default: the record's `group` or `author`, else
    its id).

    Raises `CorpusError` for missing paths, broken lines (named), and a corpus without any text.
    """
    files, empty = corpus_files(paths), True
    for file in files:
        for document in read_file(file, group):
            if document.text.strip():
                empty = False
                yield document
    if empty:
        raise CorpusError(
            f"the corpus holds no text at all: {', '.join(map(str, files)) or 'no paths given'}"
        )


def read_file(
    file: Path, group: Callable[[str, dict[str, Any]], str] | None = None
) -> Iterator[Document]:
    """The documents of one file, empty ones too."""
    if ".txt" in file.suffixes:
        name = file.name.split(".txt")[0]
        yield Document(id=name, text="".join(read_lines(file)), source=file.parent.name, group=name)
        return
    source = file.name.split(".jsonl")[0].removesuffix(".parquet")
    for number, record in read_records(file):
        yield _document(source, record, number, f"{file}, line {number}", group)


def _document(
    source: str,
    record: dict[str, Any],
    number: int,
    place: str,
    group: Callable[[str, dict[str, Any]], str] | None = None,
) -> Document:
    content = record.get("text")
    if not isinstance(content, str):
        raise CorpusError(f"{place}: no field 'text' (fields: {', '.join(record) or 'none'})")
    name = str(record.get("id", number))
    if group is None and record.get(
        "group"
    ):  # as it is: what belongs together may lie in several files
        return Document(
            id=f"{source}/{name}", text=content, source=source, group=str(record["group"])
        )
    together = group(source, record) if group else str(record.get("author") or name)
    return Document(
        id=f"{source}/{name}", text=content, source=source, group=f"{source}/{together}"
    )


def read_hub(name: str, limit: int | None = None) -> Iterator[Document]:
    """The first documents of a hub data set `hub:OWNER/NAME[:CONFIG][@SPLIT]` (split: train), streamed.

    Raises `CorpusError` when it cannot be reached, or has no field `text`.
    """
    from datasets import load_dataset

    place, _, split = name.removeprefix(HUB).partition("@")
    place, _, config = place.partition(":")
    try:
        records = load_dataset(place, config or None, split=split or "train", streaming=True)
        for number, record in enumerate(islice(records, limit), start=1):
            yield _document(
                place.strip("/").rpartition("/")[2], record, number, f"{name}, record {number}"
            )
    except (OSError, ValueError, RuntimeError) as error:  # what datasets and the hub's client raise
        reason = str(error).strip().partition("\n")[0]
        raise CorpusError(
            f"{name} cannot be read ({reason}): check name, configuration and split, or download it "
            "and give the folder"
        ) from error


def read_messages(path: str | Path) -> list[dict[str, Any]]:
    """Records of a `messages` jsonl file: `{"messages": [{"role": ..., "content": ...}, ...], ...}`.

    Other fields are kept. Raises `CorpusError` that names the first line without a usable message list.
    """
    records = []
    for file, number, record in (
        (f, n, r) for f in corpus_files([path]) for n, r in read_records(f)
    ):
        messages = record.get("messages")
        usable = (
            isinstance(messages, list)
            and messages
            and all(
                isinstance(m, dict)
                and isinstance(m.get("role"), str)
                and isinstance(m.get("content"), str)
                for m in messages
            )
        )
        if not usable:
            raise CorpusError(
                f"{file}, line {number}: 'messages' must be a list of role/content objects"
            )
        if all(message["role"] == "assistant" for message in record["messages"]):
            raise CorpusError(
                f"{file}, line {number}: there is an answer, and no question before it"
            )
        records.append(record)
    if not records:
        raise CorpusError(f"{path} holds no messages: it is empty")
    return records


def question(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation up to its last question."""
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as UTF-8 jsonl, one a line."""
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
