"""`LinearMap` (W): carries embedding rows from the base model's space into the instruct model's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import inf

import torch
from torch import Tensor
from torch.linalg import vector_norm

from lep.sums import Moments, NoRowsError, RunningSums

# What rounding leaves in directions that a table does not span, as shares of the mean eigenvalue:
# so many squared unit roundoffs of the table, so many epsilons of the products.
ROUNDING_MARGIN, PRODUCT_MARGIN = 4.0, 32.0
# Shares of the mean eigenvalue: 0 is plain least squares, infinity leaves rows as they are.
PENALTIES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, inf)


@dataclass(frozen=True)
class FitReport:
    """How well a map explains the rows that it was fitted on, and rows that it did not see.

    Residuals are `||A W - B||_F / ||B||_F` with the weights of the rows, in a centred fit about the
    means: `identity` and `fitted` on all `rows`; `heldout` and `heldout_identity` on the
    `heldout_rows`, under the map of the other half. A map that does not beat `heldout_identity`
    carries no more than swap does. None without a fit, or where a half is empty. If the penalty
    was chosen, `heldout` is the least of all penalties, which include W = I.
    """

    rows: int
    rank: int
    identity: float  # residual of W = I
    fitted: float
    change: float  # ||W - I||_F / ||I||_F
    penalty: float | None = None  # as a share of the mean eigenvalue; infinite: W = I
    heldout: float | None = None
    heldout_identity: float | None = None
    heldout_rows: int = 0

    def __str__(self) -> str:
        if self.heldout is None:
            residual = f"residual {self.fitted:.4f} (identity {self.identity:.4f})"
            return f"{residual} on {self.rows:,} rows, none held out"
        residual = f"held-out residual {self.heldout:.4f} (identity {self.heldout_identity:.4f})"
        return f"{residual} on {self.heldout_rows:,} rows; the map is fitted on {self.rows:,}"


Fold = tuple[Moments, Moments]  # train, test


@dataclass(frozen=True)
class LinearMap:
    """`E W + 1 s'` with `W = I + delta`, stored as delta, which keeps the precision."""

    delta: Tensor  # (h, h) float64
    shift: Tensor  # (h,) float64, zero unless the fit was centred

    @classmethod
    def identity(cls, hidden: int) -> "LinearMap":
        square = torch.zeros(hidden, hidden, dtype=torch.float64)
        return cls(square, torch.zeros(hidden, dtype=torch.float64))

    def __call__(self, rows: Tensor) -> Tensor:
        """(n, h) to (n, h) in the dtype of `rows`; the identity returns them bit for bit."""
        moved = self.turn(rows)
        return moved + self.shift.to(rows.dtype) if self.shift.any() else moved

    def turn(self, rows: Tensor) -> Tensor:
        """`E W` without the shift, for differences of rows; in the dtype of `rows`."""
        delta = self._deltas[rows.dtype]
        return rows if delta is None else torch.addmm(rows, rows, delta)

    @cached_property
    def _deltas(self) -> "_Deltas":
        return _Deltas(self.delta)


class _Deltas(dict[torch.dtype, Tensor | None]):
    """A matrix by dtype, converted once; None if it is zero."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix if matrix.any() else None

    def __missing__(self, dtype: torch.dtype) -> Tensor | None:
        self[dtype] = None if self.matrix is None else self.matrix.to(dtype)
        return self[dtype]


class LinearMapFitter:
    """Running float64 sums of row pairs (A, B) that yield `argmin_W ||A W - B||_F` (eq. 8-14).

    Solves for `W - I`, by Cholesky where the Gram matrix allows it, otherwise with minimum norm:
    directions that no row of A spans stay as they are, where plain least squares would erase them.
    `centred` subtracts the means of both sides and adds the mean of B back, so that W ignores what
    is added to all rows alike, which a softmax does not see. `rounding` is the unit roundoff of the
    tables, which tells noise from signal.

    >>> rows = torch.eye(2)
    >>> linear_map, report = LinearMapFitter(2).update(rows, 3 * rows).fit()
    >>> linear_map(rows).tolist()
    [[3.0, 0.0], [0.0, 3.0]]
    """

    def __init__(
        self,
        hidden: int,
        *,
        centred: bool = False,
        rounding: float = 0.0,
        products: torch.dtype = torch.float64,
    ) -> None:
        self.centred, self.products = centred, products
        self.floor = max(ROUNDING_MARGIN * rounding**2, PRODUCT_MARGIN * torch.finfo(products).eps)
        # Of either half, and of rows in neither.
        self.sums = [RunningSums.zeros(hidden, products) for _ in range(3)]

    def update(
        self, source: Tensor, target: Tensor, weights: Tensor | None = None, half: int | None = None
    ) -> "LinearMapFitter":
        """Add row pairs (n, h) with weights (n,).

        `half` is the rows' half of the held-out residual: 0, 1, or 2 for neither. A mixture must be
        in the half of its pieces. Without `half`, rows alternate.
        """
        alternating = {0: slice(0, None, 2), 1: slice(1, None, 2)}
        for number, part in (alternating if half is None else {half: slice(None)}).items():
            if len(source[part]):
                pair = (source[part].to(self.products), target[part].to(self.products))
                self.sums[number].add(*pair, None if weights is None else weights[part])
        return self

    def fit(self, penalty: float = 0.0) -> tuple[LinearMap, FitReport]:
        """Minimise `||A W - B||^2 + penalty e ||W - I||^2`, e being the mean eigenvalue of A'A.

        Raises `NoRowsError` without rows.
        """
        total, folds = self._total(), self._folds()[:1]
        return self._solved(total, penalty, folds, self._heldout(penalty, folds))

    def fit_ridge(self, penalties: Sequence[float] = PENALTIES) -> tuple[LinearMap, FitReport]:
        """The fit whose penalty is best on held-out rows; of equal ones, the largest."""
        folds = self._folds()
        heldout = {penalty: self._heldout(penalty, folds) for penalty in penalties}
        best = min(sorted(heldout, reverse=True), key=lambda penalty: heldout[penalty])
        return self._solved(self._total(), best, folds, heldout[best])

    def fit_procrustes(self) -> tuple[LinearMap, FitReport]:
        """`W = s Q`: the best rotation with one scale (Schoenemann 1966), which keeps angles."""
        total, folds = self._total(), self._folds()[:1]
        heldout = _root_mean_square(test.residual(t.rotate(self.floor)[0]) for t, test in folds)
        delta, rank = total.rotate(self.floor)
        return _result(total, delta, rank, None, total.residual(delta), folds, heldout)

    def _total(self) -> Moments:
        filled = [sums.closed() for sums in self.sums if sums.rows]
        if not filled:
            raise NoRowsError("a linear map needs rows to be fitted on, and there are none")
        return reduce(lambda one, other: one + other, filled).moments(centred=self.centred)

    def _folds(self) -> list[Fold]:
        """Each half of the rows is predicted by the map of the other."""
        first, second = (half.closed().moments(centred=self.centred) for half in self.sums[:2])
        return [(first, second), (second, first)]

    def _heldout(self, penalty: float, folds: list[Fold]) -> float:
        residuals = (test.residual(train.solve(penalty, self.floor)[0]) for train, test in folds)
        return _root_mean_square(residuals)

    def _solved(
        self, total: Moments, penalty: float, folds: list[Fold], heldout: float
    ) -> tuple[LinearMap, FitReport]:
        delta, rank = total.solve(penalty, self.floor)
        fitted = total.minimum(delta, penalty)
        return _result(total, delta, rank, penalty, fitted, folds, heldout)


def _root_mean_square(residuals: Iterable[float]) -> float:
    squares = [residual**2 for residual in residuals]
    return (sum(squares) / len(squares)) ** 0.5


def _result(
    total: Moments,
    delta: Tensor,
    rank: int,
    penalty: float | None,
    fitted: float,
    folds: list[Fold],
    heldout: float,
) -> tuple[LinearMap, FitReport]:
    report = FitReport(
        rows=total.rows,
        rank=rank,
        identity=(total.shift_square / total.norm) ** 0.5,
        fitted=fitted,
        change=vector_norm(delta).item() / len(delta) ** 0.5,
        penalty=penalty,
    )
    if all(side.rows for fold in folds for side in fold):
        identity = _root_mean_square((test.shift_square / test.norm) ** 0.5 for _, test in folds)
        rows = sum(test.rows for _, test in folds)
        report = replace(report, heldout=heldout, heldout_identity=identity, heldout_rows=rows)
    return LinearMap(delta, total.mean_shift - total.mean_source @ delta), report
