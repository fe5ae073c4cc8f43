"""How adapted rows become the instruct model's: `E' = E_adapted W + beta M R`, with W and beta for kept and new rows.

R, what the instruct model has beyond the map in the rows of its base, is `E_inst - E_base W`. The paper's methods
drop it (beta = 0) and differ in the rows on which W is fitted. With beta = 1 a row is what the instruct model has,
`M E_inst`, and what was learned, `(E_adapted - M E_base) W`.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lep.linear_map import FitReport, LinearMap, LinearMapFitter
from lep.mapping import VocabularyMapping, rows_at_once

FLOAT32_PRODUCTS_FROM = 1_024  # hidden size, for tables of 16 bits: below it, float64 costs nothing


@dataclass(frozen=True)
class Problem:
    """One table of a base and an instruct model, and the mapping to the adapted vocabulary."""

    base: Tensor  # (V_source, h)
    instruct: Tensor  # (V_source, h)
    mapping: VocabularyMapping
    fit_rows: Tensor  # (V_target,) bool: rows to fit on. Special tokens are trained in the instruct model only
    centred: bool = False  # for output tables: what a softmax does not see stays out of the fit
    weights: Tensor | None = (
        None  # (V_target,) float64: what each row counts in a fit, such as the root of its uses
    )
    penalty: float | None = (
        None  # toward the identity, as a share of the mean eigenvalue; None: the method's way
    )

    @property
    def products(self) -> torch.dtype:
        """In which sums of products are made."""
        large = self.base.shape[1] >= FLOAT32_PRODUCTS_FROM and self.base.itemsize < 4
        return torch.float32 if large else torch.float64

    def fitter(self) -> LinearMapFitter:
        rounding = torch.finfo(self.base.dtype).eps / 2
        return LinearMapFitter(
            self.base.shape[1], centred=self.centred, rounding=rounding, products=self.products
        )

    def target_weights(self) -> Tensor:
        return torch.ones(len(self.fit_rows)) if self.weights is None else self.weights


@dataclass(frozen=True)
class RowMap:
    """W of a group of rows, and beta: whether they keep `M R`. Where they do, what was learned may be left out."""

    linear_map: LinearMap
    residual: bool = False
    learned: bool = True


@dataclass(frozen=True)
class Propagation:
    """How the rows of one table are carried over: those of kept tokens, those of new ones, and the fit behind it."""

    kept: RowMap
    new: RowMap
    report: FitReport


def swap(problem: Problem) -> Propagation:
    """`W = I`: the adapted rows as they are. The report gives the residual of that on the rows of `conversion`."""
    shift = total = 0.0
    for source, target, *_ in _converted(problem):
        shift += (target - source).double().square().sum().item()
        total += target.double().square().sum().item()
    residual = (shift / max(total, torch.finfo(torch.float64).tiny)) ** 0.5
    report = FitReport(int(problem.fit_rows.sum()), 0, residual, residual, residual, 0.0)
    same = RowMap(LinearMap.identity(problem.base.shape[1]))
    return Propagation(same, same, report)


def overlap(problem: Problem) -> Propagation:
    """`argmin_W ||E_base[C] W - E_inst[C]||` over the tokens C that both vocabularies have (eq. 8-11)."""
    return _alike(*_fitted(problem, _shared(problem)).fit(problem.penalty or 0.0))


def conversion(problem: Problem) -> Propagation:
    """`argmin_W ||(M E_base) W - M E_inst||` in the target vocabulary (eq. 13-14). M must stay in the problem."""
    return _alike(*_fitted(problem, _converted(problem)).fit(problem.penalty or 0.0))


def ridge(problem: Problem) -> Propagation:
    """Least squares drawn toward the identity, as strongly as is best on held-out rows (infinitely: swap)."""
    fitter = _fitted(problem, _used(problem))
    return _alike(*(fitter.fit_ridge() if problem.penalty is None else fitter.fit(problem.penalty)))


def procrustes(problem: Problem) -> Propagation:
    """The best rotation with one scale: angles between rows, and so what tokens mean beside each other, stay."""
    return _alike(*_fitted(problem, _used(problem)).fit_procrustes())


def task_arithmetic(problem: Problem) -> Propagation:
    """`W = I, beta = 1`: what the instruct model changed in each row is added, as a mean over new tokens' pieces."""
    report = swap(problem).report
    all_of_it = RowMap(LinearMap.identity(problem.base.shape[1]), residual=True)
    return Propagation(all_of_it, all_of_it, report)


def exact(problem: Problem) -> Propagation:
    """Kept rows: the instruct model's own plus what was learned, `E_inst + (E_adapted - E_base)`; new rows: `ridge`."""
    mapped = ridge(problem)
    return Propagation(
        RowMap(LinearMap.identity(problem.base.shape[1]), residual=True), mapped.new, mapped.report
    )


def residual(problem: Problem) -> Propagation:
    """As `exact`, and new rows keep what the map leaves of their pieces (beta = 1)."""
    mapped = exact(problem)
    return Propagation(mapped.kept, RowMap(mapped.new.linear_map, residual=True), mapped.report)


def new_rows(problem: Problem) -> Propagation:
    """Kept rows are the instruct model's, whatever training did to the base's; new rows: task arithmetic."""
    added = task_arithmetic(problem)
    return Propagation(replace(added.kept, learned=False), added.new, added.report)


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
UNFITTED = ("swap", "task-arithmetic", "new-rows")  # without a map: no solves, no products
ONE_FIT = ("overlap", "conversion", "procrustes")  # the others choose their penalty


def propagated_rows(
    problem: Problem, propagation: Propagation, adapted: Tensor
) -> Iterator[Tensor]:
    """The rows of the result in chunks, in their order: `E_adapted W`, or `M E_inst + (E_adapted - M E_base) W`.

    The latter is the formula above with beta = 1, arranged so that nothing is lost where little was learned: a kept
    row that did not change in training is the instruct model's, bit for bit. `adapted` is (V_target, h); the chunks
    have the dtype of the instruct model, and are computed in float32 where that has 16 bits, else in float64.
    """
    wide = torch.float32 if problem.instruct.itemsize < 4 else torch.float64
    for rows in torch.arange(len(adapted)).split(rows_at_once(adapted.shape[1])):
        trained, copies = adapted[rows[0] : rows[-1] + 1].to(wide), problem.mapping.copies[rows]
        if propagation.kept is propagation.new:  # one pass
            made = _carried(problem, propagation.new, problem.mapping.select(rows), trained)
            yield made.to(problem.instruct.dtype, copy=made.dtype == problem.instruct.dtype)
            continue
        chunk = torch.empty(len(rows), adapted.shape[1], dtype=problem.instruct.dtype)
        for group, chosen in ((propagation.kept, copies), (propagation.new, ~copies)):
            if chosen.any():
                part = problem.mapping.select(rows[chosen])
                chunk[chosen] = _carried(problem, group, part, trained[chosen]).to(chunk.dtype)
        yield chunk


def propagated_table(
    problem: Problem,
    propagation: Propagation,
    adapted: Tensor,
    instruct: Tensor,
    instruct_rows: dict[int, int],
) -> Tensor:
    """All rows of the result, (V_result, h): the propagated ones, and the instruct model's own: `{row: its row}`."""
    size = max([len(adapted), *(row + 1 for row in instruct_rows)])
    return torch.cat(
        list(
            with_own_rows(
                propagated_rows(problem, propagation, adapted), instruct, instruct_rows, size
            )
        )
    )


def with_own_rows(
    chunks: Iterable[Tensor], instruct: Tensor, instruct_rows: dict[int, int], size: int
) -> Iterator[Tensor]:
    """Chunks of a table of `size` rows in which some are the instruct model's own: `{row: its row}`.

    Rows that the chunks do not reach (tokens that only the instruct model has) are appended, zero where they are
    nobody's.
    """
    start = 0
    for chunk in itertools.chain(chunks, [None]):
        rows = instruct.new_zeros(size - start, instruct.shape[1]) if chunk is None else chunk
        own = {
            row - start: source
            for row, source in instruct_rows.items()
            if start <= row < start + len(rows)
        }
        rows[list(own)] = instruct[list(own.values())]
        start += len(rows)
        if len(rows):
            yield rows


def _carried(
    problem: Problem, group: RowMap, mapping: VocabularyMapping, adapted: Tensor
) -> Tensor:
    if not group.residual:
        return group.linear_map(adapted)
    chat = mapping(problem.instruct, dtype=adapted.dtype)
    if not group.learned:
        return chat
    learned = group.linear_map.turn(adapted - mapping(problem.base, dtype=adapted.dtype))
    return torch.where(learned == 0, chat, chat + learned)  # a sum would turn -0 into 0


Pairs = Iterator[
    tuple[Tensor, Tensor, Tensor | None, int]
]  # A, B, weights, half (`LinearMapFitter.update`)


def _converted(problem: Problem) -> Pairs:
    """Rows of the target vocabulary. A mixture is held out with its pieces only, or it would be known from them."""
    rows, wide = problem.fit_rows.nonzero().flatten(), problem.products
    for half, chunk in _chunks(problem, problem.mapping.select(rows).halves()):
        part = problem.mapping.select(rows[chunk])
        weights = None if problem.weights is None else problem.weights[rows[chunk]]
        yield part(problem.base, dtype=wide), part(problem.instruct, dtype=wide), weights, half


def _shared(problem: Problem) -> Pairs:
    target, source = problem.mapping.kept()
    fitted = problem.fit_rows[target]
    weights = problem.target_weights()[target[fitted]]
    return _pairs(problem, source[fitted], None if problem.weights is None else weights)


def _used(problem: Problem) -> Pairs:
    """Source rows, each once, by how much the target vocabulary is made of them: no row predicts its own mixture."""
    rows = problem.fit_rows.nonzero().flatten()
    weights = problem.mapping.source_weights(rows, problem.target_weights()[rows])
    used = (weights > 0).nonzero().flatten()
    return _pairs(problem, used, weights[used])


def _pairs(problem: Problem, rows: Tensor, weights: Tensor | None) -> Pairs:
    for half, part in _chunks(problem, torch.arange(len(rows)) % 2):
        yield (
            problem.base[rows[part]],
            problem.instruct[rows[part]],
            None if weights is None else weights[part],
            half,
        )


def _chunks(problem: Problem, halves: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(half, its rows), no more at once than are widened: sums of products are fast for many rows of one half."""
    for half in halves.unique().tolist():
        for chunk in (
            (halves == half).nonzero().flatten().split(rows_at_once(problem.base.shape[1]))
        ):
            yield half, chunk


def _fitted(problem: Problem, pairs: Pairs) -> LinearMapFitter:
    fitter = problem.fitter()
    for pair in pairs:
        fitter.update(*pair)
    return fitter


def _alike(linear_map: LinearMap, report: FitReport) -> Propagation:
    rows = RowMap(linear_map)
    return Propagation(rows, rows, report)
