"""Read files that anybody may have made, and write text the same way under every locale."""

import json
import re
import stat
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import zstandard

from lep.errors import LepError, foreign
from lep.limits import JSON_BYTES

DEEPEST = 200  # levels of nested JSON
# Of a zstd frame: four bytes can become 128 KB, so a piece becomes 32 MB at most.
ZSTD_PIECE_BYTES = 1 << 10
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def open_binary(path: Path, kind: type[LepError] = LepError) -> IO[bytes]:
    """Open a regular file to read. Raises `kind` for anything else, which could block forever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise kind(f"{path} is no regular file: give a file or a folder")
    return path.open("rb")


def zstd_content(raw: IO[bytes]) -> Iterator[bytes]:
    """The content of all frames, in pieces of bounded size.

    Raises `EOFError` unless the last frame is whole, `ZstdError` for anything else in the file.
    """
    rest, first = raw.read(ZSTD_PIECE_BYTES), True
    if not rest:
        raise EOFError
    while rest:
        if len(rest) < len(ZSTD_MAGIC):
            rest += raw.read(ZSTD_PIECE_BYTES)
        if not first and not _starts_frame(rest):
            raise zstandard.ZstdError("something else follows its last frame")
        frame, first = zstandard.ZstdDecompressor().decompressobj(), False
        yield frame.decompress(rest)
        while not frame.eof:
            if not (piece := raw.read(ZSTD_PIECE_BYTES)):
                raise EOFError
            yield frame.decompress(piece)
        rest = frame.unused_data or raw.read(ZSTD_PIECE_BYTES)


def _starts_frame(content: bytes) -> bool:
    skippable = int.from_bytes(content[:4], "little") in ZSTD_SKIPPABLE
    return skippable or content[:4] == ZSTD_MAGIC[: len(content)]


def read_text(path: Path, kind: type[LepError] = LepError) -> str:
    """A UTF-8 file, without its byte order mark. Raises `kind` for other files."""
    with (
        open_binary(path, kind) as file,  # what is not there stays a FileNotFoundError
        foreign(f"{path} cannot be read", "copy the file again", kind),
    ):
        JSON_BYTES.check(path.stat().st_size, str(path), kind)
        return file.read().decode("utf-8-sig")


def read_json(path: Path, kind: type[LepError] = LepError) -> dict[str, Any]:
    """The object in a JSON file. Raises `kind` for a file that holds anything else."""
    content = parse_json(read_text(path, kind), str(path), kind)
    if not isinstance(content, dict):
        form = type(content).__name__
        raise kind(f"{path} holds a {form}, not an object: copy the file again")
    return content


def parse_json(text: str | bytes, where: str, kind: type[LepError] = LepError) -> Any:
    """The value of a JSON text of limited depth, all of which can be written as UTF-8 again."""
    with foreign(f"{where} is not JSON", "copy the file again", kind):
        text = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(text)
        check_depth(value)
        if _SURROGATE.search(text):  # perhaps half a character, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
        return value


def check_depth(value: Any) -> None:
    """Raise `ValueError` for containers that are nested deeper than `DEEPEST` levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        if not level:
            return
        inner = chain.from_iterable(c.values() if isinstance(c, dict) else c for c in level)
        level = [container for container in inner if isinstance(container, dict | list)]
    if level:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def without_paths(value: Any) -> Any:
    """A JSON-like value with the last part of each absolute path and without addresses of servers.

    Records beside a model are passed on with it, and must not tell of the machine.

    >>> without_paths({"text": ["/home/me/ru", "ru/x"], "judge": "/models/big@http://10.0.0.1/v1"})
    {'text': ['ru', 'ru/x'], 'judge': 'big'}
    """
    if isinstance(value, dict):
        return {name: without_paths(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(each) for each in value]
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        return value
    name = value.partition("@http")[0]
    return Path(name).name if Path(name).is_absolute() else name


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 with newlines as they are, whatever the locale and the system."""
    path.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a value as one line of JSON, or indented, as UTF-8 with a final newline."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")
