"""The rows of tokens in a GGUF file, compared with those of the model."""

from pathlib import Path

import torch

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError

TABLES = {"input": "token_embd.weight", "output": "output.weight"}
# Settings by which the converter multiplies a table of some architectures.
FACTORS = {"falcon_h1": {"input": "embedding_multiplier", "output": "lm_head_multiplier"}}
ROWS = 4_096  # compared at once
WAY_OUT = "serve the folder as it is, or report it with the model's name"


def check_rows(file: Path, source: Checkpoint) -> None:
    """Compare the tables of a file with the model's, as numbers of the file's type.

    Raises `CheckpointError` for a table that is missing, and for the first row that differs.
    """
    from gguf import GGUFReader, dequantize, quantize

    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    names = source.tables.by_kind()
    for kind, name in names.items():
        written, table = tensors.get(TABLES[kind]), source.tensor(name)
        if written is None and torch.equal(table, source.tensor(names["input"])):
            continue  # llama.cpp takes the input table where there is no other
        rows = 0 if written is None else len(written.data)
        if written is None or rows != len(table):
            raise CheckpointError(
                f"the converter wrote {rows:,} rows of {TABLES[kind]}, and {name} has "
                f"{len(table):,}: {WAY_OUT}"
            )
        setting = FACTORS.get(source.config.get("model_type", ""), {}).get(kind, "")
        factor, numbers = source.config.get(setting, 1.0), written.tensor_type
        for start in range(0, len(table), ROWS):
            part = slice(start, start + ROWS)
            expected = (table[part] * factor).float().numpy()
            same = dequantize(written.data[part], numbers) == dequantize(
                quantize(expected, numbers), numbers
            )
            if not same.all():
                raise CheckpointError(
                    f"row {start + int(same.all(1).argmin()):,} of {TABLES[kind]} is not that of "
                    f"{name}: {WAY_OUT}"
                )
