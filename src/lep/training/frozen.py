"""Prove that what is frozen stays frozen."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lep.training.processes import whole


def digest(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """SHA-256 of the bytes of each tensor, by name."""
    return {
        name: hashlib.sha256(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in named
    }


def frozen_digest(model: nn.Module) -> dict[str, str]:
    """The digests of all parameters that do not train."""
    return digest((name, whole(p)) for name, p in model.named_parameters() if not p.requires_grad)


def check_frozen(before: dict[str, str], model: nn.Module) -> None:
    """Raise `AssertionError` that names the first frozen parameter whose bytes changed."""
    after = frozen_digest(model)
    for name, value in before.items():
        if after.get(name) != value:
            raise AssertionError(f"the frozen tensor {name} changed during training")
