"""Running sums of row pairs (A, B), and the linear maps that solve them."""

from dataclasses import dataclass, fields, replace
from math import inf

import torch
from torch import Tensor
from torch.linalg import vector_norm

from lep.mapping import row_chunks

# Directions whose Gram eigenvalue is below this share of the largest one count as unseen. The
# square root is the smallest relative singular value that float64 sums of squares can tell from
# noise.
RANK_TOLERANCE = 1e-13
PRODUCT_ROWS = 8_192  # summed in the products' precision before they are added in float64
INVERSE_ITERATIONS = 8  # each costs two triangular solves of a vector
GRAM_BLOCKS = 4  # a Gram matrix is symmetric: of 4 x 4 blocks, 10 are computed
TINY = torch.finfo(torch.float64).tiny


class NoRowsError(ValueError):
    """A fit without rows."""


@dataclass(frozen=True)
class Moments:
    """A'A, A'(B - A) and the squares that residuals need, about the means or about zero."""

    gram: Tensor
    cross: Tensor
    mean_source: Tensor
    mean_shift: Tensor
    rows: int
    shift_square: float
    target_square: float

    @property
    def norm(self) -> float:
        """`||B||^2`, at least the smallest positive number."""
        return max(self.target_square, TINY)

    @property
    def mean_eigenvalue(self) -> Tensor:
        return self.gram.diagonal().mean()

    def solve(self, penalty: float, floor: float) -> tuple[Tensor, int]:
        """`(gram + penalty e I)^+ cross` and its rank, e being the mean eigenvalue.

        Eigenvalues below `floor e` count as unseen.
        """
        hidden, mean = len(self.gram), self.mean_eigenvalue
        if penalty == inf:
            return torch.zeros_like(self.gram), 0
        ridged = self.gram.clone() if penalty else self.gram
        if penalty:
            ridged.diagonal().add_(penalty * mean)
        factor, failed = torch.linalg.cholesky_ex(ridged)
        unsure = 100 * RANK_TOLERANCE * hidden * factor.diagonal().square().max()
        least = max(unsure, 0.0 if penalty else 10 * floor * mean)
        if not failed and _least_eigenvalue(factor) > least:
            return _cholesky_solve(self.cross, factor), hidden
        basis, values = self.span(floor)
        return basis @ ((basis.T @ self.cross) / (values[:, None] + penalty * mean)), basis.shape[1]

    def span(self, floor: float) -> tuple[Tensor, Tensor]:
        """The directions that A spans, (h, rank), and their eigenvalues."""
        values, vectors = torch.linalg.eigh(self.gram)
        noise = RANK_TOLERANCE * len(values) * values[-1].clamp_min(0)
        seen = values > max(noise, floor * self.mean_eigenvalue)
        return vectors[:, seen], values[seen]

    def rotate(self, floor: float) -> tuple[Tensor, int]:
        """`s Q - I` and its rank: the rotation and scale in A's span that bring A nearest to B."""
        basis, values = self.span(floor)
        product = basis.T @ (self.gram + self.cross) @ basis  # A'B
        left, singular, right = torch.linalg.svd(product)
        scale = singular.sum() / values.sum().clamp_min(TINY)
        turn = scale * (left @ right) - torch.eye(len(values), dtype=values.dtype)
        return basis @ turn @ basis.T, len(values)

    def residual(self, delta: Tensor) -> float:
        """`||A delta - (B - A)|| / ||B||` from the sums alone; rounding below zero is cut."""
        square = self.shift_square
        if delta.any():
            square += (self.gram @ delta).sub_(self.cross, alpha=2).mul_(delta).sum().item()
        return (max(square, 0.0) / self.norm) ** 0.5

    def minimum(self, delta: Tensor, penalty: float) -> float:
        """The residual of a `solve`, where `gram delta = cross - penalty e delta` in A's span."""
        square = self.shift_square - (delta * self.cross).sum().item()
        if penalty not in (0.0, inf):
            square -= (penalty * self.mean_eigenvalue * delta.square().sum()).item()
        return (max(square, 0.0) / self.norm) ** 0.5


@dataclass
class RunningSums:
    """Sums over the row pairs of one fold; matrices are (h, h), vectors (h,), all in float64."""

    gram: Tensor  # A'A, of which `closed` fills in what symmetry gives
    cross: Tensor  # A'(B - A)
    source: Tensor
    shift: Tensor
    rows: int = 0
    weight: float = 0.0
    shift_square: float = 0.0
    target_square: float = 0.0

    @classmethod
    def zeros(cls, hidden: int, products: torch.dtype) -> "RunningSums":
        """Sums of no rows yet; `products` is the precision of matrix products."""
        gram, cross = (torch.zeros(hidden, hidden, dtype=torch.float64) for _ in range(2))
        source, shift = (torch.zeros(hidden, dtype=torch.float64) for _ in range(2))
        sums = cls(gram, cross, source, shift)
        if products != torch.float64:
            gram, cross = (torch.zeros(hidden, hidden, dtype=products) for _ in range(2))
            sums._open_sums = (gram, cross)
        return sums

    def __post_init__(self) -> None:
        # Products of the rows that are not in `gram` and `cross` yet.
        self._open_rows, self._open_sums = 0, (self.gram, self.cross)
        self._is_closed = True

    def add(self, source: Tensor, target: Tensor, weights: Tensor | None) -> None:
        """Add row pairs (n, h) in the precision of the products, with weights (n,)."""
        for start in range(0, len(source), PRODUCT_ROWS):
            span = slice(start, start + PRODUCT_ROWS)
            self._add(source[span], target[span], None if weights is None else weights[span])
            if self._open_rows >= PRODUCT_ROWS:
                self._flush()

    def _add(self, source: Tensor, target: Tensor, weights: Tensor | None) -> None:
        shift, weighted = target - source, source
        if weights is not None:
            weighted = source * weights[:, None].to(source.dtype)
        gram, cross = self._open_sums
        for block in self._blocks():
            gram[block, block.start :].addmm_(weighted[:, block].T, source[:, block.start :])
        cross.addmm_(weighted.T, shift)
        self._open_rows += len(source)
        self._is_closed = False
        weight = torch.ones(len(source)) if weights is None else weights
        weight = weight.to(source.dtype)
        self.source += weight @ source
        self.shift += weight @ shift
        self.rows += int((weight > 0).sum())
        self.weight += weight.sum(dtype=torch.float64).item()
        self.shift_square += (weight @ vector_norm(shift, dim=1).square()).item()
        self.target_square += (weight @ vector_norm(target, dim=1).square()).item()

    def _flush(self) -> None:
        for total, part in zip((self.gram, self.cross), self._open_sums, strict=True):
            if part is not total and self._open_rows:
                for rows, more in zip(row_chunks(total), row_chunks(part), strict=True):
                    rows += (
                        more  # chunks: a float64 copy of the whole would take longer than the sum
                    )
                part.zero_()
        self._open_rows = 0

    def _blocks(self) -> list[slice]:
        hidden = len(self.gram)
        width = -(-hidden // GRAM_BLOCKS)
        return [slice(start, min(start + width, hidden)) for start in range(0, hidden, width)]

    def closed(self) -> "RunningSums":
        """These sums with `gram` and `cross` brought up to date."""
        if not self._is_closed:
            self._flush()
            self._is_closed = True
            for block in self._blocks():
                self.gram[block.stop :, block] = self.gram[block, block.stop :].T
                diagonal = self.gram[block, block]
                diagonal.copy_(diagonal.triu() + diagonal.triu(1).T)
        return self

    def __add__(self, other: "RunningSums") -> "RunningSums":
        names = [field.name for field in fields(self)]
        return replace(self, **{n: getattr(self, n) + getattr(other, n) for n in names})

    def moments(self, *, centred: bool) -> Moments:
        """About the weighted means if `centred`, otherwise about zero."""
        squares = (self.shift_square, self.target_square)
        if not centred or not self.weight:
            zero = torch.zeros_like(self.source)
            return Moments(self.gram, self.cross, zero, zero, self.rows, *squares)
        source, shift = self.source / self.weight, self.shift / self.weight
        means = (shift.square().sum().item(), (source + shift).square().sum().item())
        return Moments(
            torch.addr(self.gram, source, source, alpha=-self.weight),
            torch.addr(self.cross, source, shift, alpha=-self.weight),
            source,
            shift,
            self.rows,
            *(max(s - self.weight * mean, 0.0) for s, mean in zip(squares, means, strict=True)),
        )


def _least_eigenvalue(factor: Tensor) -> float:
    """The least eigenvalue of `L L'` by inverse iteration.

    The pivots of L do not show a small eigenvalue whose direction is spread over all axes.
    """
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(len(factor), 1, dtype=factor.dtype, generator=generator)
    for _ in range(INVERSE_ITERATIONS):
        vector = _cholesky_solve(vector / vector.norm(), factor)
    return 1 / vector.norm().item()


def _cholesky_solve(right: Tensor, factor: Tensor) -> Tensor:
    """`(L L')^-1 right` without torch's copy of the factor, the main cost for a single vector."""
    # Solves for rows, which is the layout in memory.
    half = torch.linalg.solve_triangular(factor.mT, right.mT, upper=True, left=False)
    return torch.linalg.solve_triangular(factor, half, upper=False, left=False).mT
