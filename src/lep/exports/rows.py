"""The rows of tokens in a GGUF file, compared with those of the model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError

TABLES = {"input": "token_embd.weight", "output": "output.weight"}
EXACT = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCK, HALF_STEP = 32, 0.6 / 127  # of q8_0: numbers with one scale, which is rounded itself
ROWS = 4_096  # compared at once


def check_rows(file: Path, source: Checkpoint) -> None:
    """Compare the tables of a file with the model's: equal, or within half a step of q8_0.

    Raises `CheckpointError` for a table that is missing, and for the first row that differs.
    """
    from gguf import GGUFReader, dequantize

    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for kind, name in source.tables.by_kind().items():
        written, table = tensors.get(TABLES[kind]), source.tensor(name)
        if written is None or len(written.data) != len(table):
            rows = 0 if written is None else len(written.data)
            raise CheckpointError(
                f"the converter wrote {rows:,} rows of {TABLES[kind]}, and {name} has "
                f"{len(table):,}: serve the folder as it is, or report it with the model's name"
            )
        for start in range(0, len(table), ROWS):
            part = slice(start, start + ROWS)
            values = torch.tensor(dequantize(written.data[part], written.tensor_type))
            wrong = _differ(values, table[part], written.tensor_type).nonzero()
            if len(wrong):
                raise CheckpointError(
                    f"row {start + int(wrong[0]):,} of {TABLES[kind]} is not that of {name}: "
                    "serve the folder as it is, or report it with the model's name"
                )


def _differ(values: Tensor, expected: Tensor, kind: Any) -> Tensor:
    """Which rows of (n, h) float32 values are not those expected: (n,) bool."""
    if kind.name in EXACT:
        return (values != expected.to(EXACT[kind.name]).float()).any(1)
    blocks = expected.float().unflatten(1, (-1, BLOCK))
    most = blocks.abs().amax(2, keepdim=True) * HALF_STEP
    return ((values.unflatten(1, (-1, BLOCK)) - blocks).abs() > most).any(2).any(1)
