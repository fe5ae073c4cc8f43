"""What training added to a model's body, as low-rank factors that any sibling of the model can take."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import DTYPES, Rows
from lep.errors import CheckpointError

ADAPTER = Path("lep") / "adapter.safetensors"
UNMERGED = (
    "adapter"  # in a model's folder: its body's adapter in peft's format, where it is not merged
)

BODY_SAMPLE = 4_096  # elements of each tensor, by which a body that was trained is known

Factors = dict[
    str, tuple[Tensor, Tensor]
]  # {name of a weight: (out, rank) and (rank, in)}, the scale is in the first


def save_factors(factors: Factors, folder: Path) -> None:
    """Write them into the `lep/` of a model folder."""
    left = {f"{name}.B": pair[0].contiguous() for name, pair in factors.items()}
    right = {f"{name}.A": pair[1].contiguous() for name, pair in factors.items()}
    save_file(left | right, folder / ADAPTER)


def saved_factors(folder: Path) -> Factors:
    """What `save_factors` wrote; nothing where there is nothing."""
    if not (folder / ADAPTER).exists():
        return {}
    try:
        tensors = load_file(folder / ADAPTER)
        names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        return {name: (tensors[f"{name}.B"], tensors[f"{name}.A"]) for name in names}
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{folder / ADAPTER} is damaged ({error}): train the model again"
        ) from error


def check_merged(model: Checkpoint) -> Checkpoint:
    """Raise `CheckpointError` for a model whose body has an adapter beside it, which would be lost; else return it."""
    if (model.folder / UNMERGED / "adapter_config.json").exists():
        raise CheckpointError(
            f"{model.folder} has an adapter beside its weights ({UNMERGED}), which would be lost: tune it without "
            "--no-merge, or merge the adapter with peft first"
        )
    return model


def check_body(base: Checkpoint, adapted: Checkpoint) -> None:
    """Raise `CheckpointError` when the body of an adapted model is another than its base's, but for saved factors.

    What was trained with another body does not fit the one that it would be carried into. A sample of each tensor is
    compared, unless both are one file.
    """
    tables = base.tables
    changed = {*tables.names, *tables.aliases, *tables.others, *saved_factors(adapted.folder)}
    for name in sorted((set(base.entries) & set(adapted.entries)) - changed):
        files = [model.folder / model.shard_of[name] for model in (base, adapted)]
        if not files[0].samefile(files[1]):
            ours, theirs = (
                model.tensor(name).reshape(-1)[:BODY_SAMPLE] for model in (base, adapted)
            )
            if not torch.equal(ours.to(theirs.dtype), theirs):
                raise CheckpointError(
                    f"{name} in {adapted.folder} is not that of {base.folder}: embeddings trained with another body do "
                    "not fit; train with lep pretrain, or give the base that it was trained from"
                )


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
