"""What changed between two checkpoints, tensor by tensor."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import sha256
from lep.result import Result
from lep.tokenizer.idmap import IdMap


@dataclass(frozen=True)
class Comparison(Result):
    """The facts of `lep verify`, as `--json` writes them."""

    record: dict[str, Any]

    def __str__(self) -> str:
        record = self.record
        counts = [f"{count:,} {state}" for state, count in sorted(record["counts"].items())]
        tokens = [f"{count:,} {state}" for state, count in record["tokens"].items()]
        return "\n".join(
            [
                *(
                    _tensor_line(name, tensor)
                    for name, tensor in record["tensors"].items()
                    if tensor["state"] != "same"
                ),
                f"tensors: {', '.join(counts)}",
                f"tokens: {', '.join(tokens)}",
                *(
                    f"{kind} rows: {rows['same']:,} of {rows['tokens']:,} shared tokens have the "
                    "same bits"
                    for kind, rows in record["rows"].items()
                ),
                *(
                    f"config {name}: {before!r} -> {after!r}"
                    for name, (before, after) in record["config"].items()
                ),
            ]
        )


def compare_checkpoints(before: str | Path, after: str | Path) -> Comparison:
    """Compare tensors by SHA-256, tables also row by row, vocabularies, and configurations.

    A tensor is the same, changed, resized, or in one checkpoint only. Raises `CheckpointError` for
    anything but two readable causal language models.
    """
    one, other = Checkpoint(before).check(), Checkpoint(after).check()
    id_map = IdMap.between(one.vocabulary, other.vocabulary)
    names = sorted({*one.shard_of, *other.shard_of})
    tensors = {name: _compare_tensor(one, other, name) for name in names}
    settings = {
        name: [one.config.get(name), other.config.get(name)]
        for name in sorted({*one.config, *other.config})
    }
    tables, other_tables = one.tables.by_kind(), other.tables.by_kind()
    return Comparison(
        {
            "before": str(one.folder),
            "after": str(other.folder),
            "tensors": tensors,
            "counts": dict(Counter(tensor["state"] for tensor in tensors.values())),
            "tokens": {
                name: len(getattr(id_map, name)) for name in ("kept", "moved", "new", "dropped")
            },
            "rows": {
                kind: _compare_rows(one, other, name, other_tables[kind])
                for kind, name in tables.items()
                if kind in other_tables
            },
            "config": {name: pair for name, pair in settings.items() if pair[0] != pair[1]},
        }
    )


def _compare_tensor(one: Checkpoint, other: Checkpoint, name: str) -> dict[str, Any]:
    if name not in one.shard_of or name not in other.shard_of:
        return {"state": "only before" if name in one.shard_of else "only after"}
    files = [model.folder / model.shard_of[name] for model in (one, other)]
    if files[0].samefile(files[1]):
        return {"state": "same", "linked": True, "sha256": sha256(one.tensor(name))}
    hashes = [sha256(model.tensor(name)) for model in (one, other)]
    shapes = [list(model.shape(name)) for model in (one, other)]
    if shapes[0] != shapes[1]:
        return {"state": "resized", "shapes": shapes, "sha256": hashes}
    if hashes[0] != hashes[1]:
        return {"state": "changed", "sha256": hashes}
    return {"state": "same", "sha256": hashes[0]}


def _compare_rows(one: Checkpoint, other: Checkpoint, name: str, other_name: str) -> dict[str, int]:
    """How many tokens of both vocabularies have the same row, bit for bit."""
    pairs = [
        (row, other_row)
        for row, token in enumerate(one.vocabulary.tokens)
        if token is not None and (other_row := other.vocabulary.ids.get(token)) is not None
    ]
    before, after = one.tensor(name), other.tensor(other_name)
    if before.shape[1] != after.shape[1] or before.dtype != after.dtype:
        return {"tokens": len(pairs), "same": 0}
    sources, targets = (torch.tensor(ids, dtype=torch.int64) for ids in zip(*pairs, strict=True))
    same = (before[sources].view(torch.uint8) == after[targets].view(torch.uint8)).all(1)
    return {"tokens": len(pairs), "same": int(same.sum())}


def _tensor_line(name: str, tensor: dict[str, Any]) -> str:
    shapes = [" x ".join(f"{n:,}" for n in shape) for shape in tensor.get("shapes", [])]
    hashes = [digest[:12] for digest in tensor.get("sha256", [])]
    return f"{tensor['state']}: {name} {' -> '.join(shapes)} {' -> '.join(hashes)}".rstrip()
