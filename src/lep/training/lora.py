"""Low-rank adapters on a frozen body that train beside the tables, and are merged in the end."""

import re
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from lep.checkpoint.adapter import Factors
from lep.training.processes import whole


def projections(model: nn.Module) -> list[tuple[str, int, str]]:
    """Name of the layer list, number of the layer and own name of each linear projection in the layers."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = [match for name in names if (match := re.search(r"(\w+)\.(\d+)\.(?:.*\.)?(\w+)$", name))]
    return [(match[1], int(match[2]), match[3]) for match in found]


def add_adapter(model: Any, rank: int, alpha: float) -> None:
    """Give every projection in the layers an adapter in float32 that trains; nothing else does afterwards."""
    targets = sorted({name for _, _, name in projections(model)})
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


@torch.no_grad()
def adapter_factors(model: nn.Module) -> Factors:
    """What the adapters add to each weight, by the name of the weight, as two factors whose product it is."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            (key,) = layer.active_adapters
            left = whole(layer.lora_B[key].weight).float().cpu() * layer.scaling[key]
            found[f"{name}.weight"] = (left, whole(layer.lora_A[key].weight).float().cpu())
    return found
