"""The rules by which byte-level tokenizers cut text into words, and llama.cpp's names for them."""

from typing import Any

from tokenizers import Tokenizer

from lep.errors import TokenizerError
from lep.tokenizer.vocabulary import described

ELSEWHERE = "serve the folder as it is (vLLM, transformers)"  # the way out of every refusal
Rule = tuple[str, ...]  # expressions applied one after the other; each cuts what the last one left

_SHORT = r"'s|'t|'re|'ve|'m|'ll|'d"  # English contractions
_LINES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD, _SIGNS = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"

DIGIT = r"\p{N}"
GPT_2 = rf"{_SHORT}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
LLAMA_3 = rf"(?i:{_SHORT})|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_LINES}"
QWEN_2 = rf"(?i:{_SHORT})|{_WORD}|\p{{N}}|{_SIGNS}|{_LINES}"
QWEN_3_5 = rf"(?i:{_SHORT})|{_MARKED[0]}|\p{{N}}|{_MARKED[1]}|{_LINES}"

# Not here: tekken and gpt-4o, for which llama.cpp has rules that cut marks and Cyrillic capitals
# elsewhere (Devanagari texts get other ids).
# llama.cpp's names of a rule where whole words that are tokens need no merges, and where they do.
NAMES: dict[Rule, dict[bool, str]] = {
    (GPT_2,): {False: "gpt-2"},
    (DIGIT, GPT_2): {False: "smollm"},
    (LLAMA_3,): {True: "llama-bpe", False: "smaug-bpe"},
    (QWEN_2,): {False: "qwen2"},
    (QWEN_3_5,): {False: "qwen35"},
}
RULES = {name: (rule, flag) for rule, names in NAMES.items() for flag, name in names.items()}


def pre_tokenizer_name(tokenizer: Tokenizer) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level tokenizer.

    Raises `TokenizerError` for one that llama.cpp does not have.
    """
    rule = _rule(described(tokenizer.pre_tokenizer) or {})
    names = NAMES.get(rule or ())
    if names is None:
        expressions = " then ".join(rule) if rule else str(described(tokenizer.pre_tokenizer))
        raise TokenizerError(
            f"llama.cpp has no pre-tokenizer that cuts words like this tokenizer "
            f"({expressions[:160]}), so it would give other ids: "
            f"{ELSEWHERE}, or extend a tokenizer of a family that llama.cpp knows"
        )
    direct = bool(getattr(tokenizer.model, "ignore_merges", False))
    if direct in names:
        return names[direct]
    if token := _needs_direct(tokenizer):
        raise TokenizerError(
            f"llama.cpp treats whole words that are tokens differently from this tokenizer "
            f"(ignore_merges is {direct}), and merges do not make the token {token!r}: "
            f"{ELSEWHERE}"
        )
    return names[not direct]


def _needs_direct(tokenizer: Tokenizer) -> str | None:
    """A token that its own merges do not make; None if both ways of treating words are equal."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.model.ignore_merges = False
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for name in copy.get_vocab(with_added_tokens=False):
        if name not in added and len(copy.model.tokenize(name)) != 1:
            return name
    return None


def _rule(described_part: dict[str, Any]) -> Rule | None:
    """The expressions of a pre-tokenizer, without the change of bytes into characters."""
    parts = described_part.get("pretokenizers") or [described_part]
    *splits, last = parts
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    rule = tuple(map(_expression, splits))
    rule += (GPT_2,) if last.get("use_regex") else ()
    return None if None in rule or not rule else rule  # type: ignore[return-value]


def _expression(part: dict[str, Any]) -> str | None:
    """The expression by which one pre-tokenizer cuts, keeping what matches as a piece."""
    if part.get("type") == "Digits" and part.get("individual_digits"):
        return DIGIT
    if part.get("type") == "Split" and part.get("behavior") == "Isolated" and not part["invert"]:
        return part["pattern"].get("Regex")
    return None
