"""An answer as it is written, a few tokens at a time, with what it takes."""

import codecs
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError
from lep.inference.generate import end_tokens
from lep.inference.models import context_of, load_writer
from lep.tokenizer.chat import chat_ids, check_template
from lep.transfer.mappings import saved_mappings

PART = 4  # tokens that are written before they are shown
UTF8 = codecs.getincrementaldecoder("utf-8")
GREEDILY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}
GREEDILY |= {"temperature": None, "top_p": None, "top_k": None}
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Reply:
    """An answer so far: its tokens, the seconds that writing took, whether it ended its turn."""

    ids: list[int]
    pieces: list[str]  # the text of each token; of one that ends inside of a character, nothing
    new: list[bool]  # whether the token is one of the new ones
    prompt_tokens: int
    seconds: float = 0.0
    finished: bool = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def summary(self) -> str:
        """Tokens and characters, and how many of each a second."""
        tokens, characters = len(self.ids), len(self.text)
        counts = f"{tokens:,} tokens ({sum(self.new):,} new), {characters:,} characters"
        if not self.seconds:
            return counts
        rates = f"{tokens / self.seconds:.1f} tokens, {characters / self.seconds:.1f} characters"
        return f"{counts}; {rates} a second; prompt: {self.prompt_tokens:,} tokens"


@dataclass(frozen=True)
class Speaker:
    """A model that answers while one watches."""

    name: str
    model: PreTrainedModel
    checkpoint: Checkpoint
    new: frozenset[int]  # its new tokens

    @classmethod
    def of(cls, source: str | Path, name: str = "") -> Self:
        """Raises `CheckpointError` for a model that cannot be read, `TokenizerError` for one
        without chat template."""
        model, checkpoint = load_writer(source)
        check_template(checkpoint.tokenizer)
        mappings = saved_mappings(checkpoint, appended=True)
        new = mappings["input"].new_rows().tolist() if mappings else ()
        return cls(name or Path(source).name, model, checkpoint, frozenset(new))

    @torch.inference_mode()
    def replies(self, messages: Messages, max_new_tokens: int) -> Iterator[Reply]:
        """The greedy answer to a conversation after each few tokens; the last one is whole.

        Raises `CheckpointError` for a conversation that fills the model's context.
        """
        tokenizer = self.checkpoint.tokenizer
        row = chat_ids(tokenizer, messages, ask=True)
        room = context_of(self.checkpoint) - len(row)
        if room <= 0:
            raise CheckpointError(
                f"the conversation has {len(row):,} tokens for {self.name}, as many as it can "
                "attend to: begin a new one"
            )
        reply = Reply([], [], [], len(row))
        ids, cache = torch.tensor([row], device=self.model.device), None
        ends = end_tokens(self.model)
        while not reply.finished and len(reply.ids) < min(room, max_new_tokens):
            began = time.monotonic()
            left = min(room, max_new_tokens) - len(reply.ids)
            result: Any = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=min(PART, left),
                return_dict_in_generate=True,
                pad_token_id=row[0],  # of one row, nothing is padded
                **GREEDILY,
            )
            seconds = reply.seconds + time.monotonic() - began
            written = result.sequences[0, ids.shape[1] :].tolist()
            ids, cache = result.sequences, result.past_key_values
            said = [*reply.ids, *takewhile(lambda index: index not in ends, written)]
            reply = replace(
                reply,
                ids=said,
                pieces=self._pieces(said),
                new=[index in self.new for index in said],
                seconds=seconds,
                finished=not ends.isdisjoint(written),
            )
            yield reply

    def _pieces(self, ids: list[int]) -> list[str]:
        """The text of each token, none of special ones.

        A character counts for the token that ends it.
        """
        tokens, decoder = self.checkpoint.vocabulary.tokens, UTF8("replace")
        added = self.checkpoint.tokenizer.added_tokens_decoder
        special = {index for index, token in added.items() if token.special}
        written = [None if index in special else tokens[index] for index in ids]
        return [decoder.decode(token.content if token else b"") for token in written]


def side_by_side(
    speakers: list[Speaker], conversations: list[Messages], max_new_tokens: int
) -> Iterator[list[Reply | None]]:
    """What each has said so far, as they go on in turns: none waits for the other's whole answer.

    The time of each is its own.
    """
    streams = [
        speaker.replies(messages, max_new_tokens)
        for speaker, messages in zip(speakers, conversations, strict=True)
    ]
    said: list[Reply | None] = [None] * len(speakers)
    for replies in zip_longest(*streams):
        said = [reply or before for reply, before in zip(replies, said, strict=True)]
        yield said
