"""Distributions of the next byte, which models with different vocabularies have in common."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lep.progress import progress
from lep.tokenizer.vocabulary import Vocabulary

CLASSES, CONTROL = 257, 256  # a byte, or a token that is not text


def first_bytes(vocabulary: Vocabulary, rows: int) -> Tensor:
    """Class of each of a model's `rows` logits, (rows,) int64: its first byte, or `CONTROL`."""
    classes = [
        token.content[0] if token and token.content and not token.added else CONTROL
        for token in vocabulary.tokens[:rows]
    ]
    return torch.tensor(classes + [CONTROL] * (rows - len(classes)))


def byte_offsets(vocabulary: Vocabulary, ids: Sequence[int]) -> list[int]:
    """Number of bytes before each token of `ids` and after the last one: len(ids) + 1 numbers."""
    offsets = [0]
    for index in ids:
        token = vocabulary.tokens[index]
        offsets.append(offsets[-1] + (len(token.content) if token else 0))
    return offsets


@torch.inference_mode()
def next_byte_nats(
    model: PreTrainedModel, classes: Tensor, sequences: Sequence[tuple[list[int], list[int]]]
) -> list[Tensor]:
    """log P of each class at the given positions of each sequence: (positions, 257) float32.

    `sequences` holds (ids, positions); position p >= 1 follows the first p tokens. P of a class is
    the sum over its tokens.
    """
    nats = []
    for ids, positions in progress(sequences, "answers, next bytes"):
        inputs = torch.tensor([ids], device=model.device)
        logits = model(input_ids=inputs, use_cache=False).logits[0, torch.tensor(positions) - 1]
        shares = logits.float().softmax(1).cpu()
        sums = torch.zeros(len(positions), CLASSES).index_add_(1, classes, shares)
        nats.append(sums.clamp_min(torch.finfo(torch.float32).tiny).log())
    return nats


def divergence(reference: Tensor, other: Tensor) -> Tensor:
    """KL(reference || other) in nats at each position, from two (positions, 257) of log P."""
    return (reference.exp() * (reference - other)).sum(1)
