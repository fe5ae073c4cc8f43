"""Lines of text files (plain, gzip, zstd) and rows of parquet files: whole and bounded."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from lep.errors import CorpusError, foreign
from lep.files import open_binary, zstd_content
from lep.limits import DOCUMENT_BYTES, EXPANSION, LINE_BYTES, Limit

Record = dict[str, Any]  # a jsonl line or parquet row
PIECE_BYTES = 1 << 16
UNSUSPICIOUS_BYTES = 100_000_000  # of content, however few bytes it was stored in
BATCH_ROWS, BATCH_BYTES = 1_000, 256_000_000  # of parquet rows in memory
MOST_CONTROLS = 0.2  # of the first bytes: in UTF-16 every other byte is one, in text none
CONTROLS = bytes(range(ord("\t")))
UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: Path) -> Iterator[str]:
    """Stream the lines of a UTF-8 file: plain, gzip or zstd; a byte order mark is no text.

    Raises `CorpusError` for a file that ends early or is in another encoding, and for a line above
    `LINE_BYTES`.
    """
    with open_binary(path, CorpusError) as raw:
        yield from _checked(path, _text(path, raw, LINE_BYTES))


def read_txt(path: Path) -> str:
    """The whole text of such a file. Raises `CorpusError` as `read_lines` does."""
    with open_binary(path, CorpusError) as raw:
        text = _text(path, raw, DOCUMENT_BYTES)
        return "".join(_checked(path, iter(lambda: text.read(PIECE_BYTES), "")))


def _checked(path: Path, texts: Iterator[str]) -> Iterator[str]:
    """The same texts; what goes wrong in decompressing and decoding becomes one sentence."""
    suffix = path.suffix[1:].lower()
    try:
        yield from texts
    except UnicodeDecodeError as error:
        advice = "convert it with iconv"
        if error.reason == "unexpected end of data":
            advice = "if it was cut off, copy it again, otherwise convert it with iconv"
        raise CorpusError(f"{path} is not UTF-8 ({error.reason}): {advice}") from error
    except EOFError as error:
        advice = "copy or download it again"
        raise CorpusError(f"{path} ends early, within its {suffix} content: {advice}") from error
    except (zstandard.ZstdError, gzip.BadGzipFile, zlib.error) as error:
        message = f"{path} is not a readable {suffix} file ({error}): compress it again"
        raise CorpusError(message) from error


def _text(path: Path, raw: IO[bytes], limit: Limit) -> io.TextIOWrapper:
    contents = {".zst": zstd_content, ".gz": _gzip_content}
    content = contents.get(path.suffix.lower(), _pieces)(raw)
    content = _not_utf16(path, content)
    content = _bounded(path, content, limit)
    return io.TextIOWrapper(io.BufferedReader(_Stream(content), PIECE_BYTES), "utf-8-sig")


class _Stream(io.RawIOBase):
    """A file of the bytes that an iterator yields."""

    def __init__(self, content: Iterator[bytes]) -> None:
        self.content, self.rest = content, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            piece = next(self.content, None)
            if piece is None:
                return 0
            self.rest = memoryview(piece)
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


def _pieces(raw: Any, size: int = PIECE_BYTES) -> Iterator[bytes]:
    return iter(lambda: raw.read(size), b"")


def _gzip_content(raw: IO[bytes]) -> Iterator[bytes]:
    empty = True
    for piece in _pieces(gzip.GzipFile(fileobj=raw)):
        empty = False
        yield piece
    if empty and not raw.tell():
        raise EOFError


def _not_utf16(path: Path, content: Iterator[bytes]) -> Iterator[bytes]:
    """The same content. Raises `CorpusError` when its beginning is UTF-16 or no text at all."""
    for head in filter(None, content):  # of a compressed file the first piece may be empty
        begin = head[:PIECE_BYTES]
        controls = len(begin) - len(begin.translate(None, CONTROLS))
        if head.startswith(UTF16) or controls > MOST_CONTROLS * len(begin):
            raise CorpusError(f"{path} is UTF-16 or no text: try iconv -f UTF-16 -t UTF-8")
        yield head
        break
    yield from content


def _bounded(path: Path, content: Iterator[bytes], limit: Limit) -> Iterator[bytes]:
    """The same content. Raises `CorpusError` for a line (document), or expansion, above a limit."""
    size, total, lines = 0, 0, limit is LINE_BYTES
    for piece in content:
        first = piece.find(b"\n") if lines else -1
        what = f"a line of {path}" if lines else f"the document {path}"
        limit.check(size + (len(piece) if first < 0 else first), what, CorpusError)
        size = size + len(piece) if first < 0 else len(piece) - piece.rfind(b"\n") - 1
        total += len(piece)
        _check_expansion(path, total)
        yield piece


def _check_expansion(path: Path, content_bytes: int) -> None:
    if content_bytes > UNSUSPICIOUS_BYTES:
        EXPANSION.check(content_bytes // max(1, path.stat().st_size), str(path), CorpusError)


def read_rows(path: Path) -> Iterator[Record]:
    """The rows of a parquet file, few of them in memory where a value may be long.

    Raises `CorpusError` for a file that cannot be read, and for a row above `LINE_BYTES`.
    """
    with (
        foreign(f"{path} is not a readable parquet file", "copy or write it again", CorpusError),
        open_binary(path, CorpusError) as raw,
    ):
        import pyarrow.parquet

        file, total = pyarrow.parquet.ParquetFile(raw), 0
        for group in range(file.num_row_groups):
            for column in _columns(file.metadata, group):  # run lengths hide any number of values
                _check_expansion(path, max(column.total_uncompressed_size, column.num_values))
            for batch in file.iter_batches(_batch_rows(file.metadata, group), [group]):
                size = sum(_plain(column).nbytes for column in batch.columns)
                total += size
                _check_expansion(path, total)
                LINE_BYTES.check(size // batch.num_rows, f"a row of {path}", CorpusError)
                yield from batch.to_pylist()


def _plain(column: Any) -> Any:
    """A column with each value spelled out, as it will be in the rows."""
    return column.dictionary_decode() if hasattr(column, "dictionary") else column


def _batch_rows(metadata: Any, group: int) -> int:
    """Rows that are read at once: any value may be as long as the largest column of its group.

    Without a dictionary all values of a column together are no longer than the column.
    """
    columns = [column for column in _columns(metadata, group) if column.has_dictionary_page]
    longest = max((column.total_uncompressed_size for column in columns), default=0)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, longest)))


def _columns(metadata: Any, group: int) -> list[Any]:
    return [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
