"""`LinearMap` (W): what carries embedding rows from the base model's space into the instruct model's."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Directions whose Gram eigenvalue is below this share of the largest one are treated as unseen. The square root
# is the smallest relative singular value that float64 sums of squares can tell from noise.
RANK_TOLERANCE = 1e-13


@dataclass(frozen=True)
class FitReport:
    """How well a map explains the rows it was fitted on, and rows it never saw.

    Residuals are `||A W - B||_F / ||B||_F`; `heldout` is cross-fitted: each half is predicted by the map of the
    other. A map that does not beat `identity` on held-out rows carries nothing that swap does not.
    """

    rows: int
    rank: int
    identity: float  # residual of doing nothing, W = I
    fitted: float
    heldout: float
    change: float  # ||W - I||_F / ||I||_F


@dataclass(frozen=True)
class LinearMap:
    """`W = I + delta`, applied to rows: `E W`. Kept as the difference from the identity, where the precision is."""

    delta: Tensor  # (h, h) float64

    @classmethod
    def identity(cls, hidden: int) -> "LinearMap":
        return cls(torch.zeros(hidden, hidden, dtype=torch.float64))

    def __call__(self, rows: Tensor) -> Tensor:
        """(n, h) to (n, h), computed in float64, in the dtype of `rows`. A zero delta returns the rows bit for bit."""
        wide = rows.double()
        return (wide + wide @ self.delta).to(rows.dtype)


class LinearMapFitter:
    """Running float64 sums of row pairs (A, B) that yield `argmin_W ||A W - B||_F` (eq. 8-14).

    Solves for `W - I`, by Cholesky where the Gram matrix allows it, else with the minimum norm: directions that
    no row of A spans are left alone, where a plain least-squares solver would erase them.
    """

    def __init__(self, hidden: int) -> None:
        self.folds = [_Sums(hidden), _Sums(hidden)]

    def update(self, source: Tensor, target: Tensor) -> "LinearMapFitter":
        """Add row pairs, (n, h) each. Rows alternate between the two folds of the held-out residual."""
        for fold, sums in enumerate(self.folds):
            sums.add(source[fold::2].double(), target[fold::2].double())
        return self

    def fit(self) -> tuple[LinearMap, FitReport]:
        """The map and how good it is. Raises `ValueError` without rows."""
        first, second = self.folds
        total = first + second
        if total.rows == 0:
            raise ValueError("no rows to fit the linear map on")
        delta, rank = total.solve()
        crossed = [half.squared_residual(other.solve()[0]) for half, other in ((first, second), (second, first))]
        norm = max(total.target_square, torch.finfo(torch.float64).tiny)
        report = FitReport(
            rows=total.rows,
            rank=rank,
            identity=(total.shift_square / norm) ** 0.5,
            fitted=(total.squared_residual(delta) / norm) ** 0.5,
            heldout=(sum(crossed) / norm) ** 0.5,
            change=(delta.square().sum().item() / len(delta)) ** 0.5,
        )
        return LinearMap(delta), report


class _Sums:
    """A'A, A'(B - A) and the squares needed for residuals, of one fold."""

    def __init__(self, hidden: int) -> None:
        self.gram = torch.zeros(hidden, hidden, dtype=torch.float64)
        self.cross = torch.zeros(hidden, hidden, dtype=torch.float64)
        self.rows, self.shift_square, self.target_square = 0, 0.0, 0.0

    def add(self, source: Tensor, target: Tensor) -> None:
        shift = target - source
        self.gram += source.T @ source
        self.cross += source.T @ shift
        self.rows += len(source)
        self.shift_square += shift.square().sum().item()
        self.target_square += target.square().sum().item()

    def __add__(self, other: "_Sums") -> "_Sums":
        total = _Sums(len(self.gram))
        for name in ("gram", "cross", "rows", "shift_square", "target_square"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def solve(self) -> tuple[Tensor, int]:
        """`gram^+ cross` and the rank of gram."""
        hidden = len(self.gram)
        factor, failed = torch.linalg.cholesky_ex(self.gram)
        pivots = factor.diagonal().square()
        if not failed and pivots.min() > RANK_TOLERANCE * 100 * hidden * pivots.max():
            return torch.cholesky_solve(self.cross, factor), hidden
        values, vectors = torch.linalg.eigh(self.gram)
        seen = values > RANK_TOLERANCE * hidden * values[-1].clamp_min(0)
        basis = vectors[:, seen]
        return basis @ ((basis.T @ self.cross) / values[seen, None]), int(seen.sum())

    def squared_residual(self, delta: Tensor) -> float:
        """`||A delta - (B - A)||^2` from the sums alone; rounding below zero is cut."""
        fitted = (delta * (self.gram @ delta)).sum() - 2 * (delta * self.cross).sum()
        return max(fitted.item() + self.shift_square, 0.0)
