"""Greedy or sampled answers to chat prompts, in batches of similar length."""

import math
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

from lep.errors import CorpusError
from lep.progress import progress
from lep.tokenizer.chat import chat_ids

CONTEXT = 4_096  # tokens, for a configuration that names none
PART = 16  # tokens that are written before rows that have ended leave the batch
CANDIDATES = 4_096  # tokens among which a nucleus is looked for first


@dataclass(frozen=True)
class Answer:
    """A model's answer. `finished` is false when it was cut off at the length limit."""

    index: int  # of the prompt
    text: str
    ids: list[int]  # without the token that ended it
    finished: bool
    too_long: bool = False  # the prompt, for the model's context: it was not asked
    nats: float = 0.0  # -log p of its tokens to the model that wrote it, without the one that ends
    surprise: float | None = None  # see `lep.calibration.surprise`; None if it was not measured

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Written:
    """What a model wrote after a row, and -log p of each token, before any sampling."""

    ids: list[int]
    nats: list[float]


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

    No answer goes beyond the model's context. With `leave_out`, prompts that fill it are not asked:
    their answers, which are `too_long`, come first.
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
        most = max(1, min(max_new_tokens, context - len(rows[0])))  # the first is the longest
        written = continuations(
            model, tokenizer, rows, max_new_tokens=most, sampling=sampling, draw=start
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
) -> list[Written]:
    """What a model writes after each row of token ids, in one batch; greedily without `sampling`.

    A continuation has the token that ended it, one of the model's own end tokens or of `stops`, and
    perhaps padding after it. `draw` < 2 ** 32 is the number of the batch: others draw anew.
    """
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((index for index in named if index is not None), 0)  # any token, under the mask
    options: dict[str, Any] = {"num_beams": 1, "repetition_penalty": 1.0, "pad_token_id": pad}
    ends = end_tokens(model) - {None} | set(stops)
    options |= {"eos_token_id": sorted(ends) or None, "temperature": None, "top_p": None}
    options |= {"top_k": None, "do_sample": sampling is not None}
    nucleus = LogitsProcessorList()
    if sampling is not None:
        nucleus.append(Nucleus(sampling.temperature, sampling.top_p))
        torch.manual_seed((sampling.seed << 32) + draw)
    tensors = [torch.tensor(row) for row in rows]
    ids = pad_sequence(tensors, True, pad, "left").to(model.device)
    mask = pad_sequence([torch.ones_like(row) for row in tensors], True, 0, "left")
    return _written(model, ids, mask.to(model.device), max_new_tokens, nucleus, options)


def _written(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    most: int,
    nucleus: LogitsProcessorList,
    options: dict[str, Any],
) -> list[Written]:
    """What `generate` adds to (rows, n) ids and their mask.

    Rows that have ended leave the batch after each `PART` tokens: a CPU's time for a token grows
    with the batch. They stay where a cache is of other layers than keys and values of tokens.
    """
    ends, rows, cache = set(options["eos_token_id"] or []), list(range(len(ids))), None
    written = [Written([], []) for _ in rows]
    may_leave = True
    while rows and (left := most - len(written[rows[0]].ids)):
        likelihoods = Likelihoods()
        result: Any = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=min(left, PART) if may_leave else left,
            return_dict_in_generate=True,
            logits_processor=LogitsProcessorList([likelihoods, *nucleus]),
            **options,
        )
        new = result.sequences[:, ids.shape[1] :]
        likelihoods.add(result.sequences)
        nats = torch.stack(likelihoods.nats, 1)
        for row, tokens, each in zip(rows, new.tolist(), nats.tolist(), strict=True):
            written[row].ids.extend(tokens)
            written[row].nats.extend(each)
        ids, mask = result.sequences, torch.cat([mask, torch.ones_like(new)], 1)
        cache = result.past_key_values
        layers = getattr(cache, "layers", None) or [None]
        may_leave = all(isinstance(layer, DynamicLayer) for layer in layers)
        going = [i for i, row in enumerate(rows) if ends.isdisjoint(written[row].ids)]
        if may_leave and len(going) < len(rows):
            stay = torch.tensor(going, dtype=torch.int64, device=ids.device)
            rows, ids, mask = [rows[i] for i in going], ids[stay], mask[stay]
            cache.batch_select_indices(stay)
        elif not going:
            break
    return written


class Likelihoods(LogitsProcessor):
    """-log p of the tokens that are written, of the scores as the model gives them.

    It has to be the first processor. A token is known when the next one is asked for.
    """

    def __init__(self) -> None:
        self.nats: list[Tensor] = []  # (rows,) of each token
        self.scores: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The (rows, V) scores."""
        self.add(input_ids)
        self.scores = scores
        return scores

    def add(self, sequences: Tensor) -> None:
        """The last token of (rows, n) sequences was drawn from the last scores."""
        if self.scores is not None:
            drawn = self.scores.gather(1, sequences[:, -1:])[:, 0]
            self.nats.append(self.scores.logsumexp(1) - drawn)
            self.scores = None


class Nucleus(LogitsProcessor):
    """Tokens of a nucleus at a temperature, as `TopPLogitsWarper` finds them.

    It sorts the whole vocabulary for each token, which takes a CPU long. Here the nucleus is looked
    for among the most likely tokens, and beyond them only where it is larger.
    """

    def __init__(self, temperature: float, top_p: float) -> None:
        self.temperature, self.top_p = temperature, top_p
        self.exact = TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, V) scores, divided by the temperature, -inf outside of the nucleus."""
        scores = scores / self.temperature
        top, index = scores.topk(min(CANDIDATES, scores.shape[1]))
        shares = (top - scores.logsumexp(1, keepdim=True)).exp()
        before = shares.cumsum(1) - shares
        inside = torch.where(before < self.top_p, top, -torch.inf)
        nucleus = torch.full_like(scores, -torch.inf).scatter_(1, index, inside)
        larger = shares.sum(1) < self.top_p
        if larger.any():
            nucleus[larger] = self.exact(input_ids[larger], scores[larger])
        return nucleus


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
    index: int, written: Written, ends: set[int], tokenizer: PreTrainedTokenizerFast
) -> Answer:
    ids = [*takewhile(lambda token: token not in ends, written.ids)]
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    nats = math.fsum(written.nats[: len(ids)])
    return Answer(index, text, ids, finished=len(ids) < len(written.ids), nats=nats)
