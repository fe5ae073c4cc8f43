"""`Tables`: the tensors of a checkpoint that have a row per token, by the names that they have in its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lep.checkpoint.architecture import Architecture
from lep.checkpoint.stream import DTYPES, Entry
from lep.errors import CheckpointError

MIXABLE = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
)  # types that rows can be mixed in
# Integers whose rows a new token takes from its main piece: the experts of each token (hash routing of DeepSeek V4).
COPIED = (".tid2eid",)
HASHED = ".ngram_embedding."  # rows found by a hash of token ids and of the vocabulary's size (Qwen4-Exp)


@dataclass(frozen=True)
class Tables:
    """Names of the tensors with a row per token. `output` is None when the head is tied to the input table.

    `aliases` are further copies of a tied table that the file holds; they must always equal it. `others` are all
    other tensors whose first axis is the vocabulary: head bias, per-layer embeddings, tables of parts that the
    architecture does not load. `size_settings` are the places in config.json that say the number of rows.
    """

    input: str
    output: str | None
    aliases: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    size_settings: tuple[tuple[str, ...], ...] = (("vocab_size",),)

    @property
    def names(self) -> list[str]:
        return list(self.by_kind().values())

    def by_kind(self) -> dict[str, str]:
        """`input` and, in an untied model, `output`, with the names of their tensors."""
        return (
            {"input": self.input}
            if self.output is None
            else {"input": self.input, "output": self.output}
        )

    def kind_of(self, name: str) -> str:
        """The table that one of the others goes with: a head's bias with the output table, the rest with the input."""
        return (
            "output"
            if self.output and name.startswith(self.output.removesuffix(".weight") + ".")
            else "input"
        )


def find_tables(folder: Path, config: dict[str, Any], entries: Mapping[str, Entry]) -> Tables:
    """Where the vocabulary is in a checkpoint with this config.json and these tensors.

    Raises `CheckpointError` for an architecture that cannot be built, has no usable head, or has a vocabulary
    tensor that cannot be converted row by row, and for shapes that disagree with the configuration.
    """
    search = Search(folder, Architecture.probe(folder, config), entries)
    tables = search.tables()
    for name in (*tables.names, *tables.aliases, *tables.others):
        _check_dtype(folder, name, entries[name])
    return tables


class Search:
    """One checkpoint and its architecture, with the names that the tensors of either have in the other."""

    def __init__(
        self, folder: Path, architecture: Architecture, entries: Mapping[str, Entry]
    ) -> None:
        self.folder, self.architecture, self.entries = folder, architecture, entries
        self.stored = architecture.stored_names(entries)

    def tables(self) -> Tables:
        model, axes = self.architecture.model, self.architecture.axes
        if model.get_output_embeddings() is None:
            raise CheckpointError(
                f"{self.folder} ({model.config.model_type}) has no output embeddings, which is not supported yet"
            )
        first = self._table(model.get_input_embeddings(), "input embeddings")
        last = self._table(model.get_output_embeddings(), "output embeddings")
        tied = self.architecture.tensors[first] is self.architecture.tensors[last]
        inputs = self._places(first)
        outputs = [] if tied else self._places(last)
        if len(outputs) > 1:
            raise CheckpointError(
                f"{self.folder} has its output embeddings twice, as {outputs[0]} and {outputs[1]}"
            )
        known = [place for name in axes for place in self.stored.get(name, [])]
        others = dict.fromkeys(
            place for place in known + self._not_loaded() if place not in (*inputs, *outputs)
        )
        for name in axes:
            self._check(name)
        if hashed := [name for name in self.entries if HASHED in name]:
            raise CheckpointError(
                f"{hashed[0]} of {self.folder} is read by a hash of token ids, which another vocabulary would scatter: "
                "such models are not supported"
            )
        for name, setting in self.architecture.other_sizes.items():
            raise CheckpointError(
                f"{name} of {self.folder} has {len(self.architecture.tensors[name]):,} rows for a vocabulary of "
                f"{self.architecture.rows:,} ({setting} in config.json): a table of tokens with a size of its own is "
                "not supported yet"
            )
        return Tables(
            inputs[0],
            None if tied else outputs[0],
            tuple(inputs[1:]),
            tuple(others),
            self.architecture.size_settings,
        )

    def _table(self, module: nn.Module, what: str) -> str:
        """Name in the model of the one vocabulary table (two axes) inside a module."""
        tensors, rows = self.architecture.tensors, self.architecture.rows
        inside = {id(parameter) for parameter in module.parameters()}
        found = [
            name
            for name in self.architecture.axes
            if id(tensors[name]) in inside and tensors[name].dim() > 1
        ]
        if len({id(tensors[name]) for name in found}) != 1:
            raise CheckpointError(
                f"{self.folder} has {len(found)} tables with a row per token in its {what} ({type(module).__name__}): "
                "models with exactly one are supported"
            )
        made = tensors[found[0]].shape[self.architecture.axes[found[0]]]
        if made != rows:
            raise CheckpointError(
                f"{self.folder} ({self.architecture.model.config.model_type}) makes {made:,} rows for a vocab_size of "
                f"{rows:,}: rows that are not tokens are not supported yet"
            )
        return found[0]

    def _places(self, name: str) -> list[str]:
        """Names of a table in the checkpoint; there are several when a tied one is stored twice."""
        same = self.architecture.names_of(self.architecture.tensors[name])
        places = [place for name in same for place in self.stored.get(name, [])]
        if not places:
            raise CheckpointError(
                f"{self.folder} has no tensor {name}: the checkpoint is incomplete, or its tie_word_embeddings setting "
                "is wrong"
            )
        return places

    def _check(self, name: str) -> None:
        """Raise `CheckpointError` unless the vocabulary is the first axis and the shape is what config.json says."""
        axis, shape = self.architecture.axes[name], tuple(self.architecture.tensors[name].shape)
        for place in self.stored.get(name, []):
            if axis != 0:
                raise CheckpointError(
                    f"{place} of {self.folder} has the vocabulary on axis {axis} of {list(shape)}: only rows can be "
                    "converted"
                )
            if self.entries[place].shape != shape:
                raise CheckpointError(
                    f"{place} of {self.folder} has the shape {list(self.entries[place].shape)}, its config.json makes "
                    f"it {list(shape)}: transformers cannot load it; correct the configuration or save the model again"
                )

    def _not_loaded(self) -> list[str]:
        """Tensors that the architecture does not load and that have a row per token, by their size."""
        rows = self.architecture.rows
        places = [
            p
            for name, places in self.stored.items()
            if name not in self.architecture.tensors
            for p in places
        ]
        for place in places:
            shape = self.entries[place].shape
            if rows in shape[1:]:
                raise CheckpointError(
                    f"{place} of {self.folder}, which transformers does not load, has the shape {list(shape)}, where "
                    f"{rows:,} seems to be the vocabulary: only rows can be converted"
                )
        return [place for place in places if self.entries[place].shape[:1] == (rows,)]


def _check_dtype(folder: Path, name: str, entry: Entry) -> None:
    if DTYPES.get(entry.dtype) in MIXABLE or name.endswith(COPIED):
        return
    reason = (
        "what integers say about a token cannot be mixed for a new one"
        if entry.dtype.startswith(("I", "U", "BOOL")) and not name.endswith(".weight")
        else "give the model as it was before quantisation"
    )
    raise CheckpointError(
        f"{name} of {folder} has a row per token and is stored as {entry.dtype}: {reason}"
    )
