"""What a table's rows look like: their norms, and those that training never reached."""

import torch
from torch import Tensor

from lep.mapping import VocabularyMapping, row_chunks


def row_norms(table: Tensor, centre: Tensor | None = None) -> Tensor:
    """Norm of each row, (V,) float32, less `centre` (h,) where given. Never widens more than some rows at once."""
    origin = torch.zeros(table.shape[1]) if centre is None else centre
    return torch.cat([(part.float() - origin).norm(dim=1) for part in row_chunks(table)])


def calibrated(mapping: VocabularyMapping, table: Tensor, alike: Tensor) -> VocabularyMapping:
    """The mapping with new rows scaled to the median norm of `table`'s rows `alike` (a (V_source,) mask).

    A mean of pieces that point in different directions is shorter than any of them; rows of the same script show
    how long it should be.
    """
    norms = row_norms(table[alike])
    if not len(norms):
        return mapping
    rows = mapping.new_rows()
    parts = mapping.select(rows).chunks(table.shape[1])
    lengths = torch.cat(
        [torch.zeros(0), *(part(table, dtype=torch.float32).double().norm(dim=1) for part in parts)]
    )
    scale = torch.where(lengths > 0, norms.median().double() / lengths, 1.0)
    return mapping.scaled(rows, scale)


def undertrained(table: Tensor, unused: Tensor) -> Tensor:
    """Mask (V,) of rows that training never reached: as near to the mean of the `unused` rows as these are.

    `unused` marks rows that no text can use (padding, bytes that UTF-8 lacks). Where they lie close together
    beside all other rows, so do the rows of tokens that occur nowhere (Land & Bartolo 2024); where they do not, the
    table says nothing and only rows of zeros are marked.
    """
    found = torch.cat([~part.any(1) for part in row_chunks(table)])
    if unused.sum() < 2:
        return found
    distance = row_norms(table, table[unused].float().mean(0))
    radius = distance[unused].max()
    return found | (distance <= radius) if 2 * radius < distance.nanmedian() else found
