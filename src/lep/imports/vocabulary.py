"""A tokenizer from what a GGUF file says of it: the inverse of `lep.exports.vocabulary`.

transformers converts such files too, but not with the file's rule for words.
"""

import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from lep.errors import TokenizerError
from lep.exports.pre_tokenizers import RULES
from lep.exports.reading import CUT_OUT
from lep.exports.vocabulary import PREFIX, TEMPLATE, Metadata, TokenType
from lep.files import write_json, write_text
from lep.imports.architectures import INSTEAD
from lep.limits import JSON_BYTES, TOKEN_CHARACTERS, VOCABULARY
from lep.tokenizer.load import CONFIG, TOKENIZER
from lep.tokenizer.load import TEMPLATE as TEMPLATE_FILE
from lep.tokenizer.vocabulary import SPACE

Spec = dict[str, Any]  # the content of tokenizer.json, or a part of it
# Other names that llama.cpp takes for the same rule.
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding")
SPM_IDS = {"bos": 1, "eos": 2, "unknown": 0}  # where a SentencePiece-like file names none
ENDS = ("eos", "eot", "eom")
PADDING = re.compile(r"\[+PAD\d+\]+")  # names of rows without a token
LISTS = {"tokens": (str,), "token_type": (int,), "scores": (int, float), "merges": (str,)}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
BYTE_LEVEL |= {"use_regex": False}


def checked(metadata: Mapping[str, Any], path: Path) -> Metadata:
    """What a file says of its tokenizer, with llama.cpp's values where it says nothing.

    Raises `TokenizerError` for a tokenizer of another kind, and for values of the wrong type.
    """
    keys = {key: value for key, value in metadata.items() if key.startswith(PREFIX)}
    model = keys.get(f"{PREFIX}ggml.model")
    if model not in ("llama", "gpt2"):
        raise TokenizerError(
            f"the tokenizer of {path} is of the kind {str(model)[:40]!r}, and lep imports 'llama' "
            f"(SentencePiece-like) and 'gpt2' (byte-level): {INSTEAD}"
        )
    is_byte_level = model == "gpt2"
    content = {key: keys[name] for key in LISTS if (name := f"{PREFIX}ggml.{key}") in keys}
    tokens = content.get("tokens") or []
    content.setdefault("token_type", [int(TokenType.NORMAL)] * len(tokens))
    needed = "merges" if is_byte_level else "scores"
    for key in ("tokens", "token_type", needed):
        values = content.get(key)
        if not isinstance(values, list) or not all(type(v) in LISTS[key] for v in values):
            raise TokenizerError(f"{path} has no usable tokenizer.ggml.{key}: {INSTEAD}")
        if key != "merges" and len(values) != len(tokens):
            raise TokenizerError(
                f"{path} has {len(tokens):,} tokens and {len(values):,} entries of "
                f"tokenizer.ggml.{key}: {INSTEAD}"
            )
    _check_tokens(tokens, content["token_type"], path)
    if not all(map(isfinite, content.get("scores", []))):
        raise TokenizerError(f"{path} has scores that are not finite: {INSTEAD}")
    pre = keys.get(f"{PREFIX}ggml.pre") or "default"
    ids = {} if is_byte_level else dict(SPM_IDS)
    for role in ROLES:
        index = keys.get(f"{PREFIX}ggml.{role}_token_id")
        if type(index) is int and 0 <= index < len(tokens):
            ids[role] = index
        elif index is not None and index != 0xFFFFFFFF:  # none
            raise TokenizerError(f"the {role} token of {path} is {str(index)[:40]}: {INSTEAD}")
    flags = {"add_bos_token": not is_byte_level or SAME.get(str(pre), pre) == "llama-bpe"}
    flags |= {"add_eos_token": False, "add_space_prefix": not is_byte_level}
    for flag in flags:
        value = keys.get(f"{PREFIX}ggml.{flag}", flags[flag])
        if type(value) is not bool:
            raise TokenizerError(f"tokenizer.ggml.{flag} of {path} is {str(value)[:40]}: {INSTEAD}")
        flags[flag] = value
    for role in ("bos", "eos"):
        if flags[f"add_{role}_token"] and role not in ids:
            raise TokenizerError(f"{path} puts {role.upper()} around texts, and names none")
    named = {f"{role}_token_id": index for role, index in ids.items()}
    kept = {key: content[key] for key in ("tokens", "token_type", needed)}
    if is_byte_level:
        del flags["add_space_prefix"]
    result = {"model": model, "pre": _rule_name(pre, path, is_byte_level=is_byte_level)}
    result |= kept | named | flags
    template = keys.get(TEMPLATE)
    if template is not None and type(template) is not str:
        raise TokenizerError(f"the chat template of {path} is no text: {INSTEAD}")
    return {f"{PREFIX}ggml.{key}": value for key, value in result.items()} | (
        {TEMPLATE: template} if template else {}
    )


def _check_tokens(tokens: list[str], types: list[int], path: Path) -> None:
    VOCABULARY.check(len(tokens), f"the tokenizer of {path}", TokenizerError)
    TOKEN_CHARACTERS.check(max(map(len, tokens), default=0), f"a token of {path}", TokenizerError)
    JSON_BYTES.check(sum(map(len, tokens)), f"the tokens of {path}", TokenizerError)
    if len(set(tokens)) < len(tokens):
        raise TokenizerError(f"{path} has two tokens of the same name: {INSTEAD}")
    whole = [token for token, kind in zip(tokens, types, strict=True) if kind in CUT_OUT]
    if not tokens or "" in whole or not set(types) <= set(TokenType):
        raise TokenizerError(
            f"{path} has no tokens, one without a name, or of no known type: {INSTEAD}"
        )


def _rule_name(pre: Any, path: Path, *, is_byte_level: bool) -> str:
    """llama.cpp's first name of the rule for words."""
    name = SAME.get(str(pre), str(pre))
    if is_byte_level and name not in RULES:
        raise TokenizerError(
            f"{path} cuts words by llama.cpp's rule {name[:40]!r}, and lep knows "
            f"{', '.join((*RULES, *SAME))}: {INSTEAD}"
        )
    return name if is_byte_level else "default"


def tokenizer_spec(metadata: Metadata) -> Spec:
    """The content of tokenizer.json.

    Raises `TokenizerError` for merges of tokens that are not there.
    """
    keys = {key.removeprefix(f"{PREFIX}ggml."): value for key, value in metadata.items()}
    is_byte_level = keys["model"] == "gpt2"
    names = list(keys["tokens"])
    types = keys["token_type"]
    used = {keys[f"{role}_token_id"] for role in ROLES if f"{role}_token_id" in keys}
    while types[last := len(names) - 1] == TokenType.UNUSED and last not in used:
        if not PADDING.fullmatch(names[last]):
            break
        names.pop()  # a row of the embeddings, but no token
    vocabulary = {name: index for index, name in enumerate(names)}
    added = [
        _added(name, index, special=types[index] != TokenType.USER_DEFINED)
        for index, name in enumerate(names)
        if types[index] in CUT_OUT
    ]
    parts = _byte_level(keys, vocabulary) if is_byte_level else _sentencepiece(keys, names)
    model = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "vocab": vocabulary} | parts.pop("model")
    spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    return spec | parts | {"post_processor": _post_processor(keys, names), "model": model}


def _added(name: str, index: int, *, special: bool) -> Spec:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": name, **flags, "special": special}


def _byte_level(keys: Metadata, vocabulary: Mapping[str, int]) -> Spec:
    """Merges, and the rule that cuts words."""
    merges = []
    for text in keys["merges"]:
        cut = text.find(" ", 1)
        left, right = text[:cut], text[cut + 1 :]
        if cut < 0 or not {left, right, left + right} <= vocabulary.keys():
            raise TokenizerError(f"the merge {text[:60]!r} makes no token: {INSTEAD}")
        merges.append([left, right])
    rule, direct = RULES[keys["pre"]]
    splits = [
        {"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False}
        for each in rule
    ]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, BYTE_LEVEL]},
        "decoder": BYTE_LEVEL,
        "model": {"unk_token": None, "fuse_unk": False, "byte_fallback": False}
        | {"ignore_merges": direct, "merges": merges},
    }


def _sentencepiece(keys: Metadata, names: list[str]) -> Spec:
    """Merges from scores: every way to make a token of two, the highest scores first."""
    scores = dict(zip(keys["tokens"], keys["scores"], strict=True))
    types = dict(zip(keys["tokens"], keys["token_type"], strict=True))
    known, pairs = set(names), []
    for index, name in enumerate(names):
        if types[name] in CUT_OUT:
            continue  # cut out of the text before any merge
        cuts = ((name[:i], name[i:]) for i in range(1, len(name)))
        pairs += [(-scores[name], index, pair) for pair in cuts if known.issuperset(pair)]
    pairs.sort(key=lambda pair: pair[:2])
    prefix = keys["add_space_prefix"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    decoders: list[Spec] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    unknown = keys["tokens"][keys["unknown_token_id"]] if "unknown_token_id" in keys else None
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
        | {"ignore_merges": False, "merges": [list(pair) for *_, pair in pairs]},
    }


def _post_processor(keys: Metadata, names: list[str]) -> Spec | None:
    """BOS and EOS around texts."""
    ids = {role: keys[f"{role}_token_id"] for role in ("bos", "eos") if keys[f"add_{role}_token"]}
    if not ids:
        return None
    special = {role: [{"SpecialToken": {"id": names[i], "type_id": 0}}] for role, i in ids.items()}
    first, last = special.get("bos", []), special.get("eos", [])
    one, two = ([*first, {"Sequence": {"id": name, "type_id": 0}}, *last] for name in "AB")
    tokens = {names[i]: {"id": names[i], "ids": [i], "tokens": [names[i]]} for i in ids.values()}
    form = {"type": "TemplateProcessing", "single": one, "pair": one + two}
    return form | {"special_tokens": tokens}


def write_tokenizer(metadata: Metadata, output: Path, context: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template."""
    write_json(output / TOKENIZER, tokenizer_spec(metadata))
    keys = {key.removeprefix(f"{PREFIX}ggml."): value for key, value in metadata.items()}
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    names = {
        f"{ours}_token": keys["tokens"][keys[f"{role}_token_id"]]
        for ours, role in roles.items()
        if f"{role}_token_id" in keys
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context}
    settings |= {"clean_up_tokenization_spaces": False, **names}
    write_json(output / CONFIG, settings, indent=2)
    if TEMPLATE in metadata:
        write_text(output / TEMPLATE_FILE, metadata[TEMPLATE])


def token_ids(metadata: Metadata) -> tuple[Spec, Spec]:
    """The ids of tokens in config.json and generation_config.json."""
    ids = {role: metadata.get(f"{PREFIX}ggml.{role}_token_id") for role in ROLES}
    both = {"bos_token_id": ids["bos"], "pad_token_id": ids["padding"]}
    both = {key: index for key, index in both.items() if index is not None}
    ends = list(dict.fromkeys(ids[role] for role in ENDS if ids[role] is not None))
    first = {"eos_token_id": ends[0]} if ends else {}
    return both | first, both | ({"eos_token_id": ends} if ends else {})
