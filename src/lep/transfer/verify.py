"""What changed between two checkpoints, tensor by tensor."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import sha256
from lep.progress import progress
from lep.result import Result
from lep.tokenizer.idmap import IdMap


@dataclass(frozen=True)
class Comparison(Result):
    """The facts of `lep verify`, as `--json` writes them."""

    record: dict[str, Any]

    def __str__(self) -> str:
        record = self.record
        tensors = record["tensors"].items()
        lines = [_tensor_line(name, each) for name, each in tensors if each["state"] != "same"]
        states, fates = sorted(record["counts"].items()), record["tokens"].items()
        for title, counts in (("tensors", states), ("tokens", fates)):
            lines.append(f"{title}: {', '.join(f'{count:,} {name}' for name, count in counts)}")
        for kind, rows in record["rows"].items():
            share = f"{rows['same']:,} of {rows['tokens']:,}"
            lines.append(f"{kind} rows: {share} shared tokens have the same bits")
        for name, (before, after) in record["config"].items():
            lines.append(f"config {name}: {before!r} -> {after!r}")
        return "\n".join(lines)


def compare_checkpoints(before: str | Path, after: str | Path) -> Comparison:
    """Compare tensors by SHA-256, tables also row by row, vocabularies, and configurations.

    A tensor is the same, changed, resized, or in one checkpoint only. Raises `CheckpointError` for
    anything but two readable causal language models.
    """
    one, other = Checkpoint(before).check(), Checkpoint(after).check()
    id_map = IdMap.between(one.vocabulary, other.vocabulary)
    names = sorted({*one.shard_of, *other.shard_of})
    every = progress(names, "tensors compared")
    tensors = {name: _compare_tensor(one, other, name) for name in every}
    keys = sorted({*one.config, *other.config})
    settings = {key: [one.config.get(key), other.config.get(key)] for key in keys}
    fates = ("kept", "moved", "new", "dropped")
    kinds = [kind for kind in one.tables.by_kind() if kind in other.tables.by_kind()]
    record = {
        "before": str(one.folder),
        "after": str(other.folder),
        "tensors": tensors,
        "counts": dict(Counter(tensor["state"] for tensor in tensors.values())),
        "tokens": {fate: len(getattr(id_map, fate)) for fate in fates},
        "rows": {kind: _compare_rows(one, other, kind) for kind in kinds},
        "config": {key: pair for key, pair in settings.items() if pair[0] != pair[1]},
    }
    return Comparison(record)


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
    dtypes = {model.entries[name].dtype for model in (one, other)}
    if hashes[0] != hashes[1] or len(dtypes) > 1:
        return {"state": "changed", "sha256": hashes}
    return {"state": "same", "sha256": hashes[0]}


def _compare_rows(one: Checkpoint, other: Checkpoint, kind: str) -> dict[str, int]:
    """How many tokens of both vocabularies have the same row, bit for bit."""
    ids, known = other.vocabulary.ids, one.vocabulary.tokens
    rows = {row: ids[token] for row, token in enumerate(known) if token and token in ids}
    before, after = (model.tensor(model.tables.by_kind()[kind]) for model in (one, other))
    if before.shape[1] != after.shape[1] or before.dtype != after.dtype:
        return {"tokens": len(rows), "same": 0}
    pairs = ((before, rows), (after, rows.values()))
    one_bits, other_bits = (table[[*row]].view(torch.uint8) for table, row in pairs)
    return {"tokens": len(rows), "same": int((one_bits == other_bits).all(1).sum())}


def _tensor_line(name: str, tensor: dict[str, Any]) -> str:
    shapes = [" x ".join(f"{n:,}" for n in shape) for shape in tensor.get("shapes", [])]
    hashes = [digest[:12] for digest in tensor.get("sha256", [])]
    return f"{tensor['state']}: {name} {' -> '.join(shapes)} {' -> '.join(hashes)}".rstrip()
