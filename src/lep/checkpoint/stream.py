"""Safetensors files by byte range: read a header alone, rewrite a file without loading it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lep.errors import CheckpointError, foreign
from lep.files import check_depth, open_binary

CHUNK_BYTES = 1 << 23
LARGEST_HEADER_BYTES = 100_000_000  # the limit of the format
DTYPES = {  # in the order in which safetensors writes them
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file. `dtype` is spelled as the format spells it."""

    dtype: str
    shape: tuple[int, ...]
    start: int  # in bytes, from the beginning of the file
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Rows:
    """A tensor that is computed while it is written: `chunks()` yields its rows in order."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: Callable[[], Iterator[Tensor]]

    @cached_property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def sha256(tensor: Tensor) -> str:
    """Hexadecimal hash of a tensor's bytes."""
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def finite(chunks: Iterable[Tensor], label: str) -> Iterator[Tensor]:
    """The same chunks. Raises `CheckpointError` at the first row with NaN or infinity."""
    start = 0
    for chunk in chunks:
        # A sum needs no copy, and NaN or infinity reaches it. Finite values can overflow it too.
        if not chunk.sum().isfinite() and not chunk.isfinite().all():
            row = start + int((~chunk.isfinite()).any(1).nonzero()[0])
            raise CheckpointError(
                f"row {row} of {label} is not finite (NaN or infinity): the model or one of its "
                "sources is damaged, or its training diverged"
            )
        yield chunk
        start += len(chunk)


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a file in the order of their bytes, and the file's metadata.

    Raises `CheckpointError` unless the tensors fill the file exactly, each as its shape says.
    """
    with foreign(f"{path} cannot be read", "download it again", CheckpointError):
        with open_binary(path, CheckpointError) as file:
            size, length = path.stat().st_size, int.from_bytes(file.read(8), "little")
            if size < 8 + length or length > LARGEST_HEADER_BYTES:
                raise ValueError(f"its header should have {length:,} bytes, the file has {size:,}")
            header = json.loads(file.read(length))
        check_depth(header)
        if not isinstance(header, dict) or not all(isinstance(v, dict) for v in header.values()):
            raise ValueError("its header is damaged")
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are no strings")
        return _entries(header, 8 + length, size), metadata


def read_tensors(path: Path, advice: str) -> dict[str, Tensor]:
    """All tensors of a file. Raises `CheckpointError` with `advice` for a damaged one."""
    read_header(path)
    with foreign(f"{path} is damaged", advice, CheckpointError):
        return load_file(path)


def _entries(header: dict[str, Any], begin: int, size: int) -> dict[str, Entry]:
    """The tensors of a file of `size` bytes whose data begin at byte `begin`."""
    entries, end = {}, begin
    for name, spec in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = (begin + offset for offset in spec["data_offsets"])
        numbers = [start, stop, *spec["shape"]]
        if not isinstance(spec["dtype"], str) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"{name} has the shape {spec['shape']} and offsets {start}, {stop}")
        entry = Entry(spec["dtype"], tuple(spec["shape"]), start, stop)
        dtype = DTYPES.get(entry.dtype)
        if start != end or (dtype and entry.nbytes != prod(entry.shape) * dtype.itemsize):
            raise ValueError(f"the bytes of {name} do not agree with its shape {list(entry.shape)}")
        entries[name], end = entry, stop
    if end != size:
        raise ValueError(f"its header describes {end:,} bytes, the file has {size:,}")
    return entries


def rewrite(source: Path, replaced: Mapping[str, Tensor | Rows], target: Path) -> None:
    """Write the file `source` to `target` with some tensors replaced, one chunk in memory.

    Tensors are in the order of safetensors, so that the same content always gives the same bytes.
    """
    entries, metadata = read_header(source)
    layout = entries | {
        name: Entry(NAMES[tensor.dtype], tuple(tensor.shape), 0, tensor.nbytes)
        for name, tensor in replaced.items()
    }
    order = _ordered(layout)
    with source.open("rb") as old, target.open("wb") as new:
        new.write(_header({name: layout[name] for name in order}, {"format": "pt"} | metadata))
        for name in order:
            if name in replaced:
                _write_tensor(name, replaced[name], new)
            else:
                _copy_range(old, entries[name], new)


def write_tensors(
    file: IO[bytes], tensors: Mapping[str, Tensor | Rows], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors to an open file, in the bytes that safetensors' `save_file` gives it.

    (That function replaces the file, and makes one that nobody else can read.)
    """
    layout = {n: Entry(NAMES[t.dtype], tuple(t.shape), 0, t.nbytes) for n, t in tensors.items()}
    order = _ordered(layout)
    file.write(_header({name: layout[name] for name in order}, metadata))
    for name in order:
        _write_tensor(name, tensors[name], file)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor | Rows], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors to a file with the permissions that all files get; see `write_tensors`."""
    with path.open("wb") as file:
        write_tensors(file, tensors, metadata)


def _ordered(layout: Mapping[str, Entry]) -> list[str]:
    """Names in the order of safetensors: widest type first, then by name."""
    rank = {name: number for number, name in enumerate(DTYPES)}
    return sorted(layout, key=lambda name: (rank.get(layout[name].dtype, len(rank)), name))


def _header(layout: dict[str, Entry], metadata: dict[str, str] | None) -> bytes:
    """The length and the header of a file with these tensors, one after the other."""
    spec: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, entry in layout.items():
        offsets = [end, end := end + entry.nbytes]
        spec[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": offsets}
    text = json.dumps(spec, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(name: str, tensor: Tensor | Rows, file: IO[bytes]) -> None:
    written = 0
    for chunk in tensor.chunks() if isinstance(tensor, Rows) else [tensor]:
        if chunk.dtype != tensor.dtype:
            raise ValueError(f"a chunk of {name} is {chunk.dtype}, {tensor.dtype} was promised")
        written += file.write(_bytes(chunk.detach().cpu()))
    if written != tensor.nbytes:
        raise ValueError(
            f"the chunks of {name} have {written:,} bytes, {tensor.nbytes:,} were promised"
        )


def _copy_range(source: IO[bytes], entry: Entry, target: IO[bytes]) -> None:
    source.seek(entry.start)
    for start in range(entry.start, entry.stop, CHUNK_BYTES):
        data = source.read(min(CHUNK_BYTES, entry.stop - start))
        if not data:
            raise CheckpointError(f"{source.name} ended early: it changed while it was read")
        target.write(data)
