"""Which script a text is written in: the cheap, exact stand-in for language identification."""

from collections import Counter

import regex

# Languages by ISO 639-1 code; others are added by one entry. The Unicode Script property decides.
SCRIPTS = {
    "ru": "Cyrillic", "uk": "Cyrillic", "bg": "Cyrillic", "sr": "Cyrillic", "kk": "Cyrillic", "be": "Cyrillic",
    "en": "Latin", "de": "Latin", "fr": "Latin", "es": "Latin", "pl": "Latin", "tr": "Latin", "vi": "Latin",
    "ka": "Georgian", "hy": "Armenian", "el": "Greek", "he": "Hebrew", "ar": "Arabic", "fa": "Arabic",
    "hi": "Devanagari", "bn": "Bengali", "ta": "Tamil", "te": "Telugu", "th": "Thai", "ko": "Hangul",
    "ja": "Hiragana", "zh": "Han",
}  # fmt: skip

_LETTER = regex.compile(r"\p{L}")
_ALL_SCRIPTS = sorted(set(SCRIPTS.values()))


def script_share(text: str, script: str) -> float:
    """Share of the letters of `text` that belong to `script`; 0 for a text without letters."""
    letters = len(_LETTER.findall(text))
    return len(regex.findall(rf"(?=\p{{L}})\p{{Script={script}}}", text)) / letters if letters else 0.0


def dominant_script(text: str) -> str | None:
    """The script of most letters of `text`, or None when it has no letter of a known script."""
    counts: Counter[str] = Counter()
    for script in _ALL_SCRIPTS:
        counts[script] = len(regex.findall(rf"(?=\p{{L}})\p{{Script={script}}}", text))
    script, count = counts.most_common(1)[0]
    return script if count else None


def in_language(text: str, language: str, *, share: float = 0.7) -> bool:
    """Whether at least `share` of the letters are of the language's script (unknown languages always pass)."""
    script = SCRIPTS.get(language)
    return script is None or script_share(text, script) >= share
