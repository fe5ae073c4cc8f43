"""Which byte strings may become tokens of a script, so that text without the script stays as it was."""

import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import regex

from lep.corpus.language import dominant_script
from lep.errors import CorpusError, TokenizerError


def resolve_script(name: str, sample: str) -> str | None:
    """The script that `--script` names: `any` is None, `auto` that of most letters of the sample.

    Raises `TokenizerError` for a name Unicode does not know, `CorpusError` for `auto` on a sample without letters.
    """
    if name == "any":
        return None
    script = dominant_script(sample) if name == "auto" else name.capitalize()
    if script is None:
        raise CorpusError(
            "the corpus has no letters of a known script: name one with --script, or take --script any"
        )
    try:
        regex.compile(rf"\p{{Script={script}}}" if re.fullmatch(r"\w+", script) else "(")
    except regex.error as error:
        raise TokenizerError(
            f"Unicode has no script '{name}': write its English name, for example cyrillic"
        ) from error
    return script


class ScriptFilter:
    """Whether a byte string may become a token: whole characters, one of them of the script, or a needed prefix.

    `prefixes` are the incomplete UTF-8 sequences without which some character of the script could not be reached
    (`needed_prefixes`); whole characters that the known merges put before them, such as a space, may stand there.
    With the script None everything is accepted, but what holds one of `taken`.
    """

    def __init__(
        self, script: str | None, prefixes: Iterable[bytes] = (), taken: Iterable[bytes] = ()
    ) -> None:
        self.script, self.prefixes = script, frozenset(prefixes)
        self.taken = re.compile(b"|".join(map(re.escape, taken)) or b"(?!)")
        self.pattern = regex.compile(rf"\p{{Script={script}}}") if script else None

    def has_character(self, text: str) -> bool:
        """Whether the text holds a character of the script (Unicode Script property, its own marks included)."""
        return self.pattern is None or bool(self.pattern.search(text))

    def __call__(self, content: bytes) -> bool:
        if self.taken.search(content):
            return False
        if self.pattern is None:
            return True
        text = _decoded(content)
        return self.has_character(text) if text is not None else self.tail(content) is not None

    def tail(self, content: bytes) -> bytes | None:
        """The needed prefix in which the content ends, if nothing of the script stands before it."""
        for length in (3, 2):
            if content[-length:] in self.prefixes:
                head = _decoded(content[:-length])
                return (
                    content[-length:] if head is not None and not self.has_character(head) else None
                )
        return None

    def excluded(self, tokens: Iterable[bytes]) -> list[str]:
        """Assigned characters outside the script that begin with a prefix token: text with them may change."""
        if self.pattern is None:
            return []
        tails = tuple(
            tail for token in tokens if _decoded(token) is None and (tail := self.tail(token))
        )
        return [
            c
            for c in _assigned()
            if tails and c.encode().startswith(tails) and not self.pattern.match(c)
        ]

    def normalised(self, normalizer: Any) -> list[str]:
        """Assigned characters outside the script that a normaliser makes into some of it (NFKC: U+00B5 into U+03BC)."""
        if self.pattern is None or normalizer is None:
            return []
        outside = (c for c in _assigned() if not self.pattern.match(c))
        return [c for c in outside if self.has_character(normalizer.normalize_str(c))]


def needed_prefixes(spelled: dict[str, list[bytes]]) -> set[bytes]:
    """Prefixes on the way to each character: what is left of its pieces before the last one is merged on.

    `spelled` holds the pieces of each character under the known merges. A character of one or two pieces needs
    no prefix: merging the two completes it.
    """
    return {
        b"".join(pieces[:length]) for pieces in spelled.values() for length in range(2, len(pieces))
    }


def _decoded(content: bytes) -> str | None:
    """The text, or None when a character is cut off in it."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


@lru_cache
def _assigned() -> tuple[str, ...]:
    unassigned = regex.compile(r"[\p{Cn}\p{Cs}\p{Co}]")
    return tuple(c for c in map(chr, range(0x80, sys.maxunicode + 1)) if not unassigned.match(c))
