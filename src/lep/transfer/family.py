"""`Family`: a base model, an instruct model tuned from it, and the base model after adaptation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lep.checkpoint.adapter import check_body, check_merged
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import Rows
from lep.errors import CheckpointError
from lep.mapping import VocabularyMapping, row_chunks
from lep.propagation import Problem, Propagation
from lep.transfer.mappings import adapted_mappings, undertrained_rows
from lep.transfer.recipient import Recipient, result_ids
from lep.transfer.row_streams import as_table, check_finite, first_rows, mix, recipient_stream


@dataclass(frozen=True)
class Family:
    """The models of a propagation; the recipient is the instruct model."""

    base: Checkpoint
    adapted: Checkpoint
    recipient: Recipient

    @classmethod
    def open(cls, base: str | Path, instruct: str | Path, adapted: str | Path) -> "Family":
        """Raises `CheckpointError` when the three do not belong together."""
        source, chat, target = (Checkpoint(model).check() for model in (base, instruct, adapted))
        check_family(source, chat, target)
        mappings = adapted_mappings(source, target)
        ids = result_ids(len(source.vocabulary), chat, target.vocabulary, mappings["input"])
        tokenizer = target.tokenizer.backend_tokenizer
        return cls(source, target, Recipient(chat, tokenizer, mappings, ids))

    @property
    def instruct(self) -> Checkpoint:
        return self.recipient.model

    @property
    def mappings(self) -> dict[str, VocabularyMapping]:
        """The mapping of the input table and, in untied models, of the output table."""
        return self.recipient.mappings

    def tables(self, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        """The table of base (V_source, h), instruct (V_source, h) and adapted model (V_target, h).

        Tables are mapped from disk: memory holds what is used.
        """
        models = (self.base, self.instruct, self.adapted)
        base, instruct, adapted = (model.tensor(model.tables.by_kind()[kind]) for model in models)
        return base, first_rows(instruct, base), adapted

    def problem(
        self, kind: str, weights: Tensor | None = None, penalty: float | None = None
    ) -> Problem:
        """The problem of one table. Raises `CheckpointError` for rows that are not finite."""
        base, instruct, _ = self.tables(kind)
        for model, table in ((self.base, base), (self.instruct, instruct)):
            check_finite(table, f"{model.tables.by_kind()[kind]} of {model.folder}")
        mapping, rows, centred = self.mappings[kind], self.fit_rows(kind), self.is_centred(kind)
        return Problem(base, instruct, mapping, rows, centred, weights, penalty)

    def is_centred(self, kind: str) -> bool:
        """Whether a fit is about the means: softmax does not see them, but a soft cap does."""
        return kind == "output" and not soft_capped(self.base.config)

    def fit_rows(self, kind: str) -> Tensor:
        """Mask (V_target,) of rows to fit on: ordinary tokens whose source rows were trained."""
        mapping = self.mappings[kind]
        rows = torch.zeros(mapping.target_size, dtype=torch.bool)
        tokens = self.adapted.vocabulary.tokens
        rows[: len(tokens)] = torch.tensor([t is not None and not t.added for t in tokens])
        rows[[row for row in self.recipient.ids.values() if row < len(rows)]] = False
        table = self.base.tables.by_kind()[kind]
        untrained = undertrained_rows(self.base, table)[mapping.indices].double()
        counts = torch.cat([torch.zeros(1, dtype=torch.float64), untrained.cumsum(0)])
        return rows & (counts[mapping.offsets].diff() == 0)

    def propagated(self, kind: str, propagation: Propagation) -> Rows:
        """The result's table, computed when it is written."""

        def chunks() -> Iterator[Tensor]:
            base, instruct, adapted = self.tables(kind)
            return propagation.rows(adapted, self.mappings[kind], base, instruct)

        return recipient_stream(self.recipient, self.instruct.tables.by_kind()[kind], chunks)

    def untrained(self, kind: str) -> Rows:
        """The instruct model's table with untrained rows, `M E_inst`."""

        def chunks() -> Iterator[Tensor]:
            _, instruct, _ = self.tables(kind)
            return (part(instruct) for part in self.mappings[kind].chunks(instruct.shape[1]))

        return recipient_stream(self.recipient, self.instruct.tables.by_kind()[kind], chunks)

    def other(self, name: str, *, trained: bool) -> Rows:
        """`M T_inst + (T_adapted - M T_base)` for a tensor beside the tables.

        The difference is added when `trained`, and only where base and adapted model have the
        tensor.
        """
        models = (self.base, self.adapted)
        known = all(name in model.tables.others for model in models)
        for model in models if known else ():
            if model.shape(name)[1:] != self.instruct.shape(name)[1:]:
                raise CheckpointError(
                    f"{name} has other columns in {self.instruct.folder} than in {model.folder}: "
                    "give models of one family and size"
                )
        chunks = partial(self._other, name, known=known, trained=trained)
        return recipient_stream(self.recipient, name, chunks)

    def _other(self, name: str, *, known: bool, trained: bool) -> Iterator[Tensor]:
        mapping = self.mappings[self.instruct.tables.kind_of(name)]
        chat = as_table(self.instruct.tensor(name))
        base = as_table(self.base.tensor(name)) if known else chat[: mapping.source_size]
        if len(base) < mapping.source_size:
            raise CheckpointError(
                f"{self.base.folder} has no {name}, and that of {self.instruct.folder} has "
                f"{len(base):,} rows for {mapping.source_size:,}: save both alike"
            )
        instruct = first_rows(chat, base)
        adapted: Iterable[Tensor | None] = repeat(None)
        if known and trained:
            adapted = row_chunks(as_table(self.adapted.tensor(name)))
        for part, rows in zip(mapping.chunks(chat.shape[1]), adapted, strict=False):
            chunk = mix(instruct, part)
            if rows is not None and chunk.is_floating_point():
                wide = torch.promote_types(chunk.dtype, torch.float32)
                learned = rows.to(wide) - part(base).to(wide)
                chunk = torch.where(learned == 0, chunk, (chunk.to(wide) + learned).to(chunk.dtype))
            yield chunk


def check_family(base: Checkpoint, instruct: Checkpoint, adapted: Checkpoint) -> None:
    """Raise `CheckpointError` unless hidden size, tying and the ids of base and instruct agree."""
    check_shapes(base, instruct)
    check_shapes(base, adapted)
    for model in (base, instruct, adapted):
        check_merged(model)
    check_body(base, adapted)
    pairs = zip(base.vocabulary.tokens, instruct.vocabulary.tokens, strict=False)
    for index, (token, chat_token) in enumerate(pairs):
        if token is None or chat_token is None or (token.added and chat_token.added):
            continue  # a chat model may rename a reserved token
        if token.content != chat_token.content:
            raise CheckpointError(
                f"id {index} is {token.content!r} in {base.folder} and {chat_token.content!r} in "
                f"{instruct.folder}: the instruct model was not tuned from this base model with "
                "this tokenizer"
            )
    needed, rows = len(base.vocabulary), instruct.shape(instruct.tables.input)[0]
    if rows < needed:
        raise CheckpointError(f"{instruct.folder} has {rows:,} rows for its base's {needed:,} ids")


def check_shapes(base: Checkpoint, other: Checkpoint) -> None:
    """Raise `CheckpointError` unless two models share hidden size and tying."""
    sizes = [model.shape(model.tables.input)[1] for model in (base, other)]
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"hidden sizes differ: {sizes[0]} in {base.folder}, {sizes[1]} in {other.folder}; "
            "give models of one family and size"
        )
    if (other.tables.output is None) != (base.tables.output is None):
        tied, untied = (other, base) if other.tables.output is None else (base, other)
        raise CheckpointError(
            f"{tied.folder} ties its embeddings and {untied.folder} does not: save both alike"
        )


def soft_capped(config: dict[str, Any]) -> bool:
    """Whether logits pass a soft cap, which sees what is added to all of them alike."""
    settings = [*config.items(), *(config.get("text_config") or {}).items()]
    names = (name for name, value in settings if value and "logit" in name)
    return any("cap" in name and "att" not in name for name in names)
