"""What training added to a model's body, as low-rank factors that any sibling of the model can take."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import DTYPES, Rows
from lep.errors import CheckpointError

ADAPTER = Path("lep") / "adapter.safetensors"
UNMERGED = "adapter"  # in a model's folder: its body's adapter in peft's format, where it is not merged

Factors = dict[str, tuple[Tensor, Tensor]]  # {name of a weight: (out, rank) and (rank, in)}, the scale is in the first


def save_factors(factors: Factors, folder: Path) -> None:
    """Write them into the `lep/` of a model folder."""
    left = {f"{name}.B": pair[0].contiguous() for name, pair in factors.items()}
    right = {f"{name}.A": pair[1].contiguous() for name, pair in factors.items()}
    save_file(left | right, folder / ADAPTER)


def saved_factors(folder: Path) -> Factors:
    """What `save_factors` wrote; nothing where there is nothing."""
    if not (folder / ADAPTER).exists():
        return {}
    tensors = load_file(folder / ADAPTER)
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    return {name: (tensors[f"{name}.B"], tensors[f"{name}.A"]) for name in names}


def joined(first: Factors, second: Factors) -> Factors:
    """Factors of the sum of two: what one training added, and what another one added after it.

    >>> one, two = torch.ones(2, 1), torch.ones(1, 3)
    >>> left, right = joined({"w": (one, two)}, {"w": (one, 2 * two)})["w"]
    >>> (left @ right).tolist()
    [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """
    found = dict(first)
    for name, (left, right) in second.items():
        if name in found:
            left, right = torch.cat([found[name][0], left], 1), torch.cat([found[name][1], right])
        found[name] = (left, right)
    return found


def added(model: Checkpoint, factors: Factors) -> dict[str, Rows]:
    """`W + B A` for each weight, made in float32 when it is written.

    Raises `CheckpointError` where the model lacks a weight or has it in another shape.
    """
    return {name: _sum(model, name, *pair) for name, pair in factors.items()}


def _sum(model: Checkpoint, name: str, left: Tensor, right: Tensor) -> Rows:
    shape = (len(left), right.shape[1])
    if name not in model.entries or model.shape(name) != shape:
        found = f"has it as {list(model.shape(name))}" if name in model.entries else "has none"
        raise CheckpointError(
            f"an adapter was trained for {name} of shape {list(shape)}, and {model.folder} {found}: give a model of "
            "the same family and size"
        )

    def made() -> Iterator[Tensor]:
        weight = model.tensor(name)
        yield (weight.float() + left @ right).to(weight.dtype)

    return Rows(shape, DTYPES[model.entries[name].dtype], made)
