"""`Checkpoint`: a folder of safetensors, a configuration and a tokenizer, read only where it is asked."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lep.checkpoint.stream import Entry, read_header
from lep.checkpoint.tables import Tables, find_tables
from lep.errors import CheckpointError
from lep.hub import local_folder
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary

STAMPED = ("*.safetensors", "*.json", "*.jinja", "lep/*.safetensors", "adapter/*")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Checkpoint:
    """A causal language model on disk: a local folder, or the download of a hub id.

    Opening reads the configuration, the index and the header of every shard. Raises `CheckpointError` for a
    folder that is missing, holds pickled weights only, names shards that are not there, or has a damaged one.
    """

    def __init__(self, source: str | Path) -> None:
        self.folder = local_folder(source)
        self.config: dict[str, Any] = self._json("config.json")
        self.shard_of, self.entries = self._headers()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder)!r})"

    def tensor(self, name: str) -> Tensor:
        """One tensor, read from its shard."""
        with self._open(self.shard_of[name]) as file:
            return file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the shard's header."""
        return self.entries[name].shape

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return load_tokenizer(self.folder)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer)

    @cached_property
    def tables(self) -> Tables:
        """Where the tensors with a row per token are, found by building the architecture without weights."""
        tables = find_tables(self.folder, self.config, self.entries)
        for name in tables.aliases:
            if not torch.equal(self.tensor(name), self.tensor(tables.input)):
                raise CheckpointError(
                    f"{self.folder} ties its embeddings, but {name} differs from {tables.input}: set "
                    "tie_word_embeddings to false, or remove the second table"
                )
        return tables

    def check(self) -> "Checkpoint":
        """Raise `CheckpointError` unless every token id has a row in every table, and return the checkpoint."""
        for name in self.tables.names:
            rows = self.shape(name)[0]
            if len(self.vocabulary) > rows:
                raise CheckpointError(
                    f"the tokenizer of {self.folder} needs {len(self.vocabulary):,} rows, its table {name} has "
                    f"{rows:,}: the tokenizer belongs to another model, or the table was never resized"
                )
        return self

    def stamp(self) -> list[Any]:
        """What tells this checkpoint from another or a changed one, without reading its weights."""
        files = [
            file
            for pattern in STAMPED
            for file in sorted(self.folder.glob(pattern))
            if file.is_file()
        ]
        stamps = [
            [str(file.relative_to(self.folder)), file.stat().st_size, file.stat().st_mtime_ns]
            for file in files
        ]
        return [str(self.folder.resolve()), stamps]

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.exists():
            raise CheckpointError(f"{self.folder} has no {name}: it is not a model folder")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(
                f"{path} is not valid JSON ({error}): copy the file again"
            ) from error
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{path} holds a {type(content).__name__}, not an object: copy the file again"
            )
        return content

    def _headers(self) -> tuple[dict[str, str], dict[str, Entry]]:
        """The shard of each tensor, and where in it the tensor is."""
        shards: Mapping[str, set[str] | None] = (
            self._index() if (self.folder / INDEX).exists() else {SINGLE: None}
        )
        if not (self.folder / next(iter(shards), SINGLE)).exists():
            self._refuse_without_weights()
        shard_of: dict[str, str] = {}
        entries: dict[str, Entry] = {}
        for shard, names in shards.items():
            found = read_header(self.folder / shard)[0]
            if missing := sorted((names or set()) - set(found)):
                raise CheckpointError(
                    f"{self.folder / INDEX} says that {missing[0]} is in {shard}, which lacks it: "
                    "download both again"
                )
            kept = found if names is None else names
            shard_of |= dict.fromkeys(kept, shard)
            entries |= {name: found[name] for name in kept}
        return shard_of, entries

    def _index(self) -> dict[str, set[str]]:
        """The tensors of each shard, as the index says."""
        weight_map = self._json(INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(
                f"{self.folder / INDEX} names no tensors (weight_map): download it again"
            )
        shards: dict[str, set[str]] = {}
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or Path(shard).name != shard or shard == "..":
                raise CheckpointError(
                    f"{self.folder / INDEX} names {shard}, a path outside its folder"
                )
            shards.setdefault(shard, set()).add(name)
        for shard in sorted(shards):
            if not (self.folder / shard).exists():
                raise CheckpointError(
                    f"{self.folder} lacks the shard {shard} that its index names: download again"
                )
        return dict(sorted(shards.items()))

    def _refuse_without_weights(self) -> None:
        pickles = sorted(
            p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")
        )
        if pickles:
            raise CheckpointError(
                f"{self.folder} has pickled weights only ({pickles[0]}), which can run code when loaded: convert them "
                "with save_pretrained in a safe place"
            )
        raise CheckpointError(
            f"{self.folder} has no weights: neither {SINGLE} nor {INDEX} is there"
        )

    def _open(self, shard: str) -> Any:
        try:
            return safe_open(self.folder / shard, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.folder / shard} cannot be read ({error}): download it again"
            ) from error
