"""Write a checkpoint that differs from another one in some tensors only."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lep.checkpoint.reader import INDEX, Checkpoint
from lep.errors import CheckpointError
from lep.publish import check_space

CARRIED_PATTERNS = ("generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")


def write_checkpoint(
    source: Checkpoint, replaced: dict[str, Tensor], output: Path, config: dict[str, Any] | None = None
) -> None:
    """Write `source` with some tensors replaced into the folder `output`, shard by shard.

    A shard without a replaced tensor is hard-linked (copied from another disk); the others are rewritten one at
    a time, so that memory holds one shard. Configuration and generation settings are carried as they are, but
    for the entries of `config`. The tokenizer is the caller's to write.

    Raises `CheckpointError` for a replaced tensor the source lacks, `OutputError` for a disk too small.
    """
    replaced = replaced | {
        alias: replaced[source.tables.input].clone()
        for alias in source.tables.aliases
        if source.tables.input in replaced
    }
    unknown = sorted(set(replaced) - set(source.shard_of))
    if unknown:
        raise CheckpointError(f"{source.folder} has no tensor {unknown[0]} to replace")
    rewritten = {source.shard_of[name] for name in replaced}
    check_space(output, _needed_bytes(source, replaced, rewritten, output))
    output.mkdir(parents=True, exist_ok=True)
    for shard in sorted(set(source.shard_of.values())):
        if shard in rewritten:
            names = [name for name, place in source.shard_of.items() if place == shard]
            tensors = {name: replaced[name] if name in replaced else source.tensor(name) for name in names}
            save_file({name: t.contiguous() for name, t in tensors.items()}, output / shard, metadata={"format": "pt"})
            (output / shard).chmod(0o644)  # safetensors makes files that only their owner can read
        else:
            _link(source.folder / shard, output / shard)
    _write_index(source, replaced, output)
    for pattern in CARRIED_PATTERNS:
        for file in source.folder.glob(pattern):
            shutil.copyfile(file, output / file.name)
    text = json.dumps(source.config | (config or {}), indent=2, ensure_ascii=False)
    (output / "config.json").write_text(text + "\n", encoding="utf-8")


def resized_config(config: dict[str, Any], rows: int) -> dict[str, Any]:
    """The entries of a configuration that say the vocabulary's size, nested text configurations included."""
    changed: dict[str, Any] = {}
    if "vocab_size" in config or "text_config" not in config:
        changed["vocab_size"] = rows
    if isinstance(config.get("text_config"), dict):
        changed["text_config"] = config["text_config"] | {"vocab_size": rows}
    return changed


def rewritten_bytes(source: Checkpoint, names: Iterable[str]) -> int:
    """Size of the shards that hold the named tensors."""
    return sum((source.folder / shard).stat().st_size for shard in {source.shard_of[name] for name in names})


def _needed_bytes(source: Checkpoint, replaced: dict[str, Tensor], rewritten: set[str], output: Path) -> int:
    place = output.absolute()
    while not place.exists():
        place = place.parent
    copied = source.folder.stat().st_dev != place.stat().st_dev
    shards = rewritten if not copied else set(source.shard_of.values())
    old = sum((source.folder / shard).stat().st_size for shard in shards)
    return old + sum(tensor.nbytes for tensor in replaced.values())


def _link(file: Path, place: Path) -> None:
    place.unlink(missing_ok=True)  # of a run that was killed while it wrote
    try:
        os.link(file.resolve(), place)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(file, place)


def _write_index(source: Checkpoint, replaced: dict[str, Tensor], output: Path) -> None:
    if not (source.folder / INDEX).exists():
        return
    index = json.loads((source.folder / INDEX).read_text())
    for name, tensor in replaced.items():
        old = source.tensor(name).nbytes
        if "total_size" in index.get("metadata", {}):
            index["metadata"]["total_size"] += tensor.nbytes - old
    (output / INDEX).write_text(json.dumps(index, indent=2) + "\n")
