"""Turn a document into plain text, and name the reason to drop it (section 3.2 of the paper)."""

import html
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache

import regex

from lep.corpus.language import SCRIPTS, columns, count, script_share

SHORTEST_CHARACTERS = 200
MOST_DAMAGED = 0.001  # share of replacement characters, which a wrong encoding leaves
LEAST_SCRIPT, MOST_FOREIGN = 0.7, 0.02  # shares of the letters
LEAST_LETTERS = 0.6  # share of the visible characters
MOST_REPEATED = 0.3  # share of the text in lines that occurred before
SHORT_LINE, MANY_LINES = 20, 10  # a menu has many lines, and half of them are short

# Only markup elements are removed; other things in angle brackets (code, comparisons) are text.
_ELEMENTS = (
    "a abbr article aside b blockquote body br button caption center cite code col colgroup dd del "
    "details div dl dt em figcaption figure font footer form h1 h2 h3 h4 h5 h6 head header hr html "
    "i iframe img input ins kbd label li link main meta nav nowiki ol option p pre q ref s samp "
    "section select small span strike strong sub summary sup svg table tbody td tfoot th thead "
    "time title tr u ul var video"
)
# Elements and comments that go with all that they hold, and what ends each.
_OPENING = regex.compile(r"(?i)<(script|style|ref)\b[^<>]*(?<!/)>|<!--")
_CLOSING = {name: regex.compile(rf"(?i)</{name}\s*>") for name in ("script", "style", "ref")}
_CLOSING[""] = regex.compile("-->")
_TAG = regex.compile(rf"(?i)</?(?:{'|'.join(_ELEMENTS.split())})(?:\s[^<>]*)?/?>")
_NAMED_LINK = regex.compile(r"!?\[([^\[\]\n]*)\]\((?:https?:|www\.|/|#)[^()\s]*\)")
_WIKI = regex.compile(r"\{\{[^{}]*\}\}|\[\[(?:[^\[\]|\n]*\|)?([^\[\]\n]*)\]\]")
# An address ends with its ASCII characters: in Chinese the sentence goes on without a space.
_LINK = regex.compile(r"(?i)(?<![a-z0-9])(?:https?://|www\.)[!#-;=?-~]+")
# Joiners between letters are spelling, in Persian and in languages of India.
_JOINED = r"[[\p{L}\p{M}]--[\p{Latin}\p{Cyrillic}\p{Greek}]]"
_HIDDEN = regex.compile(
    rf"(?<={_JOINED})[\u200c\u200d](?={_JOINED})(*SKIP)(*FAIL)"
    r"|[\p{Cf}\p{Co}\p{Cn}[\p{Cc}--[\n\t]]]|\p{Extended_Pictographic}(?<![0-9#*©®™])",
    regex.V1,
)
_SPACES = regex.compile(r"[^\S\n]+")
_LINE_ENDS, _BLANK_LINES = regex.compile(r" *\n *"), regex.compile(r"\n{3,}")
_MARKS = regex.compile(r"\P{ccc=0}{32,}")
# Python refuses to read more digits, and no character has such a number.
_ENDLESS_NUMBER = regex.compile(r"&#[0-9]{4301,};?")
_VISIBLE = regex.compile(r"\S")


def plain(text: str) -> str:
    """Composed Unicode (NFC) without markup, links, pictographs, invisible or extra white space.

    >>> plain("<p>Дом&nbsp;у [реки](https://example.org)\\u200b 😀 </p>")
    'Дом у реки'
    """
    text = _TAG.sub(" ", _without_elements(text.replace("\r\n", "\n").replace("\r", "\n")))
    text = html.unescape(_ENDLESS_NUMBER.sub("\ufffd", text))
    text = _WIKI.sub(lambda match: match[1] or "", _NAMED_LINK.sub(r"\1", text))
    text = _composed(_LINK.sub("", text))
    text = _SPACES.sub(" ", _HIDDEN.sub("", text))
    return _BLANK_LINES.sub("\n\n", _LINE_ENDS.sub("\n", text)).strip()


def _without_elements(text: str) -> str:
    """The text with a space for each whole element or comment.

    One pass: what ends an element is looked for no second time where there is none, as one regular
    expression for all would.
    """
    parts, start, position, endless = list[str](), 0, 0, set[str]()
    while opening := _OPENING.search(text, position):
        name = (opening[1] or "").casefold()
        closing = None if name in endless else _CLOSING[name].search(text, opening.end())
        if closing is None:
            endless.add(name)
            position = opening.start() + 1
            continue
        parts += [text[start : opening.start()], " "]
        start = position = closing.end()
    return "".join([*parts, text[start:]])


def _composed(text: str) -> str:
    """The text in NFC, with many marks on one character too."""
    return unicodedata.normalize("NFC", _MARKS.sub(_in_order, text))


def _in_order(match: regex.Match[str]) -> str:
    """Marks in canonical order: Python sorts them by insertion, in quadratic time."""
    marks = "".join(unicodedata.normalize("NFD", mark) for mark in match[0])
    if not all(map(unicodedata.combining, marks)):  # marks of a newer Unicode than Python's
        return match[0]
    return "".join(sorted(marks, key=unicodedata.combining))


@cache
def _is_visible(character: str) -> bool:
    return _VISIBLE.match(character) is not None


@cache
def _is_spelling(character: str) -> bool:
    """Whether words are spelt with it: letters, and the marks of vowels."""
    return unicodedata.category(character)[0] in "LM"


def _foreign_scripts(text: str, script: str) -> bool:
    return 1 - script_share(text, script) - script_share(text, "Latin") > MOST_FOREIGN


def _repeated_lines(text: str) -> bool:
    lines = Counter(line for line in text.split("\n") if line)
    return sum(len(line) * (times - 1) for line, times in lines.items()) > MOST_REPEATED * len(text)


def _broken_lines(text: str) -> bool:
    lengths = sorted(columns(line) for line in text.split("\n") if line)
    return len(lengths) > MANY_LINES and lengths[len(lengths) // 2] < SHORT_LINE


# Reasons to drop a text of a script ("": unknown), in this order; the first that holds is given.
FILTERS: dict[str, Callable[[str, str], bool]] = {
    "damaged encoding": lambda t, _: t.count("\ufffd") > MOST_DAMAGED * len(t),
    "short": lambda t, _: columns(t) < SHORTEST_CHARACTERS,
    "other language": lambda t, script: bool(script) and script_share(t, script) < LEAST_SCRIPT,
    "foreign scripts": lambda t, script: bool(script) and _foreign_scripts(t, script),
    "few letters": lambda t, _: count(t, _is_spelling) < LEAST_LETTERS * count(t, _is_visible),
    "repeated lines": lambda t, _: _repeated_lines(t),
    "broken lines": lambda t, _: _broken_lines(t),
}


def fault(text: str, language: str | None) -> str | None:
    """The reason to drop a plain text, or None; the script is checked for known languages only."""
    script = SCRIPTS.get(language or "", "")
    return next((name for name, holds in FILTERS.items() if holds(text, script)), None)
