"""Log-likelihoods of many continuations: a prefix that questions share is read only once.

The examples before a question are most of a few-shot prompt, and the same for a whole task (or
subject). Their keys and values are computed once, and logits only from the first scored token on.
"""

import copy
import inspect
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from lep.errors import LepError
from lep.inference.likelihood import MOST_LOGITS

SHARED = (DynamicLayer, DynamicSlidingWindowLayer)  # keys and values; other states are not shared
MOST_CACHE = 1 << 32  # bytes of keys and values at once
CPU_TOKENS = 2_048  # at once on a CPU: what more leave behind misses its caches (docs/log.md)
HEAD = 32  # tokens: a shorter prefix is not worth sharing
TOGETHER = 4  # questions: fewer do not make a group


@dataclass
class Reading:
    """Tokens that the model reads, and the continuations that are scored on them."""

    ids: tuple[int, ...]
    scored: list[tuple[int, int, list[int]]] = field(default_factory=list)  # request, begin, tokens

    @property
    def begin(self) -> int:
        """The first position whose logits score a token."""
        return min(begin for _, begin, _ in self.scored)

    @property
    def context(self) -> tuple[int, ...]:
        """The tokens before the first continuation."""
        return self.ids[: self.begin + 1]


@dataclass(frozen=True)
class Prefix:
    """Tokens that a group of readings begins with, and their keys and values."""

    length: int = 0
    cache: DynamicCache | None = None


@torch.inference_mode()
def continuation_nats(
    model: Any, requests: Sequence[tuple[list[int], list[int]]], batch_size: int
) -> Iterator[tuple[int, float, bool]]:
    """(request, log p of its continuation in nats, whether it is the greedy one), unordered.

    `requests` holds (context, continuation), neither empty. Continuations of one token share the
    reading of their context.
    """
    groups = _grouped(_readings(requests))
    for group in sorted(groups, key=lambda group: -max(len(r.ids) for r in group)):
        group.sort(key=lambda reading: (-len(reading.ids), reading.ids))
        prefix = _prefix(model, group)
        while batch := group[:batch_size]:
            batch = batch[: _fits(model, batch, prefix)]
            yield from _score(model, batch, prefix)
            group = group[len(batch) :]


def _readings(requests: Sequence[tuple[list[int], list[int]]]) -> list[Reading]:
    """Each different sequence of tokens, with all continuations scored on it."""
    readings: dict[tuple[int, ...], Reading] = {}
    for number, (context, continuation) in enumerate(requests):
        if not context or not continuation:
            raise ValueError(f"request {number} has an empty context or continuation")
        ids = (*context, *continuation[:-1])
        scored = (number, len(context) - 1, continuation)
        readings.setdefault(ids, Reading(ids)).scored.append(scored)
    return list(readings.values())


def _grouped(readings: list[Reading]) -> list[list[Reading]]:
    """Groups of readings with the same context, or the same first tokens; the rest is one group."""
    contexts = Counter(reading.context for reading in readings)
    heads = Counter(reading.ids[:HEAD] for reading in readings)
    groups: dict[tuple[int, ...], list[Reading]] = defaultdict(list)
    for reading in readings:
        beginnings = (reading.context, contexts), (reading.ids[:HEAD], heads)
        common = next((ids for ids, counts in beginnings if counts[ids] >= TOGETHER), ())
        groups[common].append(reading)
    return list(groups.values())


def common_prefix(sequences: Sequence[tuple[int, ...]]) -> int:
    """The number of tokens that all sequences begin with.

    >>> common_prefix([(1, 2, 3), (1, 2, 4, 5), (1, 2)])
    2
    """
    first, last = min(sequences), max(sequences)
    pairs = enumerate(zip(first, last, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))


def _prefix(model: Any, group: list[Reading]) -> Prefix:
    """The common prefix of a group; empty if short, or if the model keeps no keys and values."""
    shared = common_prefix([reading.ids for reading in group])
    length = min(shared, *(reading.begin for reading in group))
    if length < HEAD or len(group) == 1:
        return Prefix()
    ids = torch.tensor([group[0].ids[:length]], device=model.device)
    cache = model(input_ids=ids, use_cache=True, **keep_logits(model, 1)).past_key_values
    if type(cache) is not DynamicCache or any(type(layer) not in SHARED for layer in cache.layers):
        return Prefix()
    return Prefix(length, cache)


def _fits(model: Any, batch: list[Reading], prefix: Prefix) -> int:
    """How many readings of a batch fit into memory with their logits and prefixes."""
    longest = max(len(reading.ids) for reading in batch)
    scored = longest - min(reading.begin for reading in batch)
    fits = MOST_LOGITS // (scored * model.config.get_text_config().vocab_size)
    if prefix.cache is not None:
        size = sum(t.nbytes for layer in prefix.cache.layers for t in (layer.keys, layer.values))
        fits = min(fits, MOST_CACHE * prefix.length // (size * longest))
    if model.device.type == "cpu":
        fits = min(fits, CPU_TOKENS // (longest - prefix.length))
    return max(1, fits)


def _score(model: Any, batch: list[Reading], prefix: Prefix) -> Iterator[tuple[int, float, bool]]:
    first = min(reading.begin for reading in batch)  # nothing before it is scored
    logits = _logits(model, batch, prefix, first)
    scored = [
        (number, row, begin - first, continuation)
        for row, reading in enumerate(batch)
        for number, begin, continuation in reading.scored
    ]
    # the positions of all continuations one after the other, and the token that follows each
    table = [(row, start + k, t) for _, row, start, ids in scored for k, t in enumerate(ids)]
    rows, positions, targets = torch.tensor(table, device=logits.device).T
    chosen = logits[rows, positions].float().log_softmax(-1)
    lengths = [len(tokens) for *_, tokens in scored]
    nats = chosen.gather(1, targets[:, None]).flatten().cpu().split(lengths)
    greedy = (chosen.argmax(1) == targets).cpu().split(lengths)
    if not all(losses.isfinite().all() for losses in nats):
        raise LepError(
            "the model's likelihoods of answers are not finite, so none can be chosen: it is "
            "damaged or its dtype is too narrow; look at it with lep inspect"
        )
    for (number, *_), losses, hits in zip(scored, nats, greedy, strict=True):
        yield number, float(losses.sum()), bool(hits.all())


def _logits(model: Any, batch: list[Reading], prefix: Prefix, first: int) -> Tensor:
    """Logits from position `first` on, (batch, positions, vocabulary)."""
    shared, longest = prefix.length, max(len(reading.ids) for reading in batch)
    ids = torch.zeros(len(batch), longest - shared, dtype=torch.int64)
    mask = torch.zeros(len(batch), longest, dtype=torch.int64)
    for row, reading in enumerate(batch):
        ids[row, : len(reading.ids) - shared] = torch.tensor(reading.ids[shared:])
        mask[row, : len(reading.ids)] = 1
    options: dict[str, Any] = {"use_cache": prefix.cache is not None}
    if prefix.cache is not None:
        options["past_key_values"] = copy.deepcopy(prefix.cache)
        options["past_key_values"].batch_repeat_interleave(len(batch))
    positions = torch.arange(shared, longest).expand(len(batch), -1)
    return model(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        position_ids=positions.to(model.device),
        **options,
        **keep_logits(model, longest - first),
    ).logits[:, first - longest :]


def keep_logits(model: Any, positions: int) -> dict[str, int]:
    """Logits of the last positions only, where the model can leave the others out."""
    known = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": positions} if known else {}
