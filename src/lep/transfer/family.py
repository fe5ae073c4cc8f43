"""`Family`: a base model, an instruct model tuned from it, and the base model with adapted embeddings."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lep.checkpoint.adapter import check_body, check_merged
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import finite
from lep.errors import CheckpointError, TokenizerError
from lep.mapping import VocabularyMapping, row_chunks
from lep.propagation import Problem, Propagation, propagated_table
from lep.tokenizer.parts import renumber
from lep.tokenizer.vocabulary import Vocabulary
from lep.transfer.mappings import adapted_mappings, undertrained_rows


@dataclass(frozen=True)
class TableCase:
    """One table of a family: what is to be solved, what it is applied to, and the rows that stay as they are."""

    kind: str  # input or output
    problem: Problem
    adapted: Tensor  # (V_target, h)
    instruct: Tensor  # (V_instruct, h)
    own_rows: dict[int, int]  # {result row: instruct row} of the rows that are carried as they are

    def result(self, found: Propagation) -> Tensor:
        """The propagated table, (V_result, h)."""
        return propagated_table(self.problem, found, self.adapted, self.instruct, self.own_rows)


@dataclass(frozen=True)
class Recipient:
    """An instruct model and the vocabulary that it gets."""

    model: Checkpoint
    tokenizer: PreTrainedTokenizerFast  # of the adapted base
    mappings: dict[
        str, VocabularyMapping
    ]  # of the input table and, in untied models, of the output table
    ids: dict[int, int]  # result id of each added token of the model, by its id there

    @property
    def rows(self) -> int:
        """Rows of the result's tables."""
        return max([self.mappings["input"].target_size, *(row + 1 for row in self.ids.values())])

    def own_rows(self) -> dict[int, int]:
        """`{result row: its row}` of the rows that stay the model's."""
        return {row: index for index, row in self.ids.items()}

    def tokenizer_spec(self) -> dict[str, Any]:
        """Content of tokenizer.json: the new vocabulary, the model's added tokens, their flags and template ids."""
        spec = json.loads(self.tokenizer.backend_tokenizer.to_str())
        chat = json.loads(self.model.tokenizer.backend_tokenizer.to_str())
        ours = {entry["id"]: entry for entry in spec["added_tokens"]}
        ours |= {
            self.ids[entry["id"]]: entry | {"id": self.ids[entry["id"]]}
            for entry in chat["added_tokens"]
        }
        spec["added_tokens"] = [ours[index] for index in sorted(ours)]
        # Ids of added tokens are only kept by `tokenizers` when the model's vocabulary has them (`Parts.assemble`).
        vocabulary = spec["model"]["vocab"]
        names = {entry["id"]: entry["content"] for entry in spec["added_tokens"]}
        if isinstance(vocabulary, dict):
            kept = {
                name: index for name, index in vocabulary.items() if names.get(index, name) == name
            }
            spec["model"]["vocab"] = vocabulary = kept | {
                name: index for index, name in names.items()
            }
        else:  # Unigram: the position is the id, and a low score keeps the token out of ordinary text
            low = min(score for _, score in vocabulary)
            for index, name in names.items():
                if index < len(vocabulary) and vocabulary[index][0] != name:
                    vocabulary[index] = [name, low]
            vocabulary += [
                [entry["content"], low]
                for entry in spec["added_tokens"]
                if entry["id"] >= len(vocabulary)
            ]
            vocabulary = {name: i for i, (name, _) in enumerate(vocabulary)}
        spec["post_processor"] = chat["post_processor"]
        renumber(spec["post_processor"], vocabulary)
        return spec


@dataclass(frozen=True)
class Family:
    """The three models of a propagation, and how their vocabularies belong together."""

    base: Checkpoint
    instruct: Checkpoint
    adapted: Checkpoint
    mappings: dict[
        str, VocabularyMapping
    ]  # of the input table and, in untied models, of the output table
    ids: dict[int, int]  # result id of each added token of the instruct model, by its id there

    @classmethod
    def open(cls, base: str | Path, instruct: str | Path, adapted: str | Path) -> "Family":
        """Raises `CheckpointError` when the three do not belong together."""
        source, chat, target = (Checkpoint(model).check() for model in (base, instruct, adapted))
        check_family(source, chat, target)
        mappings = adapted_mappings(source, target)
        ids = result_ids(len(source.vocabulary), chat, target.vocabulary, mappings["input"])
        return cls(source, chat, target, mappings, ids)

    def case(
        self, kind: str, weights: Tensor | None = None, penalty: float | None = None
    ) -> "TableCase":
        """A table to be fitted. Its tensors are mapped from disk, and given back with the case."""
        case = self.applied(kind)
        for model, table in ((self.base, case.problem.base), (self.instruct, case.instruct)):
            name = model.tables.by_kind()[kind]
            all(True for _ in finite(row_chunks(table), f"{name} in {model.folder}"))
        rows = self.fit_rows(case.problem.mapping, self.base.tables.by_kind()[kind])
        return replace(
            case, problem=replace(case.problem, fit_rows=rows, weights=weights, penalty=penalty)
        )

    def applied(self, kind: str) -> "TableCase":
        """A table to which what was fitted is applied: nothing is read before it is used."""
        models = (self.base, self.instruct, self.adapted)
        base, instruct, adapted = (model.tensor(model.tables.by_kind()[kind]) for model in models)
        mapping = self.mappings[kind]
        problem = Problem(
            base,
            first_rows(instruct, base),
            mapping,
            torch.zeros(mapping.target_size, dtype=torch.bool),
            centred=kind == "output" and not soft_capped(self.base.config),
        )
        return TableCase(kind, problem, adapted, instruct, self.recipient.own_rows())

    @property
    def recipient(self) -> Recipient:
        return Recipient(self.instruct, self.adapted.tokenizer, self.mappings, self.ids)

    def fit_rows(self, mapping: VocabularyMapping, name: str) -> Tensor:
        """Mask of the target rows that a map may be fitted on: ordinary tokens, made of rows that were trained."""
        rows = torch.zeros(mapping.target_size, dtype=torch.bool)
        tokens = self.adapted.vocabulary.tokens
        rows[: len(tokens)] = torch.tensor(
            [token is not None and not token.added for token in tokens]
        )
        rows[[row for row in self.ids.values() if row < len(rows)]] = False
        dead = undertrained_rows(self.base, name)[mapping.indices].double()
        counted = torch.cat([torch.zeros(1, dtype=torch.float64), dead.cumsum(0)])
        return rows & (counted[mapping.offsets].diff() == 0)


def check_family(base: Checkpoint, instruct: Checkpoint, adapted: Checkpoint) -> None:
    """Raise `CheckpointError` unless the models share hidden size and tying, and base and instruct their ids."""
    check_shapes(base, instruct)
    check_shapes(base, adapted)
    for model in (base, instruct, adapted):
        check_merged(model)
    check_body(base, adapted)
    pairs = zip(base.vocabulary.tokens, instruct.vocabulary.tokens, strict=False)
    for index, (ours, theirs) in enumerate(pairs):
        if ours is None or theirs is None or (ours.added and theirs.added):
            continue  # a chat model may give a reserved token another name
        if ours.content != theirs.content:
            raise CheckpointError(
                f"id {index} is {ours.content!r} in {base.folder} and {theirs.content!r} in {instruct.folder}: the "
                "instruct model was not tuned from this base model with this tokenizer"
            )
    needed, rows = len(base.vocabulary), instruct.shape(instruct.tables.input)[0]
    if rows < needed:
        raise CheckpointError(
            f"{instruct.folder} has {rows:,} rows for the {needed:,} ids of its base"
        )


def check_shapes(base: Checkpoint, other: Checkpoint) -> None:
    """Raise `CheckpointError` unless two models share hidden size and tying."""
    sizes = [model.shape(model.tables.input)[1] for model in (base, other)]
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"hidden sizes differ: {sizes[0]} in {base.folder}, {sizes[1]} in {other.folder}; give models of one "
            "family and size"
        )
    if (other.tables.output is None) != (base.tables.output is None):
        tied, untied = (other, base) if other.tables.output is None else (base, other)
        raise CheckpointError(
            f"{tied.folder} ties its embeddings and {untied.folder} does not: save both alike"
        )


def result_ids(
    ids: int, instruct: Checkpoint, target: Vocabulary, mapping: VocabularyMapping
) -> dict[int, int]:
    """`{instruct id: result id}` of the instruct model's added tokens.

    One that the target has by name gets that id, one that took a reserved or unused id of the base (a chat model may
    name it anew) the place where that went: another id would leave its row there, too, under no name. Others come last.

    Raises `TokenizerError` when the instruct model has ordinary tokens beyond the `ids` of its base.
    """
    known, found, following = target.added_ids(), {}, len(target)
    kept, sources = (rows.tolist() for rows in mapping.kept())
    places = dict(zip(reversed(sources), reversed(kept), strict=True))  # the first of several
    names = instruct.vocabulary.added_ids()

    def free(place: int, name: str) -> bool:
        old = target.tokens[place]
        return (
            old is None
            or target.tokenizer.id_to_token(place) == name
            or (old.added and old.content.decode() not in names)
        )

    for index, token in enumerate(instruct.vocabulary.tokens):
        if token is None:
            continue
        if not token.added:
            if index >= ids:
                raise TokenizerError(
                    f"id {index} of {instruct.folder}, {token.content!r}, is an ordinary token that the base model "
                    "lacks: only added tokens can be carried along"
                )
            continue
        name = token.content.decode()
        if name in known:
            found[index] = known[name]
        elif (place := places.get(index, len(target))) < len(target) and free(place, name):
            found[index] = place
        else:
            found[index] = following
            following += 1
    return found


def first_rows(instruct: Tensor, base: Tensor) -> Tensor:
    """The instruct model's table cut or filled (with the base model's unused rows) to the base model's rows."""
    if len(instruct) >= len(base):
        return instruct[: len(base)]
    return torch.cat([instruct, base[len(instruct) :].to(instruct.dtype)])


def soft_capped(config: dict[str, Any]) -> bool:
    """Whether logits pass a soft cap, which does see what is added to all of them alike."""
    text = config.get("text_config") or {}
    return any(
        value
        for part in (config, text)
        for name, value in part.items()
        if "logit" in name and "cap" in name and "att" not in name
    )
