"""`Propagation`: fitted maps, applied to adapted rows.

`E' = E_adapted W + beta M R`, where `R = E_inst - E_base W` is what the instruct model has beyond
the map in the rows of its base. W and beta may differ between kept tokens and new ones.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lep.linear_map import FitReport, LinearMap
from lep.mapping import VocabularyMapping, rows_at_once


@dataclass(frozen=True)
class RowMap:
    """W of a group of rows, and beta: whether `M R` is added, with or without what was learned."""

    linear_map: LinearMap
    residual: bool = False
    learned: bool = True

    def __call__(
        self, adapted: Tensor, mapping: VocabularyMapping, base: Tensor, instruct: Tensor
    ) -> Tensor:
        """Adapted rows (n, h) to result rows (n, h) in their dtype; `mapping` has n target rows.

        With beta = 1 the formula is arranged as `M E_inst + (E_adapted - M E_base) W`: a kept row
        that training did not change becomes the instruct model's, bit for bit.
        """
        if not self.residual:
            return self.linear_map(adapted)
        chat = mapping(instruct, dtype=adapted.dtype)
        if not self.learned:
            return chat
        learned = self.linear_map.turn(adapted - mapping(base, dtype=adapted.dtype))
        return torch.where(learned == 0, chat, chat + learned)  # a sum would turn -0 into 0


@dataclass(frozen=True)
class Propagation:
    """The maps for the rows of kept and of new tokens in one table, and the report of the fit."""

    kept: RowMap
    new: RowMap
    report: FitReport

    @classmethod
    def uniform(cls, rows: RowMap, report: FitReport) -> "Propagation":
        """The same map for all rows."""
        return cls(rows, rows, report)

    def rows(
        self, adapted: Tensor, mapping: VocabularyMapping, base: Tensor, instruct: Tensor
    ) -> Iterator[Tensor]:
        """Chunks of the result in the order of `adapted` (V_target, h), in `instruct`'s dtype.

        `base` and `instruct` are (V_source, h). Chunks are computed in float32 for tables of 16
        bits, otherwise in float64.
        """
        wide = torch.float32 if instruct.itemsize < 4 else torch.float64
        for rows in torch.arange(len(adapted)).split(rows_at_once(adapted.shape[1])):
            trained, copies = adapted[rows[0] : rows[-1] + 1].to(wide), mapping.copies[rows]
            if self.kept is self.new:
                chunk = self.new(trained, mapping.select(rows), base, instruct)
                yield chunk.to(instruct.dtype, copy=chunk.dtype == instruct.dtype)
                continue
            chunk = torch.empty(len(rows), adapted.shape[1], dtype=instruct.dtype)
            for row_map, group in ((self.kept, copies), (self.new, ~copies)):
                if group.any():
                    part = mapping.select(rows[group])
                    chunk[group] = row_map(trained[group], part, base, instruct).to(chunk.dtype)
            yield chunk


def with_instruct_rows(
    chunks: Iterable[Tensor], instruct: Tensor, instruct_rows: dict[int, int], size: int
) -> Iterator[Tensor]:
    """Chunks of a table of `size` rows, with `{result row: instruct row}` taken from `instruct`.

    Rows beyond the chunks belong to tokens that only the instruct model has; those of no token are
    zero.
    """
    start = 0
    for chunk in itertools.chain(chunks, [None]):
        rows = instruct.new_zeros(size - start, instruct.shape[1]) if chunk is None else chunk
        stop = start + len(rows)
        inside = {r - start: source for r, source in instruct_rows.items() if start <= r < stop}
        rows[list(inside)] = instruct[list(inside.values())]
        start = stop
        if len(rows):
            yield rows
