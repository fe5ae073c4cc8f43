"""The script of a text: a cheap and exact stand-in for language identification."""

import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache, partial

import regex

# Unicode scripts, each with its languages (ISO 639-1, and ISO 639-3 where that has none). A code
# added here adds a language. Those that are much written in two scripts (uz, ku) are left out.
_TABLE = """
    Adlam; Arabic ar fa ur ps sd ug ckb pnb; Armenian hy; Bengali bn as; Bopomofo;
    Canadian_Aboriginal; Cherokee;
    Cyrillic ru uk bg sr kk be ky tg mk mn tt ba cv os ce ab av kv sah udm;
    Devanagari hi mr ne mai bho; Ethiopic am ti; Georgian ka; Greek el; Gujarati gu; Gurmukhi pa;
    Han zh; Hangul ko; Hebrew he yi; Hiragana; Javanese; Kannada kn; Katakana; Khmer km; Lao lo;
    Latin en de fr es pl tr vi af ast az bm br bs ca ceb co cs cy da eo et eu fi fil fo fy ga gd gl
    gn ha haw hr ht hu id ig is it jv kl la lb lg ln lt lv mg mi ms mt nb nl nn no ny oc om pt qu rm
    rn ro rw sc sk sl sm sn so sq st su sv sw tk tl tn to ts war wo xh yo zu;
    Malayalam ml; Meetei_Mayek; Mongolian; Myanmar my; Nko; Ol_Chiki; Oriya or; Sinhala si;
    Sundanese; Syriac; Tai_Le; Tamil ta; Telugu te; Thaana dv; Thai th; Tibetan bo dz; Tifinagh;
    Vai; Yi
"""
_LANGUAGES = {script: codes for script, *codes in map(str.split, _TABLE.split(";"))}
JAPANESE, KANA = "Japanese", ("Hiragana", "Katakana")  # kana and Han are written together
SCRIPTS = {code: script for script, codes in _LANGUAGES.items() for code in codes} | {
    "ja": JAPANESE
}
# Sets of characters by writing system, where it is no script of Unicode; the long-vowel mark of
# kana belongs to none.
_SYSTEMS = {JAPANESE: r"\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Han}ー"}
KANA_SHARE = 0.1  # of kana and Han letters: with fewer kana a text is not Japanese
# A regular expression's set of characters: those of scripts without spaces between words.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_UNSPACED = regex.compile(f"[{UNSPACED}]")
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


def script_set(script: str) -> str:
    """A regular expression's set, to stand in brackets, of the characters of a script of Unicode or
    of Japanese.
    """
    return _SYSTEMS.get(script, rf"\p{{Script={script}}}")


def is_unspaced(text: str) -> bool:
    """Whether a text has characters of scripts that put no spaces between words."""
    return _UNSPACED.search(text) is not None


def columns(text: str) -> int:
    """Characters, of which the wide ones of East Asia count twice.

    >>> columns("Дом"), columns("你好")
    (3, 4)
    """
    return len(text) + count(text, _is_wide)


@cache
def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def script_share(text: str, script: str) -> float:
    """Share of the letters of `text` that belong to `script`; 0 for a text without letters."""
    letters = count(text, is_letter)
    return count(text, partial(_letter_of, script)) / letters if letters else 0.0


@cache
def _letter_of(script: str, character: str) -> bool:
    return is_letter(character) and regex.match(f"[{script_set(script)}]", character) is not None


def dominant_script(text: str) -> str | None:
    """The script of most letters; None without letters, or if most are of unlisted scripts.

    Kana, and Han among them, are Japanese.

    >>> dominant_script("日本の首都"), dominant_script("东京是日本的首都")
    ('Japanese', 'Han')
    """
    counts: Counter[str] = Counter()
    for character, times in sorted(characters(text).items()):
        if is_letter(character):
            counts[_script_of(character)] += times
    if kana := sum(counts.pop(script, 0) for script in KANA):
        is_mixed = kana >= KANA_SHARE * (kana + counts["Han"])
        counts[JAPANESE] = kana + (counts.pop("Han", 0) if is_mixed else 0)
    return max(counts, key=counts.__getitem__) or None if counts else None


@cache
def _script_of(letter: str) -> str:
    matches = (name for name in _LANGUAGES if regex.match(rf"\p{{Script={name}}}", letter))
    return next(matches, "")


def in_language(text: str, language: str, *, share: float = 0.7) -> bool:
    """Whether `share` of the letters are of the language's script; true for unknown languages."""
    script = SCRIPTS.get(language)
    return script is None or script_share(text, script) >= share
