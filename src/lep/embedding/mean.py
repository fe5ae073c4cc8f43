"""Subtoken mean: a new token starts as the mean of the tokens that spelled it before."""

from lep.mapping import VocabularyMapping


def mean(pieces: list[list[int]], source_size: int) -> VocabularyMapping:
    """`E_new = M E_old` with 1/K on each of the K source tokens of a target token (eq. 1-2).

    `pieces[t]` are the source ids that spell target token t; a repeated piece counts as often as it occurs. A
    target token that the source vocabulary has is its only piece and keeps its row.
    """
    return VocabularyMapping.from_rows(pieces, source_size)
