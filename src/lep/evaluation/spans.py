"""Answers in conversations: where their tokens are, how likely they are, and greedy ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import normalize

from lep.checkpoint.reader import Checkpoint
from lep.inference.generate import Answer, answers
from lep.inference.likelihood import sequence_nats
from lep.inference.next_byte import byte_offsets
from lep.tokenizer.chat import chat_ids

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class AnswerSpan:
    """The tokens of a conversation, and the position of its last answer."""

    ids: list[int]  # up to the token that ends the turn
    start: int  # first token of the answer
    stop: int  # the token after it
    borders: dict[int, int]  # position of each token border, by the bytes of the answer before it

    @classmethod
    def of(cls, checkpoint: Checkpoint, messages: Messages) -> "AnswerSpan | None":
        """None unless the template puts the answer right after the question, unchanged, and an
        added token after it. Some templates insert marks of reasoning, or rewrite earlier turns.
        """
        question = chat_ids(checkpoint.tokenizer, messages[:-1], ask=True)
        ids = chat_ids(checkpoint.tokenizer, messages)
        answer, start = _composed(messages[-1]["content"].encode()), len(question)
        spelled = bytearray()
        if ids[:start] != question:
            return None
        for stop, index in enumerate(ids[start:], start=start):
            token = checkpoint.vocabulary.tokens[index]
            if token and token.added and _composed(spelled) == answer:
                offsets = byte_offsets(checkpoint.vocabulary, ids[start:stop])
                borders = {offset: start + i for i, offset in enumerate(offsets)}
                return cls(ids[: stop + 1], start, stop, borders)
            spelled += token.content if token else b""
        return None


def _composed(text: bytes | bytearray) -> bytes:
    """UTF-8 without spaces around it, in the form that tokenizers with an NFC normalizer give."""
    try:
        return normalize("NFC", text.decode()).encode().strip()
    except UnicodeDecodeError:  # a part of a character
        return bytes(text.strip())


def answer_nats(
    model: Any,
    checkpoint: Checkpoint,
    conversations: Sequence[Messages],
    batch_size: int,
    label: str,
) -> dict[int, float]:
    """-log p in nats of each conversation's last answer with the token that ends it, by index.

    Conversations without an `AnswerSpan` are left out.
    """
    spans = {i: AnswerSpan.of(checkpoint, messages) for i, messages in enumerate(conversations)}
    shown = {i: (span.ids, span.start) for i, span in spans.items() if span is not None}
    nats = sequence_nats(model, list(shown.values()), batch_size, label)
    return dict(zip(shown, nats, strict=True))


def greedy_answers(
    model: Any,
    checkpoint: Checkpoint,
    prompts: Sequence[Messages],
    max_new_tokens: int,
    batch_size: int,
    *,
    label: str,
) -> list[Answer]:
    """The model's answers in the order of the prompts."""
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    batches = answers(model, checkpoint.tokenizer, prompts, **options, label=label)
    return sorted((answer for batch in batches for answer in batch), key=lambda each: each.index)
