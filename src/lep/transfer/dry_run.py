"""What a propagation would read, write, link, hold and take, told from headers and measured rates."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import DTYPES
from lep.mapping import CHUNK_BYTES
from lep.propagation.methods import FLOAT32_PRODUCTS_FROM, ONE_FIT, UNFITTED
from lep.settings import PropagateSettings
from lep.transfer.family import Family

SQUARES = (
    14  # (h, h) float64 matrices alive at once in a fit: sums of two folds, their total, factors
)
CHUNKS = 6  # widened chunks of rows alive at once
GRAM_SHARE = 0.625  # of a Gram matrix that is computed (`lep.linear_map.GRAM_BLOCKS`)
# Solves and held-out residuals: the whole and one half; the whole, and both halves for each finite penalty.
FIT_SOLVES, RIDGE_SOLVES = (2, 1), (13, 12)
SOLVE_PRODUCTS, RESIDUAL_PRODUCTS = 1 / 3 + 2, 2  # operations, in cubes of the hidden size
PROBE_SIZE, PROBE_BYTES = 1_024, 1 << 28


@dataclass(frozen=True)
class PropagationPlan:
    """Bytes, operations and times of one propagation. Rates are measured on the spot."""

    tables: dict[str, tuple[int, int]]  # kind -> (rows of the result, hidden size)
    read_bytes: int  # tables of the three models
    written_bytes: int  # shards that hold tables, with the new ones
    copied_bytes: int  # of these, tensors that pass through unchanged
    linked_bytes: int  # shards that stay as they are
    memory_bytes: int
    fit_operations: float  # in the products' precision
    solve_operations: float  # in float64
    fit_rate: float  # operations a second
    solve_rate: float
    disk_rate: float  # bytes a second, read from the instruct model

    @property
    def seconds(self) -> float:
        """Floating-point work at the measured rates and bytes at the measured rate of the disk."""
        work = self.fit_operations / self.fit_rate + self.solve_operations / self.solve_rate
        return work + (self.read_bytes + self.copied_bytes + self.written_bytes) / self.disk_rate

    def __str__(self) -> str:
        shapes = ", ".join(
            f"{kind} {rows:,} x {hidden:,}" for kind, (rows, hidden) in self.tables.items()
        )
        sizes = {
            name: getattr(self, f"{name}_bytes") / 1e9
            for name in ("read", "written", "linked", "memory")
        }
        return (
            f"tables of the result: {shapes}\n"
            f"read {sizes['read']:.2f} GB of tables; write {sizes['written']:.2f} GB, of which "
            f"{self.copied_bytes / 1e9:.2f} GB pass through; link {sizes['linked']:.2f} GB\n"
            f"memory about {sizes['memory']:.1f} GB; about {self.seconds:.0f} s at the rates just measured here "
            f"({self.fit_rate / 1e9:.0f} and {self.solve_rate / 1e9:.0f} GFLOP/s in products and in solves, disk "
            f"{self.disk_rate / 1e9:.1f} GB/s)"
        )


def plan_propagation(family: Family, settings: PropagateSettings) -> PropagationPlan:
    """The plan of `lep.transfer.propagate.propagate` for these models and settings."""
    chat = family.instruct
    tables, read, memory, fit, solve = {}, 0, 0, 0.0, 0.0
    for kind in family.mappings:
        names = [
            (model, model.tables.by_kind()[kind]) for model in (family.base, chat, family.adapted)
        ]
        rows, hidden = family.mappings[kind].target_size, chat.shape(names[1][1])[1]
        sizes = [model.entries[name].nbytes for model, name in names]
        tables[kind] = (family.recipient.rows, hidden)
        read += sum(sizes)
        once = settings.of(kind) in ONE_FIT or settings.ridge is not None
        solves, residuals = (
            (0, 0) if settings.of(kind) in UNFITTED else FIT_SOLVES if once else RIDGE_SOLVES
        )
        fitted = rows if settings.of(kind) == "conversion" else family.mappings[kind].source_size
        fit += 2 * hidden**2 * (rows + fitted * (1 + GRAM_SHARE)) if solves else 0
        solve += (solves * SOLVE_PRODUCTS + residuals * RESIDUAL_PRODUCTS) * hidden**3
        working = SQUARES * 8 * hidden**2 + CHUNKS * CHUNK_BYTES
        memory = max(memory, sum(sizes) + working)
    names_of = chat.tables.by_kind()
    held = {
        names_of[kind]: rows * hidden * DTYPES[chat.entries[names_of[kind]].dtype].itemsize
        for kind, (rows, hidden) in tables.items()
    }
    touched = {chat.shard_of[name] for name in (*held, *chat.tables.others)}
    sizes_of = {
        shard: (chat.folder / shard).stat().st_size for shard in set(chat.shard_of.values())
    }
    copied = sum(sizes_of[shard] for shard in touched) - sum(
        chat.entries[name].nbytes for name in held
    )
    hidden = next(iter(tables.values()))[1]
    narrow = all(DTYPES[chat.entries[name].dtype].itemsize < 4 for name in held)
    products = torch.float32 if hidden >= FLOAT32_PRODUCTS_FROM and narrow else torch.float64
    return PropagationPlan(
        tables,
        read,
        copied + sum(held.values()),
        copied,
        sum(size for shard, size in sizes_of.items() if shard not in touched),
        memory,
        fit,
        solve,
        product_rate(products),
        product_rate(torch.float64),
        _disk_rate(chat),
    )


def product_rate(dtype: torch.dtype, size: int = PROBE_SIZE) -> float:
    """Operations a second of a product of (size, size) matrices: the median of five."""
    square = torch.ones(size, size, dtype=dtype)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        square @ square
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / sorted(seconds)[2]


def _disk_rate(checkpoint: Checkpoint) -> float:
    """Bytes a second of reading the checkpoint's largest shard, as far as a quarter of a gigabyte."""
    shard: Path = max(
        (checkpoint.folder / s for s in set(checkpoint.shard_of.values())),
        key=lambda p: p.stat().st_size,
    )
    started, total = time.perf_counter(), 0
    with shard.open("rb") as file:
        while total < PROBE_BYTES and (chunk := file.read(1 << 24)):
            total += len(chunk)
    return total / max(time.perf_counter() - started, math.ulp(1.0))
