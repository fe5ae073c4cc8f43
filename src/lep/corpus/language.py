"""Which script a text is written in: the cheap, exact stand-in for language identification."""

from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache, partial

import regex

# Languages by ISO 639-1 code; others are added by one entry. The Unicode Script property decides.
SCRIPTS = {
    "ru": "Cyrillic",
    "uk": "Cyrillic",
    "bg": "Cyrillic",
    "sr": "Cyrillic",
    "kk": "Cyrillic",
    "be": "Cyrillic",
    "en": "Latin",
    "de": "Latin",
    "fr": "Latin",
    "es": "Latin",
    "pl": "Latin",
    "tr": "Latin",
    "vi": "Latin",
    "ka": "Georgian",
    "hy": "Armenian",
    "el": "Greek",
    "he": "Hebrew",
    "ar": "Arabic",
    "fa": "Arabic",
    "hi": "Devanagari",
    "bn": "Bengali",
    "ta": "Tamil",
    "te": "Telugu",
    "th": "Thai",
    "ko": "Hangul",
    "ja": "Hiragana",
    "zh": "Han",
    "mr": "Devanagari",
    "ne": "Devanagari",
    "ur": "Arabic",
    "gu": "Gujarati",
    "kn": "Kannada",
    "ml": "Malayalam",
    "or": "Oriya",
    "si": "Sinhala",
    "km": "Khmer",
    "lo": "Lao",
    "my": "Myanmar",
    "am": "Ethiopic",
    "ti": "Ethiopic",
    "bo": "Tibetan",
    "dv": "Thaana",
    "ky": "Cyrillic",
    "tg": "Cyrillic",
}

_LETTER = regex.compile(r"\p{L}")
_ALL_SCRIPTS = sorted(
    {
        *SCRIPTS.values(),
        "Adlam",
        "Bopomofo",
        "Canadian_Aboriginal",
        "Cherokee",
        "Gurmukhi",
        "Javanese",
        "Katakana",
        "Meetei_Mayek",
        "Mongolian",
        "Nko",
        "Ol_Chiki",
        "Sundanese",
        "Syriac",
        "Tai_Le",
        "Tifinagh",
        "Vai",
        "Yi",
    }
)


@lru_cache(maxsize=1)  # several questions are asked of one text
def characters(text: str) -> Counter[str]:
    """How often each character is in a text."""
    return Counter(text)


@cache
def is_letter(character: str) -> bool:
    """Whether Unicode has it among the letters."""
    return _LETTER.match(character) is not None


def count(text: str, wanted: Callable[[str], bool]) -> int:
    """How many characters of a text are wanted; each is asked about once.

    >>> count("Дом у реки", is_letter)
    8
    """
    return sum(times for character, times in characters(text).items() if wanted(character))


def script_share(text: str, script: str) -> float:
    """Share of the letters of `text` that belong to `script`; 0 for a text without letters."""
    letters = count(text, is_letter)
    return count(text, partial(_of_script, script)) / letters if letters else 0.0


@cache
def _of_script(script: str, character: str) -> bool:
    return is_letter(character) and regex.match(rf"\p{{Script={script}}}", character) is not None


def dominant_script(text: str) -> str | None:
    """The script of most letters of `text`, or None when it has none, or most are of scripts not listed here."""
    counts: Counter[str] = Counter()
    for character, times in sorted(characters(text).items()):
        if is_letter(character):
            counts[_script_of(character)] += times
    return max(counts, key=lambda script: counts[script]) or None if counts else None


@cache
def _script_of(letter: str) -> str:
    return next(
        (script for script in _ALL_SCRIPTS if regex.match(rf"\p{{Script={script}}}", letter)), ""
    )


def in_language(text: str, language: str, *, share: float = 0.7) -> bool:
    """Whether at least `share` of the letters are of the language's script (unknown languages always pass)."""
    script = SCRIPTS.get(language)
    return script is None or script_share(text, script) >= share
