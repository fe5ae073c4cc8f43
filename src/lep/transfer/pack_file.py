"""`LanguagePack`: what a model learned of a language, and the file that holds it."""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import torch
import zstandard
from torch import Tensor

from lep.checkpoint.stream import read_tensors, write_tensors
from lep.errors import CheckpointError, foreign
from lep.files import parse_json, zstd_content
from lep.limits import JSON_BYTES, VOCABULARY
from lep.mapping import MAPPING_PARTS, VocabularyMapping
from lep.tokenizer.load import CARRIED_FILES, TOKENIZER, load_tokenizer
from lep.tokenizer.parts import Parts
from lep.tokenizer.vocabulary import Vocabulary

TOKENIZER_FILES = (TOKENIZER, *(name for name in CARRIED_FILES if "." in name))
FORMAT = 1
KINDS = {"input", "output"}
SelectedRows = tuple[Tensor, Tensor]  # row numbers (n,) int64, rows (n, h)


@dataclass(frozen=True)
class LanguagePack:
    """The adapted tokenizer, the mapping M, and what rows learned: `E_adapted - M E_base`."""

    about: dict[str, Any]  # the origin of the pack and the properties of its model, the `base`
    tokenizer: dict[str, bytes]  # {file name: content}
    mappings: dict[str, VocabularyMapping]
    learned: dict[str, SelectedRows]  # {input or output: target rows and differences}
    sample: dict[str, SelectedRows]  # {input or output: source rows and the model's values}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the adapted tokenizer."""
        with TemporaryDirectory() as folder:
            for name, content in self.tokenizer.items():
                Path(folder, name).write_bytes(content)
            return Vocabulary.of(load_tokenizer(folder))

    def without(self, dropped: Collection[int]) -> "LanguagePack":
        """The pack without some tokens that no merge makes; later ids move down.

        Raises `TokenizerError` for anything but a BPE tokenizer that can be extended.
        """
        parts = Parts.of(self.vocabulary.tokenizer).without(dropped)
        files = self.tokenizer | {TOKENIZER: parts.tokenizer.to_str().encode()}
        mappings, learned = {}, {}
        for kind, mapping in self.mappings.items():
            rows, values = self.learned[kind]
            stays = torch.ones(mapping.target_size, dtype=torch.bool)
            stays[list(dropped)] = False
            mappings[kind] = mapping.select(stays.nonzero().flatten())
            moved = stays.cumsum(0) - 1
            learned[kind] = (moved[rows[stays[rows]]], values[stays[rows]])
        return replace(self, tokenizer=files, mappings=mappings, learned=learned)

    def write(self, file: IO[bytes]) -> None:
        """Write the pack as safetensors."""
        tensors = {"about": _compressed(json.dumps(self.about).encode())}
        for name, content in self.tokenizer.items():
            tensors[f"tokenizer/{name}"] = _compressed(content)
        for kind, mapping in self.mappings.items():
            if kind == "input" or not mapping.equal(self.mappings["input"]):
                for name in MAPPING_PARTS:
                    tensors[f"mapping/{kind}/{name}"] = getattr(mapping, name)
        for title, groups in (("learned", self.learned), ("sample", self.sample)):
            for kind, (rows, values) in groups.items():
                tensors |= {f"{title}/{kind}/rows": rows, f"{title}/{kind}/values": values}
        write_tensors(file, tensors)

    @classmethod
    def load(cls, path: Path) -> "LanguagePack":
        """Raises `CheckpointError` for a file that is not a complete language pack."""
        advice = "make it again with lep pack"
        tensors = read_tensors(path, advice)
        with foreign(f"{path} is not a language pack", advice, CheckpointError):
            about = _checked(parse_json(_decompressed(tensors["about"]), "its description"))
            VOCABULARY.check(about["source_rows"], f"the model of {path}", CheckpointError)
            names = [name for name in TOKENIZER_FILES if f"tokenizer/{name}" in tensors]
            tokenizer = {name: _decompressed(tensors[f"tokenizer/{name}"]) for name in names}
            mappings = {kind: _mapping(tensors, kind, about) for kind in about["tables"]}
            target_rows = {kind: mapping.target_size for kind, mapping in mappings.items()}
            learned = _selected(tensors, "learned", about, target_rows)
            source_rows = dict.fromkeys(mappings, about["source_rows"])
            sample = _selected(tensors, "sample", about, source_rows)
            return cls(about, tokenizer, mappings, learned, sample)


def _checked(about: Any) -> dict[str, Any]:
    """The description of a pack. Raises `ValueError` for one that lacks a field."""
    if about["format"] != FORMAT:
        raise ValueError(f"its format is {about['format']}, this lep reads {FORMAT}")
    texts, sizes = ("base", "source_vocabulary"), ("source_rows", "source_ids")
    hidden = [table["hidden"] for table in about["tables"].values()]
    if not all(type(about[name]) is str for name in texts) or not about["tables"].keys() <= KINDS:
        raise ValueError("it does not name its model and tables")
    if not all(type(size) is int and size > 0 for size in (*hidden, *map(about.get, sizes))):
        raise ValueError("it does not give the sizes of its model")
    return about


def _mapping(tensors: dict[str, Tensor], kind: str, about: dict[str, Any]) -> VocabularyMapping:
    owner = kind if f"mapping/{kind}/indices" in tensors else "input"
    parts = {name: tensors[f"mapping/{owner}/{name}"] for name in MAPPING_PARTS}
    return VocabularyMapping(**parts, source_size=about["source_rows"]).check()


def _selected(
    tensors: dict[str, Tensor], title: str, about: dict[str, Any], sizes: dict[str, int]
) -> dict[str, SelectedRows]:
    """Rows of tables of these sizes. Raises `ValueError` for rows that lie elsewhere."""
    groups = {}
    for kind, size in sizes.items():
        rows, values = tensors[f"{title}/{kind}/rows"], tensors[f"{title}/{kind}/values"]
        hidden, shapes = about["tables"][kind]["hidden"], [list(t.shape) for t in (values, rows)]
        if rows.dtype != torch.int64 or values.shape != (len(rows), hidden):
            raise ValueError(f"it has {shapes[0]} values for {shapes[1]} rows of {hidden}")
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < size:
            raise ValueError(f"a row lies beyond {size}")
        if not values.isfinite().all():
            raise ValueError(f"its {title} {kind} rows are not finite")
        if title == "sample" and not len(rows):
            raise ValueError(f"it has no {kind} rows of its model, by which to know another")
        groups[kind] = (rows, values)
    return groups


def _compressed(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(zstandard.compress(content)), dtype=torch.uint8)


def _decompressed(tensor: Tensor) -> bytes:
    """The content of a part. Raises `CheckpointError` for one above `JSON_BYTES`."""
    content = bytearray()
    for piece in zstd_content(BytesIO(tensor.numpy().tobytes())):
        content += piece
        JSON_BYTES.check(len(content), "a part of the pack", CheckpointError)
    return bytes(content)
