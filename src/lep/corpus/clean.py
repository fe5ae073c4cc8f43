"""Text of a document made plain, and the reasons to drop a document (section 3.2 of the paper)."""

import html
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache

import regex

from lep.corpus.language import SCRIPTS, count, is_letter, script_share

SHORTEST_CHARACTERS = 200
LEAST_SCRIPT, MOST_FOREIGN, LEAST_LETTERS = (
    0.7,
    0.02,
    0.6,
)  # shares of the letters, and of what is no white space
MOST_REPEATED, SHORT_LINE, MANY_LINES = (
    0.3,
    20,
    10,
)  # share of the text in lines that came before; a menu's lines
MOST_DAMAGED = 0.001  # share of replacement characters, which a wrong encoding leaves

# Elements that text is marked up with; other things in angle brackets (code, comparisons) are text.
_ELEMENTS = (
    "a abbr article aside b blockquote body br button caption center cite code col colgroup dd del details div dl dt "
    "em figcaption figure font footer form h1 h2 h3 h4 h5 h6 head header hr html i iframe img input ins kbd label li "
    "link main meta nav nowiki ol option p pre q ref s samp section select small span strike strong sub summary sup "
    "svg table tbody td tfoot th thead time title tr u ul var video"
)
_WHOLE_ELEMENT = regex.compile(r"(?is)<(script|style|ref)\b[^<>]*(?<!/)>.*?</\1\s*>|<!--.*?-->")
_TAG = regex.compile(rf"(?i)</?(?:{'|'.join(_ELEMENTS.split())})(?:\s[^<>]*)?/?>")
_NAMED_LINK = regex.compile(r"!?\[([^\[\]\n]*)\]\((?:https?:|www\.|/|#)[^()\s]*\)")
_WIKI = regex.compile(r"\{\{[^{}]*\}\}|\[\[(?:[^\[\]|\n]*\|)?([^\[\]\n]*)\]\]")
_LINK = regex.compile(r"(?i)\b(?:https?://|www\.)[^\s<>\"»”]+")
_HIDDEN = regex.compile(
    r"[\p{Cf}\p{Co}\p{Cn}[\p{Cc}--[\n\t]]]|\p{Extended_Pictographic}(?<![0-9#*©®™])", regex.V1
)
_SPACES = regex.compile(r"[^\S\n]+")
_LINE_ENDS, _BLANK_LINES = regex.compile(r" *\n *"), regex.compile(r"\n{3,}")
_SEEN = regex.compile(r"\S")


def plain(text: str) -> str:
    """Composed Unicode (NFC) without markup, links, pictographs and what cannot be seen; white space made regular.

    >>> plain("<p>Дом&nbsp;у [реки](https://example.org)\\u200b 😀 </p>")
    'Дом у реки'
    """
    text = _TAG.sub(" ", _WHOLE_ELEMENT.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n")))
    text = html.unescape(text)
    text = _WIKI.sub(lambda found: found[1] or "", _NAMED_LINK.sub(r"\1", text))
    text = unicodedata.normalize("NFC", _LINK.sub("", text))
    text = _SPACES.sub(" ", _HIDDEN.sub("", text))
    return _BLANK_LINES.sub("\n\n", _LINE_ENDS.sub("\n", text)).strip()


def _damaged(text: str, language: str | None) -> bool:
    return text.count("\ufffd") > MOST_DAMAGED * len(text)


def _short(text: str, language: str | None) -> bool:
    return len(text) < SHORTEST_CHARACTERS


def _other_language(text: str, language: str | None) -> bool:
    script = SCRIPTS.get(language or "")
    return script is not None and script_share(text, script) < LEAST_SCRIPT


def _foreign_scripts(text: str, language: str | None) -> bool:
    script = SCRIPTS.get(language or "")
    return (
        script is not None
        and 1 - script_share(text, script) - script_share(text, "Latin") > MOST_FOREIGN
    )


def _few_letters(text: str, language: str | None) -> bool:
    return count(text, is_letter) < LEAST_LETTERS * count(text, _is_seen)


@cache
def _is_seen(character: str) -> bool:
    return _SEEN.match(character) is not None


def _repeated_lines(text: str, language: str | None) -> bool:
    lines = Counter(line for line in text.split("\n") if line)
    return sum(len(line) * (times - 1) for line, times in lines.items()) > MOST_REPEATED * len(text)


def _broken_lines(text: str, language: str | None) -> bool:
    lines = [line for line in text.split("\n") if line]
    return len(lines) > MANY_LINES and sorted(map(len, lines))[len(lines) // 2] < SHORT_LINE


# In this order; the first that holds names the reason.
FILTERS: dict[str, Callable[[str, str | None], bool]] = {
    "damaged encoding": _damaged,
    "short": _short,
    "other language": _other_language,
    "foreign scripts": _foreign_scripts,
    "few letters": _few_letters,
    "repeated lines": _repeated_lines,
    "broken lines": _broken_lines,
}


def fault(text: str, language: str | None) -> str | None:
    """Why a plain text is dropped, by name; None for one that stays. Languages without a known script are not asked."""
    return next((name for name, holds in FILTERS.items() if holds(text, language)), None)
