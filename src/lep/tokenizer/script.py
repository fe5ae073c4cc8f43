"""Which byte strings may become tokens of a script, so that other text is tokenised as before."""

import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import regex

from lep.corpus.language import dominant_script, script_set
from lep.errors import CorpusError, TokenizerError

REPLACEMENT = "\ufffd".encode()


def resolve_script(name: str, sample: str) -> str | None:
    """The script that `--script` names: `any` is None, `auto` that of most letters of the sample.

    Raises `TokenizerError` for a name that Unicode does not know, `CorpusError` for `auto` on a
    sample without letters.
    """
    if name == "any":
        return None
    script = dominant_script(sample) if name == "auto" else name.capitalize()
    if script is None:
        raise CorpusError("the corpus has no letters of a known script: give --script NAME or any")
    try:
        regex.compile(f"[{script_set(script)}]" if re.fullmatch(r"\w+", script) else "(")
    except regex.error as error:
        advice = "write its English name, for example cyrillic"
        raise TokenizerError(f"Unicode has no script '{name}': {advice}") from error
    return script


class ScriptFilter:
    """Whether a byte string may become a token of a script.

    It may if it consists of whole characters, one of them of the script, or ends in one of
    `prefixes`: incomplete UTF-8 sequences without which a character of the script cannot be
    reached (`needed_prefixes`). Only whole characters outside the script, such as a space, may
    precede a prefix. A string that holds one of `taken`, or the character of damaged text (U+FFFD),
    is refused. The script None accepts all others.
    """

    def __init__(
        self, script: str | None, prefixes: Iterable[bytes] = (), taken: Iterable[bytes] = ()
    ) -> None:
        self.prefixes = frozenset(prefixes)
        self.taken = re.compile(b"|".join(map(re.escape, taken)) or b"(?!)")
        self.pattern = regex.compile(f"[{script_set(script)}]") if script else None

    def has_character(self, text: str) -> bool:
        """Whether the text holds a character of the script (any text for the script None)."""
        return self.pattern is None or bool(self.pattern.search(text))

    def __call__(self, content: bytes) -> bool:
        if self.taken.search(content) or REPLACEMENT in content:
            return False
        if self.pattern is None:
            return True
        text = _decoded(content)
        return self.has_character(text) if text is not None else self.tail(content) is not None

    def tail(self, content: bytes) -> bytes | None:
        """The prefix in which the content ends, if nothing of the script precedes it."""
        for length in (3, 2):
            if content[-length:] in self.prefixes:
                head = _decoded(content[:-length])
                outside = head is not None and not self.has_character(head)
                return content[-length:] if outside else None
        return None

    def excluded(self, tokens: Iterable[bytes]) -> list[str]:
        """Characters outside the script that start with a prefix token, so may be cut otherwise."""
        cut = (token for token in tokens if self.pattern and _decoded(token) is None)
        tails = tuple(tail for token in cut if (tail := self.tail(token)))
        return [c for c in self._outside() if c.encode().startswith(tails)] if tails else []

    def normalised(self, normalizer: Any) -> list[str]:
        """Characters outside the script that a normaliser turns into it (NFKC: µ into μ)."""
        if normalizer is None:
            return []
        return [c for c in self._outside() if self.has_character(normalizer.normalize_str(c))]

    def _outside(self) -> list[str]:
        pattern = self.pattern
        return [] if pattern is None else [c for c in _assigned() if not pattern.match(c)]


def needed_prefixes(spelled: dict[str, list[bytes]]) -> set[bytes]:
    """The prefixes on the way to each character: its first two pieces, first three, up to the last.

    `spelled` holds the pieces of each character under the known merges. A character of two pieces
    needs no prefix: merging them completes it.
    """
    return {b"".join(p[:length]) for p in spelled.values() for length in range(2, len(p))}


def _decoded(content: bytes) -> str | None:
    """The text, or None when it cuts a character off."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


@lru_cache
def _assigned() -> tuple[str, ...]:
    """All characters beyond ASCII that Unicode has assigned."""
    unassigned = regex.compile(r"[\p{Cn}\p{Cs}\p{Co}]")
    return tuple(c for c in map(chr, range(0x80, sys.maxunicode + 1)) if not unassigned.match(c))
