"""Rows of a checkpoint that is being written, made chunk by chunk from those of others, and proven on the way."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import DTYPES, Rows, finite
from lep.errors import CheckpointError
from lep.mapping import VocabularyMapping
from lep.propagation import with_own_rows
from lep.transfer.family import Family, Recipient, first_rows


def new_rows(model: Checkpoint, name: str, size: int, make: Callable[[], Iterator[Tensor]]) -> Rows:
    """`size` rows for a tensor of `model`: chunks as matrices, made when they are written, proven to be finite."""
    entry = model.entries[name]

    def chunks() -> Iterator[Tensor]:
        made = finite(make(), f"the new {name} of {model.folder}")
        return (chunk.reshape(-1, *entry.shape[1:]) for chunk in made)

    return Rows((size, *entry.shape[1:]), DTYPES[entry.dtype], chunks)


def recipient_rows(recipient: Recipient, name: str, make: Callable[[], Iterator[Tensor]]) -> Rows:
    """The same for a tensor of the model that gets the vocabulary: rows of its own added tokens stay its own."""

    def chunks() -> Iterator[Tensor]:
        own = as_table(recipient.model.tensor(name))
        return with_own_rows(make(), own, recipient.own_rows(), recipient.rows)

    return new_rows(recipient.model, name, recipient.rows, chunks)


def mixed_rows(source: Checkpoint, name: str, mapping: VocabularyMapping) -> Rows:
    """`M T` for a tensor with a row per token: a table, a head bias, per-layer embeddings."""

    def mixed() -> Iterator[Tensor]:
        table = as_table(source.tensor(name))
        for part in mapping.chunks(table.shape[1]):
            chunk = mix(table, part)
            target, origin = part.kept()
            if not torch.equal(chunk[target].view(torch.uint8), table[origin].view(torch.uint8)):
                raise AssertionError(f"{name}: a copied row changed")
            yield chunk

    return new_rows(source, name, mapping.target_size, mixed)


def carried_rows(family: Family, name: str, *, trained: bool) -> Rows:
    """`M T_inst + (T_adapted - M T_base)` for a tensor beside the tables, the last part when `trained`."""
    entry, mapping = (
        family.instruct.entries[name],
        family.mappings[family.instruct.tables.kind_of(name)],
    )
    sources = (family.base, family.adapted)
    known = all(name in model.tables.others for model in sources)
    if known and any(model.entries[name].shape[1:] != entry.shape[1:] for model in sources):
        raise CheckpointError(
            f"{name} has other columns in {family.instruct.folder} than in {family.base.folder}: "
            "give models of one family and size"
        )

    def carried() -> Iterator[Tensor]:
        chat = as_table(family.instruct.tensor(name))
        old = as_table(family.base.tensor(name)) if known else chat[: mapping.source_size]
        if len(old) < mapping.source_size:
            raise CheckpointError(
                f"{family.base.folder} has no {name}, and that of {family.instruct.folder} has "
                f"{len(old):,} rows for {mapping.source_size:,}: save both alike"
            )
        new, start = as_table(family.adapted.tensor(name)) if known else None, 0
        first = first_rows(chat, old)
        for part in mapping.chunks(chat.shape[1]):
            chunk = mix(first, part)
            if new is not None and trained and chunk.is_floating_point():
                wide = torch.promote_types(chunk.dtype, torch.float32)
                learned = new[start : start + len(chunk)].to(wide) - part(old).to(wide)
                chunk = torch.where(learned == 0, chunk, (chunk.to(wide) + learned).to(chunk.dtype))
            start += len(chunk)
            yield chunk

    return recipient_rows(family.recipient, name, carried)


def mix(table: Tensor, mapping: VocabularyMapping) -> Tensor:
    """`M table`; integers, which cannot be mixed, are those of the main source row."""
    return mapping(table) if table.is_floating_point() else table[mapping.main_source()]


def as_table(tensor: Tensor) -> Tensor:
    """A tensor with a row per token as a matrix: (V,) is (V, 1), (V, a, b) is (V, a b)."""
    return tensor.reshape(len(tensor), -1)
