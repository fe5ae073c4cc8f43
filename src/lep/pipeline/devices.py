"""Devices that train: GPUs of a table, and the one that this process runs on."""

import re
import time
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from lep.errors import LepError
from lep.inference.models import device as torch_device
from lep.pipeline.shape import Shape
from lep.selection.candidates import free_memory

UTILISATION = 0.4  # of a device's peak that training of large models reaches
MEASURED_TOKENS, MEASURED_SECONDS = 1024, 0.3
HERE = "here"


@dataclass(frozen=True)
class Device:
    """A device's speed in training, its memory, and what is said of them."""

    name: str
    operations: float  # a second
    source: str  # of the operations
    memory_bytes: float  # as CUDA reports it; of a CPU what is free
    is_cpu: bool = False


def _gpu(name: str, flops: float, gibibytes: float) -> Device:
    """By the peak of its dense bf16 products; "80 GB" of a name are GiB, of which some are kept."""
    source = f"{UTILISATION:.0%} of its peak"
    return Device(f"one {name}", UTILISATION * flops, source, gibibytes * 2**30)


DEVICES = {
    "h200": _gpu("h200", 989e12, 139.8),
    "h100": _gpu("h100", 989e12, 79.1),
    "a100": _gpu("a100", 312e12, 79.1),
    "l40s": _gpu("l40s", 362e12, 44.4),
    "rtx4090": _gpu("rtx4090", 165e12, 23.6),
    "rtx3090": _gpu("rtx3090", 71e12, 23.6),
}


def named_device(name: str, shape: Shape, *, bf16: bool) -> Device:
    """A device of the table, or the one that this process runs on.

    Raises `LepError` for an unknown name.
    """
    if name == HERE:
        return this_device(shape, bf16=bf16)
    if name not in DEVICES:
        known = ", ".join([*DEVICES, HERE])
        raise LepError(f"--gpu is '{name}': the known ones are {known} (this device)")
    return DEVICES[name]


def this_device(shape: Shape, *, bf16: bool) -> Device:
    """The device of this process, for a model of this shape.

    A GPU of the table `DEVICES` is known by its name; elsewhere a product of the size and type of
    the model's is measured for a moment.
    """
    if torch_device().type == "cpu":
        speed, source = _measured(shape, bf16=bf16)
        return Device("this CPU", speed, source, free_memory(), is_cpu=True)
    name, memory = torch.cuda.get_device_name(), float(torch.cuda.mem_get_info()[1])
    if known := known_gpu(name):
        return replace(known, name=f"one {name}", memory_bytes=memory)
    speed, source = _measured(shape, bf16=bf16)
    return Device(f"one {name}", speed, source, memory)


def known_gpu(name: str) -> Device | None:
    """The device of the table that CUDA's name stands for: no laptop's, and no part of one.

    >>> [each and each.name for each in map(known_gpu, ("NVIDIA A100-SXM4-80GB", "RTX A1000"))]
    ['one a100', None]
    """
    words = re.findall(r"[a-z]*\d+[a-z]*|[a-z]+", name.lower())
    if {"laptop", "mig"} & {*words}:
        return None
    pairs = map("".join, pairwise(words))  # RTX 4090
    return next((DEVICES[word] for word in (*words, *pairs) if word in DEVICES), None)


def _measured(shape: Shape, *, bf16: bool) -> tuple[float, str]:
    """Operations a second that training reaches, by a product, and how they are known."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    sides = (MEASURED_TOKENS, shape.hidden), (shape.hidden, shape.inner)
    left, right = (torch.randn(side, dtype=dtype, device=torch_device()) for side in sides)
    products, started = -1, 0.0
    while products < 1 or time.perf_counter() - started < MEASURED_SECONDS:
        (left @ right).sum().item()  # waits for the device
        products += 1
        started = started if products else time.perf_counter()  # without the first one
    seconds = time.perf_counter() - started
    operations = 2 * MEASURED_TOKENS * shape.hidden * shape.inner * products
    return UTILISATION * operations / seconds, f"{UTILISATION:.0%} of a measured product"
