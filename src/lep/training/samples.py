"""Conversations as samples to train on: ids and what of them is learned, in order and in batches."""

import json
import math
import random
from typing import Any

import torch

from lep.checkpoint.reader import Checkpoint
from lep.corpus.prepare import unit_hash
from lep.errors import CorpusError, LepError
from lep.settings import LoraSettings
from lep.tokenizer.chat import chat_ids

SORTED_BATCHES = 50  # micro-batches whose samples are sorted by length together
Records = list[dict[str, Any]]  # of `messages`
Samples = list[dict[str, list[int]]]  # of ids, and a mask that is 1 on what is learned


def encode_records(
    checkpoint: Checkpoint, records: list[dict[str, Any]], max_length: int
) -> tuple[Samples, int]:
    """Ids and completion mask of each conversation (1 on its last message), and how many were too long.

    Order follows a fixed hash, so that tasks and answers mix. Raises `CorpusError` when nothing is left.
    """
    tokenizer = checkpoint.tokenizer
    if not tokenizer.chat_template:
        raise CorpusError(
            f"{checkpoint.folder} has no chat template, so conversations cannot be written: give an "
            "instruct model"
        )
    limit = min(max_length, checkpoint.config.get("max_position_embeddings", max_length))
    samples, too_long = [], 0
    for record in sorted(
        records, key=lambda r: unit_hash(json.dumps(r["messages"], sort_keys=True))
    ):
        messages = record["messages"]
        if messages[-1]["role"] != "assistant":
            raise CorpusError(
                f"a conversation ends with the role '{messages[-1]['role']}', not with 'assistant': "
                "tuning data must hold the answers"
            )
        prompt, ids = chat_ids(tokenizer, messages[:-1], ask=True), chat_ids(tokenizer, messages)
        if ids[: len(prompt)] != prompt:
            raise LepError(
                f"the chat template of {checkpoint.folder} does not continue its own prompt: the answers "
                "cannot be told from the questions"
            )
        if len(ids) > limit:
            too_long += 1
            continue
        samples.append(
            {
                "input_ids": ids,
                "completion_mask": [0] * len(prompt) + [1] * (len(ids) - len(prompt)),
            }
        )
    if not samples:
        raise CorpusError(
            f"no conversation to train on: {len(records)} given, {too_long} longer than {limit} tokens"
        )
    return samples, too_long


def batches(settings: LoraSettings, samples: int) -> tuple[int, dict[str, Any]]:
    """Optimizer steps, and how samples, in the order of `in_order`, are shared out to them."""
    accumulation, micro = _micro_batches(settings)
    steps = max(1, round(settings.epochs * samples / (micro * accumulation)))
    return steps, {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "sequential",
    }


def _micro_batches(settings: LoraSettings) -> tuple[int, int]:
    """How many of them make a step, and the samples of each."""
    accumulation = math.ceil(settings.batch_size / settings.micro_batch_size)
    return accumulation, math.ceil(settings.batch_size / accumulation)


def in_order(samples: Samples, settings: LoraSettings) -> Samples:
    """The samples of all epochs in a random order in which those of a micro-batch are of like length.

    So little is padded, and a step still has samples of every length. The order is that of the seed alone, so that
    an interrupted training finds it again.
    """
    rng, micro = random.Random(settings.seed), _micro_batches(settings)[1]
    epochs = [
        sample
        for _ in range(math.ceil(settings.epochs))
        for sample in rng.sample(samples, len(samples))
    ]
    wanted = epochs[: max(1, round(settings.epochs * len(samples)))]
    ordered: Samples = []
    for start in range(0, len(wanted), SORTED_BATCHES * micro):
        part = sorted(
            wanted[start : start + SORTED_BATCHES * micro],
            key=lambda sample: len(sample["input_ids"]),
        )
        batches = [part[i : i + micro] for i in range(0, len(part), micro)]
        last = (
            [batches.pop()] if len(batches[-1]) < micro else []
        )  # stays last, so that the others stay whole
        rng.shuffle(batches)
        ordered += [sample for batch in batches + last for sample in batch]
    return ordered


def collate_answers(samples: Samples) -> dict[str, torch.Tensor]:
    """Samples of `encode_records` as a batch: (n, longest) ids and mask, and labels on the answers alone."""
    width = max(len(sample["input_ids"]) for sample in samples)
    ids, mask = torch.zeros(2, len(samples), width, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for row, sample in enumerate(samples):
        tokens, learned = (torch.tensor(sample[name]) for name in ("input_ids", "completion_mask"))
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, : len(tokens)] = torch.where(learned == 1, tokens, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
