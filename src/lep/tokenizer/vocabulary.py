"""`Vocabulary`: each token id as bytes, so that any two vocabularies can be compared."""

import hashlib
import json
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from tokenizers import Tokenizer

from lep.errors import TokenizerError, foreign
from lep.limits import TOKEN_CHARACTERS, VOCABULARY

T = TypeVar("T", bound=Hashable)
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
SPACE = "\u2581"  # SentencePiece writes a space as this character
# Decoding with `surrogateescape` turns each invalid byte into one character of U+DC80 to U+DCFF.
_RUNS = re.compile("[\udc80-\udcff]|[^\udc80-\udcff]+")


def _byte_alphabet() -> dict[int, str]:
    """The printable character by which byte-level BPE writes each byte (GPT-2's rule)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


BYTE_TO_CHARACTER = _byte_alphabet()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
# For `str.translate`: the alphabet as Latin-1 characters, everything else outside Latin-1.
_TO_LATIN_1 = str.maketrans(
    {chr(code): "\uffff" for code in range(256)}
    | {c: chr(byte) for c, byte in CHARACTER_TO_BYTE.items()}
)


def byte_level_name(content: bytes) -> str:
    """How a byte-level tokenizer.json writes a byte string."""
    return "".join(BYTE_TO_CHARACTER[byte] for byte in content)


def first_ids(items: Sequence[T | None]) -> dict[T, int]:
    """The first index of each item that is not None."""
    return {item: i for i, item in reversed(list(enumerate(items))) if item is not None}


@dataclass(frozen=True)
class Token:
    """One entry of a vocabulary: its bytes, or its name if it is an added (special, chat) token.

    `is_byte` marks byte-fallback tokens `<0xNN>`; an ordinary token may stand for the same byte.
    """

    content: bytes
    added: bool = False
    is_byte: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """All tokens of a tokenizer by id (None for an unused id), and how to spell bytes with them."""

    tokens: tuple[Token | None, ...]
    byte_level: bool
    tokenizer: Tokenizer

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary":
        """The vocabulary of a `tokenizers.Tokenizer` or a Hugging Face fast tokenizer.

        Raises `TokenizerError` for a model that is neither BPE nor Unigram, and for ids or
        tokens above the limits.
        """
        raw = getattr(tokenizer, "backend_tokenizer", tokenizer)
        model_type = type(raw.model).__name__
        if model_type not in ("BPE", "Unigram"):
            raise TokenizerError(f"the tokenizer is a {model_type} model: give BPE or Unigram")
        components = [described(part) for part in (raw.pre_tokenizer, raw.decoder)]
        byte_level = any('"type": "ByteLevel"' in json.dumps(part) for part in components)
        added = raw.get_added_tokens_decoder()
        ids = raw.get_vocab(with_added_tokens=True)
        size = max(ids.values(), default=-1) + 1
        VOCABULARY.check(size, "the tokenizer", TokenizerError)  # an id may be any number
        TOKEN_CHARACTERS.check(max(map(len, ids), default=0), "a token", TokenizerError)
        tokens: list[Token | None] = [None] * size
        for name, i in ids.items():
            tokens[i] = Token(name.encode(), added=True) if i in added else _token(name, byte_level)
        return cls(tuple(tokens), byte_level, raw)

    def __len__(self) -> int:
        """Number of rows that the ids need: the largest id plus one."""
        return len(self.tokens)

    @property
    def count(self) -> int:
        """Number of tokens; ids without a token do not count."""
        return sum(token is not None for token in self.tokens)

    def fingerprint(self, ids: int | None = None) -> str:
        """SHA-256 of all ordinary tokens with their ids, or of those among the first `ids` ids."""
        digest = hashlib.sha256()
        for index, token in enumerate(self.tokens[:ids]):
            if token is not None and not token.added:
                digest.update(f"{index}:{len(token.content)}:".encode() + token.content)
        return digest.hexdigest()

    @cached_property
    def ids(self) -> dict[Token, int]:
        """Id of each token; the first one where several ids have the same token."""
        return first_ids(self.tokens)

    @cached_property
    def contents(self) -> list[bytes | None]:
        """Bytes of each ordinary token; None for added and byte-fallback tokens and unused ids."""
        return [t.content if t and not (t.added or t.is_byte) else None for t in self.tokens]

    def has(self, token: Token, index: int) -> bool:
        """Whether the id `index` stands for the token here."""
        return index < len(self) and self.tokens[index] == token

    def find(self, token: Token) -> int | None:
        """The id of the same token; if there is none, of an ordinary token with the same bytes."""
        if token in self.ids or token.added:
            return self.ids.get(token)
        return self.ids.get(Token(token.content, is_byte=not token.is_byte))

    def spell(self, content: bytes) -> list[int]:
        """Ids that spell a byte string by this model, without pre-tokenizer and normaliser.

        Raises `TokenizerError` for bytes that no token stands for.
        """
        if self.byte_level:
            if not self._known_bytes.issuperset(content):  # the model would skip them
                problem = f"the tokenizer lacks bytes of {content!r}: it is not lossless"
                raise TokenizerError(f"{problem}; replace it with `lep tokenizer train`")
            return self._by_model(byte_level_name(content))
        ids: list[int] = []
        for run in _RUNS.findall(content.decode(errors="surrogateescape")):
            if "\udc80" <= run <= "\udcff":
                ids.append(self._byte_id(ord(run) - 0xDC00))
            else:
                ids += self._by_model(run.replace(" ", SPACE))
        return ids

    def _by_model(self, text: str) -> list[int]:
        """The ids that the tokenizer's model gives. Raises `TokenizerError` where it has none."""
        what = f"the tokenizer has no token for {text[:20]!r}, and none for what is unknown"
        with foreign(what, "give a model whose tokenizer reads every text", TokenizerError):
            return [piece.id for piece in self.tokenizer.model.tokenize(text)]

    def pieces(self, target: "Vocabulary") -> list[list[int]]:
        """For each target id, the ids here that stand for it: the same token, or else its spelling.

        An added token that this vocabulary lacks is spelled by its name. Bytes that this vocabulary
        lacks are left out; where nothing remains, the tokens of all bytes (`byte_ids`) stand for
        it. For an unused target id this is the same id (a padding row), or a space if there is no
        such id.

        Raises `TokenizerError` where this vocabulary has no tokens of bytes either.
        """
        rows: list[list[int]] = []
        for index, token in enumerate(target.tokens):
            if token is None:
                rows.append([index] if index < len(self) else self.spell(b" "))
            elif self.has(token, index):
                rows.append([index])  # also where several ids carry the same token
            elif (same := self.find(token)) is not None:
                rows.append([same])
            else:
                rows.append(self._spelled(token.content))
        return rows

    @cached_property
    def byte_ids(self) -> list[int]:
        """The ids of the tokens that stand for one byte each, in the order of the bytes."""
        ids = (self.find(Token(bytes([byte]))) for byte in range(256))
        return [index for index in ids if index is not None]

    @cached_property
    def _known_bytes(self) -> set[int]:
        return {token.content[0] for i in self.byte_ids if (token := self.tokens[i])}

    def _spelled(self, content: bytes) -> list[int]:
        """`spell`, as far as there are tokens."""
        try:
            if ids := self.spell(content):
                return ids
        except TokenizerError:
            if not self.byte_ids:
                raise
        if not self.byte_ids:
            raise TokenizerError(
                f"no token stands for {content[:20]!r}, nor for single bytes, so a new token that "
                "is spelled so has no rows to begin with: give a model that reads every text"
            )
        missing = bytes(set(content) - self._known_bytes)
        runs = re.split(b"[" + re.escape(missing) + b"]", content)
        return [i for run in runs for i in self.spell(run)] or self.byte_ids

    def added_ids(self) -> dict[str, int]:
        """Id of each added token by name."""
        return {t.content.decode(): i for i, t in enumerate(self.tokens) if t and t.added}

    def _byte_id(self, byte: int) -> int:
        index = self.find(Token(bytes([byte]), is_byte=True))
        if index is None:
            raise TokenizerError(f"the tokenizer has no token <0x{byte:02X}>: it is not lossless")
        return index


def described(component: Any) -> dict[str, Any] | None:
    """A normaliser, pre-tokenizer or decoder as tokenizer.json writes it."""
    return None if component is None else json.loads(component.__getstate__())


def _token(name: str, byte_level: bool) -> Token:
    if byte_level:
        try:
            return Token(name.translate(_TO_LATIN_1).encode("latin-1"))
        except UnicodeEncodeError:  # not spelled in bytes: only a token added to the model as text
            return Token(name.encode(), added=True)
    if BYTE_TOKEN.fullmatch(name):
        return Token(bytes([int(name[3:5], 16)]), is_byte=True)
    return Token(name.replace(SPACE, " ").encode())
