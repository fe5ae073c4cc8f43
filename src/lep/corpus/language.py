"""The script of a text: a cheap and exact stand-in for language identification."""

from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache, partial

import regex

# Unicode scripts, each with its languages (ISO 639-1). A code added here adds a language.
_TABLE = """
    Adlam; Arabic ar fa ur; Armenian hy; Bengali bn; Bopomofo; Canadian_Aboriginal; Cherokee;
    Cyrillic ru uk bg sr kk be ky tg; Devanagari hi mr ne; Ethiopic am ti; Georgian ka; Greek el;
    Gujarati gu; Gurmukhi; Han zh; Hangul ko; Hebrew he; Hiragana ja; Javanese; Kannada kn;
    Katakana; Khmer km; Lao lo; Latin en de fr es pl tr vi; Malayalam ml; Meetei_Mayek; Mongolian;
    Myanmar my; Nko; Ol_Chiki; Oriya or; Sinhala si; Sundanese; Syriac; Tai_Le; Tamil ta; Telugu te;
    Thaana dv; Thai th; Tibetan bo; Tifinagh; Vai; Yi
"""
_LANGUAGES = {script: codes for script, *codes in map(str.split, _TABLE.split(";"))}
SCRIPTS = {code: script for script, codes in _LANGUAGES.items() for code in codes}
# A regular expression's set of characters: those of scripts without spaces between words.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_LETTER = regex.compile(r"\p{L}")


@lru_cache(maxsize=1)  # several questions are asked of one text
def characters(text: str) -> Counter[str]:
    """How often each character occurs in a text."""
    return Counter(text)


@cache
def is_letter(character: str) -> bool:
    """Whether Unicode classifies the character as a letter."""
    return _LETTER.match(character) is not None


def count(text: str, wanted: Callable[[str], bool]) -> int:
    """How many characters of a text are `wanted`, asked once for each distinct character.

    >>> count("Дом у реки", is_letter)
    8
    """
    return sum(times for character, times in characters(text).items() if wanted(character))


def script_share(text: str, script: str) -> float:
    """Share of the letters of `text` that belong to `script`; 0 for a text without letters."""
    letters = count(text, is_letter)
    return count(text, partial(_letter_of, script)) / letters if letters else 0.0


@cache
def _letter_of(script: str, character: str) -> bool:
    return is_letter(character) and regex.match(rf"\p{{Script={script}}}", character) is not None


def dominant_script(text: str) -> str | None:
    """The script of most letters; None without letters, or if most are of unlisted scripts."""
    counts: Counter[str] = Counter()
    for character, times in sorted(characters(text).items()):
        if is_letter(character):
            counts[_script_of(character)] += times
    return max(counts, key=counts.__getitem__) or None if counts else None


@cache
def _script_of(letter: str) -> str:
    matches = (name for name in _LANGUAGES if regex.match(rf"\p{{Script={name}}}", letter))
    return next(matches, "")


def in_language(text: str, language: str, *, share: float = 0.7) -> bool:
    """Whether `share` of the letters are of the language's script; true for unknown languages."""
    script = SCRIPTS.get(language)
    return script is None or script_share(text, script) >= share
