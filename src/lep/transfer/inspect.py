"""What is in a checkpoint, and what changed between two of them."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import sha256
from lep.embedding.norms import row_norms
from lep.tokenizer.idmap import IdMap
from lep.transfer.mappings import undertrained_rows, unused_rows

SHOWN = 8  # tokens named in a list of suspicious rows


def inspect_checkpoint(source: str | Path) -> dict[str, Any]:
    """Tables with their sizes and suspicious rows, special tokens, and the size of all the rest.

    Raises `CheckpointError` for what is no readable causal language model.
    """
    model = Checkpoint(source).check()
    vocabulary, tables = model.vocabulary, model.tables
    return {
        "folder": str(model.folder),
        "architecture": (model.config.get("architectures") or [model.config.get("model_type")])[0],
        "parameters": sum(math.prod(model.shape(name)) for name in model.shard_of),
        "bytes": sum(entry.nbytes for entry in model.entries.values()),
        "shards": len(set(model.shard_of.values())),
        "tied": tables.output is None,
        "tables": {name: inspect_table(model, name) for name in tables.names},
        "aliases": list(tables.aliases),
        "others": list(tables.others),
        "tokens": sum(token is not None for token in vocabulary.tokens),
        "ids": len(vocabulary),
        "special_tokens": dict(sorted(vocabulary.added_ids().items(), key=lambda pair: pair[1])),
        "chat_template": bool(model.tokenizer.chat_template),
    }


def inspect_table(model: Checkpoint, name: str) -> dict[str, Any]:
    """Shape, norms and suspicious rows of one table: not finite, zero, equal to others, never trained."""
    table = model.tensor(name)
    norms = row_norms(table)
    used = ~unused_rows(model, len(table))
    rows: dict[str, Tensor] = {
        "not finite": ~norms.isfinite(),
        "zero": (norms == 0) & used,
        "equal to another row": _repeated(table) & used,
        "never trained": undertrained_rows(model, name) & used,
    }
    median = norms[used & norms.isfinite()].median().item() if used.any() else 0.0
    return {
        "shape": list(table.shape),
        "dtype": str(table.dtype).removeprefix("torch."),
        "bytes": table.nbytes,
        "rows without a token": int(
            len(table) - sum(token is not None for token in model.vocabulary.tokens)
        ),
        "median_norm": median,
        "suspicious": {title: _named(model, mask) for title, mask in rows.items() if mask.any()},
    }


def compare_checkpoints(before: str | Path, after: str | Path) -> dict[str, Any]:
    """Every tensor of two checkpoints by its SHA-256: same, changed, resized, only in one; rows of tables by token."""
    one, other = Checkpoint(before).check(), Checkpoint(after).check()
    id_map = IdMap.between(one.vocabulary, other.vocabulary)
    tensors = {
        name: _compare_tensor(one, other, name) for name in sorted({*one.shard_of, *other.shard_of})
    }
    config = {
        name: [one.config.get(name), other.config.get(name)]
        for name in sorted({*one.config, *other.config})
        if one.config.get(name) != other.config.get(name)
    }
    return {
        "before": str(one.folder),
        "after": str(other.folder),
        "tensors": tensors,
        "counts": dict(Counter(entry["state"] for entry in tensors.values())),
        "tokens": {
            name: len(getattr(id_map, name)) for name in ("kept", "moved", "new", "dropped")
        },
        "rows": {
            kind: _compare_rows(one, other, name, other.tables.by_kind()[kind])
            for kind, name in one.tables.by_kind().items()
            if kind in other.tables.by_kind()
        },
        "config": config,
    }


def _compare_tensor(one: Checkpoint, other: Checkpoint, name: str) -> dict[str, Any]:
    if name not in one.shard_of or name not in other.shard_of:
        return {"state": "only before" if name in one.shard_of else "only after"}
    places = [model.folder / model.shard_of[name] for model in (one, other)]
    if places[0].samefile(places[1]):
        return {"state": "same", "linked": True, "sha256": sha256(one.tensor(name))}
    hashes = [sha256(model.tensor(name)) for model in (one, other)]
    shapes = [list(model.shape(name)) for model in (one, other)]
    if shapes[0] != shapes[1]:
        return {"state": "resized", "shapes": shapes, "sha256": hashes}
    return {
        "state": "same" if hashes[0] == hashes[1] else "changed",
        "sha256": hashes[0] if hashes[0] == hashes[1] else hashes,
    }


def _compare_rows(one: Checkpoint, other: Checkpoint, name: str, other_name: str) -> dict[str, int]:
    """How many tokens that both have keep their row, bit for bit."""
    pairs = [
        (i, index)
        for i, token in enumerate(one.vocabulary.tokens)
        if token is not None and (index := other.vocabulary.ids.get(token)) is not None
    ]
    before, after = one.tensor(name), other.tensor(other_name)
    if before.shape[1] != after.shape[1] or before.dtype != after.dtype:
        return {"tokens": len(pairs), "same": 0}
    sources, targets = (torch.tensor(ids, dtype=torch.int64) for ids in zip(*pairs, strict=True))
    same = (before[sources].view(torch.uint8) == after[targets].view(torch.uint8)).all(1)
    return {"tokens": len(pairs), "same": int(same.sum())}


def _repeated(table: Tensor) -> Tensor:
    """Mask of the rows that another row equals, found by hash of the bytes."""
    hashes = [hash(row.tobytes()) for row in table.contiguous().view(torch.uint8).numpy()]
    counts = Counter(hashes)
    return torch.tensor([counts[each] > 1 for each in hashes])


def _named(model: Checkpoint, mask: Tensor) -> dict[str, Any]:
    rows = mask.nonzero().flatten().tolist()
    tokens = model.vocabulary.tokens
    shown = [tokens[row] if row < len(tokens) else None for row in rows[:SHOWN]]
    names = [token.content.decode(errors="backslashreplace") if token else "" for token in shown]
    return {
        "count": len(rows),
        "first": [[name, row] for name, row in zip(names, rows, strict=False)],
    }


def inspection_text(found: dict[str, Any]) -> str:
    """An inspection in lines."""
    lines = [
        f"{found['architecture']}: {found['parameters']:,} parameters, {found['bytes'] / 1e9:.3f} GB in "
        f"{found['shards']} file{'s' * (found['shards'] != 1)}; {'tied' if found['tied'] else 'untied'} embeddings",
        f"{found['tokens']:,} tokens, {len(found['special_tokens']):,} of them special or added; "
        f"{'a' if found['chat_template'] else 'no'} chat template",
    ]
    for name, table in found["tables"].items():
        rows, hidden = table["shape"]
        lines.append(
            f"{name}: {rows:,} x {hidden:,} {table['dtype']}, {table['bytes'] / 1e9:.3f} GB, "
            f"{table['rows without a token']:,} rows without a token, median norm {table['median_norm']:.4g}"
        )
        for title, rows in table["suspicious"].items():
            first = ", ".join(f"{token!r} ({row})" for token, row in rows["first"])
            lines.append(
                f"  {title}: {rows['count']:,} rows, {first}{' ...' * (rows['count'] > SHOWN)}"
            )
    shown = list(found["special_tokens"].items())[:SHOWN]
    lines.append(
        "special tokens: "
        + ", ".join(f"{name} {index}" for name, index in shown)
        + " ..." * (len(found["special_tokens"]) > SHOWN)
    )
    return "\n".join(lines)


def comparison_text(found: dict[str, Any]) -> str:
    """A comparison in lines: every tensor that is not the same, then the counts."""
    lines = []
    for name, entry in found["tensors"].items():
        if entry["state"] != "same":
            shapes = " -> ".join(
                " x ".join(f"{n:,}" for n in shape) for shape in entry.get("shapes", [])
            )
            digests = entry.get("sha256", [])
            hashes = (
                " -> ".join(digest[:12] for digest in digests)
                if isinstance(digests, list)
                else digests[:12]
            )
            lines.append(f"{entry['state']}: {name} {shapes} {hashes}".rstrip())
    counts, tokens = found["counts"], found["tokens"]
    lines.append(
        "tensors: " + ", ".join(f"{count:,} {state}" for state, count in sorted(counts.items()))
    )
    lines.append("tokens: " + ", ".join(f"{count:,} {state}" for state, count in tokens.items()))
    for kind, rows in found["rows"].items():
        lines.append(
            f"{kind} rows of the {rows['tokens']:,} tokens that both have: {rows['same']:,} are the same bits"
        )
    lines += [f"config {name}: {old!r} -> {new!r}" for name, (old, new) in found["config"].items()]
    return "\n".join(lines)
