"""Log-likelihoods of many continuations: what questions share is read once, and only scored places get logits.

The examples before a question are most of a few-shot prompt and the same for a whole task (or subject). Their keys and
values are computed once and shared by a batch.
"""

import copy
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from lep.inference.likelihood import MOST_LOGITS

SHARED = (DynamicLayer, DynamicSlidingWindowLayer)  # keys and values; other states are not shared
MOST_CACHE = 1 << 32  # bytes of keys and values at once
CPU_TOKENS = 2_048  # read at once by a CPU: what more of them leave behind does not fit into its caches (docs/log.md)
HEAD, TOGETHER = (
    32,
    4,
)  # so many questions that begin with so many tokens in common are read together


@dataclass
class Read:
    """Tokens that the model reads, and the continuations that are scored on them: (request, begin, tokens)."""

    ids: tuple[int, ...]
    scored: list[tuple[int, int, list[int]]] = field(default_factory=list)

    @property
    def context(self) -> tuple[int, ...]:
        """What comes before the first continuation."""
        return self.ids[: min(begin for _, begin, _ in self.scored) + 1]


@torch.inference_mode()
def continuation_nats(
    model: Any, requests: Sequence[tuple[list[int], list[int]]], batch_size: int
) -> Iterator[tuple[int, float, bool]]:
    """(request, log p of its continuation in nats, whether each of its tokens is the likeliest) as they come.

    `requests` holds (context, continuation), neither empty. Continuations of one token share the reading of their
    context.
    """
    reads: dict[tuple[int, ...], Read] = {}
    for number, (context, continuation) in enumerate(requests):
        if not context or not continuation:
            raise ValueError(f"request {number} has an empty context or continuation")
        ids = (*context, *continuation[:-1])
        reads.setdefault(ids, Read(ids)).scored.append((number, len(context) - 1, continuation))
    groups: dict[tuple[int, ...], list[Read]] = {}
    contexts = Counter(read.context for read in reads.values())
    heads = Counter(ids[:HEAD] for ids in reads)
    for ids, read in reads.items():
        common = read.context if contexts[read.context] >= TOGETHER else ids[:HEAD]
        alone = contexts[read.context] < TOGETHER and heads[ids[:HEAD]] < TOGETHER
        groups.setdefault(() if alone else common, []).append(read)
    for group in sorted(groups.values(), key=lambda group: -max(len(read.ids) for read in group)):
        group.sort(key=lambda read: (-len(read.ids), read.ids))
        shared, cache = _shared(model, group)
        start = 0
        while start < len(group):
            batch = group[start : start + batch_size]
            batch = batch[: _fits(model, batch, shared, cache)]
            yield from _score(model, batch, shared, cache)
            start += len(batch)


def common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all sequences begin with.

    >>> common_prefix([(1, 2, 3), (1, 2, 4, 5), (1, 2)])
    2
    """
    first, last = min(sequences), max(sequences)
    return next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )


def _shared(model: Any, group: list[Read]) -> tuple[int, DynamicCache | None]:
    """Length of what all begin with, and its keys and values, where the model keeps those of every token."""
    before = min(begin for read in group for _, begin, _ in read.scored)
    length = min(common_prefix([read.ids for read in group]), before)
    if length < HEAD or len(group) == 1:
        return 0, None
    ids = torch.tensor([group[0].ids[:length]], device=model.device)
    cache = model(input_ids=ids, use_cache=True, **keep_logits(model, 1)).past_key_values
    if type(cache) is not DynamicCache or any(type(layer) not in SHARED for layer in cache.layers):
        return 0, None
    return length, cache


def _fits(model: Any, batch: list[Read], shared: int, cache: DynamicCache | None) -> int:
    """How many of a batch to read at once: each has a copy of what is shared, and logits, which memory must hold."""
    longest = max(len(read.ids) for read in batch)
    scored = longest - min(begin for read in batch for _, begin, _ in read.scored)
    fits = MOST_LOGITS // (scored * model.config.get_text_config().vocab_size)
    if cache is not None:
        held = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
        fits = min(fits, MOST_CACHE * shared // (held * longest))
    if model.device.type == "cpu":
        fits = min(fits, CPU_TOKENS // (longest - shared))
    return max(1, fits)


def _score(
    model: Any, batch: list[Read], shared: int, cache: DynamicCache | None
) -> Iterator[tuple[int, float, bool]]:
    width = max(len(read.ids) for read in batch) - shared
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    mask = torch.zeros(len(batch), shared + width, dtype=torch.int64)
    for row, read in enumerate(batch):
        ids[row, : len(read.ids) - shared] = torch.tensor(read.ids[shared:])
        mask[row, : len(read.ids)] = 1
    first = min(
        begin for read in batch for _, begin, _ in read.scored
    )  # nothing before it is scored
    kept = shared + width - first
    more: dict[str, Any] = {"use_cache": False}
    if cache is not None:
        more = {"past_key_values": copy.deepcopy(cache), "use_cache": True}
        more["past_key_values"].batch_repeat_interleave(len(batch))
    places = torch.arange(shared, shared + width).expand(len(batch), -1)
    logits = model(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        position_ids=places.to(model.device),
        **more,
        **keep_logits(model, kept),
    ).logits[:, -kept:]
    asked = [
        (number, row, begin - first, continuation)
        for row, read in enumerate(batch)
        for number, begin, continuation in read.scored
    ]
    # One after the other all the places at which something is scored, and what should follow there.
    rows = torch.tensor([row for _, row, _, tokens in asked for _ in tokens], device=logits.device)
    places = torch.tensor(
        [start + k for _, _, start, tokens in asked for k in range(len(tokens))],
        device=logits.device,
    )
    following = torch.tensor(
        [token for *_, tokens in asked for token in tokens], device=logits.device
    )
    chosen = logits[rows, places].float().log_softmax(-1)
    nats = (
        chosen.gather(1, following[:, None])
        .flatten()
        .cpu()
        .split([len(tokens) for *_, tokens in asked])
    )
    greedy = (chosen.argmax(1) == following).cpu().split([len(tokens) for *_, tokens in asked])
    for (number, *_), own, best in zip(asked, nats, greedy, strict=True):
        yield number, float(own.sum()), bool(best.all())


def keep_logits(model: Any, places: int) -> dict[str, int]:
    """Logits of the last places only, where the model can leave the others out."""
    return (
        {"logits_to_keep": places}
        if "logits_to_keep" in inspect.signature(model.forward).parameters
        else {}
    )
