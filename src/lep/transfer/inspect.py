"""What is in a checkpoint: tables, sizes, special tokens, suspicious rows."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.embedding.norms import row_norms
from lep.result import Result
from lep.transfer.mappings import undertrained_rows, unused_rows

SHOWN = 8  # tokens named in a list


@dataclass(frozen=True)
class Inspection(Result):
    """The facts of `lep inspect`, as `--json` writes them."""

    record: dict[str, Any]

    def __str__(self) -> str:
        record = self.record
        specials = record["special_tokens"]
        return "\n".join(
            [
                f"{record['architecture']}: {record['parameters']:,} parameters, "
                f"{record['bytes'] / 1e9:.3f} GB in {record['shards']} "
                f"file{'s' * (record['shards'] != 1)}; "
                f"{'tied' if record['tied'] else 'untied'} embeddings",
                f"{record['tokens']:,} tokens, {len(specials):,} of them special or added; "
                f"{'a' if record['chat_template'] else 'no'} chat template",
                *(line for entry in record["tables"].items() for line in _table_lines(*entry)),
                "special tokens: " + _shown([f"{n} {i}" for n, i in specials.items()]),
            ]
        )


def inspect_checkpoint(source: str | Path) -> Inspection:
    """Tables with their sizes and suspicious rows, special tokens, and the size of the rest.

    Raises `CheckpointError` for anything but a readable causal language model.
    """
    model = Checkpoint(source).check()
    vocabulary, tables = model.vocabulary, model.tables
    return Inspection(
        {
            "folder": str(model.folder),
            "architecture": (model.config.get("architectures") or [model.config.get("model_type")])[
                0
            ],
            "parameters": sum(math.prod(model.shape(name)) for name in model.shard_of),
            "bytes": sum(entry.nbytes for entry in model.entries.values()),
            "shards": len(set(model.shard_of.values())),
            "tied": tables.output is None,
            "tables": {name: inspect_table(model, name) for name in tables.names},
            "aliases": list(tables.aliases),
            "others": list(tables.others),
            "tokens": sum(token is not None for token in vocabulary.tokens),
            "ids": len(vocabulary),
            "special_tokens": dict(
                sorted(vocabulary.added_ids().items(), key=lambda pair: pair[1])
            ),
            "chat_template": bool(model.tokenizer.chat_template),
        }
    )


def inspect_table(model: Checkpoint, name: str) -> dict[str, Any]:
    """Shape, norms and suspicious rows: not finite, zero, repeated, never trained."""
    table = model.tensor(name)
    norms = row_norms(table)
    used = ~unused_rows(model, len(table))
    rows: dict[str, Tensor] = {
        "not finite": ~norms.isfinite(),
        "zero": (norms == 0) & used,
        "equal to another row": _repeated(table) & used,
        "never trained": undertrained_rows(model, name) & used,
    }
    tokens = sum(token is not None for token in model.vocabulary.tokens)
    return {
        "shape": list(table.shape),
        "dtype": str(table.dtype).removeprefix("torch."),
        "bytes": table.nbytes,
        "rows without a token": len(table) - tokens,
        "median_norm": norms[used & norms.isfinite()].median().item() if used.any() else 0.0,
        "suspicious": {title: _named(model, mask) for title, mask in rows.items() if mask.any()},
    }


def _repeated(table: Tensor) -> Tensor:
    """Mask (V,) of the rows that equal another row, by a hash of their bytes."""
    hashes = [hash(row.tobytes()) for row in table.contiguous().view(torch.uint8).numpy()]
    counts = Counter(hashes)
    return torch.tensor([counts[each] > 1 for each in hashes])


def _named(model: Checkpoint, mask: Tensor) -> dict[str, Any]:
    """How many rows a mask has, and the first of them with their tokens."""
    rows = mask.nonzero().flatten().tolist()
    tokens = [*model.vocabulary.tokens, *[None] * (len(mask) - len(model.vocabulary))]
    names = [
        token.content.decode(errors="backslashreplace") if (token := tokens[row]) else ""
        for row in rows[:SHOWN]
    ]
    return {"count": len(rows), "first": [list(pair) for pair in zip(names, rows, strict=False)]}


def _table_lines(name: str, table: dict[str, Any]) -> list[str]:
    rows, hidden = table["shape"]
    return [
        f"{name}: {rows:,} x {hidden:,} {table['dtype']}, {table['bytes'] / 1e9:.3f} GB, "
        f"{table['rows without a token']:,} rows without a token, "
        f"median norm {table['median_norm']:.4g}",
        *(
            f"  {title}: {named['count']:,} rows, "
            + _shown([f"{token!r} ({row})" for token, row in named["first"]], named["count"])
            for title, named in table["suspicious"].items()
        ),
    ]


def _shown(names: list[str], count: int | None = None) -> str:
    """The first names of `count`, with an ellipsis where there are more."""
    more = (len(names) if count is None else count) > SHOWN
    return ", ".join(names[:SHOWN]) + " ..." * more
