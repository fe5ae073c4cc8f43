"""`Checkpoint`: a folder of safetensors, a configuration and a tokenizer, read only where it is asked."""

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lep.errors import CheckpointError
from lep.hub import local_folder
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Tables:
    """Names of the embedding tensors. `output` is None when the head is tied to the input table.

    `aliases` are further copies of a tied table that the file holds; they must always equal it.
    """

    input: str
    output: str | None
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return list(self.by_kind().values())

    def by_kind(self) -> dict[str, str]:
        """`input` and, in an untied model, `output`, with the names of their tensors."""
        return {"input": self.input} if self.output is None else {"input": self.input, "output": self.output}


class Checkpoint:
    """A causal language model on disk: a local folder, or the download of a hub id.

    Opening reads the configuration and the index alone. Raises `CheckpointError` for a folder that is missing,
    holds pickled weights only, or names shards that are not there.
    """

    def __init__(self, source: str | Path) -> None:
        self.folder = local_folder(source)
        self.config: dict[str, Any] = self._json("config.json")
        self.shard_of = self._shards()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.folder)!r})"

    def tensor(self, name: str) -> Tensor:
        """One tensor, read from its shard."""
        with self._open(self.shard_of[name]) as file:
            return file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the shard's header."""
        with self._open(self.shard_of[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def itemsize(self, name: str) -> int:
        """Bytes of one number of a tensor."""
        with self._open(self.shard_of[name]) as file:
            return int(re.sub(r"\D", "", file.get_slice(name).get_dtype().split("_")[0])) // 8

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor, from the shard's header."""
        return math.prod(self.shape(name)) * self.itemsize(name)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return load_tokenizer(self.folder)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.tokenizer)

    @cached_property
    def tables(self) -> Tables:
        """Where the input and output embeddings are, found by building the architecture without weights."""
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except Exception as error:  # unknown model types, remote code, and broken settings raise many kinds
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{self.folder} is not a causal language model that transformers can build: {reason}"
                                  ) from error  # fmt: skip
        head = model.get_output_embeddings()
        if head is None or getattr(head, "bias", None) is not None:
            what = "no output embeddings" if head is None else "an output bias"
            raise CheckpointError(f"{self.folder} ({config.model_type}) has {what}, which is not supported yet")
        names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
        first, last = model.get_input_embeddings().weight, head.weight
        named = [name for name, p in model.named_parameters(remove_duplicate=False) if p is first]
        input_name = next((name for name in named if name in self.shard_of), names[id(first)])
        aliases = tuple(name for name in named if name in self.shard_of and name != input_name)
        tables = Tables(input_name, None if last is first else names[id(last)], aliases)
        self._check_tying(tables)
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
        files = [self.folder / name for name in (*sorted(set(self.shard_of.values())), "tokenizer.json", "config.json")]
        return [str(self.folder.resolve()), [[f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.exists()]]

    def _check_tying(self, tables: Tables) -> None:
        for name in tables.names:
            if name not in self.shard_of:
                raise CheckpointError(f"{self.folder} has no tensor {name}: the checkpoint is incomplete, or its "
                                      "tie_word_embeddings setting is wrong")  # fmt: skip
        for name in tables.aliases:
            if not torch.equal(self.tensor(name), self.tensor(tables.input)):
                raise CheckpointError(f"{self.folder} ties its embeddings, but {name} differs from {tables.input}: set "
                                      "tie_word_embeddings to false, or remove the second table")  # fmt: skip

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.exists():
            raise CheckpointError(f"{self.folder} has no {name}: it is not a model folder")
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path} is not valid JSON ({error}): copy the file again") from error

    def _shards(self) -> dict[str, str]:
        if (self.folder / INDEX).exists():
            weight_map: dict[str, str] = self._json(INDEX)["weight_map"]
            for shard in sorted(set(weight_map.values())):
                if Path(shard).name != shard:
                    raise CheckpointError(f"{self.folder / INDEX} names {shard}, a path outside its folder")
                if not (self.folder / shard).exists():
                    raise CheckpointError(f"{self.folder} lacks the shard {shard} that its index names: download again")
            return weight_map
        if (self.folder / SINGLE).exists():
            with self._open(SINGLE) as file:
                return dict.fromkeys(file.keys(), SINGLE)
        pickles = sorted(p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
        if pickles:
            raise CheckpointError(
                f"{self.folder} has pickled weights only ({pickles[0]}), which can run code when loaded: convert them "
                "with save_pretrained in a safe place"
            )
        raise CheckpointError(f"{self.folder} has no weights: neither {SINGLE} nor {INDEX} is there")

    def _open(self, shard: str) -> Any:
        try:
            return safe_open(self.folder / shard, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder / shard} cannot be read ({error}): download it again") from error
