"""Tensors out of pytorch_model.bin, in a process that can touch nothing else."""

import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lep.checkpoint.config import read_config
from lep.checkpoint.stream import NAMES, Rows
from lep.errors import CheckpointError, foreign
from lep.files import read_json
from lep.imports.weights import DTYPES, write_shards

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
HEAD = "lm_head.weight"


def convert(source: Path, output: Path, kind: str | None) -> int:
    """Write the tensors of a folder as safetensors; their number.

    Raises `CheckpointError` for files that hold anything but tensors.
    """
    tensors: dict[str, Tensor] = {}
    size = 0
    for path in pickled_files(source):
        size += path.stat().st_size
        tensors |= _loaded(path)
    if read_config(source).get("tie_word_embeddings") and HEAD in tensors:
        places = [tensor.data_ptr() for tensor in tensors.values()]
        if places.count(tensors[HEAD].data_ptr()) > 1:
            del tensors[HEAD]  # transformers makes it again
    total = sum(tensor.nbytes for tensor in tensors.values())
    if not tensors or total > 2 * size:  # a tied table may be there twice
        raise CheckpointError(
            f"the files of {source} have {size:,} bytes, and tensors of {total:,}: download the "
            "model again"
        )
    write_shards({name: _as(tensor, kind) for name, tensor in tensors.items()}, output)
    return len(tensors)


def pickled_files(folder: Path) -> list[Path]:
    """The files with the weights: a single one, as in transformers, else those of the index.

    Raises `CheckpointError` for names outside the folder and for missing files.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.exists():
        return [folder / SINGLE]
    names = read_json(index, CheckpointError).get("weight_map")
    values = list(names.values()) if isinstance(names, dict) else []
    for name in values or [None]:
        if not isinstance(name, str) or Path(name).name != name or name == "..":
            raise CheckpointError(f"{index} names {str(name)[:100]}, which is no file beside it")
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name}, which its index names: download again")
    return [folder / name for name in sorted(set(values))]


def _loaded(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; nothing else is unpickled."""
    advice = "take the model with safetensors, or download it again"
    with foreign(f"{path} holds more than tensors, or is damaged", advice, CheckpointError):
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
        if not isinstance(content, dict) or not content:
            raise ValueError("it is no table of tensors by name")
        for name, tensor in content.items():
            if type(tensor) not in (Tensor, torch.nn.Parameter) or type(name) is not str:
                raise ValueError(f"{str(name)[:100]} is a {type(tensor).__name__}")
            if tensor.layout != torch.strided or tensor.dtype not in NAMES:
                raise ValueError(f"{name[:100]} is a tensor of {tensor.dtype}, {tensor.layout}")
            if tensor.nbytes > tensor.untyped_storage().nbytes():
                raise ValueError(f"{name[:100]} repeats its numbers")
        return {name: tensor.detach() for name, tensor in content.items()}


def _as(tensor: Tensor, kind: str | None) -> Tensor | Rows:
    """The tensor itself, or its numbers in another type."""
    dtype = DTYPES[kind] if kind and tensor.is_floating_point() else tensor.dtype
    return Rows(tuple(tensor.shape), dtype, partial(_converted, tensor, dtype))


def _converted(tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    yield tensor.to(dtype).contiguous()
