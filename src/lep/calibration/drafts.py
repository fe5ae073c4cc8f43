"""Prompts that an instruct model writes when its template stops where a user begins to write."""

import statistics
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from lep.calibration.surprise import nats_per_byte, share_of
from lep.checkpoint.reader import Checkpoint
from lep.errors import CorpusError
from lep.inference.generate import Sampling, continuations, end_tokens
from lep.inference.models import context_of, load_writer
from lep.settings import OwnPromptSettings
from lep.tokenizer.chat import UserTurn


@dataclass(frozen=True)
class Draft:
    """A text that a model wrote in the user's turn, from its given opening on."""

    opening: str
    text: str
    finished: bool  # False when it was cut off at the length limit
    has_controls: bool  # special tokens within the text
    surprise: float | None  # nats per byte as a share of the median sentence's


class Writer:
    """An instruct model that continues the user's turn (Magpie, Xu et al. 2024).

    Its weights are loaded when it first writes. Raises `TokenizerError` for a model whose chat
    template cannot be cut, `CheckpointError` for one that cannot be read.
    """

    def __init__(self, original: str | Path, settings: OwnPromptSettings) -> None:
        self.original, self.settings = original, settings
        self.checkpoint = Checkpoint(original).check()
        self.tokenizer = self.checkpoint.tokenizer
        self.turn = UserTurn.of(self.tokenizer)

    @cached_property
    def model(self) -> Any:
        return load_writer(self.original)[0]

    def rows(self, openings: Sequence[str]) -> list[list[int]]:
        """Token ids of the template up to the user's turn, and of an opening of it."""
        texts = [self.turn.before + opening for opening in openings]
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def check_room(self, openings: Sequence[str]) -> None:
        """Raise `CorpusError` where the model's context has no room to write after an opening."""
        longest, context = max(map(len, self.rows(openings))), context_of(self.checkpoint)
        if longest >= context:
            raise CorpusError(
                f"the chat template and the first words of a prompt have {longest:,} tokens, the "
                f"model's context is {context:,}: give another model, or --prompts FILE"
            )

    def median(self, sentences: Sequence[str]) -> float:
        """Median nats per byte of what people wrote."""
        return statistics.median(self._nats(sentences, "batches of sentences read"))

    def drafts(self, label: str, openings: Sequence[str], median: float) -> list[Draft]:
        """A draft after each opening. The `label` of the batch decides what is drawn."""
        rows, settings = self.rows(openings), self.settings
        room = context_of(self.checkpoint) - max(map(len, rows))
        stops = set() if self.turn.stop is None else {self.turn.stop}
        written = continuations(
            self.model,
            self.tokenizer,
            rows,
            max_new_tokens=min(settings.prompt_tokens, room),
            sampling=Sampling(
                settings.prompt_temperature, settings.prompt_top_p, settings.prompt_seed
            ),
            draw=zlib.crc32(label.encode()),
            stops=stops,
        )
        drafts = [
            self._draft(opening, row, each.ids, stops)
            for opening, row, each in zip(openings, rows, written, strict=True)
        ]
        nats = self._nats([draft.text for draft in drafts], "batches of prompts read")
        shares = [share_of(median, value) for value in nats]
        return [replace(each, surprise=share) for each, share in zip(drafts, shares, strict=True)]

    def _nats(self, texts: Sequence[str], label: str) -> list[float]:
        batch = self.settings.prompt_batch
        return nats_per_byte(self.model, self.tokenizer, texts, batch, label)

    def _draft(self, opening: str, row: list[int], ids: list[int], stops: set[int]) -> Draft:
        """Decoded after its row, as a space at its beginning may depend on what is before it."""
        ends = end_tokens(self.model) | stops
        kept = [*takewhile(lambda token: token not in ends, ids)]
        options = {"clean_up_tokenization_spaces": False}
        start = len(self.tokenizer.decode(row, **options))
        text, finished = self.tokenizer.decode(row + kept, **options)[start:], len(kept) < len(ids)
        if self.turn.stop_text and self.turn.stop_text in text:
            text, finished = text.partition(self.turn.stop_text)[0], True
        added = self.tokenizer.added_tokens_decoder
        has_controls = any(token in added and added[token].special for token in kept)
        return Draft(opening, (opening + text).strip(), finished, has_controls, None)
