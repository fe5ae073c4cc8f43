"""`Tables`: the tensors of a checkpoint that have a row per token, by their names in its files."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from lep.checkpoint.architecture import Architecture
from lep.checkpoint.stream import DTYPES, Entry
from lep.errors import CheckpointError

MIXABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Integers that a new token copies from its main piece: its experts (hash routing of DeepSeek V4).
COPIED = ".tid2eid"
HASHED = ".ngram_embedding."  # rows at a hash of token ids and vocabulary size (Qwen4-Exp)


@dataclass(frozen=True)
class Tables:
    """Names of the tensors with a row per token. `output` is None when the head is tied.

    `aliases` are stored copies of a tied table and must equal it. `others` are all other tensors
    whose first axis is the vocabulary: head bias, per-layer embeddings, tables of parts that the
    architecture does not load. `size_settings` are the paths in config.json that give the number
    of rows.
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
        """Names of the tables by `input` and, in an untied model, `output`."""
        output = {} if self.output is None else {"output": self.output}
        return {"input": self.input} | output

    def kind_of(self, name: str) -> str:
        """The table that another tensor follows: the output for a head's bias, else the input."""
        head = self.output and self.output.removesuffix(".weight") + "."
        return "output" if head and name.startswith(head) else "input"


@dataclass(frozen=True)
class Search:
    """The search for the tables of one checkpoint."""

    folder: Path
    architecture: Architecture
    entries: Mapping[str, Entry]

    @cached_property
    def stored(self) -> dict[str, list[str]]:
        """Names in the files, by name in the model."""
        return self.architecture.stored_names(self.entries)

    def tables(self) -> Tables:
        """The tables of the checkpoint.

        Raises `CheckpointError` for an architecture without a usable head, for a vocabulary tensor
        that cannot be converted row by row, and for shapes that disagree with the configuration.
        """
        model, tensors = self.architecture.model, self.architecture.tensors
        head = model.get_output_embeddings()
        if head is None:
            architecture = f"{self.folder} ({model.config.model_type})"
            raise CheckpointError(f"{architecture} has no output embeddings: not supported yet")
        first = self._table(model.get_input_embeddings(), "input embeddings")
        last = self._table(head, "output embeddings")
        inputs = self._stored_as(first)
        outputs = [] if tensors[first] is tensors[last] else self._stored_as(last)
        if outputs[1:]:
            copies = f"{outputs[0]} and {outputs[1]}"
            raise CheckpointError(f"{self.folder} has its output embeddings twice, as {copies}")
        loaded = [name for part in self.architecture.axes for name in self.stored.get(part, [])]
        known = dict.fromkeys(loaded + self._not_loaded())
        self._check_shapes()
        self._refuse_unsupported()
        for name in known:
            self._check_dtype(name)
        others = tuple(name for name in known if name not in (*inputs, *outputs))
        output, sizes = next(iter(outputs), None), self.architecture.size_settings
        return Tables(inputs[0], output, tuple(inputs[1:]), others, sizes)

    def _table(self, module: nn.Module, label: str) -> str:
        """The name in the model of the one vocabulary table (two axes) inside a module."""
        tensors, axes = self.architecture.tensors, self.architecture.axes
        inside = {id(parameter) for parameter in module.parameters()}
        names = [n for n in axes if id(tensors[n]) in inside and tensors[n].dim() > 1]
        if len({id(tensors[name]) for name in names}) != 1:
            raise CheckpointError(
                f"{self.folder} has {len(names)} tables with a row per token in its {label} "
                f"({type(module).__name__}): models with exactly one are supported"
            )
        size, rows = tensors[names[0]].shape[axes[names[0]]], self.architecture.rows
        if size != rows:
            raise CheckpointError(
                f"{self.folder} ({self.architecture.model.config.model_type}) makes {size:,} rows "
                f"for a vocab_size of {rows:,}: rows that are not tokens are not supported yet"
            )
        return names[0]

    def _stored_as(self, name: str) -> list[str]:
        """The names of a table in the files; several when a tied one is stored more than once."""
        same = self.architecture.names_of(self.architecture.tensors[name])
        names = [stored for part in same for stored in self.stored.get(part, [])]
        if not names:
            causes = "the checkpoint is incomplete, or its tie_word_embeddings setting is wrong"
            raise CheckpointError(f"{self.folder} has no tensor {name}: {causes}")
        return names

    def _check_shapes(self) -> None:
        for part, axis in self.architecture.axes.items():
            expected = list(self.architecture.tensors[part].shape)
            for name in self.stored.get(part, []):
                shape = list(self.entries[name].shape)
                if axis != 0:
                    fact = f"has the vocabulary on axis {axis} of {expected}"
                    raise self._error(name, f"{fact}: only rows can be converted")
                if shape != expected:
                    fact = f"has the shape {shape}, its config.json makes it {expected}"
                    advice = "correct the configuration, or save the model again"
                    raise self._error(name, f"{fact}: {advice}")

    def _not_loaded(self) -> list[str]:
        """Tensors that the architecture does not load and that have a row per token, by size."""
        rows, loaded = self.architecture.rows, self.architecture.tensors
        names = [n for part, names in self.stored.items() if part not in loaded for n in names]
        for name in names:
            shape = list(self.entries[name].shape)
            if rows in shape[1:]:
                fact = f"has the shape {shape}, where {rows:,} seems to be the vocabulary"
                reason = "transformers does not load it, and only rows can be converted"
                raise self._error(name, f"{fact}: {reason}")
        return [name for name in names if self.entries[name].shape[:1] == (rows,)]

    def _refuse_unsupported(self) -> None:
        for name in self.entries:
            if HASHED in name:
                fact = "is read by a hash of token ids, which a new vocabulary would scatter"
                raise self._error(name, f"{fact}: such models are not supported")
        for name, setting in self.architecture.other_sizes.items():
            size, rows = len(self.architecture.tensors[name]), self.architecture.rows
            fact = f"has {size:,} rows for a vocabulary of {rows:,} ({setting} in config.json)"
            raise self._error(name, f"{fact}: tables of another size are not supported yet")

    def _check_dtype(self, name: str) -> None:
        dtype = self.entries[name].dtype
        if DTYPES.get(dtype) in MIXABLE or name.endswith(COPIED):
            return
        reason = "give the model as it was before quantisation"
        if dtype.startswith(("I", "U", "BOOL")) and not name.endswith(".weight"):
            reason = "integers that belong to tokens cannot be mixed for a new token"
        raise self._error(name, f"has a row per token and is stored as {dtype}: {reason}")

    def _error(self, name: str, fault: str) -> CheckpointError:
        return CheckpointError(f"{name} of {self.folder} {fault}")
