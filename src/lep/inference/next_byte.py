"""Distributions of the next byte: what models with different vocabularies can be compared on, position by position."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lep.tokenizer.vocabulary import Vocabulary

CLASSES, CONTROL = 257, 256  # a byte, or a token that is no text


def first_bytes(vocabulary: Vocabulary, rows: int) -> Tensor:
    """Class of each of a model's `rows` logits, (rows,) int64: the first byte of its token, or `CONTROL`."""
    tokens = [*vocabulary.tokens, *[None] * (rows - len(vocabulary))][:rows]
    return torch.tensor(
        [
            CONTROL if token is None or token.added or not token.content else token.content[0]
            for token in tokens
        ]
    )


def byte_offsets(vocabulary: Vocabulary, ids: Sequence[int]) -> list[int]:
    """Bytes that stand before each token of `ids`, and after the last one: len(ids) + 1 numbers."""
    offsets = [0]
    for index in ids:
        token = vocabulary.tokens[index]
        offsets.append(offsets[-1] + (len(token.content) if token else 0))
    return offsets


@torch.inference_mode()
def next_byte_nats(
    model: PreTrainedModel, classes: Tensor, sequences: Sequence[tuple[list[int], list[int]]]
) -> list[Tensor]:
    """log P of each class of next byte at the given positions of each sequence: (positions, 257) float32 each.

    `sequences` holds (ids, positions); position p is what follows the first p tokens, p at least 1. The class of a
    token that begins in the same way as others gets the sum of their probabilities.
    """
    found = []
    for ids, positions in sequences:
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[
            0
        ]
        chosen = logits[torch.tensor(positions) - 1].float().softmax(1).cpu()
        sums = torch.zeros(len(positions), CLASSES).index_add_(1, classes, chosen)
        found.append(sums.clamp_min(torch.finfo(torch.float32).tiny).log())
    return found


def divergence(reference: Tensor, other: Tensor) -> Tensor:
    """KL(reference || other) in nats at each position, from two (positions, 257) tables of log P."""
    return (reference.exp() * (reference - other)).sum(1)
