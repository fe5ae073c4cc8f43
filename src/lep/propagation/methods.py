"""Swap, overlap, conversion: one estimator that differs in the rows on which `W` is fitted.

All take the base and the instruct model's table in the source vocabulary, (V_source, h), the mapping M, and a
mask of the target rows that may be fitted on (special tokens may not: only the instruct model has trained them).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lep.linear_map import FitReport, LinearMap, LinearMapFitter
from lep.mapping import VocabularyMapping

ROWS_AT_ONCE = 16_384  # bounds the float64 copies: at a hidden size of 4,096 they take 0.5 GB each


@dataclass(frozen=True)
class TableFit:
    """The map of one table and its report."""

    linear_map: LinearMap
    report: FitReport

    @classmethod
    def identity(cls, hidden: int) -> "TableFit":
        """The map that moves nothing, fitted on nothing."""
        return cls(LinearMap.identity(hidden), FitReport(0, 0, 0.0, 0.0, 0.0, 0.0))


def swap(base: Tensor, instruct: Tensor, mapping: VocabularyMapping, fit_rows: Tensor) -> TableFit:
    """`W = I`: the adapted rows as they are. The report gives the residual of that on the rows of `conversion`."""
    shift = total = 0.0
    for source, target in _converted(base, instruct, mapping, fit_rows):
        shift += (target - source).square().sum().item()
        total += target.square().sum().item()
    residual = (shift / max(total, torch.finfo(torch.float64).tiny)) ** 0.5
    report = FitReport(int(fit_rows.sum()), 0, residual, residual, residual, 0.0)
    return TableFit(LinearMap.identity(base.shape[1]), report)


def overlap(base: Tensor, instruct: Tensor, mapping: VocabularyMapping, fit_rows: Tensor) -> TableFit:
    """`argmin_W ||E_base[C] W - E_inst[C]||` over the tokens C that both vocabularies have (eq. 8-11)."""
    target, source = mapping.kept()
    kept = source[fit_rows[target]]
    return _fit(((base[part], instruct[part]) for part in kept.split(ROWS_AT_ONCE)), base.shape[1])


def conversion(base: Tensor, instruct: Tensor, mapping: VocabularyMapping, fit_rows: Tensor) -> TableFit:
    """`argmin_W ||(M E_base) W - M E_inst||` in the target vocabulary (eq. 13-14). M must stay in the problem."""
    return _fit(_converted(base, instruct, mapping, fit_rows), base.shape[1])


def _converted(
    base: Tensor, instruct: Tensor, mapping: VocabularyMapping, fit_rows: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in fit_rows.nonzero().flatten().split(ROWS_AT_ONCE):
        part = mapping.select(rows)
        yield part(base, dtype=torch.float64), part(instruct, dtype=torch.float64)


def _fit(pairs: Iterator[tuple[Tensor, Tensor]], hidden: int) -> TableFit:
    fitter = LinearMapFitter(hidden)
    for source, target in pairs:
        fitter.update(source, target)
    return TableFit(*fitter.fit())


Method = Callable[[Tensor, Tensor, VocabularyMapping, Tensor], TableFit]
METHODS: dict[str, Method] = {"swap": swap, "overlap": overlap, "conversion": conversion}


def propagate_table(adapted: Tensor, fit: TableFit, instruct: Tensor, instruct_rows: dict[int, int]) -> Tensor:
    """`E' = E_adapted W`, then the rows that belong to the instruct model: `{result row: instruct row}`.

    `adapted` is (V_target, h). A result row beyond V_target (a token that only the instruct model has) is
    appended; such rows must follow V_target without a gap. The dtype is that of `instruct`.
    """
    rows = fit.linear_map(adapted).to(instruct.dtype)
    size = max([len(adapted), *(row + 1 for row in instruct_rows)])
    table = torch.empty(size, adapted.shape[1], dtype=instruct.dtype)
    table[: len(adapted)] = rows
    targets = torch.tensor(list(instruct_rows), dtype=torch.int64)
    table[targets] = instruct[torch.tensor(list(instruct_rows.values()), dtype=torch.int64)]
    return table
