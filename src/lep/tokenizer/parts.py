"""A BPE tokenizer taken apart into names and merges by id, and put together again."""

import copy
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from lep.errors import TokenizerError
from lep.tokenizer.vocabulary import BYTE_TO_CHARACTER, SPACE, Vocabulary


class Merge(NamedTuple):
    """Ids of two neighbours and of the token that they become."""

    left: int
    right: int
    result: int


@dataclass(frozen=True)
class Parts:
    """Names by id (None where an id is unused, added tokens included), merges in order, and the rest of the file."""

    spec: dict[str, Any]
    names: list[str | None]
    merges: list[Merge]
    vocabulary: Vocabulary

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Parts":
        """Take a tokenizer apart; merges may be written as pairs or as "a b" strings in its file.

        Raises `TokenizerError` for anything but a byte-level BPE or one with byte fallback.
        """
        spec = json.loads(
            tokenizer.to_str()
        )  # `tokenizers` reads both ways of writing merges, and writes pairs
        model, vocabulary = spec["model"], Vocabulary.of(tokenizer)
        if model["type"] != "BPE":
            raise TokenizerError(
                f"the tokenizer is a {model['type']} model: only BPE vocabularies can be extended or pruned; "
                "replace it with `lep tokenizer train`"
            )
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise TokenizerError(
                "the tokenizer marks word ends or continuations in its tokens: that is not supported"
            )
        if not vocabulary.byte_level and not model.get("byte_fallback"):
            raise TokenizerError(
                "the tokenizer is neither byte-level nor has byte fallback: it is not lossless"
            )
        names: list[str | None] = [None] * len(vocabulary)
        for name, index in tokenizer.get_vocab(with_added_tokens=True).items():
            names[index] = name
        ids = model["vocab"]
        merges = [Merge(ids[a], ids[b], ids[a + b]) for a, b in model["merges"]]
        return cls(spec, names, merges, vocabulary)

    @property
    def contents(self) -> list[bytes | None]:
        """Bytes of each token that may be merged on; None for added and byte-fallback tokens, and unused ids."""
        return [
            t.content if t and not t.added and not t.is_byte else None
            for t in self.vocabulary.tokens
        ]

    @property
    def taken(self) -> list[bytes]:
        """Texts that are cut out before anything is merged: no token that holds one of them would be reached."""
        return [
            entry["content"].encode()
            for entry in self.spec["added_tokens"]
            if not entry["single_word"]
        ]

    def name(self, content: bytes) -> str:
        """How the tokenizer's file writes a byte string."""
        if self.vocabulary.byte_level:
            return "".join(BYTE_TO_CHARACTER[byte] for byte in content)
        return content.decode().replace(" ", SPACE)

    def assemble(self, names: list[str | None], merges: list[Merge]) -> dict[str, Any]:
        """The content of a tokenizer.json with other names by id and merges (in these ids).

        Added tokens keep their flags, and the post-processor its tokens; both get the ids of `names`.
        """
        spec = copy.deepcopy({key: value for key, value in self.spec.items() if key != "model"})
        ids = {name: i for i, name in enumerate(names) if name is not None}
        if len(ids) < len(known := [name for name in names if name is not None]):
            twice = next(name for name in ids if known.count(name) > 1)
            raise TokenizerError(
                f"'{twice}' was added to the tokenizer as text and would be a token of its own, too: "
                "remove it from the added tokens, or take --method continue"
            )
        spec["added_tokens"] = sorted(
            (
                entry | {"id": ids[entry["content"]]}
                for entry in spec["added_tokens"]
                if entry["content"] in ids
            ),
            key=lambda entry: entry["id"],
        )
        # Added tokens stand in the model's own vocabulary too: else `tokenizers` numbers them after it on loading.
        model = {
            key: value
            for key, value in self.spec["model"].items()
            if key not in ("vocab", "merges")
        }
        spec["model"] = model | {
            "vocab": ids,
            "merges": [[names[m.left], names[m.right]] for m in merges],
        }
        renumber(spec.get("post_processor"), ids)
        return spec


def renumber(processor: Any, ids: dict[str, int]) -> None:
    """Give the tokens that a post-processor inserts the ids of a new vocabulary, in place."""
    if isinstance(processor, dict):
        for entry in (processor.get("special_tokens") or {}).values():
            if unknown := [name for name in entry["tokens"] if name not in ids]:
                raise TokenizerError(
                    f"the post-processor inserts '{unknown[0]}', which no token is called: write the "
                    "token's name into tokenizer.json"
                )
            entry["ids"] = [ids[name] for name in entry["tokens"]]
        for place in ("sep", "cls"):
            if place in processor:
                processor[place] = [processor[place][0], ids[processor[place][0]]]
        for part in processor.get("processors") or []:
            renumber(part, ids)
