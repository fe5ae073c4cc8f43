"""Safetensors files by byte range: headers are read alone, and a file is rewritten without loading it."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lep.errors import CheckpointError

CHUNK_BYTES = 1 << 23
LARGEST_HEADER_BYTES = 100_000_000  # the limit of the format
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its type in the format's own spelling, its shape, its bytes from `start` to `stop`."""

    dtype: str
    shape: tuple[int, ...]
    start: int  # from the beginning of the file
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Rows:
    """A tensor given as chunks of rows, made only when they are written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: Callable[[], Iterator[Tensor]]

    @cached_property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def sha256(tensor: Tensor) -> str:
    """Of a tensor's bytes."""
    return hashlib.sha256(
        tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    ).hexdigest()


def finite(chunks: Iterable[Tensor], label: str) -> Iterator[Tensor]:
    """The chunks of a table. Raises `CheckpointError` that names the first row with NaN or infinite values."""
    start = 0
    for chunk in chunks:
        # NaN and infinity reach a sum, which needs no copy; one that is too large is looked at twice.
        if not chunk.sum().isfinite() and not chunk.isfinite().all():
            row = start + int((~chunk.isfinite()).any(1).nonzero()[0])
            raise CheckpointError(
                f"row {row} of {label} is not finite, it has NaN or infinite values: the model, or one that it is made "
                "of, is damaged or its training diverged"
            )
        yield chunk
        start += len(chunk)


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a file in the order of their bytes, and its metadata; no weights are read.

    Raises `CheckpointError` unless the ranges fill the file exactly, each as long as its shape says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 + length or length > LARGEST_HEADER_BYTES:
                raise ValueError(f"its header should have {length:,} bytes, the file has {size:,}")
            spec = json.loads(file.read(length))
        metadata = spec.pop("__metadata__", {})
        begin = 8 + length
        entries = {
            name: Entry(
                e["dtype"],
                tuple(e["shape"]),
                begin + e["data_offsets"][0],
                begin + e["data_offsets"][1],
            )
            for name, e in sorted(spec.items(), key=lambda item: item[1]["data_offsets"])
        }
        _check_ranges(entries, begin, size)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = (
            str(error)
            if isinstance(error, OSError | ValueError)
            else f"its header is damaged: {error!r}"
        )
        raise CheckpointError(f"{path} cannot be read ({reason}): download it again") from error
    return entries, metadata


def _check_ranges(entries: dict[str, Entry], begin: int, size: int) -> None:
    place = begin
    for name, entry in entries.items():
        known = entry.dtype in DTYPES
        if entry.start != place or (
            known and entry.nbytes != prod(entry.shape) * DTYPES[entry.dtype].itemsize
        ):
            raise ValueError(f"the bytes of {name} do not agree with its shape {list(entry.shape)}")
        place = entry.stop
    if place != size:
        raise ValueError(f"its header describes {place:,} bytes, the file has {size:,}")


def rewrite(source: Path, replaced: Mapping[str, Tensor | Rows], target: Path) -> None:
    """Write `source` with some tensors replaced to `target`, byte range by byte range.

    Tensors are ordered as safetensors orders them (widest type first, then by name), so that the same content
    always gives the same bytes. Memory holds one chunk beside what the caller holds.
    """
    entries, metadata = read_header(source)
    plan: dict[str, tuple[str, tuple[int, ...], int]] = {
        name: (NAMES[replaced[name].dtype], tuple(replaced[name].shape), replaced[name].nbytes)
        if name in replaced
        else (entry.dtype, entry.shape, entry.nbytes)
        for name, entry in entries.items()
    }
    order = sorted(
        plan,
        key=lambda name: (-DTYPES[plan[name][0]].itemsize if plan[name][0] in DTYPES else 0, name),
    )
    spec: dict[str, Any] = {"__metadata__": {"format": "pt"} | metadata}
    place = 0
    for name in order:
        dtype, shape, nbytes = plan[name]
        spec[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + nbytes]}
        place += nbytes
    header = json.dumps(spec, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with source.open("rb") as old, target.open("wb") as new:
        new.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            if name in replaced:
                _write_tensor(name, replaced[name], new)
            else:
                _copy_range(old, entries[name], new)


def _write_tensor(name: str, tensor: Tensor | Rows, file: IO[bytes]) -> None:
    chunks = tensor.chunks() if isinstance(tensor, Rows) else iter([tensor])
    written = 0
    for chunk in chunks:
        if chunk.dtype != tensor.dtype:
            raise ValueError(f"a chunk of {name} is {chunk.dtype}, {tensor.dtype} was promised")
        for part in _parts(chunk.detach().cpu()):
            written += file.write(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if written != tensor.nbytes:
        raise ValueError(
            f"the chunks of {name} have {written:,} bytes, {tensor.nbytes:,} were promised"
        )


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Rows of a tensor, as many at once as a chunk holds; only these are copied when it is not contiguous."""
    if tensor.dim() == 0 or len(tensor) == 0:
        yield tensor
        return
    yield from tensor.split(max(1, CHUNK_BYTES * len(tensor) // max(1, tensor.nbytes)))


def _copy_range(source: IO[bytes], entry: Entry, target: IO[bytes]) -> None:
    """Copy one tensor's bytes, in the kernel where it can."""
    target.flush()
    place, stop = entry.start, entry.stop
    try:
        while place < stop:
            copied = os.copy_file_range(
                source.fileno(), target.fileno(), stop - place, offset_src=place
            )
            if not copied:
                break
            place += copied
    except (
        OSError,
        AttributeError,
    ):  # another disk, another system, an old kernel: plain reads go on from here
        pass
    target.seek(0, os.SEEK_END)
    source.seek(place)
    while place < stop:
        data = source.read(min(CHUNK_BYTES, stop - place))
        if not data:
            raise CheckpointError(f"{source.name} ended early: it changed while it was read")
        target.write(data)
        place += len(data)
