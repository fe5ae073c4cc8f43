"""A BPE tokenizer taken apart into names and merges by id, and put together again."""

import copy
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from lep.errors import TokenizerError
from lep.tokenizer.vocabulary import SPACE, Vocabulary, byte_level_name, first_ids


class Merge(NamedTuple):
    """Ids of two neighbours and of the token that they become."""

    left: int
    right: int
    result: int


@dataclass(frozen=True)
class Parts:
    """The content of tokenizer.json, names by id (None: unused; with added tokens), and merges."""

    spec: dict[str, Any]
    names: list[str | None]
    merges: list[Merge]
    vocabulary: Vocabulary

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Parts":
        """Take a tokenizer apart.

        Raises `TokenizerError` for anything but a BPE that is byte-level or has byte fallback.
        """
        spec = json.loads(tokenizer.to_str())  # merges come as pairs, however the file has them
        model, vocabulary = spec["model"], Vocabulary.of(tokenizer)
        if model["type"] != "BPE":
            raise TokenizerError(
                f"the tokenizer is a {model['type']} model: only BPE vocabularies can be extended "
                "or pruned; replace it with `lep tokenizer train`"
            )
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise TokenizerError("tokenizers that mark word ends or continuations cannot change")
        if not vocabulary.byte_level and not model.get("byte_fallback"):
            problem = "the tokenizer is neither byte-level nor has byte fallback"
            raise TokenizerError(f"{problem}: it is not lossless")
        names: list[str | None] = [None] * len(vocabulary)
        for name, index in tokenizer.get_vocab(with_added_tokens=True).items():
            names[index] = name
        ids = model["vocab"]
        merges = [Merge(ids[a], ids[b], ids[a + b]) for a, b in model["merges"]]
        return cls(spec, names, merges, vocabulary)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself, whole."""
        return self.vocabulary.tokenizer

    @property
    def taken(self) -> list[bytes]:
        """Texts that are cut out before any merge: no token that holds one can be reached."""
        added = self.spec["added_tokens"]
        return [entry["content"].encode() for entry in added if not entry["single_word"]]

    def name(self, content: bytes) -> str:
        """How tokenizer.json writes a byte string."""
        if self.vocabulary.byte_level:
            return byte_level_name(content)
        return content.decode().replace(" ", SPACE)

    def without(self, dropped: Collection[int]) -> "Parts":
        """The same tokenizer without some tokens that no merge makes; later ids move down.

        It has no post-processor, which may insert one of them.
        """
        kept = [index for index in range(len(self.names)) if index not in dropped]
        moved = {old: new for new, old in enumerate(kept)}
        merges = [Merge(*(moved[index] for index in merge)) for merge in self.merges]
        bare = replace(self, spec=self.spec | {"post_processor": None})
        return bare.rebuilt([self.names[index] for index in kept], merges)

    def rebuilt(self, names: list[str | None], merges: list[Merge]) -> "Parts":
        """The same tokenizer with other names by id, and merges in these ids.

        Added tokens keep their flags, the post-processor keeps its tokens; both take the ids of
        `names`. Raises `TokenizerError` for a name that occurs twice.
        """
        ids = first_ids(names)
        for i, name in enumerate(names):
            if name is not None and ids[name] != i:
                raise TokenizerError(
                    f"'{name}' was added to the tokenizer as text and would also become an "
                    "ordinary token: remove it from the added tokens, or use --method continue"
                )
        added = [entry for entry in self.spec["added_tokens"] if entry["content"] in ids]
        added = [entry | {"id": ids[entry["content"]]} for entry in added]
        # Added tokens are in the model's vocabulary too, or `tokenizers` gives them other ids.
        model = {"vocab": ids, "merges": [[names[m.left], names[m.right]] for m in merges]}
        spec = self.spec | {
            "added_tokens": sorted(added, key=itemgetter("id")),
            "model": self.spec["model"] | model,
            "post_processor": copy.deepcopy(self.spec["post_processor"]),
        }
        renumber(spec["post_processor"], ids)
        return Parts.of(Tokenizer.from_str(json.dumps(spec)))


def renumber(processor: Any, ids: dict[str, int]) -> None:
    """Give the tokens that a post-processor inserts the ids of a new vocabulary, in place."""
    if not isinstance(processor, dict):
        return
    for entry in (processor.get("special_tokens") or {}).values():
        if unknown := [name for name in entry["tokens"] if name not in ids]:
            raise TokenizerError(
                f"the post-processor inserts '{unknown[0]}', but no token has that name: write "
                "the token's name into tokenizer.json"
            )
        entry["ids"] = [ids[name] for name in entry["tokens"]]
    for field in {"sep", "cls"} & processor.keys():
        processor[field] = [processor[field][0], ids[processor[field][0]]]
    for part in processor.get("processors") or []:
        renumber(part, ids)
