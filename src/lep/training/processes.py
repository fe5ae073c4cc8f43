"""Training in several processes: which one writes, and how sharded parameters are seen whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from lep.publish import partial_path, publishing

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=7)  # while the first process packs and writes


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
        PartialState(cpu=not torch.cuda.is_available())
        _patient_group()


@cache
def _patient_group() -> Any:
    """All processes, to wait for each other. What they add in training has the usual timeout, so
    that one that is gone is noticed."""
    return torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)


def wait() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        torch.distributed.barrier(_patient_group())


def from_main(value: T) -> T:
    """What the main process gives for a value."""
    values = [value]
    if world_size() > 1:
        torch.distributed.broadcast_object_list(values, group=_patient_group())
    return values[0]


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before all others."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


@contextmanager
def publishing_once(output: Path, resume_key: str) -> Iterator[Path]:
    """`publishing` by the main process; the others get the same folder and publish nothing."""
    write = publishing(output, resume_key=resume_key)
    with write if is_main() else nullcontext(partial_path(output, resume_key)) as partial:
        wait()
        yield partial
        wait()


def add_in_float32(state: Any) -> None:
    """Let FSDP2 compute in bf16, but add gradients and return losses in float32.

    Accelerate's own policy rounds both.
    """
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is not None and plugin.fsdp_version == 2 and state.mixed_precision == "bf16":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32
        )


def whole(parameter: Tensor) -> Tensor:
    """All shards of a parameter as one tensor. Every process must call this."""
    tensor = parameter.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Shard a tensor of a parameter's shape as the parameter is sharded."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def reshard(model: nn.Module) -> None:
    """Free what a forward pass gathered and no backward pass followed."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def held_share(model: nn.Module) -> float:
    """The share of a model's weights that this process holds: below 1 where they are sharded."""
    parameters = list(model.parameters())
    return sum(local(p).numel() for p in parameters) / sum(p.numel() for p in parameters)
