"""`LinearMap` (W): what carries embedding rows from the base model's space into the instruct model's."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from math import inf

import torch
from torch import Tensor
from torch.linalg import vector_norm

from lep.sums import Moments, NoRowsError, RunningSums

# The same for what rounding, of the table and of the products, leaves in directions that a table does not span, as
# shares of the mean eigenvalue: so many squared unit roundoffs of the table, so many epsilons of the products.
ROUNDING_MARGIN, PRODUCT_MARGIN = 4.0, 32.0
# Of the mean eigenvalue; no penalty is the plain least-squares solution, an infinite one leaves rows as they are.
PENALTIES = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, inf)


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
    penalty: float | None = (
        None  # chosen on held-out rows, as a share of the mean eigenvalue; infinite: W = I
    )


@dataclass(frozen=True)
class LinearMap:
    """`E W + 1 s'` with `W = I + delta`: kept as the difference from the identity, where the precision is."""

    delta: Tensor  # (h, h) float64
    shift: Tensor  # (h,) float64; zero where the fit was not centred

    @classmethod
    def identity(cls, hidden: int) -> "LinearMap":
        return cls(
            torch.zeros(hidden, hidden, dtype=torch.float64),
            torch.zeros(hidden, dtype=torch.float64),
        )

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
        self,
        hidden: int,
        *,
        centred: bool = False,
        rounding: float = 0.0,
        products: torch.dtype = torch.float64,
    ) -> None:
        self.centred, self.rounding, self.products = centred, rounding, products
        self.sums = [
            RunningSums(hidden, products) for _ in range(3)
        ]  # of either half, and of rows that are in neither

    def update(
        self, source: Tensor, target: Tensor, weights: Tensor | None = None, half: int | None = None
    ) -> "LinearMapFitter":
        """Add row pairs, (n, h) each, with weights (n,).

        `half` says to which half of the held-out residual they belong, 0 or 1, or 2 for neither: rows that are made of
        others must be on one side with them. Without it they alternate.
        """
        parts = (
            {0: slice(0, None, 2), 1: slice(1, None, 2)} if half is None else {half: slice(None)}
        )
        for number, part in parts.items():
            if len(source[part]):
                self.sums[number].add(
                    source[part].to(self.products),
                    target[part].to(self.products),
                    None if weights is None else weights[part],
                )
        return self

    def fit(self, penalty: float = 0.0) -> tuple[LinearMap, FitReport]:
        """The minimiser of `||A W - B||^2 + penalty e ||W - I||^2` (e: mean eigenvalue of A'A), and how good it is.

        Raises `NoRowsError` without rows.
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

    def _total(self) -> "Moments":
        filled = [sums.closed() for sums in self.sums if sums.rows]
        if not filled:
            raise NoRowsError("a linear map needs rows to be fitted on, and there are none")
        return reduce(lambda one, other: one + other, filled).moments(self.centred)

    def _halves(self) -> list[tuple["Moments", "Moments"]]:
        first, second = (half.closed().moments(self.centred) for half in self.sums[:2])
        return [(first, second), (second, first)]

    def _heldout(self, penalty: float, halves: list[tuple["Moments", "Moments"]]) -> float:
        found = [test.residual(train.solve(penalty, self._floor())[0]) for train, test in halves]
        return (sum(residual**2 for residual in found) / len(found)) ** 0.5

    def _floor(self) -> float:
        return max(
            ROUNDING_MARGIN * self.rounding**2, PRODUCT_MARGIN * torch.finfo(self.products).eps
        )


def _solved(
    total: Moments, penalty: float, floor: float, heldout: float
) -> tuple[LinearMap, FitReport]:
    delta, rank = total.solve(penalty, floor)
    return _result(total, delta, rank, penalty, total.minimum(delta, penalty), heldout)


def _result(
    total: Moments, delta: Tensor, rank: int, penalty: float | None, fitted: float, heldout: float
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
