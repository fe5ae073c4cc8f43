"""What a propagation would read, write, link and hold in memory, from the headers alone."""

from dataclasses import dataclass
from pathlib import Path

from lep.checkpoint.stream import DTYPES
from lep.mapping import CHUNK_BYTES
from lep.result import Result
from lep.transfer.family import Family

SQUARES = 14  # (h, h) float64 matrices alive at once in a fit: sums of two folds, total, factors
CHUNKS = 6  # widened chunks of rows alive at once


@dataclass(frozen=True)
class DryRun(Result):
    """Bytes of one propagation."""

    tables: dict[str, tuple[int, int]]  # {input or output: (rows of the result, hidden size)}
    read_bytes: int  # tables of the three models
    written_bytes: int  # shards that hold tables, with the new ones
    copied_bytes: int  # of these, tensors that pass through unchanged
    linked_bytes: int  # shards that stay as they are
    memory_bytes: int

    def __str__(self) -> str:
        shapes = [f"{kind} {rows:,} x {hidden:,}" for kind, (rows, hidden) in self.tables.items()]
        names = ("read", "written", "copied", "linked", "memory")
        gb = {name: f"{getattr(self, f'{name}_bytes') / 1e9:.2f} GB" for name in names}
        return (
            f"tables of the result: {', '.join(shapes)}\n"
            f"read {gb['read']} of tables; write {gb['written']}, of which {gb['copied']} pass "
            f"through; link {gb['linked']}; memory about {gb['memory']}"
        )


def dry_run(base: str | Path, instruct: str | Path, adapted: str | Path) -> DryRun:
    """What `lep.transfer.propagate.propagate` would do with these models, by any method.

    Raises `CheckpointError` when the three models do not belong together.
    """
    family = Family.open(base, instruct, adapted)
    models, chat = (family.base, family.instruct, family.adapted), family.instruct
    names = chat.tables.by_kind()
    tables = {k: (family.recipient.rows, chat.shape(name)[1]) for k, name in names.items()}
    sizes = {k: [m.entries[m.tables.by_kind()[k]].nbytes for m in models] for k in names}
    item_bytes = {k: DTYPES[chat.entries[name].dtype].itemsize for k, name in names.items()}
    result_bytes = sum(rows * hidden * item_bytes[k] for k, (rows, hidden) in tables.items())
    fit_bytes = {k: SQUARES * 8 * h**2 + CHUNKS * CHUNK_BYTES for k, (_, h) in tables.items()}
    touched = {chat.shard_of[name] for name in (*names.values(), *chat.tables.others)}
    shards = {s: (chat.folder / s).stat().st_size for s in set(chat.shard_of.values())}
    copied = sum(shards[s] for s in touched)
    copied -= sum(chat.entries[name].nbytes for name in names.values())
    return DryRun(
        tables,
        read_bytes=sum(map(sum, sizes.values())),
        written_bytes=copied + result_bytes,
        copied_bytes=copied,
        linked_bytes=sum(size for shard, size in shards.items() if shard not in touched),
        memory_bytes=max(sum(sizes[kind]) + fit_bytes[kind] for kind in names),
    )
