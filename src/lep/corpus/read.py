"""Read documents from txt, jsonl and jsonl.zst files, or folders of them, one at a time."""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from lep.errors import CorpusError

SUFFIXES = (".txt", ".jsonl", ".jsonl.zst")


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
                raise CorpusError(f"corpus folder {path} holds no {', '.join(SUFFIXES)} file: check the path")
            files += found
        elif not path.exists():
            raise CorpusError(f"corpus path {path} does not exist: check the spelling")
        elif not path.name.endswith(SUFFIXES):
            raise CorpusError(f"corpus file {path} is none of {', '.join(SUFFIXES)}: convert it first")
        else:
            files.append(path)
    return files


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a plain or zstd-compressed UTF-8 file, streamed."""
    try:
        with path.open("rb") as raw:
            stream = zstandard.ZstdDecompressor().stream_reader(raw) if path.suffix == ".zst" else raw
            yield from io.TextIOWrapper(stream, encoding="utf-8")  # type: ignore[arg-type]
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 ({error.reason}): convert it with iconv") from error
    except zstandard.ZstdError as error:
        raise CorpusError(f"{path} is not a readable zstd file ({error}): compress it again") from error


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and record of each line of a jsonl or jsonl.zst file; blank lines are passed over."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{path}, line {number}: a {type(record).__name__} where an object was expected")
        yield number, record


def read_documents(
    paths: Iterable[str | Path], *, group: Callable[[str, dict[str, Any]], str] | None = None
) -> Iterator[Document]:
    """Yield the non-empty documents under `paths` in a fixed order.

    A txt file is one document; a jsonl line is one, its text in the field `text`. `group(source, record)` says
    which documents belong together (default: the record's `group` or `author`, else its id).

    Raises `CorpusError` for missing paths, broken lines (named), and a corpus without any text.
    """
    files, empty = corpus_files(paths), True
    for file in files:
        for document in _read_file(file, group):
            if document.text.strip():
                empty = False
                yield document
    if empty:
        raise CorpusError(f"the corpus holds no text at all: {', '.join(map(str, files)) or 'no paths given'}")


def _read_file(file: Path, group: Callable[[str, dict[str, Any]], str] | None) -> Iterator[Document]:
    if file.suffix == ".txt":
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(f"{file} is not UTF-8 ({error.reason}): convert it with iconv") from error
        yield Document(id=file.stem, text=text, source=file.parent.name, group=file.stem)
        return
    source = file.name.split(".jsonl")[0]
    for number, record in read_records(file):
        content = record.get("text")
        if not isinstance(content, str):
            raise CorpusError(f"{file}, line {number}: no field 'text' (fields: {', '.join(record) or 'none'})")
        name = str(record.get("id", number))
        together = group(source, record) if group else str(record.get("group") or record.get("author") or name)
        yield Document(id=f"{source}/{name}", text=content, source=source, group=f"{source}/{together}")


def read_messages(path: str | Path) -> list[dict[str, Any]]:
    """Records of a `messages` jsonl file: `{"messages": [{"role": ..., "content": ...}, ...], ...}`.

    Other fields are kept. Raises `CorpusError` that names the first line without a usable message list.
    """
    records = []
    for file, number, record in ((f, n, r) for f in corpus_files([path]) for n, r in read_records(f)):
        messages = record.get("messages")
        usable = (
            isinstance(messages, list)
            and messages
            and all(
                isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
                for m in messages
            )
        )
        if not usable:
            raise CorpusError(f"{file}, line {number}: 'messages' must be a list of role/content objects")
        if all(message["role"] == "assistant" for message in record["messages"]):
            raise CorpusError(f"{file}, line {number}: there is an answer, and no question before it")
        records.append(record)
    if not records:
        raise CorpusError(f"{path} holds no messages: it is empty")
    return records


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as UTF-8 jsonl, one a line."""
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
