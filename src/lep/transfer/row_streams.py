"""Tensors of a result, computed chunk by chunk while they are written."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import DTYPES, Rows, finite
from lep.mapping import VocabularyMapping
from lep.propagation import with_instruct_rows
from lep.transfer.recipient import Recipient

Chunks = Callable[[], Iterator[Tensor]]  # matrices (n, columns), in the order of the rows


def row_stream(model: Checkpoint, name: str, size: int, chunks: Chunks) -> Rows:
    """`size` rows for the tensor `name` of `model`.

    Writing them raises `CheckpointError` for a row that is not finite.
    """
    entry = model.entries[name]
    shape = (size, *entry.shape[1:])
    label = f"the new {name} of {model.folder}"
    return Rows(shape, DTYPES[entry.dtype], partial(_shaped, chunks, shape[1:], label))


def _shaped(chunks: Chunks, columns: tuple[int, ...], label: str) -> Iterator[Tensor]:
    for chunk in finite(chunks(), label):
        yield chunk.reshape(-1, *columns)


def recipient_stream(recipient: Recipient, name: str, chunks: Chunks) -> Rows:
    """The same for a recipient's tensor: rows of its added tokens stay as they are."""
    carried = partial(_with_instruct_rows, recipient, name, chunks)
    return row_stream(recipient.model, name, recipient.rows, carried)


def _with_instruct_rows(recipient: Recipient, name: str, chunks: Chunks) -> Iterator[Tensor]:
    table = as_table(recipient.model.tensor(name))
    return with_instruct_rows(chunks(), table, recipient.instruct_rows, recipient.rows)


def mixed_stream(source: Checkpoint, name: str, mapping: VocabularyMapping) -> Rows:
    """`M T` for a tensor with a row per token: a table, a head bias, per-layer embeddings."""
    return row_stream(source, name, mapping.target_size, partial(_mixed, source, name, mapping))


def _mixed(source: Checkpoint, name: str, mapping: VocabularyMapping) -> Iterator[Tensor]:
    table = as_table(source.tensor(name))
    for part in mapping.chunks(table.shape[1]):
        chunk = mix(table, part)
        target, origin = part.kept()
        if not torch.equal(chunk[target].view(torch.uint8), table[origin].view(torch.uint8)):
            raise AssertionError(f"{name}: a copied row changed")
        yield chunk


def mix(table: Tensor, mapping: VocabularyMapping) -> Tensor:
    """`M table`; integers are not mixed, but come from the source row with the largest weight."""
    return mapping(table) if table.is_floating_point() else table[mapping.main_source()]


def as_table(tensor: Tensor) -> Tensor:
    """A tensor with a row per token as a matrix: (V,) is (V, 1), (V, a, b) is (V, a b)."""
    return tensor.reshape(len(tensor), -1)


def first_rows(instruct: Tensor, base: Tensor) -> Tensor:
    """The instruct table with as many rows as the base table: cut, or filled with the base's."""
    if len(instruct) >= len(base):
        return instruct[: len(base)]
    return torch.cat([instruct, base[len(instruct) :].to(instruct.dtype)])
