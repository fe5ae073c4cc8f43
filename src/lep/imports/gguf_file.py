"""GGUF files: what the header says, read with limits. Nothing in a file is trusted.

The format: magic, version, two counts; keys with values; names, shapes, types and offsets of the
tensors; their bytes from the next multiple of the alignment on.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

import numpy as np

from lep.errors import CheckpointError, foreign
from lep.files import open_binary
from lep.limits import JSON_BYTES, VOCABULARY

MAGIC, VERSIONS = b"GGUF", (2, 3)
MOST_ENTRIES = 65_536  # keys, or tensors
LONGEST_NAME = 256  # bytes of the name of a key or tensor
MOST_AXES = 4
ALIGNMENT = "general.alignment"
LARGEST_ALIGNMENT = 1 << 20
STRING, ARRAY = 8, 9
NUMBERS: dict[int, np.dtype[Any]] = {  # types of values
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a GGUF file."""

    name: str
    type: str  # F32, BF16, Q4_K ...
    shape: tuple[int, ...]  # rows first, as in torch
    row_bytes: int
    start: int  # in bytes, from the beginning of the file

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.row_bytes


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Stored]

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Raises `CheckpointError` unless all values and tensors are in the file, whole."""
        with (
            foreign(f"{path} is no whole GGUF file", "download it again", CheckpointError),
            open_binary(path, CheckpointError) as file,
        ):
            return cls._read(path, _Bytes(file, path))

    @classmethod
    def _read(cls, path: Path, content: "_Bytes") -> "GgufFile":
        if content.take(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version, tensor_count, key_count = struct.unpack("<IQQ", content.take(20))
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, not 2 or 3 (little-endian)")
        for count, what in ((tensor_count, "tensors"), (key_count, "keys")):
            if count > MOST_ENTRIES:
                raise ValueError(f"it claims {count:,} {what}, more than {MOST_ENTRIES:,}")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = content.name()
            if key in metadata:
                raise ValueError(f"the key {key} occurs twice")
            metadata[key] = content.value(content.number("<I"), key)
        infos = [_info(content) for _ in range(tensor_count)]
        alignment = metadata.get(ALIGNMENT, 32)
        if type(alignment) is not int or not 0 < alignment <= LARGEST_ALIGNMENT:
            raise ValueError(f"{ALIGNMENT} is {str(alignment)[:40]}")
        begin = -(-content.position // alignment) * alignment
        return cls(path, metadata, _tensors(infos, begin, content.size))


class _Bytes:
    """A file from its beginning on, with a limit on what is taken from it."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path, self.position = file, path, 0
        self.size = path.stat().st_size

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise ValueError(f"it ends at byte {self.size:,}, in the middle of its header")
        self.position += count
        JSON_BYTES.check(self.position, f"the header of {self.path}", CheckpointError)
        return self.file.read(count)

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode()

    def name(self) -> str:
        length = self.number("<Q")
        if length > LONGEST_NAME:
            raise ValueError(f"a name in it has {length:,} bytes, more than {LONGEST_NAME}")
        return self.take(length).decode()

    def value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            kind, count = self.number("<I"), self.number("<Q")
            VOCABULARY.check(count, f"{key} in {self.path}", CheckpointError)
            return (
                [self.text() for _ in range(count)] if kind == STRING else self.numbers(kind, count)
            )
        return self.numbers(kind, 1)[0]

    def numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in NUMBERS:
            raise ValueError(f"it has a value of the unknown type {kind}")
        dtype = NUMBERS[kind]
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()


def _info(content: _Bytes) -> tuple[str, list[int], int, int]:
    """Name, axes (the last of torch's first), type and offset of a tensor."""
    name, count = content.name(), content.number("<I")
    if not 0 < count <= MOST_AXES:
        raise ValueError(f"the tensor {name} has {count:,} axes")
    axes = [content.number("<Q") for _ in range(count)]
    return name, axes, content.number("<I"), content.number("<Q")


def _tensors(infos: list[tuple[str, list[int], int, int]], begin: int, size: int) -> dict:
    """The tensors of a file of `size` bytes whose data begin at byte `begin`."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    tensors: dict[str, Stored] = {}
    for name, axes, number, offset in infos:
        if name in tensors:
            raise ValueError(f"the tensor {name} occurs twice")
        kind = GGMLQuantizationType(number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if axes[0] % block or not prod(axes):
            raise ValueError(f"the tensor {name} of type {kind.name} has the shape {axes[::-1]}")
        row_bytes = axes[0] // block * block_bytes
        stored = Stored(name, kind.name, tuple(axes[::-1]), row_bytes, begin + offset)
        if stored.stop > size:
            raise ValueError(
                f"the tensor {name} ends at byte {stored.stop:,}, the file at {size:,}"
            )
        tensors[name] = stored
    for first, second in pairwise(sorted(tensors.values(), key=attrgetter("start"))):
        if second.start < first.stop:
            raise ValueError(f"the tensors {first.name} and {second.name} share bytes")
    return tensors
