"""Extend a BPE tokenizer: continue its training, or merge in a second vocabulary (the paper)."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from lep.errors import CorpusError, TokenizerError
from lep.tokenizer.bpe import MINIMUM_COUNT, continue_bpe
from lep.tokenizer.count import WordCounts, word_bytes
from lep.tokenizer.parts import Merge, Parts
from lep.tokenizer.reach import unreachable_tokens
from lep.tokenizer.script import ScriptFilter, needed_prefixes
from lep.tokenizer.train import by_frequency, fresh_merges
from lep.tokenizer.vocabulary import first_ids


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new tokens.

    `new` holds the id of each new token by its bytes, in the order learned; `excluded` the
    characters outside the script whose texts may now be tokenised differently.
    """

    parts: Parts
    new: dict[bytes, int]
    script: str | None
    excluded: list[str]


def extend_bpe(
    parts: Parts, words: WordCounts, new_tokens: int, *, fewer: bool = False
) -> Extension:
    """Learn exactly `new_tokens` tokens on counted words; new merges follow the known ones.

    With `fewer`, as many as the words yield are enough.

    A new token holds a whole character of the words' script, or is a byte prefix without which a
    character of the script cannot be reached. So no new merge applies to text without the script,
    which is tokenised as before (except text with one of `excluded`). Without a byte-level
    alphabet, the most frequent letters that the vocabulary lacks become tokens first.
    Known tokens keep their ids; new ids fill unused ones, then follow the largest.

    Every new token is reached by a text: the tokenizer itself is asked, and those that its
    pre-tokenizer or its known merges cut everywhere are left out when it learns once more.

    Raises `CorpusError` when the corpus yields fewer tokens, unless they are enough.
    """
    left_out = set[bytes]()
    while True:
        extension = _extended(parts, words, new_tokens, left_out, fewer=fewer)
        lost = set(unreachable_tokens(extension.parts.tokenizer, extension.new.values()))
        if not lost:
            return extension
        left_out |= {content for content, index in extension.new.items() if index in lost}


def _extended(
    parts: Parts, words: WordCounts, new_tokens: int, left_out: set[bytes], *, fewer: bool
) -> Extension:
    """`extend_bpe`, once."""
    byte_level = parts.vocabulary.byte_level
    letters = [] if byte_level else _missing_letters(parts, words, left_out)[:new_tokens]
    parts, ids = _with_tokens(parts, [letter.encode() for letter in letters], [])
    prefixes = _prefixes(parts, words) - left_out if byte_level else ()
    accept = ScriptFilter(words.script, prefixes, taken=parts.taken)
    missing = new_tokens - len(letters)
    known = parts.vocabulary.contents
    merges, contents = continue_bpe(
        _spelled(parts, words),
        known,
        parts.merges,
        missing,
        lambda content: content not in left_out and accept(content),
    )
    learned = [content for content in contents[len(known) :] if content is not None]
    if len(learned) < missing and not fewer:
        total = len(letters) + len(learned)
        raise CorpusError(
            f"the corpus yields only {total} of {new_tokens} new tokens ({words.script or 'any'} "
            f"script, seen at least {MINIMUM_COUNT} times): give more text or ask for fewer"
        )
    parts, more_ids = _with_tokens(parts, learned, merges)
    excluded = accept.excluded(learned) + accept.normalised(parts.tokenizer.normalizer)
    return Extension(parts, ids | more_ids, words.script, list(dict.fromkeys(excluded)))


def merge_vocabulary(parts: Parts, words: WordCounts, new_tokens: int) -> Extension:
    """Train a second vocabulary on the words alone and append its merges, as the paper does.

    Its tokens were learned without the known merges, which come first and may cut words
    elsewhere, so some tokens cannot be reached. Kept for comparison.

    Raises `CorpusError` when the corpus yields fewer tokens.
    """
    ids, size = first_ids(parts.vocabulary.contents), len(parts.vocabulary)
    known = {(merge.left, merge.right) for merge in parts.merges}
    new: list[bytes] = []
    merges: list[Merge] = []
    alphabet, learned = _second_vocabulary(parts, words, new_tokens)
    for left, right in [*((b"", letter) for letter in alphabet), *learned]:
        if len(new) == new_tokens:
            break
        if left + right not in ids:
            ids[left + right] = size + len(new)
            new.append(left + right)
        if left and (ids[left], ids[right]) not in known:
            merges.append(Merge(ids[left], ids[right], ids[left + right]))
    if len(new) < new_tokens:
        raise CorpusError(f"the corpus yields only {len(new)} of {new_tokens} new tokens")
    parts, new_ids = _with_tokens(parts, new, merges)
    return Extension(parts, new_ids, None, [])


METHODS = {"continue": extend_bpe, "merge": merge_vocabulary}


def _second_vocabulary(
    parts: Parts, words: WordCounts, new_tokens: int
) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """A fresh vocabulary with `new_tokens` or more that the parts lack, if the words yield them."""
    known, size = set(parts.vocabulary.contents), new_tokens
    while True:
        alphabet, learned = fresh_merges(words, size, byte_level=parts.vocabulary.byte_level)
        new = {left + right for left, right in learned} | set(alphabet)
        missing = new_tokens - len(new - known)
        if missing <= 0 or len(learned) < size:
            return alphabet, learned
        size += missing + new_tokens // 10


def _spelled(parts: Parts, words: WordCounts) -> Iterator[tuple[list[int], int]]:
    """The words in known tokens; those with bytes that the vocabulary lacks are passed over."""
    for word, count in sorted(words.counts.items()):
        with suppress(TokenizerError):
            yield parts.vocabulary.spell(word_bytes(word)), count


def _missing_letters(parts: Parts, words: WordCounts, left_out: set[bytes]) -> list[str]:
    """Characters of the script that have no token, the most frequent first."""
    known = {*parts.vocabulary.contents, *left_out}
    accept = ScriptFilter(words.script, taken=parts.taken)
    frequent = ((c, n) for c, n in by_frequency(words) if n >= MINIMUM_COUNT)
    return [c for c, _ in frequent if c.encode() not in known and accept(c.encode())]


def _with_tokens(
    parts: Parts, new: list[bytes], merges: list[Merge]
) -> tuple[Parts, dict[bytes, int]]:
    """The parts with more tokens and merges, and the id of each new token: unused ids first.

    In `merges` the ids of new tokens still follow the largest known one.
    """
    if not new and not merges:
        return parts, {}
    names, size = list(parts.names), len(parts.names)
    free = [i for i, name in enumerate(names) if name is None]
    numbers = [*free, *range(size, size + len(new))][: len(new)]
    names += [None] * (len(new) - len(free))
    for number, content in zip(numbers, new, strict=True):
        names[number] = parts.name(content)
    moved = dict(enumerate(numbers, start=size))
    renamed = [Merge(*(moved.get(i, i) for i in merge)) for merge in merges]
    ids = dict(zip(new, numbers, strict=True))
    return parts.rebuilt(names, [*parts.merges, *renamed]), ids


def _prefixes(parts: Parts, words: WordCounts) -> set[bytes]:
    """Byte sequences that must become tokens before every character of the script can."""
    if words.script is None:
        return set()
    spell, contents = parts.vocabulary.spell, parts.vocabulary.contents
    known, accept, spelled = set(contents), ScriptFilter(words.script), {}
    for c in filter(accept.has_character, words.character_counts()):
        ids = spell(c.encode()), spell(f" {c}".encode())
        alone, spaced = ([contents[i] or b"" for i in each] for each in ids)
        if c.encode() not in known:
            spelled[c] = alone
        if spaced[0] != b" ":  # a known merge joins the space to the first byte of the letter
            spelled[f" {c}"] = [spaced[0][1:], *spaced[1:]]
    return needed_prefixes(spelled)
