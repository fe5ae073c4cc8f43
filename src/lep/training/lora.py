"""Low-rank adapters on the projections of a model's layers."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lep.checkpoint.adapter import Factors
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import save_tensors
from lep.errors import CheckpointError, LepError
from lep.settings import LoraSettings
from lep.training.processes import whole

MERGE_TOLERANCE = 1e-3  # share of the largest logit that float32 rounding may move


def projections(model: Any, checkpoint: Checkpoint, *, outer: bool = False) -> list[str]:
    """Names of the linear projections in the decoder's layers, or in the first and last alone.

    Raises `CheckpointError` where there is none.
    """
    inside = {id(module) for module in model.get_decoder().modules()}
    layers = {
        name: int(match[1])
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module) in inside
        and (match := re.search(r"\.(\d+)\.", name))
    }
    if not layers:
        raise CheckpointError(
            f"{checkpoint.folder} has no linear projections in its layers to put adapters on "
            f"({type(model).__name__}): train embeddings or new_rows"
        )
    ends = (min(layers.values()), max(layers.values()))
    return [name for name, layer in layers.items() if layer in ends or not outer]


def stored_weights(model: Any, checkpoint: Checkpoint, modules: Iterable[str]) -> dict[str, str]:
    """The name of each module's weight in the checkpoint, by the name of the module.

    Raises `CheckpointError` where a weight is not stored in the shape in which it is used.
    """
    stored, weights = checkpoint.architecture.stored_names(checkpoint.entries), {}
    for module in modules:
        names = stored.get(f"{module}.weight", [])
        shape = tuple(model.get_submodule(module).weight.shape)
        if len(names) != 1 or checkpoint.shape(names[0]) != shape:
            raise CheckpointError(
                f"{checkpoint.folder} does not store {module}.weight as it is used (stored: "
                f"{', '.join(names) or 'none'}): train embeddings or new_rows"
            )
        weights[module] = names[0]
    return weights


def add_adapter(
    model: Any, checkpoint: Checkpoint, rank: int, alpha: float, *, outer: bool = False
) -> dict[str, str]:
    """Put a float32 adapter on each of `projections`, which then trains alone.

    Returns the name of each adapted weight in the checkpoint, by the name of its module. Raises
    `CheckpointError` where there is nothing to adapt, or a weight is not stored as it is used.
    """
    names = stored_weights(model, checkpoint, projections(model, checkpoint, outer=outer))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names)), model)
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.requires_grad_().float()
    return names


def merge(model: Any, ids: Tensor) -> float:
    """Add every adapter to its weight; returns how far this moves the logits of `ids` (1, tokens).

    Raises `LepError` when that is more than rounding, as a share of the largest logit.
    """
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.merge()
        difference = (model(input_ids=ids).logits - expected).abs().max()
        error = (difference / expected.abs().max()).item()
    if not error <= MERGE_TOLERANCE:  # NaN too
        raise LepError(
            f"the merged model's logits differ from the adapter's by {error:.1e} of the largest one"
        )
    return error


@torch.no_grad()
def adapter_factors(model: nn.Module, names: dict[str, str]) -> Factors:
    """The two factors of what the adapter adds to each weight, by its name in the checkpoint."""
    factors = {}
    for module, name in names.items():
        layer: Any = model.get_submodule(module)
        (key,) = layer.active_adapters
        left = whole(layer.lora_B[key].weight).float().cpu() * layer.scaling[key]
        factors[name] = (left, whole(layer.lora_A[key].weight).float().cpu())
    return factors


def save_adapter(model: Any, names: Iterable[str], settings: LoraSettings, folder: Path) -> None:
    """Write the adapter on the modules `names` in peft's format."""
    folder.mkdir(exist_ok=True)
    state = {name: t for name, t in get_peft_model_state_dict(model).items() if "lora_" in name}
    factors = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in state.items()}
    save_tensors(folder / "adapter_model.safetensors", factors, {"format": "pt"})
    shape = {"r": settings.rank, "lora_alpha": settings.alpha, "target_modules": list(names)}
    config = LoraConfig(**shape, task_type="CAUSAL_LM", inference_mode=True)
    config.save_pretrained(str(folder))
