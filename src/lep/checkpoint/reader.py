"""`Checkpoint`: a folder of safetensors, a configuration and a tokenizer, read lazily."""

from functools import cached_property, reduce
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lep.checkpoint.architecture import Architecture
from lep.checkpoint.config import read_config
from lep.checkpoint.stream import DTYPES, Entry, read_header
from lep.checkpoint.tables import Search, Tables
from lep.errors import CheckpointError, foreign
from lep.files import read_json
from lep.hub import local_folder, weights_advice
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary

STAMPED = ("*.safetensors", "*.json", "*.jinja", "lep/*.safetensors", "adapter/*")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"  # of peft
MOST_PACKED = 64  # parameters in an element of a quantised tensor


class Checkpoint:
    """A causal language model on disk: a local folder, or the download of a hub id.

    Opening reads the configuration, the index and the header of every shard. Where there are a
    single weight file and an index, the single file counts, as in transformers. Raises
    `CheckpointError` for a folder that is missing or has no safetensors, and for a shard that is
    missing or damaged.
    """

    def __init__(self, source: str | Path) -> None:
        self.folder = local_folder(source)
        if (self.folder / ADAPTER_CONFIG).exists():
            raise CheckpointError(
                f"{self.folder} has an adapter beside its weights ({ADAPTER_CONFIG}), which some "
                "programs apply and others ignore: merge it with peft (merge_and_unload), save the "
                "result in another folder and give that"
            )
        if advice := weights_advice(self.folder):
            raise CheckpointError(advice)
        self.config = read_config(self.folder)
        self.index: Path | None = self.folder / INDEX
        if (self.folder / SINGLE).exists() or not self.index.exists():
            self.index = None
        self.shard_of, self.entries = self._indexed(self.index) if self.index else self._single()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder)!r})"

    def tensor(self, name: str) -> Tensor:
        """One tensor, read from its shard."""
        path = self.folder / self.shard_of[name]
        with (
            foreign(f"{path} cannot be read", "download it again", CheckpointError),
            safe_open(path, framework="pt") as file,
        ):
            return file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the shard's header."""
        return self.entries[name].shape

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return load_tokenizer(self.folder)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer)

    @cached_property
    def architecture(self) -> Architecture:
        """The model without weights.

        Raises `CheckpointError` where it cannot be built, or is far larger than the weights.
        """
        architecture = Architecture.probe(self.folder, self.config)
        described = sum(tensor.numel() for tensor in set(architecture.tensors.values()))
        stored = sum(prod(entry.shape) for entry in self.entries.values())
        if described > MOST_PACKED * stored:  # loading would take the memory of what is missing
            raise CheckpointError(
                f"the configuration of {self.folder} describes {described:,} parameters, its files "
                f"hold {stored:,}: config.json is another model's, or weights are missing"
            )
        return architecture

    @cached_property
    def tables(self) -> Tables:
        """The tensors with a row per token; see `Search.tables` for what is refused."""
        tables = Search(self.folder, self.architecture, self.entries).tables()
        for name in tables.aliases:
            if not torch.equal(self.tensor(name), self.tensor(tables.input)):
                raise CheckpointError(
                    f"{self.folder} ties its embeddings, but {name} differs from {tables.input}: "
                    "set tie_word_embeddings to false, or remove the second table"
                )
        return tables

    @property
    def table_type(self) -> torch.dtype:
        """The widest type of a table in the files; config.json may name a narrower one."""
        stored = (DTYPES[self.entries[name].dtype] for name in self.tables.names)
        return reduce(torch.promote_types, stored)

    def check(self) -> "Checkpoint":
        """Return the checkpoint. Raises `CheckpointError` unless every token has its rows."""
        tokens = len(self.vocabulary)
        for name in self.tables.names:
            if tokens > (rows := self.shape(name)[0]):
                raise CheckpointError(
                    f"the tokenizer of {self.folder} needs {tokens:,} rows, its table {name} has "
                    f"{rows:,}: the tokenizer is another model's, or the table was never resized"
                )
        return self

    def stamp(self) -> list[Any]:
        """What changes when the checkpoint changes: names, sizes and times of its files."""
        paths = (path for pattern in STAMPED for path in sorted(self.folder.glob(pattern)))
        stats = {str(p.relative_to(self.folder)): p.stat() for p in paths if p.is_file()}
        stamps = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]
        return [str(self.folder.resolve()), stamps]

    def _shards(self, index: Path) -> dict[str, str]:
        """The file of each tensor, as the index says."""
        shards = read_json(index, CheckpointError).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise CheckpointError(f"{index} names no tensors (weight_map): download it again")
        for shard in shards.values():
            if not isinstance(shard, str) or Path(shard).name != shard or shard == "..":
                raise CheckpointError(f"{index} names {shard}, a path outside its folder")
            if not (self.folder / shard).exists():
                raise CheckpointError(
                    f"{self.folder} lacks the shard {shard} that its index names: download again"
                )
        return shards

    def _indexed(self, index: Path) -> tuple[dict[str, str], dict[str, Entry]]:
        """Shard and header entry of each tensor."""
        shard_of = self._shards(index)
        shards = sorted(set(shard_of.values()))
        headers = {shard: read_header(self.folder / shard)[0] for shard in shards}
        for name, shard in shard_of.items():
            if name not in headers[shard]:
                raise CheckpointError(
                    f"{index} says that {name} is in {shard}, which lacks it: download both again"
                )
        return shard_of, {name: headers[shard][name] for name, shard in shard_of.items()}

    def _single(self) -> tuple[dict[str, str], dict[str, Entry]]:
        """The same of a single weight file."""
        if not (path := self.folder / SINGLE).exists():
            raise CheckpointError(f"{self.folder} has no weights: no {SINGLE}, no {INDEX}")
        entries = read_header(path)[0]
        return dict.fromkeys(entries, SINGLE), entries
