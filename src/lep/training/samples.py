"""Conversations as training samples: ids, the part that is learned, order and batches."""

import json
import math
import random
from dataclasses import dataclass
from itertools import chain
from typing import Any

import regex
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from lep.checkpoint.reader import Checkpoint
from lep.corpus.language import UNSPACED
from lep.corpus.prepare import unit_hash
from lep.errors import CorpusError, LepError
from lep.inference.models import context_of
from lep.settings import LoraSettings
from lep.tokenizer.chat import chat_ids, unfinished_ids

_LAST_WORD = regex.compile(rf"(?:[{UNSPACED}]\p{{M}}*|[^\s{UNSPACED}]+)$")
SORTED_BATCHES = 50  # micro-batches whose samples are sorted by length together
Records = list[dict[str, Any]]  # conversations, each with `messages`


@dataclass(frozen=True)
class Sample:
    """The ids of a conversation; all but the first `prompt_tokens` are learned."""

    ids: list[int]
    prompt_tokens: int


def encode_records(
    checkpoint: Checkpoint, records: Records, max_length: int
) -> tuple[list[Sample], int]:
    """A sample of each conversation, its last message learned, and how many were too long.

    Where a record's `finished` is false, its answer was cut off: it is learned up to its last
    whole word and the longest length, and not that it ends there. A fixed hash orders the samples,
    so that tasks and answers mix. Raises `CorpusError` for a model without a chat template, a
    conversation without an answer, and when no sample is left.
    """
    if not checkpoint.tokenizer.chat_template:
        raise CorpusError(
            f"{checkpoint.folder} has no chat template for conversations: give an instruct model"
        )
    limit = min(max_length, context_of(checkpoint, max_length))
    ordered = sorted(records, key=lambda r: unit_hash(json.dumps(r["messages"], sort_keys=True)))
    encoded = list(filter(None, (_encode(checkpoint, record, limit) for record in ordered)))
    samples = [sample for sample in encoded if len(sample.ids) <= limit]
    too_long = len(encoded) - len(samples)
    if not samples:
        raise CorpusError(
            f"no conversation to train on: {len(records)} given, {too_long} above {limit} tokens"
        )
    return samples, too_long


def _encode(checkpoint: Checkpoint, record: dict[str, Any], limit: int) -> Sample | None:
    """None for an unfinished answer of which nothing can be learned."""
    messages = record["messages"]
    if messages[-1]["role"] != "assistant":
        raise CorpusError(
            f"a conversation ends with the role '{messages[-1]['role']}', not with 'assistant': "
            "tuning data must hold the answers"
        )
    prompt = chat_ids(checkpoint.tokenizer, messages[:-1], ask=True)
    ids = learned_ids(checkpoint.tokenizer, record)
    if is_unfinished(record) and len(prompt) < limit:
        ids = ids[:limit] if ids else []
        if len(ids) <= len(prompt):
            return None
    if ids is None:
        return None
    if ids[: len(prompt)] != prompt:
        raise LepError(
            f"the chat template of {checkpoint.folder} does not continue its own prompt: answers "
            "cannot be told from questions"
        )
    return Sample(ids, len(prompt))


def learned_ids(tokenizer: PreTrainedTokenizerFast, record: dict[str, Any]) -> list[int] | None:
    """Token ids of a conversation; see `unfinished_ids` for one whose answer was cut off."""
    messages = record["messages"]
    if not is_unfinished(record):
        return chat_ids(tokenizer, messages)
    answer = messages[-1] | {"content": whole_words(messages[-1]["content"])}
    return unfinished_ids(tokenizer, [*messages[:-1], answer])


def is_unfinished(record: dict[str, Any]) -> bool:
    """Whether the answer was cut off: only if the record says so."""
    return record.get("finished") is False


def whole_words(text: str) -> str:
    """A text without its last word, of which a part may be missing; in scripts without spaces,
    without its last character.

    >>> whole_words("Река начинается в гор"), whole_words("长江是中国最长的河")
    ('Река начинается в', '长江是中国最长的')
    """
    return _LAST_WORD.sub("", text.rstrip("\ufffd \n\t")).rstrip()


def batches(settings: LoraSettings, samples: int) -> tuple[int, dict[str, Any]]:
    """Optimizer steps, and the Trainer's arguments for samples as `in_order` orders them."""
    accumulation, micro = _micro_batches(settings)
    steps = math.ceil(_drawn(settings, samples) / (micro * accumulation))  # the last has the rest
    sizes = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
    return steps, sizes | {"train_sampling_strategy": "sequential"}


def _micro_batches(settings: LoraSettings) -> tuple[int, int]:
    """Micro-batches per step, and samples per micro-batch."""
    accumulation = math.ceil(settings.batch_size / settings.micro_batch_size)
    return accumulation, math.ceil(settings.batch_size / accumulation)


def _drawn(settings: LoraSettings, samples: int) -> int:
    """How many samples all epochs have."""
    return max(1, round(settings.epochs * samples))


def in_order(samples: list[Sample], settings: LoraSettings) -> list[Sample]:
    """The samples of all epochs in random order, with samples of similar length in a micro-batch.

    This needs little padding, and each step still has samples of every length. The order depends
    only on the seed, so that a resumed training continues in it.
    """
    rng, micro = random.Random(settings.seed), _micro_batches(settings)[1]
    epochs = [rng.sample(samples, len(samples)) for _ in range(math.ceil(settings.epochs))]
    drawn = [*chain(*epochs)][: _drawn(settings, len(samples))]
    ordered: list[Sample] = []
    for start in range(0, len(drawn), SORTED_BATCHES * micro):
        part = drawn[start : start + SORTED_BATCHES * micro]
        part.sort(key=lambda sample: len(sample.ids))
        groups = [part[i : i + micro] for i in range(0, len(part), micro)]
        # A short batch stays last, so that all others stay whole.
        last = [groups.pop()] if len(groups[-1]) < micro else []
        rng.shuffle(groups)
        ordered += chain(*groups, *last)
    return ordered


def collate_answers(samples: list[Sample]) -> dict[str, Tensor]:
    """Samples as a batch: (n, longest) ids, attention mask, and labels on the answers alone."""
    ids = [torch.tensor(sample.ids) for sample in samples]
    mask = pad_sequence([torch.ones_like(row) for row in ids], True)
    labels = pad_sequence(ids, True, -100)
    for row, sample in zip(labels, samples, strict=True):
        row[: sample.prompt_tokens] = -100
    return {"input_ids": pad_sequence(ids, True), "attention_mask": mask, "labels": labels}
