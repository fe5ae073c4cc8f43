"""`LinearMap` (W): what carries embedding rows from the base model's space into the instruct model's."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property, reduce
from math import inf

import torch
from torch import Tensor
from torch.linalg import vector_norm

from lep.errors import CheckpointError
from lep.mapping import row_chunks

# Directions whose Gram eigenvalue is below this share of the largest one are treated as unseen. The square root
# is the smallest relative singular value that float64 sums of squares can tell from noise.
RANK_TOLERANCE = 1e-13
# The same for what rounding, of the table and of the products, leaves in directions that a table does not span, as
# shares of the mean eigenvalue: so many squared unit roundoffs of the table, so many epsilons of the products.
ROUNDING_MARGIN, PRODUCT_MARGIN = 4.0, 32.0
# Of the mean eigenvalue; no penalty is the plain least-squares solution, an infinite one leaves rows as they are.
PENALTIES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, inf)
PRODUCT_ROWS = 8_192  # summed in the products' precision before they are added in float64
INVERSE_ITERATIONS = 8  # each costs two triangular solves of a vector
GRAM_BLOCKS = 4  # a Gram matrix is symmetric: with 4 rows of blocks 10 of 16 blocks are computed


@dataclass(frozen=True)
class FitReport:
    """How well a map explains the rows it was fitted on, and rows it never saw.

    Residuals are `||A W - B||_F / ||B||_F`, with the weights of the rows and, in a centred fit, about the means;
    `heldout` is that of one half of the rows under the map of the other. A map that does not beat `identity` on
    held-out rows carries nothing that swap does not.
    """

    rows: int
    rank: int
    identity: float  # residual of W = I
    fitted: float
    heldout: float
    change: float  # ||W - I||_F / ||I||_F
    penalty: float | None = None  # chosen on held-out rows, as a share of the mean eigenvalue; infinite: W = I


@dataclass(frozen=True)
class LinearMap:
    """`E W + 1 s'` with `W = I + delta`: kept as the difference from the identity, where the precision is."""

    delta: Tensor  # (h, h) float64
    shift: Tensor  # (h,) float64; zero where the fit was not centred

    @classmethod
    def identity(cls, hidden: int) -> "LinearMap":
        return cls(torch.zeros(hidden, hidden, dtype=torch.float64), torch.zeros(hidden, dtype=torch.float64))

    def __call__(self, rows: Tensor) -> Tensor:
        """(n, h) to (n, h), computed in the dtype of `rows`. A map that moves nothing returns them bit for bit."""
        moved = self.turn(rows)
        return moved + self.shift.to(rows.dtype) if self.shift.any() else moved

    def turn(self, rows: Tensor) -> Tensor:
        """`E W` without the shift, for differences between rows; computed in the dtype of `rows`."""
        delta = self._narrow[rows.dtype]
        return rows if delta is None else torch.addmm(rows, rows, delta)

    @cached_property
    def _narrow(self) -> "_Narrow":
        return _Narrow(self.delta)


class _Narrow(dict[torch.dtype, Tensor | None]):
    """A matrix in each type that it was asked for, made once; None where it is zero."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix if matrix.any() else None

    def __missing__(self, dtype: torch.dtype) -> Tensor | None:
        self[dtype] = None if self.matrix is None else self.matrix.to(dtype)
        return self[dtype]


class LinearMapFitter:
    """Running float64 sums of row pairs (A, B) that yield `argmin_W ||A W - B||_F` (eq. 8-14).

    Solves for `W - I`, by Cholesky where the Gram matrix allows it, else with the minimum norm: directions that
    no row of A spans are left alone, where a plain least-squares solver would erase them. `centred` takes the
    means off both sides first and gives the mean of B back, so that what is added to all rows alike (which a softmax
    does not see) plays no part in W. Rounding noise is told from signal by `rounding`, the unit roundoff of the
    tables that the rows come from.
    """

    def __init__(
        self, hidden: int, *, centred: bool = False, rounding: float = 0.0, products: torch.dtype = torch.float64
    ) -> None:
        self.centred, self.rounding, self.products = centred, rounding, products
        self.sums = [_Sums(hidden, products) for _ in range(3)]  # of either half, and of rows that are in neither

    def update(
        self, source: Tensor, target: Tensor, weights: Tensor | None = None, half: int | None = None
    ) -> "LinearMapFitter":
        """Add row pairs, (n, h) each, with weights (n,).

        `half` says to which half of the held-out residual they belong, 0 or 1, or 2 for neither: rows that are made of
        others must be on one side with them. Without it they alternate.
        """
        parts = {0: slice(0, None, 2), 1: slice(1, None, 2)} if half is None else {half: slice(None)}
        for number, part in parts.items():
            if len(source[part]):
                self.sums[number].add(
                    source[part].to(self.products), target[part].to(self.products),
                    None if weights is None else weights[part],
                )  # fmt: skip
        return self

    def fit(self, penalty: float = 0.0) -> tuple[LinearMap, FitReport]:
        """The minimiser of `||A W - B||^2 + penalty e ||W - I||^2` (e: mean eigenvalue of A'A), and how good it is.

        Raises `CheckpointError` without rows.
        """
        total, heldout = self._total(), self._heldout(penalty, self._halves()[:1])
        return _solved(total, penalty, self._floor(), heldout)

    def fit_ridge(self, penalties: Sequence[float] = PENALTIES) -> tuple[LinearMap, FitReport]:
        """The same with the penalty that is best on held-out rows; of equals, the one nearest to the identity."""
        halves = self._halves()  # each is predicted by the map of the other
        heldout = {penalty: self._heldout(penalty, halves) for penalty in penalties}
        best = min(sorted(heldout, reverse=True), key=lambda penalty: heldout[penalty])
        total = self._total()
        return _solved(total, best, self._floor(), heldout[best])

    def fit_procrustes(self) -> tuple[LinearMap, FitReport]:
        """`W = s Q`: the best rotation with one scale (Schoenemann 1966), which keeps the angles between rows."""
        total = self._total()
        train, test = self._halves()[0]
        heldout = test.residual(train.rotate(self._floor())[0])
        delta, rank = total.rotate(self._floor())
        return _result(total, delta, rank, None, total.residual(delta), heldout)

    def _total(self) -> "_Moments":
        filled = [sums.closed() for sums in self.sums if sums.rows]
        if not filled:
            raise CheckpointError("no ordinary token is left to fit the linear map on: take --method swap, or a "
                                  "frequency text that uses them")  # fmt: skip
        return reduce(lambda one, other: one + other, filled).moments(self.centred)

    def _halves(self) -> list[tuple["_Moments", "_Moments"]]:
        first, second = (half.closed().moments(self.centred) for half in self.sums[:2])
        return [(first, second), (second, first)]

    def _heldout(self, penalty: float, halves: list[tuple["_Moments", "_Moments"]]) -> float:
        found = [test.residual(train.solve(penalty, self._floor())[0]) for train, test in halves]
        return (sum(residual**2 for residual in found) / len(found)) ** 0.5

    def _floor(self) -> float:
        return max(ROUNDING_MARGIN * self.rounding**2, PRODUCT_MARGIN * torch.finfo(self.products).eps)


@dataclass(frozen=True)
class _Moments:
    """A'A, A'(B - A) and the squares needed for residuals, about the means or about zero."""

    gram: Tensor
    cross: Tensor
    mean_source: Tensor
    mean_shift: Tensor
    rows: int
    shift_square: float
    target_square: float

    def solve(self, penalty: float, floor: float) -> tuple[Tensor, int]:
        """`(gram + penalty e I)^+ cross` and its rank; eigenvalues below `floor e` count as unseen."""
        hidden = len(self.gram)
        mean = self.gram.diagonal().mean()
        if penalty == inf:
            return torch.zeros_like(self.gram), 0
        ridged = self.gram.clone() if penalty else self.gram
        if penalty:
            ridged.diagonal().add_(penalty * mean)
        factor, failed = torch.linalg.cholesky_ex(ridged)
        unsure = 100 * RANK_TOLERANCE * hidden * factor.diagonal().square().max()
        if not failed and _least_eigenvalue(factor) > max(unsure, 0.0 if penalty else 10 * floor * mean):
            return _cholesky_solve(self.cross, factor), hidden
        basis, values = self.span(floor)
        return basis @ ((basis.T @ self.cross) / (values[:, None] + penalty * mean)), basis.shape[1]

    def span(self, floor: float) -> tuple[Tensor, Tensor]:
        """The directions that A spans, (h, rank), and their eigenvalues."""
        values, vectors = torch.linalg.eigh(self.gram)
        least = max(RANK_TOLERANCE * len(values) * values[-1].clamp_min(0), floor * self.gram.diagonal().mean())
        return vectors[:, values > least], values[values > least]

    def rotate(self, floor: float) -> tuple[Tensor, int]:
        """`s Q - I` with the rotation and the scale that bring A nearest to B, in the span of A; and its rank."""
        basis, values = self.span(floor)
        left, products, right = torch.linalg.svd(basis.T @ (self.gram + self.cross) @ basis)  # of A'B
        scale = products.sum() / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
        turn = scale * (left @ right) - torch.eye(len(values), dtype=values.dtype)
        return basis @ turn @ basis.T, len(values)

    def residual(self, delta: Tensor) -> float:
        """`||A delta - (B - A)|| / ||B||` from the sums alone; rounding below zero is cut."""
        fitted = (self.gram @ delta).sub_(self.cross, alpha=2).mul_(delta).sum() if delta.any() else torch.zeros(())
        return (max(fitted.item() + self.shift_square, 0.0) / self.norm) ** 0.5

    def minimum(self, delta: Tensor, penalty: float) -> float:
        """The same for the solution of `solve`, where `gram delta = cross - penalty e delta` in the span of A."""
        drawn = 0.0 if penalty in (0.0, inf) else (penalty * self.gram.diagonal().mean() * delta.square().sum()).item()
        return (max(self.shift_square - (delta * self.cross).sum().item() - drawn, 0.0) / self.norm) ** 0.5

    @property
    def norm(self) -> float:
        """`||B||^2`, or the least number where that is zero."""
        return max(self.target_square, torch.finfo(torch.float64).tiny)


def _least_eigenvalue(factor: Tensor) -> float:
    """The least eigenvalue of `L L'`, by inverse iteration: pivots of L do not show a direction spread over all."""
    vector = torch.randn(len(factor), 1, dtype=factor.dtype, generator=torch.Generator().manual_seed(0))
    for _ in range(INVERSE_ITERATIONS):
        vector = _cholesky_solve(vector / vector.norm(), factor)
    return 1 / vector.norm().item()


def _cholesky_solve(right: Tensor, factor: Tensor) -> Tensor:
    """`(L L')^-1 right`; unlike torch's, it does not copy the factor, which for a vector is most of the time."""
    half = torch.linalg.solve_triangular(factor.mT, right.mT, upper=True, left=False)  # of rows, as memory has them
    return torch.linalg.solve_triangular(factor, half, upper=False, left=False).mT


def _solved(total: _Moments, penalty: float, floor: float, heldout: float) -> tuple[LinearMap, FitReport]:
    delta, rank = total.solve(penalty, floor)
    return _result(total, delta, rank, penalty, total.minimum(delta, penalty), heldout)


def _result(
    total: _Moments, delta: Tensor, rank: int, penalty: float | None, fitted: float, heldout: float
) -> tuple[LinearMap, FitReport]:
    report = FitReport(
        rows=total.rows,
        rank=rank,
        identity=(total.shift_square / total.norm) ** 0.5,
        fitted=fitted,
        heldout=heldout,
        change=vector_norm(delta).item() / len(delta) ** 0.5,
        penalty=penalty,
    )
    return LinearMap(delta, total.mean_shift - total.mean_source @ delta), report


class _Sums:
    """Running sums of one fold."""

    def __init__(self, hidden: int, products: torch.dtype) -> None:
        self.gram = torch.zeros(
            hidden, hidden, dtype=torch.float64
        )  # upper triangle, and some of the rest until `close`
        self.cross = torch.zeros(hidden, hidden, dtype=torch.float64)
        # Of the rows that are not in `gram` and `cross` yet, in the precision of the products.
        self.open_rows, self.open_sums, self.unclosed = 0, (self.gram, self.cross), False
        if products != torch.float64:
            self.open_sums = (torch.zeros(hidden, hidden, dtype=products), torch.zeros(hidden, hidden, dtype=products))
        self.source = torch.zeros(hidden, dtype=torch.float64)
        self.shift = torch.zeros(hidden, dtype=torch.float64)
        self.rows, self.weight, self.shift_square, self.target_square = 0, 0.0, 0.0, 0.0

    def add(self, source: Tensor, target: Tensor, weights: Tensor | None) -> None:
        for start in range(0, len(source), PRODUCT_ROWS):
            span = slice(start, start + PRODUCT_ROWS)
            self._add(source[span], target[span], None if weights is None else weights[span])
            if self.open_rows >= PRODUCT_ROWS:
                self._flush()

    def closed(self) -> "_Sums":
        """With `gram` and `cross` brought up to date."""
        if not self.unclosed:
            return self
        self._flush()
        self.unclosed = False
        for block in self._blocks():
            self.gram[block.stop :, block] = self.gram[block, block.stop :].T
            diagonal = self.gram[block, block]
            diagonal.copy_(diagonal.triu() + diagonal.triu(1).T)
        return self

    def _flush(self) -> None:
        for total, part in zip((self.gram, self.cross), self.open_sums, strict=True):
            if part is not total and self.open_rows:
                for rows, more in zip(row_chunks(total), row_chunks(part), strict=True):
                    rows += more  # widened first: a whole copy in float64 would take longer than the sum
                part.zero_()
        self.open_rows = 0

    def _blocks(self) -> list[slice]:
        hidden = len(self.gram)
        width = -(-hidden // GRAM_BLOCKS)
        return [slice(start, min(start + width, hidden)) for start in range(0, hidden, width)]

    def _add(self, source: Tensor, target: Tensor, weights: Tensor | None) -> None:
        shift = target - source
        weighted = source if weights is None else source * weights[:, None].to(source.dtype)
        gram, cross = self.open_sums
        for block in self._blocks():
            gram[block, block.start :].addmm_(weighted[:, block].T, source[:, block.start :])
        cross.addmm_(weighted.T, shift)
        self.open_rows += len(source)
        self.unclosed = True
        weight = torch.ones(len(source), dtype=source.dtype) if weights is None else weights.to(source.dtype)
        self.source += weight @ source
        self.shift += weight @ shift
        self.rows += int((weight > 0).sum())
        self.weight += weight.sum(dtype=torch.float64).item()
        self.shift_square += (weight @ vector_norm(shift, dim=1).square()).item()
        self.target_square += (weight @ vector_norm(target, dim=1).square()).item()

    def __add__(self, other: "_Sums") -> "_Sums":
        total = copy(self)
        for name in ("gram", "cross", "source", "shift", "rows", "weight", "shift_square", "target_square"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def moments(self, centred: bool) -> _Moments:
        if not centred or not self.weight:
            zero = torch.zeros_like(self.source)
            return _Moments(self.gram, self.cross, zero, zero, self.rows, self.shift_square, self.target_square)
        source, shift = self.source / self.weight, self.shift / self.weight
        return _Moments(
            torch.addr(self.gram, source, source, alpha=-self.weight),
            torch.addr(self.cross, source, shift, alpha=-self.weight),
            source, shift, self.rows,
            max(self.shift_square - self.weight * shift.square().sum().item(), 0.0),
            max(self.target_square - self.weight * (source + shift).square().sum().item(), 0.0),
        )  # fmt: skip
