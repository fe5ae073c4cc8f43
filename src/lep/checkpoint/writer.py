"""Write a checkpoint that differs from another one in some tensors only."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from lep.checkpoint.reader import INDEX, Checkpoint
from lep.checkpoint.stream import NAMES, Rows, read_header, rewrite
from lep.errors import CheckpointError
from lep.publish import KEY_FILE, check_space

# Carried along: settings, licences, code (never run here). Tokenizer files are the caller's to write.
CARRIED_PATTERNS = ("*.json", "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*")
NOT_CARRIED = ("config.json", "*.index.json", "*token*.json", "vocab.json", "tekken.json", KEY_FILE)


def write_checkpoint(
    source: Checkpoint,
    replaced: Mapping[str, Tensor | Rows],
    output: Path,
    config: dict[str, Any] | None = None,
) -> None:
    """Write `source` with some tensors replaced into the folder `output`, shard by shard.

    A shard without a replaced tensor is hard-linked (copied from another disk); the others are rewritten as a
    stream, so that memory holds what the caller holds and one chunk. The settings beside the weights are carried
    as they are, but for the entries of `config`. The tokenizer is the caller's to write.

    Raises `CheckpointError` for a replaced tensor the source lacks, `OutputError` for a disk too small.
    """
    if source.tables.input in replaced:
        replaced = {
            **replaced,
            **dict.fromkeys(source.tables.aliases, replaced[source.tables.input]),
        }
    unknown = sorted(set(replaced) - set(source.shard_of))
    if unknown:
        raise CheckpointError(f"{source.folder} has no tensor {unknown[0]} to replace")
    rewritten = {source.shard_of[name] for name in replaced}
    check_space(output, _needed_bytes(source, replaced, rewritten, output))
    output.mkdir(parents=True, exist_ok=True)
    for shard in sorted(set(source.shard_of.values())):
        # What a killed run left may be a link to the source itself: never written through.
        (output / shard).unlink(missing_ok=True)
        if shard in rewritten:
            inside = {
                name: tensor for name, tensor in replaced.items() if source.shard_of[name] == shard
            }
            rewrite(source.folder / shard, inside, output / shard)
        else:
            _link(source.folder / shard, output / shard)
        _verify(source, replaced, shard, output / shard)
    _write_index(source, replaced, output)
    for file in _carried(source.folder):
        shutil.copyfile(file, output / file.name)
    text = json.dumps(source.config | (config or {}), indent=2, ensure_ascii=False)
    (output / "config.json").write_text(text + "\n", encoding="utf-8")


def resized_config(
    config: dict[str, Any], rows: int, settings: Iterable[tuple[str, ...]] = (("vocab_size",),)
) -> dict[str, Any]:
    """The entries of a configuration that change when each of `settings` (a path of keys) says `rows`.

    >>> resized_config({"text_config": {"hidden_size": 8}, "tie": True}, 10, [("text_config", "vocab_size")])
    {'text_config': {'hidden_size': 8, 'vocab_size': 10}}
    """
    changed: dict[str, Any] = {}
    for first, *rest in settings:
        before = changed.get(first, config.get(first)) or {}
        changed[first] = before | resized_config(before, rows, [tuple(rest)]) if rest else rows
    return changed


def rewritten_bytes(source: Checkpoint, names: Iterable[str]) -> int:
    """Size of the shards that hold the named tensors."""
    return sum(
        (source.folder / shard).stat().st_size
        for shard in {source.shard_of[name] for name in names}
    )


def _carried(folder: Path) -> list[Path]:
    found = {
        file for pattern in CARRIED_PATTERNS for file in folder.glob(pattern) if file.is_file()
    }
    return sorted(file for file in found if not any(file.match(pattern) for pattern in NOT_CARRIED))


def _verify(
    source: Checkpoint, replaced: Mapping[str, Tensor | Rows], shard: str, written: Path
) -> None:
    """Read back the header, by safetensors itself: every name, type and shape must be the expected one."""
    expected = {
        name: (entry.dtype, entry.shape)
        for name, entry in read_header(source.folder / shard)[0].items()
    }
    expected |= {
        name: (NAMES[t.dtype], tuple(t.shape)) for name, t in replaced.items() if name in expected
    }
    with safe_open(written, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - the file is no dictionary
        found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    if found != expected:
        raise AssertionError(f"{written} does not hold what was written to it")


def _needed_bytes(
    source: Checkpoint, replaced: Mapping[str, Tensor | Rows], rewritten: set[str], output: Path
) -> int:
    place = output.absolute()
    while not place.exists():
        place = place.parent
    copied = source.folder.stat().st_dev != place.stat().st_dev
    shards = rewritten if not copied else set(source.shard_of.values())
    old = sum((source.folder / shard).stat().st_size for shard in shards)
    return old + sum(
        tensor.nbytes - source.entries[name].nbytes for name, tensor in replaced.items()
    )


def _link(file: Path, place: Path) -> None:
    try:
        os.link(file.resolve(), place)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(file, place)


def _write_index(source: Checkpoint, replaced: Mapping[str, Tensor | Rows], output: Path) -> None:
    if not (source.folder / INDEX).exists():
        return
    index = json.loads((source.folder / INDEX).read_text())
    if "total_size" in index.get("metadata", {}):
        index["metadata"]["total_size"] += sum(
            t.nbytes - source.entries[name].nbytes for name, t in replaced.items()
        )
    (output / INDEX).write_text(json.dumps(index, indent=2) + "\n")
