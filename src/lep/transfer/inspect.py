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
from lep.tokenizer.load import loader_note
from lep.transfer.mappings import token_at, undertrained_rows, unused_rows

SHOWN = 8  # tokens named in a list


@dataclass(frozen=True)
class Inspection(Result):
    """The facts of `lep inspect`, as `--json` writes them."""

    record: dict[str, Any]

    def __str__(self) -> str:
        record, specials = self.record, self.record["special_tokens"]
        files = f"{record['shards']} file{'s' * (record['shards'] != 1)}"
        lines = [
            f"{record['architecture']}: {record['parameters']:,} parameters, "
            f"{record['bytes'] / 1e9:.3f} GB in {files}; "
            f"{'tied' if record['tied'] else 'untied'} embeddings",
            f"{record['tokens']:,} tokens, {len(specials):,} of them special or added; "
            f"{'a' if record['chat_template'] else 'no'} chat template",
        ]
        for name, table in record["tables"].items():
            lines += _table_lines(name, table)
        lines += [record["auto_tokenizer"]] if record["auto_tokenizer"] else []
        names = [f"{name} {index}" for name, index in specials.items()]
        return "\n".join([*lines, f"special tokens: {_shown(names, len(names))}"])


def inspect_checkpoint(source: str | Path) -> Inspection:
    """Tables with their sizes and suspicious rows, special tokens, and the size of the rest.

    Raises `CheckpointError` for anything but a readable causal language model.
    """
    model = Checkpoint(source).check()
    vocabulary, tables, entries = model.vocabulary, model.tables, model.entries
    aliases = set(tables.aliases)  # the same parameters again
    architectures = model.config.get("architectures") or [model.config.get("model_type")]
    record = {
        "folder": str(model.folder),
        "architecture": architectures[0],
        "parameters": sum(math.prod(entries[name].shape) for name in entries.keys() - aliases),
        "bytes": sum(entry.nbytes for entry in entries.values()),
        "shards": len(set(model.shard_of.values())),
        "tied": tables.output is None,
        "tables": {name: inspect_table(model, name) for name in tables.names},
        "aliases": list(tables.aliases),
        "others": list(tables.others),
        "tokens": vocabulary.count,
        "ids": len(vocabulary),
        "special_tokens": vocabulary.added_ids(),
        "chat_template": bool(model.tokenizer.chat_template),
        "auto_tokenizer": loader_note(model.folder, model.tokenizer),
    }
    return Inspection(record)


def inspect_table(model: Checkpoint, name: str) -> dict[str, Any]:
    """Shape, norms and suspicious rows: not finite, zero, repeated, never trained."""
    table = model.tensor(name)
    norms = row_norms(table)
    used = ~unused_rows(model, len(table))
    known = norms[used & norms.isfinite()]
    rows: dict[str, Tensor] = {
        "not finite": ~norms.isfinite(),
        "zero": (norms == 0) & used,
        "equal to another row": _repeated(table) & used,
        "never trained": undertrained_rows(model, name) & used,
    }
    return {
        "shape": list(table.shape),
        "dtype": str(table.dtype).removeprefix("torch."),
        "bytes": table.nbytes,
        "rows without a token": len(table) - model.vocabulary.count,
        "median_norm": known.median().item() if len(known) else 0.0,
        "suspicious": {title: _named(model, mask) for title, mask in rows.items() if mask.any()},
    }


def _repeated(table: Tensor) -> Tensor:
    """Mask (V,) of the rows that equal another row, by a hash of their bytes."""
    hashes = [hash(row.tobytes()) for row in table.contiguous().view(torch.uint8).numpy()]
    counts = Counter(hashes)
    return torch.tensor([counts[each] > 1 for each in hashes])


def _named(model: Checkpoint, mask: Tensor) -> dict[str, Any]:
    """How many rows a mask has, and the first of them with their tokens."""
    rows, first = mask.nonzero().flatten().tolist(), []
    for row in rows[:SHOWN]:
        token = token_at(model.vocabulary, row)
        first.append([token.content.decode(errors="backslashreplace") if token else "", row])
    return {"count": len(rows), "first": first}


def _table_lines(name: str, table: dict[str, Any]) -> list[str]:
    rows, hidden = table["shape"]
    lines = [
        f"{name}: {rows:,} x {hidden:,} {table['dtype']}, {table['bytes'] / 1e9:.3f} GB, "
        f"{table['rows without a token']:,} rows without a token, "
        f"median norm {table['median_norm']:.4g}"
    ]
    for title, named in table["suspicious"].items():
        tokens = [f"{token!r} ({row})" for token, row in named["first"]]
        lines.append(f"  {title}: {named['count']:,} rows, {_shown(tokens, named['count'])}")
    return lines


def _shown(names: list[str], count: int) -> str:
    """The first names of `count`, with an ellipsis where there are more."""
    return ", ".join(names[:SHOWN]) + " ..." * (count > SHOWN)
