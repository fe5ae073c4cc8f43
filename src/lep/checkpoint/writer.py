"""Write a checkpoint that differs from another one in some tensors only."""

import os
import shutil
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from lep.checkpoint.reader import INDEX, Checkpoint
from lep.checkpoint.stream import NAMES, Rows, read_header, rewrite
from lep.errors import CheckpointError
from lep.files import parse_json, read_json, read_text, write_json
from lep.progress import progress
from lep.publish import check_space, existing_parent

# Copied: settings, licences, code (never run here). The caller writes the tokenizer.
CARRIED = ("*.json", "*.py", "LICENSE*", "NOTICE*", "USE_POLICY*")
NOT_CARRIED = (
    *("config.json", "*.index.json", "*token*.json", "vocab.json", "tekken.json"),
    "lep_stage.json",  # the manifest of the stage that made the source
)
Replaced = Mapping[str, Tensor | Rows]


def write_checkpoint(
    source: Checkpoint, replaced: Replaced, output: Path, config: dict[str, Any] | None = None
) -> None:
    """Write `source` with some tensors replaced into the folder `output`, shard by shard.

    A shard without a replaced tensor is hard-linked (copied to another disk); others are rewritten
    as a stream, one chunk in memory. Settings beside the weights are copied, with the entries of
    `config` replaced in config.json. The caller writes the tokenizer.

    Raises `CheckpointError` for a tensor that the source lacks, `OutputError` for a full disk.
    """
    if (table := replaced.get(source.tables.input)) is not None:
        replaced = {**replaced, **dict.fromkeys(source.tables.aliases, table)}
    if unknown := sorted(set(replaced) - set(source.shard_of)):
        raise CheckpointError(f"{source.folder} has no tensor {unknown[0]} to replace")
    check_space(output, _needed_bytes(source, replaced, output))
    output.mkdir(parents=True, exist_ok=True)
    for shard in progress(sorted(set(source.shard_of.values())), "weight files written"):
        inside = {name: t for name, t in replaced.items() if source.shard_of[name] == shard}
        _write_shard(source.folder / shard, inside, output / shard)
    _write_index(source, replaced, output)
    for file in carried_files(source.folder):
        shutil.copyfile(file, output / file.name)
    write_json(output / "config.json", _unlocated(source.config | (config or {})), indent=2)


def _unlocated(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the paths from which it and its parts were loaded."""
    return {
        name: _unlocated(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name != "_name_or_path"
    }


def carried_settings(folder: Path) -> dict[Path, dict[str, Any]]:
    """The settings that are copied with the weights, by file: those of generation, for example.

    Raises `CheckpointError` for a file that is not JSON.
    """
    files = (file for file in carried_files(folder) if file.suffix == ".json")
    contents = {
        p: parse_json(read_text(p, CheckpointError), str(p), CheckpointError) for p in files
    }
    return {path: content for path, content in contents.items() if isinstance(content, dict)}


def carried_files(folder: Path) -> list[Path]:
    """The files beside weights, configuration and tokenizer that a result takes over."""
    files = (file for pattern in CARRIED for file in sorted(folder.glob(pattern)))
    return [file for file in files if file.is_file() and not any(map(file.match, NOT_CARRIED))]


def resized_config(
    config: dict[str, Any], rows: int, settings: Iterable[tuple[str, ...]] = (("vocab_size",),)
) -> dict[str, Any]:
    """The entries of a configuration that change when each of `settings` (key paths) says `rows`.

    >>> config = {"text_config": {"hidden_size": 8}, "tie": True}
    >>> resized_config(config, 10, [("text_config", "vocab_size")])
    {'text_config': {'hidden_size': 8, 'vocab_size': 10}}
    """
    changed: dict[str, Any] = {}
    for first, *rest in settings:
        before = changed.get(first, config.get(first)) or {}
        changed[first] = before | resized_config(before, rows, [tuple(rest)]) if rest else rows
    return changed


def rewritten_bytes(source: Checkpoint, names: Iterable[str]) -> int:
    """Size of the shards that hold the named tensors."""
    shards = {source.shard_of[name] for name in names}
    return sum((source.folder / shard).stat().st_size for shard in shards)


def _growth(source: Checkpoint, replaced: Replaced) -> int:
    return sum(t.nbytes - source.entries[name].nbytes for name, t in replaced.items())


def _more_numbers(source: Checkpoint, replaced: Replaced) -> int:
    changed = {name: t for name, t in replaced.items() if name not in source.tables.aliases}
    return sum(prod(t.shape) - prod(source.shape(name)) for name, t in changed.items())


def _needed_bytes(source: Checkpoint, replaced: Replaced, output: Path) -> int:
    linked = source.folder.stat().st_dev == existing_parent(output).stat().st_dev
    written = replaced if linked else source.shard_of
    return rewritten_bytes(source, written) + _growth(source, replaced)


def _write_shard(source: Path, replaced: Replaced, target: Path) -> None:
    """Rewrite or link one shard, and read its header back with safetensors."""
    target.unlink(missing_ok=True)  # a killed run may have left a link to the source itself
    if replaced:
        rewrite(source, replaced, target)
    else:
        _link(source, target)
    expected = {name: (e.dtype, e.shape) for name, e in read_header(source)[0].items()}
    expected |= {name: (NAMES[t.dtype], tuple(t.shape)) for name, t in replaced.items()}
    with safe_open(target, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
        written = {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    if written != expected:
        raise AssertionError(f"{target} does not hold what was written to it")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)


def _write_index(source: Checkpoint, replaced: Replaced, output: Path) -> None:
    if source.index:
        index = read_json(source.index, CheckpointError)
        metadata = index.get("metadata")
        for name, growth in (("total_size", _growth), ("total_parameters", _more_numbers)):
            if isinstance(metadata, dict) and isinstance(metadata.get(name), int):
                metadata[name] += growth(source, replaced)
        write_json(output / INDEX, index, indent=2)
