"""Low-rank adapters on a frozen body that train beside the tables, and are merged in the end."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from lep.checkpoint.adapter import Factors
from lep.checkpoint.architecture import Architecture
from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError
from lep.training.processes import whole


def projections(model: Any, checkpoint: Checkpoint) -> dict[str, int]:
    """The layer of each linear projection in the decoder's layers, by the name of its module.

    Raises `CheckpointError` where there is none.
    """
    inside = {id(module) for module in model.get_decoder().modules()}
    found = {
        name: int(match[1])
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module) in inside
        and (match := re.search(r"\.(\d+)\.", name))
    }
    if not found:
        raise CheckpointError(
            f"{checkpoint.folder} has no linear projections in its layers that adapters could be put on "
            f"({type(model).__name__}): train embeddings or new_rows"
        )
    return found


def stored_weights(model: Any, checkpoint: Checkpoint, layers: Iterable[str]) -> dict[str, str]:
    """The name that the weight of each module has in the checkpoint, by the name of the module.

    Raises `CheckpointError` where a weight is not stored as it is.
    """
    stored = Architecture.probe(checkpoint.folder, checkpoint.config).stored_names(
        checkpoint.entries
    )
    names = {}
    for name in layers:
        found = stored.get(f"{name}.weight", [])
        if len(found) != 1 or checkpoint.shape(found[0]) != tuple(
            model.get_submodule(name).weight.shape
        ):
            raise CheckpointError(
                f"{checkpoint.folder} does not store {name}.weight as it is used (found: "
                f"{', '.join(found) or 'none'}): train embeddings or new_rows"
            )
        names[name] = found[0]
    return names


def add_adapter(model: Any, checkpoint: Checkpoint, rank: int, alpha: float) -> dict[str, str]:
    """Give every projection in the decoder's layers an adapter in float32 that trains; nothing else does afterwards.

    Returns the name that each adapted weight has in the checkpoint, by the name of its module. Raises `CheckpointError`
    where there is nothing to adapt, or a weight is not stored as it is.
    """
    names = stored_weights(model, checkpoint, projections(model, checkpoint))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names)), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return names


@torch.no_grad()
def adapter_factors(model: nn.Module, names: dict[str, str]) -> Factors:
    """What adapters add to each weight, by its name in the checkpoint, as two factors whose product it is."""
    found = {}
    for name, layer in model.named_modules():
        if name in names:
            assert isinstance(layer, LoraLayer)
            (key,) = layer.active_adapters
            left = whole(layer.lora_B[key].weight).float().cpu() * layer.scaling[key]
            found[names[name]] = (left, whole(layer.lora_A[key].weight).float().cpu())
    return found
