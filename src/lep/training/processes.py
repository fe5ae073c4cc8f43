"""One of several processes: who writes, and how parameters that are shared out are seen whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from lep.publish import partial_folder, publishing


def world_size() -> int:
    """How many processes `torchrun` or `accelerate launch` started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def join() -> None:
    """Join the other processes; each reads the weights itself."""
    if world_size() > 1:
        from accelerate import PartialState

        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        # Others wait while the first one packs the corpus and writes the result, for which the default is too short.
        PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))


def wait() -> None:
    """Until all processes are here."""
    if world_size() > 1:
        torch.distributed.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the block before all others."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


@contextmanager
def publishing_once(output: Path, resume_key: str) -> Iterator[Path]:
    """`publishing` by the main process; the others get the same folder and write nothing that bears its name."""
    if not is_main():
        wait()
        yield partial_folder(output)
        wait()
        return
    with publishing(output, resume_key=resume_key) as partial:
        wait()
        yield partial
        wait()


def add_in_float32(state: Any) -> None:
    """Let FSDP2 compute in bf16 and add gradients in float32, and leave losses as they are: accelerate rounds both."""
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 2 and state.mixed_precision == "bf16":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )


def whole(parameter: Tensor) -> Tensor:
    """All of a parameter, wherever its parts are. Every process must ask."""
    found = parameter.detach()
    return found.full_tensor() if isinstance(found, DTensor) else found


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parted(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of a parameter's shape in the parts that the parameter is in."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements
    )


def share_out(model: nn.Module) -> None:
    """Give back what a forward pass without a backward pass has gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def held_share(model: nn.Module) -> float:
    """The share of a model's weights that this process holds: 1, or less where they are shared out."""
    held = total = 0
    for parameter in model.parameters():
        total += parameter.numel()
        held += local(parameter).numel()
    return held / total
