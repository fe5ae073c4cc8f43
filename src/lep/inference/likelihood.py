"""Negative log-likelihood of token sequences, batched."""

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.errors import TokenizerError

Segment = tuple[int, list[int], int]  # sequence, ids, first position that is scored
LOGITS = {"cpu": 1 << 22}  # at once: 16 MiB in float32, which a CPU uses again
MOST_LOGITS = 1 << 28  # elsewhere: about 12 bytes each are alive at once
LONGEST_SEGMENT = 2_048  # tokens; texts are shorter, but for lines without an end


def start_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that a text starts with: BOS, or EOS for tokenizers without one."""
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
    """Tokens of each text, and -log p of the text in nats."""
    start = start_token(tokenizer)
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    nats = sequence_nats(model, [([start, *ids], 1) for ids in encoded], batch_size, label)
    return [(len(ids), loss) for ids, loss in zip(encoded, nats, strict=True)]


@torch.inference_mode()
def sequence_nats(
    model: PreTrainedModel,
    sequences: Sequence[tuple[list[int], int]],
    batch_size: int,
    label: str = "",
) -> list[float]:
    """Sum of -log p in nats over each sequence's tokens from position `scored_from` (at least 1) on.

    `sequences` holds (ids, scored_from). A sequence longer than the model's context (or `LONGEST_SEGMENT`) is scored in
    segments of half of that, each of which sees at least as much before it.
    """
    config = model.config.get_text_config()
    context = min(
        getattr(config, "max_position_embeddings", None) or LONGEST_SEGMENT, LONGEST_SEGMENT
    )
    segments: list[Segment] = []
    for index, (ids, scored_from) in enumerate(sequences):
        position = max(scored_from, 1)
        stop = min(len(ids), max(context, position + context // 2))
        while position < len(ids):
            begin = max(0, stop - context)
            segments.append((index, ids[begin:stop], position - begin))
            position, stop = stop, min(len(ids), stop + context // 2)
    nats = [0.0] * len(sequences)
    segments.sort(key=lambda segment: -len(segment[1]))
    for batch in tqdm(
        _batches(segments, batch_size, config.vocab_size, model),
        desc=label,
        disable=None,
        leave=False,
    ):
        inputs = torch.zeros(len(batch), len(batch[0][1]), dtype=torch.int64)
        labels = torch.full_like(inputs, -100)
        for row, (_, tokens, scored_from) in enumerate(batch):
            inputs[row, : len(tokens)] = torch.tensor(tokens)
            labels[row, scored_from : len(tokens)] = inputs[row, scored_from : len(tokens)]
        logits = model(input_ids=inputs.to(model.device), use_cache=False).logits[:, :-1]
        targets = labels[:, 1:].to(model.device)
        learned = targets != -100
        losses = cross_entropy(logits[learned].float(), targets[learned], reduction="none").double()
        totals = torch.zeros(len(batch), dtype=torch.float64, device=model.device)
        totals.index_add_(0, learned.nonzero()[:, 0], losses)
        for (index, _, _), total in zip(batch, totals.tolist(), strict=True):
            nats[index] += total
    return nats


def _batches(
    segments: list[Segment], size: int, rows: int, model: PreTrainedModel
) -> list[list[Segment]]:
    """Segments, longest first, in batches of at most `size`, and of so many logits; on a CPU of few.

    Fresh memory takes a CPU longer than what is computed in it.
    """
    found, start = [], 0
    while start < len(segments):
        fits = LOGITS.get(model.device.type, MOST_LOGITS) // (len(segments[start][1]) * rows)
        found.append(segments[start : start + max(1, min(size, fits))])
        start += len(found[-1])
    return found
