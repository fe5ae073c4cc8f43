"""Extend a BPE tokenizer: by continuing its training, or the paper's way, by merging in a second vocabulary."""

import json
from collections import Counter
from dataclasses import dataclass

from tokenizers import Tokenizer

from lep.errors import CorpusError, LepError
from lep.tokenizer.bpe import MINIMUM_COUNT, continue_bpe
from lep.tokenizer.count import WordCounts
from lep.tokenizer.parts import Merge, Parts
from lep.tokenizer.script import ScriptFilter, needed_prefixes
from lep.tokenizer.train import fresh_merges


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new tokens.

    `new` holds the id of each new token's bytes, in the order in which they were learned; `excluded` the characters
    outside the script whose texts may be tokenised differently now.
    """

    parts: Parts
    new: dict[bytes, int]
    script: str | None
    excluded: list[str]


def extend_bpe(parts: Parts, words: WordCounts, new_tokens: int) -> Extension:
    """Learn exactly `new_tokens` further tokens on counted words: old merges first, new merges after them.

    A new token holds a whole character of the words' script, or is a byte prefix without which a character of the
    script cannot be reached. So text without the script is tokenised as before: no new merge can apply to it
    (texts with one of `excluded` excepted). Where characters are not made of bytes, letters that the vocabulary
    lacks become tokens first, the most frequent ones. Known tokens keep their ids; new ids fill unused ones, then
    follow the largest.

    Raises `CorpusError` when the corpus yields fewer tokens.
    """
    letters = [] if parts.vocabulary.byte_level else missing_letters(parts, words)[:new_tokens]
    parts, ids = with_tokens(parts, [letter.encode() for letter in letters], [])
    spelled = (
        (parts.vocabulary.spell(word.encode()), count)
        for word, count in sorted(words.counts.items())
    )
    prefixes = _prefixes(parts, words) if parts.vocabulary.byte_level else ()
    accept = ScriptFilter(words.script, prefixes, taken=parts.taken)
    wanted = new_tokens - len(letters)
    merges, contents = continue_bpe(spelled, parts.contents, parts.merges, wanted, accept)
    learned = [content for content in contents[len(parts.vocabulary) :] if content is not None]
    if len(learned) < wanted:
        raise CorpusError(
            f"the corpus yields only {len(letters) + len(learned)} of {new_tokens} new tokens ({words.script or 'any'} "
            f"script, seen at least {MINIMUM_COUNT} times): give more text or ask for fewer tokens"
        )
    parts, more = with_tokens(parts, learned, merges)
    excluded = dict.fromkeys(
        [*accept.excluded(learned), *accept.normalised(parts.vocabulary.tokenizer.normalizer)]
    )
    return Extension(parts, ids | more, words.script, list(excluded))


def merge_vocabulary(parts: Parts, words: WordCounts, new_tokens: int) -> Extension:
    """The paper's way: train a second vocabulary on the words alone, and append its merges until enough is new.

    Its tokens were learned without the known merges, which come first and may cut words in other places: some
    tokens can then no longer be reached. Kept for comparison.

    Raises `CorpusError` when the corpus yields fewer tokens.
    """
    ids = {
        content: i
        for i, content in reversed(list(enumerate(parts.contents)))
        if content is not None
    }
    alphabet, learned = _second_vocabulary(parts, words, new_tokens)
    known = {(m.left, m.right) for m in parts.merges}
    new: list[bytes] = []
    merges: list[Merge] = []

    def number(content: bytes) -> int:
        if content not in ids:
            ids[content] = len(parts.vocabulary) + len(new)
            new.append(content)
        return ids[content]

    for left, right in [*((b"", letter) for letter in alphabet), *learned]:
        if len(new) == new_tokens:
            break
        result = number(left + right)
        if left and (pair := (ids[left], ids[right])) not in known:
            merges.append(Merge(*pair, result))
    if len(new) < new_tokens:
        raise CorpusError(
            f"the second vocabulary gives only {len(new)} of {new_tokens} new tokens: give more text"
        )
    parts, numbers = with_tokens(parts, new, merges)
    return Extension(parts, numbers, None, [])


def _second_vocabulary(
    parts: Parts, words: WordCounts, new_tokens: int
) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """A vocabulary of its own with enough tokens that the parts do not have, where the words yield them."""
    known, asked = set(parts.contents), new_tokens
    while True:
        alphabet, learned = fresh_merges(words, asked, byte_level=parts.vocabulary.byte_level)
        new = {left + right for left, right in learned} | set(alphabet)
        missing = new_tokens - len(new - known)
        if missing <= 0 or len(learned) < asked:
            return alphabet, learned
        asked += missing + new_tokens // 10


METHODS = {"continue": extend_bpe, "merge": merge_vocabulary}


def check_method(method: str) -> None:
    """Raise `LepError` for an extension method that does not exist."""
    if method not in METHODS:
        raise LepError(f"unknown method '{method}': the methods are {', '.join(METHODS)}")


def missing_letters(parts: Parts, words: WordCounts) -> list[str]:
    """Characters of the script that the vocabulary can only spell in bytes, the most frequent first."""
    known, accept = set(parts.contents), ScriptFilter(words.script, taken=parts.taken)
    counts = _characters(words)
    missing = [
        c
        for c in counts
        if c.encode() not in known and accept(c.encode()) and counts[c] >= MINIMUM_COUNT
    ]
    return sorted(missing, key=lambda c: (-counts[c], c))


def with_tokens(
    parts: Parts, new: list[bytes], merges: list[Merge]
) -> tuple[Parts, dict[bytes, int]]:
    """The parts with more tokens and merges, and the ids of the new tokens: unused ones first, then behind.

    In `merges` the ids of new tokens follow the largest known one.
    """
    if not new and not merges:
        return parts, {}
    names = list(parts.names)
    free = [i for i, name in enumerate(names) if name is None]
    numbers = [*free, *range(len(names), len(names) + len(new))][: len(new)]
    names += [None] * (len(new) - len(free))
    for number, content in zip(numbers, new, strict=True):
        names[number] = parts.name(content)
    moved = dict(enumerate(numbers, start=len(parts.names)))
    renamed = [Merge(*(moved.get(i, i) for i in merge)) for merge in merges]
    spec = parts.assemble(names, [*parts.merges, *renamed])
    return Parts.of(Tokenizer.from_str(json.dumps(spec))), dict(zip(new, numbers, strict=True))


def _characters(words: WordCounts) -> Counter[str]:
    counts: Counter[str] = Counter()
    for word, count in words.counts.items():
        for character in word:
            counts[character] += count
    return counts


def _prefixes(parts: Parts, words: WordCounts) -> set[bytes]:
    known, accept = set(parts.contents), ScriptFilter(words.script)
    if words.script is None:
        return set()
    tokens, spelled = parts.vocabulary.tokens, {}
    for c in filter(accept.has_character, _characters(words)):
        alone, spaced = (
            [token.content for i in parts.vocabulary.spell(text.encode()) if (token := tokens[i])]
            for text in (c, f" {c}")
        )
        if c.encode() not in known:
            spelled[c] = alone
        if spaced[0] != b" ":  # a known merge joins the space to the first byte of the letter
            spelled[f" {c}"] = [spaced[0][1:], *spaced[1:]]
    return needed_prefixes(spelled)
