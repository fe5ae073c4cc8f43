"""Conversations under a vocabulary: where in them the answer is, and how likely it is there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lep.checkpoint.reader import Checkpoint
from lep.inference.likelihood import sequence_nats
from lep.inference.next_byte import byte_offsets
from lep.tokenizer.chat import chat_ids


@dataclass(frozen=True)
class Spoken:
    """A conversation with its last answer under one vocabulary."""

    ids: list[int]
    start: int  # of the answer
    stop: int  # of the answer; what ends the turn follows
    places: dict[
        int, int
    ]  # position of each token border in the answer, by the bytes of the answer before it

    @classmethod
    def of(cls, checkpoint: Checkpoint, messages: list[dict[str, Any]]) -> "Spoken | None":
        """None where the template does not put the answer behind the question as it is, and an added token behind it.

        (Some insert marks of reasoning, or rewrite earlier turns.)
        """
        question, ids = (
            chat_ids(checkpoint.tokenizer, messages[:-1], ask=True),
            chat_ids(checkpoint.tokenizer, messages),
        )
        start, spelled = len(question), b""
        if ids[:start] != question:
            return None
        for stop, index in enumerate(ids[start:], start=start):
            token = checkpoint.vocabulary.tokens[index]
            if (
                token
                and token.added
                and spelled.strip() == messages[-1]["content"].encode().strip()
            ):
                borders = byte_offsets(checkpoint.vocabulary, ids[start:stop])
                return cls(
                    ids[: stop + 1],
                    start,
                    stop,
                    {border: start + i for i, border in enumerate(borders)},
                )
            spelled += token.content if token else b""
        return None


def answer_nats(
    model: Any,
    checkpoint: Checkpoint,
    conversations: Sequence[list[dict[str, Any]]],
    batch_size: int,
    label: str,
) -> dict[int, float]:
    """-log p in nats of the last answer of each conversation and of the end of its turn, by place.

    What a template puts behind the end of a turn is no part of it. Conversations are left out where the template does
    not show where the answer is.
    """
    found = {i: Spoken.of(checkpoint, messages) for i, messages in enumerate(conversations)}
    spoken = {i: each for i, each in found.items() if each is not None}
    nats = sequence_nats(
        model, [(each.ids, each.start) for each in spoken.values()], batch_size, label
    )
    return dict(zip(spoken, nats, strict=True))
