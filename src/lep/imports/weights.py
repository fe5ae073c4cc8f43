"""Tensors of a GGUF file or a pickle, written as safetensors, one at a time."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lep.checkpoint.architecture import Architecture
from lep.checkpoint.config import read_config
from lep.checkpoint.reader import INDEX, SINGLE
from lep.checkpoint.stream import CHUNK_BYTES, Rows, save_tensors
from lep.errors import CheckpointError
from lep.files import write_json
from lep.imports.architectures import (
    FREQUENCIES,
    INSTEAD,
    config_of,
    kind_of,
    restored,
    slowed,
    target_name,
)
from lep.imports.gguf_file import GgufFile, Stored
from lep.publish import check_space

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
SHARD_BYTES = 5_000_000_000  # as large as the hub's files
Change = Callable[[np.ndarray], np.ndarray] | None


def unpack(file: GgufFile, output: Path, kind: str, ids: Mapping[str, Any]) -> dict[str, Any]:
    """Write configuration and weights of a GGUF file; the types of its tensors and parameters.

    `ids` are settings of config.json about tokens. Raises `CheckpointError` unless every tensor of
    the file is one of the model, and the other way round, with the same shape.
    """
    architecture = kind_of(file)
    config = config_of(file, architecture)
    if FREQUENCIES in file.tensors:
        stored = file.tensors[FREQUENCIES]
        config["rope_scaling"] = slowed(_whole(file.path, stored).reshape(-1), config)
    config |= {"dtype": str(DTYPES[kind]).removeprefix("torch."), **ids}
    write_json(output / "config.json", config, indent=2)
    shapes = Architecture.probe(output, read_config(output)).tensors
    tensors, dtype = {}, DTYPES[kind]
    for stored in file.tensors.values():
        if stored.name == FREQUENCIES:
            continue
        name = target_name(architecture, stored.name)
        if name is None or name not in shapes:
            raise CheckpointError(
                f"{file.path} has a tensor {stored.name[:100]} that {config['model_type']} in "
                f"transformers has no place for: {INSTEAD}"
            )
        if tuple(shapes[name].shape) != (shape := _shape(stored, len(shapes[name].shape))):
            raise CheckpointError(
                f"{stored.name} of {file.path} has the shape {list(shape)}, its settings say "
                f"{list(shapes[name].shape)}: {INSTEAD}"
            )
        change = restored(architecture, config, stored.name)
        chunks = partial(_chunks, file.path, replace(stored, shape=shape), change, dtype)
        tensors[name] = Rows(shape, dtype, chunks)
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    if missing := sorted(set(shapes) - set(tensors) - tied):
        raise CheckpointError(f"{file.path} lacks the tensor for {missing[0]}: {INSTEAD}")
    write_shards(tensors, output)
    sizes: Counter[str] = Counter()
    for stored in file.tensors.values():
        sizes[stored.type] += int(np.prod(stored.shape))
    return {
        "architecture": config["model_type"],
        "types": Counter(stored.type for stored in file.tensors.values()),
        "parameters": sizes,
    }


def write_shards(tensors: Mapping[str, Tensor | Rows], output: Path) -> None:
    """Write tensors in files of limited size, with an index if there are several."""
    shards: list[dict[str, Tensor | Rows]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    total = sum(tensor.nbytes for tensor in tensors.values())
    check_space(output, total)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    names = [SINGLE] if len(shards) == 1 else names
    for file, shard in zip(names, shards, strict=True):
        save_tensors(output / file, shard, {"format": "pt"})
    if shards[1:]:
        places = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(output / INDEX, index, indent=2)


def _shape(stored: Stored, axes: int) -> tuple[int, ...]:
    """The shape of a tensor with so many axes; the format may write a vector as a row."""
    shape = stored.shape
    while len(shape) > axes and shape[0] == 1:
        shape = shape[1:]
    return shape


def _chunks(path: Path, stored: Stored, change: Change, dtype: torch.dtype) -> Iterator[Tensor]:
    """A tensor as numbers of a type, in pieces of rows; whole where it is changed."""
    if change:
        yield torch.from_numpy(np.ascontiguousarray(change(_whole(path, stored)))).to(dtype)
        return
    step = max(1, CHUNK_BYTES // stored.row_bytes)
    for first in range(0, stored.rows, step):
        rows = _numbers(path, stored, first, min(first + step, stored.rows))
        yield torch.from_numpy(rows.reshape(stored.shape if stored.rows == 1 else rows.shape)).to(
            dtype
        )


def _whole(path: Path, stored: Stored) -> np.ndarray:
    return _numbers(path, stored, 0, stored.rows).reshape(stored.shape)


def _numbers(path: Path, stored: Stored, first: int, last: int) -> np.ndarray:
    """Some rows of a tensor, in float32.

    Raises `CheckpointError` for a number that is not finite.
    """
    from gguf import GGMLQuantizationType, dequantize

    with path.open("rb") as file:
        file.seek(stored.start + first * stored.row_bytes)
        content = file.read((last - first) * stored.row_bytes)
    data = np.frombuffer(content, np.uint8).reshape(last - first, -1)
    with np.errstate(all="ignore"):
        rows = np.array(dequantize(data, GGMLQuantizationType[stored.type]), np.float32)
        finite = np.isfinite(rows.sum()) or np.isfinite(rows).all()
    if not finite:
        raise CheckpointError(
            f"{stored.name} of {path} has numbers that are not finite: the file is damaged"
        )
    return rows
