"""What the rows of a table look like: their norms, and rows that training never reached."""

import torch
from torch import Tensor

from lep.mapping import VocabularyMapping, row_chunks


def row_norms(table: Tensor, centre: Tensor | None = None) -> Tensor:
    """Norm of each row less `centre` (h,), float32 (V,). Widens a few rows at once."""
    origin = torch.zeros(table.shape[1]) if centre is None else centre
    return torch.cat([(part.float() - origin).norm(dim=1) for part in row_chunks(table)])


def calibrated(mapping: VocabularyMapping, table: Tensor, rows: Tensor) -> VocabularyMapping:
    """The mapping with new rows as long as the `table`'s median row of `rows`, a mask (V_source,).

    A mean of pieces that point in different directions is shorter than each of them. Rows of the
    same script show how long it should be.
    """
    norms = row_norms(table[rows])
    if not len(norms):
        return mapping
    new = mapping.new_rows()
    parts = mapping.select(new).chunks(table.shape[1])
    lengths = [part(table, dtype=torch.float32).double().norm(dim=1) for part in parts]
    length = torch.cat([torch.zeros(0), *lengths])
    return mapping.scaled(new, torch.where(length > 0, norms.median().double() / length, 1.0))


def undertrained(table: Tensor, unused: Tensor) -> Tensor:
    """Mask (V,) of rows that training never reached (Land & Bartolo 2024).

    `unused` is a mask of rows that no text reaches: padding, bytes that UTF-8 lacks. If these lie
    close together and apart from all others, rows as near to their mean are undertrained, too.
    Otherwise only rows of zeros are.
    """
    zero = torch.cat([~part.any(1) for part in row_chunks(table)])
    if unused.sum() < 2:
        return zero
    distance = row_norms(table, table[unused].float().mean(0))
    radius = distance[unused].max()
    return zero | (distance <= radius) if 2 * radius < distance.nanmedian() else zero
