"""Greedy or sampled answers to chat prompts, in batches of similar length."""

from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lep.errors import CorpusError
from lep.progress import progress
from lep.tokenizer.chat import chat_ids

CONTEXT = 4_096  # tokens, for a configuration that names none


@dataclass(frozen=True)
class Answer:
    """A model's answer. `finished` is false when it was cut off at the length limit."""

    index: int  # of the prompt
    text: str
    ids: list[int]  # without the token that ended it
    finished: bool
    too_long: bool = False  # the prompt, for the model's context: it was not asked
    surprise: float | None = None  # see `lep.calibration.surprise`; None if it was not measured

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. Every batch has its own seed, so that a resumed run draws the same."""

    temperature: float
    top_p: float
    seed: int


@torch.inference_mode()
def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[dict[str, Any]]],
    *,
    max_new_tokens: int,
    batch_size: int,
    done: Container[int] = (),
    sampling: Sampling | None = None,
    label: str = "answers",
    leave_out: bool = False,
) -> Iterator[list[Answer]]:
    """Greedy or sampled answers, batch by batch, longest prompts first.

    A batch whose prompts are all `done` is skipped. Batches do not depend on `done`, so that a
    resumed run gives the same answers. Answers end at the model's own end tokens.

    With `leave_out`, prompts that fill the model's context are not asked: their answers, which are
    `too_long`, come first.
    """
    encoded = [chat_ids(tokenizer, messages, ask=True) for messages in prompts]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or CONTEXT
    too_long = {i for i, ids in enumerate(encoded) if leave_out and len(ids) >= context}
    if new := [i for i in sorted(too_long) if i not in done]:
        yield [Answer(i, "", [], finished=False, too_long=True) for i in new]
    order = sorted(set(range(len(encoded))) - too_long, key=lambda i: (-len(encoded[i]), i))
    ends = end_tokens(model)
    for start in progress(range(0, len(order), batch_size), f"batches of {label}"):
        batch = order[start : start + batch_size]
        if all(index in done for index in batch):
            continue
        rows = [encoded[i] for i in batch]
        written = continuations(
            model, tokenizer, rows, max_new_tokens=max_new_tokens, sampling=sampling, draw=start
        )
        yield [_answer(i, row, ends, tokenizer) for i, row in zip(batch, written, strict=True)]


@torch.inference_mode()
def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[list[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    draw: int = 0,
    stops: Collection[int] = (),
) -> list[list[int]]:
    """What a model writes after each row of token ids, in one batch; greedily without `sampling`.

    A continuation has the token that ended it, one of the model's own end tokens or of `stops`, and
    what pads it to the longest one. `draw` < 2 ** 32 is the number of the batch: others draw anew.
    """
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((index for index in named if index is not None), 0)  # any token, under the mask
    options = {"num_beams": 1, "top_k": None, "repetition_penalty": 1.0, "pad_token_id": pad}
    if stops:
        options["eos_token_id"] = sorted(end_tokens(model) - {None} | set(stops))
    if sampling is None:
        options |= {"do_sample": False, "temperature": None, "top_p": None}
    else:
        options |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        torch.manual_seed((sampling.seed << 32) + draw)
    tensors = [torch.tensor(row) for row in rows]
    ids = pad_sequence(tensors, True, pad, "left").to(model.device)
    mask = pad_sequence([torch.ones_like(row) for row in tensors], True, 0, "left")
    inputs = {"input_ids": ids, "attention_mask": mask.to(model.device)}
    written = model.generate(**inputs, max_new_tokens=max_new_tokens, **options)
    return written[:, ids.shape[1] :].tolist()


def check_prompts(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[list[dict[str, Any]]], context: int
) -> None:
    """Raise `CorpusError` for the first prompt that fills a context of so many tokens."""
    for messages in prompts:
        if (length := len(chat_ids(tokenizer, messages, ask=True))) >= context:
            start = messages[-1]["content"][:40]
            raise CorpusError(
                f"the prompt {start!r} has {length:,} tokens, the model's context is {context:,}: "
                "shorten the prompt or leave it out"
            )


def end_tokens(model: PreTrainedModel) -> set[int]:
    """The tokens at which the text that a model writes ends."""
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends])


def _answer(
    index: int, row: list[int], ends: set[int], tokenizer: PreTrainedTokenizerFast
) -> Answer:
    ids = [*takewhile(lambda token: token not in ends, row)]
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return Answer(index, text, ids, finished=len(ids) < len(row))
