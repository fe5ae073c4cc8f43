"""Methods of propagation: each fits W, and chooses beta for kept and new rows.

The paper's methods drop the residual (beta = 0) and differ in the rows on which W is fitted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lep.linear_map import FitReport, LinearMap, LinearMapFitter
from lep.mapping import VocabularyMapping, rows_at_once
from lep.propagation.apply import Propagation, RowMap

FLOAT32_PRODUCTS_FROM = 1_024  # hidden size of 16-bit tables: in smaller ones float64 costs nothing


@dataclass(frozen=True)
class Problem:
    """One table of a base and an instruct model, and the mapping to the adapted vocabulary."""

    base: Tensor  # (V_source, h)
    instruct: Tensor  # (V_source, h)
    mapping: VocabularyMapping
    # (V_target,) bool. Special tokens stay out: they are trained in the instruct model only.
    fit_rows: Tensor
    centred: bool = False  # for output tables: what a softmax does not see stays out of the fit
    weights: Tensor | None = None  # (V_target,) float64, for example the root of a token's count
    # Toward the identity, as a share of the mean eigenvalue. None: as the method chooses.
    penalty: float | None = None

    @property
    def hidden(self) -> int:
        return self.base.shape[1]

    @property
    def products(self) -> torch.dtype:
        """Precision of the matrix products."""
        large = self.hidden >= FLOAT32_PRODUCTS_FROM and self.base.itemsize < 4
        return torch.float32 if large else torch.float64

    def target_weights(self) -> Tensor:
        return torch.ones(len(self.fit_rows)) if self.weights is None else self.weights

    def fitter(self, pairs: "Pairs") -> LinearMapFitter:
        """A fitter that has seen all row pairs."""
        fitter = LinearMapFitter(
            self.hidden,
            centred=self.centred,
            rounding=torch.finfo(self.base.dtype).eps / 2,
            products=self.products,
        )
        for source, target, weights, half in pairs:
            fitter.update(source, target, weights, half)
        return fitter


def swap(problem: Problem) -> Propagation:
    """`W = I`: the adapted rows as they are. The report has its residual on `conversion`'s rows."""
    weight, rows, means = 0.0, 0, torch.zeros(2, problem.hidden, dtype=torch.float64)
    squares = torch.zeros(2, dtype=torch.float64)  # of the shift and of the target
    for source, target, weights, _ in _target_pairs(problem):
        each = torch.ones(len(source)) if weights is None else weights
        for side, table in enumerate(((target - source).double(), target.double())):
            means[side] += each.double() @ table
            squares[side] += each.double() @ table.square().sum(1)
        weight, rows = weight + each.sum().item(), rows + int((each > 0).sum())
    if problem.centred and weight:
        squares = (squares - means.square().sum(1) / weight).clamp_min(0)
    shift, total = squares.tolist()
    residual = (shift / max(total, torch.finfo(torch.float64).tiny)) ** 0.5
    report = FitReport(rows, 0, residual, residual, 0.0)
    return Propagation.uniform(RowMap(LinearMap.identity(problem.hidden)), report)


def overlap(problem: Problem) -> Propagation:
    """`argmin_W ||E_base[C] W - E_inst[C]||` over the tokens C of both vocabularies (eq. 8-11)."""
    linear_map, report = problem.fitter(_shared_pairs(problem)).fit(problem.penalty or 0.0)
    return Propagation.uniform(RowMap(linear_map), report)


def conversion(problem: Problem) -> Propagation:
    """`argmin_W ||(M E_base) W - M E_inst||` in the target vocabulary (eq. 13-14)."""
    linear_map, report = problem.fitter(_target_pairs(problem)).fit(problem.penalty or 0.0)
    return Propagation.uniform(RowMap(linear_map), report)


def ridge(problem: Problem) -> Propagation:
    """Least squares drawn toward the identity, with the penalty that is best on held-out rows."""
    fitter = problem.fitter(_source_pairs(problem))
    penalty = problem.penalty
    linear_map, report = fitter.fit_ridge() if penalty is None else fitter.fit(penalty)
    return Propagation.uniform(RowMap(linear_map), report)


def procrustes(problem: Problem) -> Propagation:
    """The best rotation with one scale, which keeps the angles between rows (Schoenemann 1966)."""
    linear_map, report = problem.fitter(_source_pairs(problem)).fit_procrustes()
    return Propagation.uniform(RowMap(linear_map), report)


def task_arithmetic(problem: Problem) -> Propagation:
    """`W = I, beta = 1`: adds what the instruct model changed in a row or its pieces."""
    identity = LinearMap.identity(problem.hidden)
    return Propagation.uniform(RowMap(identity, residual=True), swap(problem).report)


def exact(problem: Problem) -> Propagation:
    """Kept rows: `E_inst + (E_adapted - E_base)`; new rows: as `ridge`."""
    kept = RowMap(LinearMap.identity(problem.hidden), residual=True)
    return replace(ridge(problem), kept=kept)


def residual(problem: Problem) -> Propagation:
    """As `exact`, but new rows keep the residual of their pieces (beta = 1)."""
    propagation = exact(problem)
    return replace(propagation, new=replace(propagation.new, residual=True))


def new_rows(problem: Problem) -> Propagation:
    """Kept rows: the instruct model's; new rows: as `task_arithmetic`."""
    propagation = task_arithmetic(problem)
    return replace(propagation, kept=replace(propagation.kept, learned=False))


METHODS: dict[str, Callable[[Problem], Propagation]] = {
    "swap": swap,
    "overlap": overlap,
    "conversion": conversion,
    "ridge": ridge,
    "procrustes": procrustes,
    "task-arithmetic": task_arithmetic,
    "exact": exact,
    "residual": residual,
    "new-rows": new_rows,
}
UNFITTED = ("swap", "task-arithmetic", "new-rows")  # methods that fit no map
UNPENALISED = (*UNFITTED, "procrustes")  # methods whose map has no penalty


def propagate_rows(
    base: Tensor,
    instruct: Tensor,
    adapted: Tensor,
    mapping: VocabularyMapping,
    *,
    method: str = "conversion",
    **options: Any,
) -> Tensor:
    """Carry adapted rows (V_target, h) into the instruct model by a method of `METHODS`.

    `base` and `instruct` are (V_source, h), the result is (V_target, h) in the dtype of `instruct`.
    `options` are further fields of `Problem`; without `fit_rows` the map is fitted on all rows.

    Raises `ValueError` for an unknown method and for shapes that do not belong together.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}': the methods are {', '.join(METHODS)}")
    if base.shape != instruct.shape or adapted.shape != (mapping.target_size, base.shape[1]):
        shapes = [tuple(table.shape) for table in (base, instruct, adapted)]
        raise ValueError(
            f"base, instruct and adapted have the shapes {shapes}, and the mapping leads from "
            f"{mapping.source_size} to {mapping.target_size} rows"
        )
    fit_rows = options.pop("fit_rows", torch.ones(mapping.target_size, dtype=torch.bool))
    propagation = METHODS[method](Problem(base, instruct, mapping, fit_rows, **options))
    return torch.cat(list(propagation.rows(adapted, mapping, base, instruct)))


# A, B, weights and half, as `LinearMapFitter.update` takes them
Pairs = Iterator[tuple[Tensor, Tensor, Tensor | None, int]]


def _target_pairs(problem: Problem) -> Pairs:
    """Rows of the target vocabulary. A mixture is held out only where all its pieces are."""
    rows, wide = problem.fit_rows.nonzero().flatten(), problem.products
    for half, chunk in _chunks(problem.mapping.select(rows).halves(), problem.hidden):
        part = problem.mapping.select(rows[chunk])
        weights = None if problem.weights is None else problem.weights[rows[chunk]]
        yield part(problem.base, dtype=wide), part(problem.instruct, dtype=wide), weights, half


def _shared_pairs(problem: Problem) -> Pairs:
    """Rows of the tokens that both vocabularies have."""
    target, source = problem.mapping.kept()
    fitted = problem.fit_rows[target]
    weights = None if problem.weights is None else problem.weights[target[fitted]]
    return _pairs(problem, source[fitted], weights)


def _source_pairs(problem: Problem) -> Pairs:
    """Source rows, each once, weighted by its share in the target rows."""
    rows = problem.fit_rows.nonzero().flatten()
    weights = problem.mapping.source_weights(rows, problem.target_weights()[rows])
    used = (weights > 0).nonzero().flatten()
    return _pairs(problem, used, weights[used])


def _pairs(problem: Problem, rows: Tensor, weights: Tensor | None) -> Pairs:
    for half, part in _chunks(torch.arange(len(rows)) % 2, problem.hidden):
        chunk_weights = None if weights is None else weights[part]
        yield problem.base[rows[part]], problem.instruct[rows[part]], chunk_weights, half


def _chunks(halves: Tensor, hidden: int) -> Iterator[tuple[int, Tensor]]:
    """(half, its rows), in chunks as large as are widened at once."""
    for half in halves.unique().tolist():
        for chunk in (halves == half).nonzero().flatten().split(rows_at_once(hidden)):
            yield half, chunk
