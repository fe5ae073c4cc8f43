"""Carry the added tokens of a model into another vocabulary, or say which one would be lost."""

import json
from collections.abc import Mapping
from typing import Any

import regex
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from lep.errors import TokenizerError
from lep.tokenizer.parts import renumber
from lep.tokenizer.vocabulary import Vocabulary

RESERVED = regex.compile(rb"(?i)reserved|unused")  # added tokens that wait for a name


def carried_ids(
    model: Vocabulary, target: Vocabulary, moved: Mapping[int, int] | None = None
) -> dict[int, int]:
    """`{model id: result id}` of the model's added tokens.

    A token that the target has by name gets the target's id. A token that renamed a reserved or
    unused id gets the id to which that one `moved` (where it is still reserved or unused, by
    default): with another id, its row would stay there as an unnamed duplicate. All others are
    appended.
    """
    if moved is None:
        free = (i for i, t in enumerate(target.tokens) if t is None or RESERVED.search(t.content))
        moved = {i: i for i in free}
    names, added = model.added_ids(), model.tokenizer.get_added_tokens_decoder()
    result, following = {}, len(target)
    for name, index in sorted(names.items(), key=lambda item: item[1]):
        row = moved.get(index, len(target))
        if (known := target.tokenizer.token_to_id(name)) is not None:
            result[index] = known
        elif index not in added:
            continue  # a name in the model's vocabulary that no text can spell
        elif row < len(target) and _is_free(target, row, names):
            result[index] = row
        else:
            result[index], following = following, following + 1
    return result


def _is_free(target: Vocabulary, row: int, names: dict[str, int]) -> bool:
    """Whether a token of the model may take an id of the target: none of `names` has it."""
    token = target.tokens[row]
    return token is None or (token.added and token.content.decode() not in names)


def with_added_tokens(
    tokenizer: Tokenizer, model: Tokenizer, ids: Mapping[int, int]
) -> dict[str, Any]:
    """Content of tokenizer.json: the vocabulary of `tokenizer` with the added tokens of `model`.

    `ids` are their ids in the result by those in the model (`carried_ids`). Flags of the added
    tokens and the post-processor are the model's.

    Raises `TokenizerError` where the post-processor inserts a token that the result lacks.
    """
    spec, chat = (json.loads(each.to_str()) for each in (tokenizer, model))
    carried = [entry | {"id": ids[entry["id"]]} for entry in chat["added_tokens"]]
    added = {entry["id"]: entry for entry in (*spec["added_tokens"], *carried)}
    spec["added_tokens"] = [added[index] for index in sorted(added)]
    named = _include(spec["model"], {e["id"]: e["content"] for e in spec["added_tokens"]})
    spec["post_processor"] = chat["post_processor"]
    renumber(spec["post_processor"], named)
    return spec


def _include(model: dict[str, Any], names: dict[int, str]) -> dict[str, int]:
    """Put added tokens into the model's vocabulary and return the id of every token.

    `tokenizers` keeps the ids of added tokens only where the vocabulary has them
    (`Parts.rebuilt`).
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


def check_carried(
    model: PreTrainedTokenizerFast, result: PreTrainedTokenizerFast, moved: Mapping[int, int]
) -> None:
    """Raise `TokenizerError` unless each added token of the model is one token of the result.

    `moved` are the ids that change. A conversation would otherwise be spelled in pieces that the
    model never saw.
    """
    before, after = model.backend_tokenizer, result.backend_tokenizer
    template = str(model.chat_template or "")
    for index, token in sorted(before.get_added_tokens_decoder().items()):
        name, expected = token.content, [moved.get(index, index)]
        if before.encode(name, add_special_tokens=False).ids != [index]:
            continue  # not in the model either
        if (ids := after.encode(name, add_special_tokens=False).ids) != expected:
            owner = "the chat template" if name in template else "the model"
            raise TokenizerError(
                f"{owner} uses the token '{name}', which the new tokenizer would read as the ids "
                f"{ids[:8]} instead of {expected}: make the new tokenizer from this model"
            )
