"""Negative log-likelihood of token sequences, in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.errors import TokenizerError
from lep.progress import progress

Segment = tuple[int, list[int], int]  # sequence, ids, first position that is scored
LOGITS = {"cpu": 1 << 22}  # in a batch: 16 MiB in float32; fresh memory costs a CPU more than sums
LEAST_TOKENS = 256  # in a batch all the same: of fewer, most time goes into reading weights
MOST_LOGITS = 1 << 28  # elsewhere: about 12 bytes each are alive at once
LONGEST_SEGMENT = 2_048  # tokens
LEAST_FILLED = 0.8  # of each row of a batch, by its own tokens


@dataclass(frozen=True)
class TextLoss:
    """A text's tokens and -log p in nats, and what new tokens take where an old one is right."""

    tokens: int
    nats: float
    old_tokens: int | None = None  # of the text's tokens; None without new tokens
    new_mass: float | None = None  # probability of all new tokens, summed over those positions


def start_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that a text starts with: BOS, or EOS for tokenizers without BOS."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise TokenizerError(
            "the tokenizer has neither a BOS nor an EOS token: name one in tokenizer_config.json"
        )
    return start


def text_nats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    batch_size: int,
    label: str = "",
) -> list[tuple[int, float]]:
    """Number of tokens of each text, and -log p of the text in nats."""
    losses = text_losses(model, tokenizer, texts, batch_size, label)
    return [(loss.tokens, loss.nats) for loss in losses]


def text_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    batch_size: int,
    label: str = "",
    new_tokens: Tensor | None = None,
) -> list[TextLoss]:
    """Loss of each text, and the probability that `new_tokens`, (n,) int64 ids, take in it."""
    start = start_token(tokenizer)
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    sequences = [([start, *ids], 1) for ids in encoded]
    sums = _sequence_sums(model, sequences, batch_size, label, new_tokens)
    if new_tokens is None:
        return [TextLoss(len(ids), nats) for ids, (nats, _) in zip(encoded, sums, strict=True)]
    new = set(new_tokens.tolist())
    return [
        TextLoss(len(ids), nats, sum(index not in new for index in ids), mass)
        for ids, (nats, mass) in zip(encoded, sums, strict=True)
    ]


def sequence_nats(
    model: PreTrainedModel,
    sequences: Sequence[tuple[list[int], int]],
    batch_size: int,
    label: str = "",
) -> list[float]:
    """Sum of -log p in nats over each sequence's tokens from position `scored_from` >= 1 on.

    `sequences` holds (ids, scored_from). A sequence longer than the context (or `LONGEST_SEGMENT`)
    is scored in segments of half the context, each preceded by at least as many tokens.
    """
    return [nats for nats, _ in _sequence_sums(model, sequences, batch_size, label)]


@torch.inference_mode()
def _sequence_sums(
    model: PreTrainedModel,
    sequences: Sequence[tuple[list[int], int]],
    batch_size: int,
    label: str,
    new_tokens: Tensor | None = None,
) -> list[tuple[float, float]]:
    """Nats and new mass of each sequence, as `sequence_nats` and `TextLoss` define them."""
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or LONGEST_SEGMENT
    segments = list(_segments(sequences, min(longest, LONGEST_SEGMENT)))
    segments.sort(key=lambda segment: -len(segment[1]))
    most = _tokens_at_once(model, config.vocab_size)
    batches = alike([len(ids) for _, ids, _ in segments], batch_size, most)
    new = None if new_tokens is None else new_tokens.to(model.device)
    sums = torch.zeros(len(sequences), 2, dtype=torch.float64)
    for batch in progress([segments[b.start : b.stop] for b in batches], label):
        index = torch.tensor([segment[0] for segment in batch])
        sums.index_add_(0, index, _batch_sums(model, batch, new).cpu())
    return [(nats, mass) for nats, mass in sums.tolist()]


@torch.inference_mode()
def greedy_matches(
    model: PreTrainedModel, sequences: Sequence[tuple[list[int], int]], batch_size: int
) -> list[bool]:
    """Whether the model, greedily, writes each sequence's tokens from position `start` >= 1 on.

    `sequences` holds (ids, start), none longer than the context. One forward pass tells: the head
    gives its highest logit to each of the tokens. Capping or scaling keeps the order of logits.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index][0]))
    matches = [True] * len(sequences)
    batches = alike([len(sequences[i][0]) for i in order], batch_size)
    for batch in (order[b.start : b.stop] for b in batches):
        inputs = pad_sequence([torch.tensor(sequences[i][0]) for i in batch], batch_first=True)
        written = torch.zeros(inputs.shape, dtype=torch.bool)
        for row, index in enumerate(batch):
            ids, begin = sequences[index]
            written[row, begin : len(ids)] = True
        states = decoder(input_ids=inputs.to(model.device), use_cache=False).last_hidden_state
        rows, targets = written[:, 1:].nonzero()[:, 0], inputs[:, 1:][written[:, 1:]]
        hidden = states[:, :-1][written[:, 1:].to(model.device)]
        most = _tokens_at_once(model, len(head.weight))
        best = torch.cat([head(part).argmax(1).cpu() for part in hidden.split(most)])
        for row in rows[best != targets].tolist():
            matches[batch[row]] = False
    return matches


def alike(lengths: Sequence[int], size: int, tokens: int | None = None) -> list[range]:
    """Indexes of rows, longest first, in batches of at most `size` rows and so many `tokens`.

    No row of a batch is shorter than `LEAST_FILLED` of its first one: a batch is padded to that.

    >>> alike([10, 9, 8, 7, 3, 3], 3)
    [range(0, 3), range(3, 4), range(4, 6)]
    >>> alike([10, 9, 8, 8], 9, tokens=20)
    [range(0, 2), range(2, 4)]
    """
    batches, start = [], 0
    while start < len(lengths):
        longest = lengths[start]
        most = start + min(size, max(1, (tokens or size * longest) // longest))
        stop = start + 1
        while stop < min(most, len(lengths)) and lengths[stop] >= LEAST_FILLED * longest:
            stop += 1
        batches.append(range(start, stop))
        start = stop
    return batches


def _segments(sequences: Sequence[tuple[list[int], int]], context: int) -> Iterator[Segment]:
    for index, (ids, scored_from) in enumerate(sequences):
        position = max(scored_from, 1)
        stop = min(len(ids), max(context, position + context // 2))
        while position < len(ids):
            begin = max(0, stop - context)
            yield index, ids[begin:stop], position - begin
            position, stop = stop, min(len(ids), stop + context // 2)


def _batch_sums(model: PreTrainedModel, batch: list[Segment], new: Tensor | None) -> Tensor:
    """Nats and new mass of each segment: (segments, 2) float64."""
    inputs = pad_sequence([torch.tensor(ids) for _, ids, _ in batch], batch_first=True)
    scored = torch.zeros(inputs.shape, dtype=torch.bool)
    for row, (_, ids, scored_from) in enumerate(batch):
        scored[row, scored_from : len(ids)] = True
    inputs, scored = inputs.to(model.device), scored[:, 1:].to(model.device)
    logits = model(input_ids=inputs, use_cache=False).logits[:, :-1][scored].float()
    targets = inputs[:, 1:][scored]
    losses = cross_entropy(logits, targets, reduction="none")
    mass = torch.zeros_like(losses)
    if new is not None:
        total = losses + logits.gather(1, targets[:, None])[:, 0]  # log of the sum of all exp
        share = (logits[:, new].logsumexp(1) - total).exp()
        mass = torch.where(torch.isin(targets, new), mass, share)
    totals = torch.zeros(len(batch), 2, dtype=torch.float64, device=model.device)
    parts = torch.stack([losses.double(), mass.double()], dim=1)
    return totals.index_add_(0, scored.nonzero()[:, 0], parts)


def _tokens_at_once(model: PreTrainedModel, rows: int) -> int:
    """How many tokens' logits of a vocabulary of so many rows are computed at once."""
    return max(LEAST_TOKENS, LOGITS.get(model.device.type, MOST_LOGITS) // rows)
