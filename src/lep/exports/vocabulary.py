"""The tokenizer as a GGUF file has it: keys and values of `tokenizer.ggml`."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from transformers import PreTrainedTokenizerFast

from lep.errors import TokenizerError
from lep.exports.pre_tokenizers import ELSEWHERE, pre_tokenizer_name
from lep.tokenizer.parts import Parts
from lep.tokenizer.vocabulary import SPACE, described

Metadata = dict[str, Any]  # of a GGUF file: a text, number, truth value or list by key
PREFIX = "tokenizer."
TEMPLATE = "tokenizer.chat_template"
BOS = "bos_token"  # in templates; where a model has none, llama.cpp gives them token 11 or 1


class TokenType(IntEnum):
    """What a token is to llama.cpp."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def gguf_vocabulary(tokenizer: PreTrainedTokenizerFast, rows: int, ends: Sequence[int]) -> Metadata:
    """What llama.cpp must know of a tokenizer to give its ids.

    `rows` is the number of rows of the embeddings: those beyond the vocabulary become unused
    tokens. `ends` are the ids of tokens that end an answer.

    Raises `TokenizerError` for a tokenizer that llama.cpp cannot follow, with the reason.
    """
    parts = Parts.of(tokenizer.backend_tokenizer)
    model = _byte_level(parts) if parts.vocabulary.byte_level else _sentencepiece(parts)
    unused = unused_names(parts.names, rows)
    tokens = [unused[i] if name is None else name for i, name in enumerate(parts.names)]
    lists = {"tokens": tokens + unused[len(tokens) :], "token_type": _types(parts, rows)}
    if (scores := model.pop("scores", None)) is not None:
        lists["scores"] = scores + [min(scores)] * (rows - len(scores))
    keys = model | lists | _special_ids(tokenizer, ends) | _inserted(tokenizer)
    metadata = {f"{PREFIX}ggml.{key}": value for key, value in keys.items()}
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template and BOS in template and tokenizer.bos_token is None:
        template = f"{{%- set {BOS} = '' -%}}{template}"
    return metadata | ({TEMPLATE: template} if template else {})


def _byte_level(parts: Parts) -> Metadata:
    """Merges in order, and the name of the pre-tokenizer."""
    normalizer = described(parts.tokenizer.normalizer) or {"type": "NFC"}
    if normalizer["type"] != "NFC":
        raise TokenizerError(
            f"llama.cpp does not normalise text, and this tokenizer does ({normalizer['type']}): "
            f"{ELSEWHERE}"
        )
    names = parts.names
    merges = [f"{names[merge.left]} {names[merge.right]}" for merge in parts.merges]
    return {"model": "gpt2", "pre": pre_tokenizer_name(parts.tokenizer), "merges": merges}


def _sentencepiece(parts: Parts) -> Metadata:
    """A score for each token, and whether texts begin with a space.

    llama.cpp joins the neighbours whose token has the highest score, BPE those of the first merge:
    the same, if a token's score is minus the rank of the first merge that makes it.
    """
    scores = [-float(len(parts.merges))] * len(parts.names)  # of what no merge makes
    for rank, merge in reversed(list(enumerate(parts.merges))):
        scores[merge.result] = -float(rank)
    prefix = _space_prefix(parts)
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}


def _space_prefix(parts: Parts) -> bool:
    """Whether texts begin with a space. Raises `TokenizerError` for other changes of the text."""
    normalizer = described(parts.tokenizer.normalizer) or {}
    cutter = described(parts.tokenizer.pre_tokenizer) or {}
    steps = normalizer.get("normalizers") or [normalizer]
    prepended = steps[0] == {"type": "Prepend", "prepend": SPACE}
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    known = all(step in ({}, replaced) for step in steps[prepended:])
    metaspace = cutter.get("type") == "Metaspace" and cutter["replacement"] == SPACE
    split = cutter.get("type") == "Split" and cutter["pattern"] == {"String": " "}
    known = known and (cutter == {} or metaspace or split) and (metaspace or replaced in steps)
    if not known:
        raise TokenizerError(
            "llama.cpp only writes spaces as \u2581, and this tokenizer changes or cuts texts in "
            "other ways too (normalizer, pre_tokenizer): "
            f"{ELSEWHERE}"
        )
    return prepended or (metaspace and cutter["prepend_scheme"] != "never")


def _types(parts: Parts, rows: int) -> list[int]:
    """The type of each row; rows without a token are unused."""
    special = {entry["content"]: entry["special"] for entry in parts.spec["added_tokens"]}
    merged = {merge.result for merge in parts.merges}
    unknown = None if parts.vocabulary.byte_level else parts.spec["model"].get("unk_token")
    types = []
    for index, (name, token) in enumerate(zip(parts.names, parts.vocabulary.tokens, strict=True)):
        if name is None or token is None:
            types.append(TokenType.UNUSED)
        elif name == unknown:
            types.append(TokenType.UNKNOWN)
        elif special.get(name):
            types.append(TokenType.CONTROL)
        elif token.added and name in special and not (SPACE in name and index in merged):
            types.append(TokenType.USER_DEFINED)  # cut out of the text, and printed as it is
        else:
            types.append(TokenType.BYTE if token.is_byte else TokenType.NORMAL)
    unused = [TokenType.UNUSED] * (rows - len(types))
    return list(map(int, types + unused))


def unused_names(names: Sequence[str | None], rows: int) -> list[str]:
    """A name for each row that no token has: llama.cpp refuses names that occur twice."""
    known = set(names)
    unused = []
    for index in range(rows):
        name = f"[PAD{index}]"
        while name in known and (index >= len(names) or names[index] is None):
            name = f"[{name}]"
        unused.append(name)
    return unused


def _special_ids(tokenizer: PreTrainedTokenizerFast, ends: Sequence[int]) -> Metadata:
    """The ids of special tokens; after the first one, tokens that end an answer end a turn."""
    ids = {
        "bos": tokenizer.bos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
        **dict(zip(("eos", "eot", "eom"), ends, strict=False)),
    }
    return {f"{name}_token_id": index for name, index in ids.items() if index is not None}


def _inserted(tokenizer: PreTrainedTokenizerFast) -> Metadata:
    """Whether BOS and EOS are put around each text."""
    plain, whole = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    start = whole[:1] == [tokenizer.bos_token_id] and whole != plain
    end = whole[-1:] == [tokenizer.eos_token_id] and whole[start:] != plain
    if whole != [tokenizer.bos_token_id] * start + plain + [tokenizer.eos_token_id] * end:
        raise TokenizerError(
            "llama.cpp puts BOS and EOS around a text at most, and this tokenizer's post-processor "
            f"makes {whole} of {plain}: {ELSEWHERE}"
        )
    return {"add_bos_token": bool(start), "add_eos_token": bool(end)}
