"""Sums of squares and products of row pairs, from which every linear map is solved."""

from copy import copy
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.linalg import vector_norm

from lep.mapping import row_chunks

# Directions whose Gram eigenvalue is below this share of the largest one are treated as unseen. The square root
# is the smallest relative singular value that float64 sums of squares can tell from noise.
RANK_TOLERANCE = 1e-13
PRODUCT_ROWS = 8_192  # summed in the products' precision before they are added in float64
INVERSE_ITERATIONS = 8  # each costs two triangular solves of a vector
GRAM_BLOCKS = 4  # a Gram matrix is symmetric: with 4 rows of blocks 10 of 16 blocks are computed


class NoRowsError(ValueError):
    """A fit without rows."""


@dataclass(frozen=True)
class Moments:
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
        if not failed and _least_eigenvalue(factor) > max(
            unsure, 0.0 if penalty else 10 * floor * mean
        ):
            return _cholesky_solve(self.cross, factor), hidden
        basis, values = self.span(floor)
        return basis @ ((basis.T @ self.cross) / (values[:, None] + penalty * mean)), basis.shape[1]

    def span(self, floor: float) -> tuple[Tensor, Tensor]:
        """The directions that A spans, (h, rank), and their eigenvalues."""
        values, vectors = torch.linalg.eigh(self.gram)
        least = max(
            RANK_TOLERANCE * len(values) * values[-1].clamp_min(0),
            floor * self.gram.diagonal().mean(),
        )
        return vectors[:, values > least], values[values > least]

    def rotate(self, floor: float) -> tuple[Tensor, int]:
        """`s Q - I` with the rotation and the scale that bring A nearest to B, in the span of A; and its rank."""
        basis, values = self.span(floor)
        left, products, right = torch.linalg.svd(
            basis.T @ (self.gram + self.cross) @ basis
        )  # of A'B
        scale = products.sum() / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
        turn = scale * (left @ right) - torch.eye(len(values), dtype=values.dtype)
        return basis @ turn @ basis.T, len(values)

    def residual(self, delta: Tensor) -> float:
        """`||A delta - (B - A)|| / ||B||` from the sums alone; rounding below zero is cut."""
        fitted = (
            (self.gram @ delta).sub_(self.cross, alpha=2).mul_(delta).sum()
            if delta.any()
            else torch.zeros(())
        )
        return (max(fitted.item() + self.shift_square, 0.0) / self.norm) ** 0.5

    def minimum(self, delta: Tensor, penalty: float) -> float:
        """The same for the solution of `solve`, where `gram delta = cross - penalty e delta` in the span of A."""
        drawn = (
            0.0
            if penalty in (0.0, inf)
            else (penalty * self.gram.diagonal().mean() * delta.square().sum()).item()
        )
        return (
            max(self.shift_square - (delta * self.cross).sum().item() - drawn, 0.0) / self.norm
        ) ** 0.5

    @property
    def norm(self) -> float:
        """`||B||^2`, or the least number where that is zero."""
        return max(self.target_square, torch.finfo(torch.float64).tiny)


class RunningSums:
    """Running sums of one fold."""

    def __init__(self, hidden: int, products: torch.dtype) -> None:
        self.gram = torch.zeros(
            hidden, hidden, dtype=torch.float64
        )  # upper triangle, and some of the rest until `close`
        self.cross = torch.zeros(hidden, hidden, dtype=torch.float64)
        # Of the rows that are not in `gram` and `cross` yet, in the precision of the products.
        self.open_rows, self.open_sums, self.unclosed = 0, (self.gram, self.cross), False
        if products != torch.float64:
            self.open_sums = (
                torch.zeros(hidden, hidden, dtype=products),
                torch.zeros(hidden, hidden, dtype=products),
            )
        self.source = torch.zeros(hidden, dtype=torch.float64)
        self.shift = torch.zeros(hidden, dtype=torch.float64)
        self.rows, self.weight, self.shift_square, self.target_square = 0, 0.0, 0.0, 0.0

    def add(self, source: Tensor, target: Tensor, weights: Tensor | None) -> None:
        for start in range(0, len(source), PRODUCT_ROWS):
            span = slice(start, start + PRODUCT_ROWS)
            self._add(source[span], target[span], None if weights is None else weights[span])
            if self.open_rows >= PRODUCT_ROWS:
                self._flush()

    def closed(self) -> "RunningSums":
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
        weight = (
            torch.ones(len(source), dtype=source.dtype)
            if weights is None
            else weights.to(source.dtype)
        )
        self.source += weight @ source
        self.shift += weight @ shift
        self.rows += int((weight > 0).sum())
        self.weight += weight.sum(dtype=torch.float64).item()
        self.shift_square += (weight @ vector_norm(shift, dim=1).square()).item()
        self.target_square += (weight @ vector_norm(target, dim=1).square()).item()

    def __add__(self, other: "RunningSums") -> "RunningSums":
        total = copy(self)
        for name in (
            "gram",
            "cross",
            "source",
            "shift",
            "rows",
            "weight",
            "shift_square",
            "target_square",
        ):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def moments(self, centred: bool) -> Moments:
        if not centred or not self.weight:
            zero = torch.zeros_like(self.source)
            return Moments(
                self.gram, self.cross, zero, zero, self.rows, self.shift_square, self.target_square
            )
        source, shift = self.source / self.weight, self.shift / self.weight
        return Moments(
            torch.addr(self.gram, source, source, alpha=-self.weight),
            torch.addr(self.cross, source, shift, alpha=-self.weight),
            source,
            shift,
            self.rows,
            max(self.shift_square - self.weight * shift.square().sum().item(), 0.0),
            max(self.target_square - self.weight * (source + shift).square().sum().item(), 0.0),
        )


def _least_eigenvalue(factor: Tensor) -> float:
    """The least eigenvalue of `L L'`, by inverse iteration: pivots of L do not show a direction spread over all."""
    vector = torch.randn(
        len(factor), 1, dtype=factor.dtype, generator=torch.Generator().manual_seed(0)
    )
    for _ in range(INVERSE_ITERATIONS):
        vector = _cholesky_solve(vector / vector.norm(), factor)
    return 1 / vector.norm().item()


def _cholesky_solve(right: Tensor, factor: Tensor) -> Tensor:
    """`(L L')^-1 right`; unlike torch's, it does not copy the factor, which for a vector is most of the time."""
    half = torch.linalg.solve_triangular(
        factor.mT, right.mT, upper=True, left=False
    )  # of rows, as memory has them
    return torch.linalg.solve_triangular(factor, half, upper=False, left=False).mT
