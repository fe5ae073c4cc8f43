"""Tensors of a result, computed chunk by chunk while they are written."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import DTYPES, Rows, finite
from lep.mapping import VocabularyMapping, row_chunks
from lep.propagation import with_instruct_rows
from lep.transfer.recipient import Recipient

Chunks = Callable[[], Iterator[Tensor]]  # matrices (n, columns), in the order of the rows


def row_stream(model: Checkpoint, name: str, size: int, chunks: Chunks) -> Rows:
    """`size` rows for the tensor `name` of `model`.

    Writing them raises `CheckpointError` for a row that is not finite.
    """
    entry = model.entries[name]
    columns, label = entry.shape[1:], f"the new {name} of {model.folder}"

    def shaped() -> Iterator[Tensor]:
        return (chunk.reshape(-1, *columns) for chunk in finite(chunks(), label))

    return Rows((size, *columns), DTYPES[entry.dtype], shaped)


def recipient_stream(recipient: Recipient, name: str, chunks: Chunks) -> Rows:
    """The same for a recipient's tensor: rows of its added tokens stay as they are."""

    def carried() -> Iterator[Tensor]:
        table = as_table(recipient.model.tensor(name))
        return with_instruct_rows(chunks(), table, recipient.instruct_rows, recipient.rows)

    return row_stream(recipient.model, name, recipient.rows, carried)


def mixed_stream(source: Checkpoint, name: str, mapping: VocabularyMapping) -> Rows:
    """`M T` for a tensor with a row per token: a table, a head bias, per-layer embeddings."""

    def mixed() -> Iterator[Tensor]:
        table = as_table(source.tensor(name))
        for part in mapping.chunks(table.shape[1]):
            chunk, (target, origin) = mix(table, part), part.kept()
            if not torch.equal(chunk[target].view(torch.uint8), table[origin].view(torch.uint8)):
                raise AssertionError(f"{name}: a copied row changed")
            yield chunk

    return row_stream(source, name, mapping.target_size, mixed)


def check_finite(table: Tensor, label: str) -> Tensor:
    """Return the table. Raises `CheckpointError` for a row that is not finite."""
    for _ in finite(row_chunks(table), label):
        pass
    return table


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
