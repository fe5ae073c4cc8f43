"""`Recipient`: an instruct model, and the vocabulary and token ids that it receives."""

import json
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from lep.checkpoint.reader import Checkpoint
from lep.errors import TokenizerError
from lep.mapping import VocabularyMapping
from lep.tokenizer.parts import renumber
from lep.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class Recipient:
    """An instruct model and the vocabulary of the adapted base model."""

    model: Checkpoint
    tokenizer: PreTrainedTokenizerFast  # of the adapted base
    mappings: dict[str, VocabularyMapping]  # input and, in an untied model, output
    ids: dict[int, int]  # {instruct id: result id} of the instruct model's added tokens

    @property
    def rows(self) -> int:
        """Rows of the result's tables."""
        return max([self.mappings["input"].target_size, *(row + 1 for row in self.ids.values())])

    @property
    def instruct_rows(self) -> dict[int, int]:
        """`{result row: instruct row}` of the rows that stay the instruct model's."""
        return {row: index for index, row in self.ids.items()}

    def tokenizer_spec(self) -> dict[str, Any]:
        """Content of tokenizer.json: the new vocabulary with the instruct model's added tokens.

        Flags of the added tokens and the post-processor are the instruct model's.
        """
        spec, chat = (
            json.loads(tokenizer.backend_tokenizer.to_str())
            for tokenizer in (self.tokenizer, self.model.tokenizer)
        )
        carried = [entry | {"id": self.ids[entry["id"]]} for entry in chat["added_tokens"]]
        added = {entry["id"]: entry for entry in (*spec["added_tokens"], *carried)}
        spec["added_tokens"] = [added[index] for index in sorted(added)]
        ids = _include(spec["model"], {e["id"]: e["content"] for e in spec["added_tokens"]})
        spec["post_processor"] = chat["post_processor"]
        renumber(spec["post_processor"], ids)
        return spec


def _include(model: dict[str, Any], names: dict[int, str]) -> dict[str, int]:
    """Put added tokens into the model's vocabulary and return the id of every token.

    `tokenizers` keeps the ids of added tokens only where the vocabulary has them
    (`Parts.assemble`).
    """
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        kept = {name: index for name, index in vocabulary.items() if names.get(index, name) == name}
        model["vocab"] = kept | {name: index for index, name in names.items()}
        return model["vocab"]
    # Unigram: the position is the id, and the lowest score keeps the token out of ordinary text.
    low = min(score for _, score in vocabulary)
    for index, name in names.items():
        if index >= len(vocabulary):
            vocabulary.append([name, low])
        elif vocabulary[index][0] != name:
            vocabulary[index] = [name, low]
    return {name: index for index, (name, _) in enumerate(vocabulary)}


def result_ids(
    ids: int, instruct: Checkpoint, target: Vocabulary, mapping: VocabularyMapping
) -> dict[int, int]:
    """`{instruct id: result id}` of the instruct model's added tokens.

    A token that the target has by name gets the target's id. A token that renamed a reserved or
    unused id of the base gets the id to which that one moved: with another id, its row would stay
    there as an unnamed duplicate. All others are appended.

    Raises `TokenizerError` when the instruct model has ordinary tokens beyond the `ids` of its
    base.
    """
    known, result, following = target.added_ids(), {}, len(target)
    kept, sources = (rows.tolist() for rows in mapping.kept())
    moved = dict(zip(reversed(sources), reversed(kept), strict=True))  # the first of several
    names = instruct.vocabulary.added_ids()
    for index, token in enumerate(instruct.vocabulary.tokens):
        if token is None:
            continue
        if not token.added:
            if index >= ids:
                raise TokenizerError(
                    f"id {index} of {instruct.folder}, {token.content!r}, is an ordinary token "
                    "that the base model lacks: only added tokens can be carried along"
                )
            continue
        name, row = token.content.decode(), moved.get(index, len(target))
        if name in known:
            result[index] = known[name]
        elif row < len(target) and _is_free(target, row, name, names):
            result[index] = row
        else:
            result[index] = following
            following += 1
    return result


def _is_free(target: Vocabulary, row: int, name: str, instruct_names: dict[str, int]) -> bool:
    """Whether the instruct model's token `name` may take an id of the target vocabulary."""
    token = target.tokens[row]
    if token is None or target.tokenizer.id_to_token(row) == name:
        return True
    return token.added and token.content.decode() not in instruct_names
