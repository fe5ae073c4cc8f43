"""`VocabularyMapping` (M): which source rows make up each target row, and with which weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

# Of widened copies in float32. glibc reuses freed blocks below 32 MiB; larger ones are mapped anew,
# which costs more than the work on them (docs/log.md).
CHUNK_BYTES = 1 << 24
MAPPING_PARTS = ("indices", "offsets", "weights", "copies")


def rows_at_once(hidden: int) -> int:
    """How many rows of this size are widened at once."""
    return max(1, CHUNK_BYTES // (4 * hidden))


def row_chunks(table: Tensor) -> tuple[Tensor, ...]:
    """A (V, h) table in pieces that are small enough to be widened."""
    return table.split(rows_at_once(table.shape[1]))


@dataclass(frozen=True)
class VocabularyMapping:
    """A sparse (target rows, source rows) matrix M; `mapping(E)` is the target's table `M E`.

    Row t has the weights `weights[offsets[t]:offsets[t + 1]]` on the source rows `indices[...]` of
    that range. This is the paper's `T` (eq. 1-2), where row t is 1/K on the K source tokens that
    spell target token t.

    >>> m = VocabularyMapping.from_rows([[0], [0, 1]], source_size=2)
    >>> m(torch.tensor([[1.0], [3.0]])).tolist()
    [[1.0], [2.0]]
    """

    indices: Tensor  # (nonzero,) int64, source row of each entry
    offsets: Tensor  # (target rows + 1,) int64, where each target row begins
    weights: Tensor  # (nonzero,) float64
    copies: Tensor  # (target rows,) bool, whether the row copies the same token's source row
    source_size: int

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Sequence[int]],
        source_size: int,
        weights: Sequence[Sequence[float]] | None = None,
        copies: Sequence[bool] | None = None,
    ) -> "VocabularyMapping":
        """Build from the source rows of each target row.

        By default weights are 1/K, and target rows with one source row are copies.
        """
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        if weights is None:
            weights = [[1.0 / len(row)] * len(row) for row in rows]
        return cls(
            indices=torch.tensor([i for row in rows for i in row], dtype=torch.int64),
            offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
            weights=torch.tensor([w for row in weights for w in row], dtype=torch.float64),
            copies=lengths == 1 if copies is None else torch.tensor(copies, dtype=torch.bool),
            source_size=source_size,
        )

    @property
    def target_size(self) -> int:
        """Number of target rows."""
        return len(self.offsets) - 1

    def __call__(self, table: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """`M table`: (source rows, h) to (target rows, h) in `dtype` (default: that of `table`).

        Sums run in float32 or better. A row that copies one source row is copied bit for bit.
        """
        if len(table) != self.source_size:
            raise ValueError(
                f"the table has {len(table)} rows, the mapping expects {self.source_size}"
            )
        target, source = self.kept()
        copied = table[source].to(dtype or table.dtype)  # a sum would turn -0 into 0
        if len(target) == self.target_size:
            return copied
        result = torch.empty(self.target_size, table.shape[1], dtype=copied.dtype)
        result[target] = copied
        del copied
        wide = torch.promote_types(result.dtype, torch.float32)
        target = self.new_rows()
        mixed = self.select(target)
        for start, stop in mixed._spans(rows_at_once(table.shape[1])):
            entries = slice(int(mixed.offsets[start]), int(mixed.offsets[stop]))
            rows = table[mixed.indices[entries]].to(wide)
            result[target[start:stop]] = embedding_bag(
                torch.arange(len(rows)),
                rows,
                mixed.offsets[start : stop + 1] - mixed.offsets[start],
                mode="sum",
                include_last_offset=True,
                per_sample_weights=mixed.weights[entries].to(wide),
            ).to(result.dtype)
        return result

    def _spans(self, limit: int) -> Iterator[tuple[int, int]]:
        """Ranges of target rows with at most `limit` entries (or one row)."""
        start = 0
        while start < self.target_size:
            end = self.offsets[start] + limit
            full = int(torch.searchsorted(self.offsets, end, right=True)) - 1
            stop = min(max(full, start + 1), self.target_size)
            yield start, stop
            start = stop

    def select(self, rows: Tensor) -> "VocabularyMapping":
        """The mapping of some target rows only, (n,) int64, in their order."""
        lengths = self.offsets.diff()[rows]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        moved = (offsets[:-1] - self.offsets[rows]).repeat_interleave(lengths)
        entries = torch.arange(int(offsets[-1])) - moved
        parts = (self.indices[entries], offsets, self.weights[entries], self.copies[rows])
        return VocabularyMapping(*parts, self.source_size)

    def chunks(self, hidden: int) -> Iterator["VocabularyMapping"]:
        """The mapping in pieces small enough to widen rows of this size."""
        for rows in torch.arange(self.target_size).split(rows_at_once(hidden)):
            yield self.select(rows)

    def with_copies(self, rows: Mapping[int, int], source_size: int) -> "VocabularyMapping":
        """The mapping with copies in its `rows`, {target: source}, of a table of `source_size`.

        Rows beyond the last are appended, without gaps. Copies of source rows that the table lacks
        stay, so that the source size is the larger one.
        """
        copies = VocabularyMapping.from_rows([[row] for row in rows.values()], source_size)
        every = {name: (getattr(self, name), getattr(copies, name)) for name in MAPPING_PARTS}
        every["offsets"] = (self.offsets, copies.offsets[1:] + self.offsets[-1])
        parts = {name: torch.cat(pair) for name, pair in every.items()}
        order = torch.arange(max([self.target_size, *(row + 1 for row in rows)]))
        order[[*rows]] = self.target_size + torch.arange(len(rows))
        sizes = (self.source_size, source_size)
        return VocabularyMapping(**parts, source_size=max(sizes)).select(order)

    def kept(self) -> tuple[Tensor, Tensor]:
        """Target rows that are copies, and their source rows: two (n,) int64 tensors."""
        return self.copies.nonzero().flatten(), self.indices[self.offsets[:-1][self.copies]]

    def new_rows(self) -> Tensor:
        """Target rows that are mixtures: tokens that the source vocabulary lacks, (n,) int64."""
        return (~self.copies).nonzero().flatten()

    def scaled(self, rows: Tensor, factors: Tensor) -> "VocabularyMapping":
        """The mapping with some target rows, (n,) int64, multiplied by factors, (n,) float64."""
        scale = torch.ones(self.target_size, dtype=torch.float64)
        scale[rows] = factors
        return replace(self, weights=self.weights * scale.repeat_interleave(self.offsets.diff()))

    def halves(self) -> Tensor:
        """(target rows,) int64: 0 if all source rows are even numbers, 1 if odd, otherwise 2."""
        counts = torch.cat([torch.zeros(1, dtype=torch.int64), (self.indices % 2).cumsum(0)])
        odd = counts[self.offsets].diff()
        return torch.where(odd == 0, 0, torch.where(odd == self.offsets.diff(), 1, 2))

    def source_weights(self, rows: Tensor, weights: Tensor) -> Tensor:
        """`M'w`, (V_source,) float64: weights of source rows, from those (n,) of target rows."""
        part = self.select(rows)
        entries = part.weights * weights.double().repeat_interleave(part.offsets.diff())
        total = torch.zeros(self.source_size, dtype=torch.float64)
        return total.index_add_(0, part.indices, entries)

    def check(self) -> "VocabularyMapping":
        """Return the mapping. Raises `ValueError` unless its parts fit together and its tables."""
        types = [
            (self.indices, torch.int64),
            (self.offsets, torch.int64),
            (self.weights, torch.float64),
            (self.copies, torch.bool),
        ]
        if any(part.dim() != 1 or part.dtype != dtype for part, dtype in types):
            raise ValueError("a part of the mapping has another type or shape")
        if len(self.offsets) != len(self.copies) + 1 or len(self.indices) != len(self.weights):
            raise ValueError("the parts of the mapping differ in length")
        ends = (int(self.offsets[0]), int(self.offsets[-1]))
        if ends != (0, len(self.indices)) or (self.offsets.diff() < 0).any():
            raise ValueError(
                f"the rows of the mapping do not end at its {len(self.indices):,} entries"
            )
        if (self.offsets.diff()[self.copies] != 1).any():
            raise ValueError("a copy in the mapping does not have one source row")
        if ((self.indices < 0) | (self.indices >= self.source_size)).any():
            raise ValueError(f"a row of the mapping lies beyond {self.source_size:,}")
        return self

    def equal(self, other: "VocabularyMapping") -> bool:
        """Whether the two are the same, entry by entry."""
        return self.source_size == other.source_size and all(
            torch.equal(getattr(self, name), getattr(other, name)) for name in MAPPING_PARTS
        )

    def main_source(self) -> Tensor:
        """(target rows,) int64: the source row with the largest weight, the first of equal ones."""
        row = torch.arange(self.target_size).repeat_interleave(self.offsets.diff())
        top = torch.full((self.target_size,), -torch.inf, dtype=torch.float64)
        best = self.weights == top.scatter_reduce(0, row, self.weights, "amax")[row]
        entry = torch.full((self.target_size,), len(self.weights))
        return self.indices[entry.scatter_reduce(0, row[best], best.nonzero().flatten(), "amin")]

    def tensors(self) -> dict[str, Tensor]:
        """The parts by name, as files hold them and `from_tensors` takes them."""
        parts = {name: getattr(self, name) for name in MAPPING_PARTS}
        return parts | {"source_size": torch.tensor([self.source_size])}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "VocabularyMapping":
        """The mapping with these parts. Raises `KeyError` or `ValueError` unless they are one."""
        parts = {name: tensors[name] for name in MAPPING_PARTS}
        return cls(**parts, source_size=int(tensors["source_size"])).check()
