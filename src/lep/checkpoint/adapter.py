"""What training added to a model's body, as low-rank factors that related models can take too."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import DTYPES, Rows, read_tensors, save_tensors
from lep.errors import CheckpointError, foreign

ADAPTER = Path("lep") / "adapter.safetensors"
UNMERGED = "adapter"  # folder of an adapter in peft's format that is not merged into the model
BODY_SAMPLE = 4_096  # elements of each tensor that tell one body from another

# (out, rank) and (rank, in) of each weight by its name; the scale is in the first.
Factors = dict[str, tuple[Tensor, Tensor]]


def save_factors(factors: Factors, folder: Path) -> None:
    """Write factors into the `lep/` of a model folder."""
    left = {f"{name}.B": pair[0].contiguous() for name, pair in factors.items()}
    right = {f"{name}.A": pair[1].contiguous() for name, pair in factors.items()}
    save_tensors(folder / ADAPTER, left | right)


def saved_factors(folder: Path) -> Factors:
    """The factors that `save_factors` wrote into a model folder, if any."""
    path = folder / ADAPTER
    if not path.exists():
        return {}
    tensors = read_tensors(path, "train the model again")
    with foreign(f"{path} is damaged", "train the model again", CheckpointError):
        names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        factors = {name: (tensors[f"{name}.B"], tensors[f"{name}.A"]) for name in names}
        for name, (left, right) in factors.items():
            if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
                raise ValueError(f"{name} has {list(left.shape)} times {list(right.shape)}")
        return factors


def has_unmerged(folder: Path) -> bool:
    """Whether an adapter in peft's format lies beside the weights in a model folder."""
    return (folder / UNMERGED / "adapter_config.json").exists()


def check_merged(model: Checkpoint) -> Checkpoint:
    """Return the model. Raises `CheckpointError` if an adapter lies beside its weights."""
    if has_unmerged(model.folder):
        raise CheckpointError(
            f"{model.folder} has an adapter beside its weights ({UNMERGED}), which would be lost: "
            "tune it without --no-merge, or merge the adapter with peft first"
        )
    return model


def check_body(base: Checkpoint, adapted: Checkpoint) -> None:
    """Raise `CheckpointError` when the bodies of two models differ in more than saved factors.

    Embeddings trained with one body do not fit another. The first elements of each tensor are
    compared, unless both models share the file.
    """
    tables = base.tables
    changed = {*tables.names, *tables.aliases, *tables.others, *saved_factors(adapted.folder)}
    shared = sorted((set(base.entries) & set(adapted.entries)) - changed)
    if not shared:
        raise CheckpointError(
            f"{adapted.folder} has none of the tensors of {base.folder} beside its tables, so it "
            "was not trained from that base: give the base of the training"
        )
    for name in shared:
        files = [model.folder / model.shard_of[name] for model in (base, adapted)]
        if files[0].samefile(files[1]):
            continue
        before, after = (m.tensor(name).reshape(-1)[:BODY_SAMPLE] for m in (base, adapted))
        if not torch.equal(before.to(after.dtype), after):
            raise CheckpointError(
                f"{name} in {adapted.folder} is not that of {base.folder}: embeddings trained with "
                "another body do not fit; train with lep pretrain, or give the base of the training"
            )


def joined(first: Factors, second: Factors) -> Factors:
    """Factors of the sum of two trainings, one after the other.

    >>> one, two = torch.ones(2, 1), torch.ones(1, 3)
    >>> left, right = joined({"w": (one, two)}, {"w": (one, 2 * two)})["w"]
    >>> (left @ right).tolist()
    [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """
    factors = first | second
    for name in first.keys() & second.keys():
        (left, right), (more_left, more_right) = first[name], second[name]
        factors[name] = (torch.cat([left, more_left], 1), torch.cat([right, more_right]))
    return factors


def added(model: Checkpoint, factors: Factors) -> dict[str, Rows]:
    """`W + B A` of each weight, computed in float32 while it is written.

    Raises `CheckpointError` where the model lacks a weight or has it in another shape.
    """
    sums = {}
    for name, (left, right) in factors.items():
        shape, entry = (len(left), right.shape[1]), model.entries.get(name)
        if entry is None or entry.shape != shape:
            trained = f"an adapter was trained for {name} of shape {list(shape)}"
            fact = f"{model.folder} has {f'it as {list(entry.shape)}' if entry else 'none'}"
            raise CheckpointError(f"{trained}, {fact}: give a model of the same family and size")
        sums[name] = Rows(shape, DTYPES[entry.dtype], partial(_sum, model, name, left, right))
    return sums


def _sum(model: Checkpoint, name: str, left: Tensor, right: Tensor) -> Iterator[Tensor]:
    weight = model.tensor(name)
    yield (weight.float() + left @ right).to(weight.dtype)
