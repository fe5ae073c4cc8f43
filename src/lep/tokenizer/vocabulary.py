"""`Vocabulary`: what each token id stands for, as bytes, so that vocabularies of any family can be compared."""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from lep.errors import TokenizerError

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
SPACE = "\u2581"  # SentencePiece writes a space as this character


def byte_alphabet() -> dict[int, str]:
    """The printable character by which byte-level BPE writes each byte (GPT-2's table, rebuilt from its rule)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    table.update(
        {byte: chr(0x100 + i) for i, byte in enumerate(b for b in range(256) if b not in table)}
    )
    return table


BYTE_TO_CHARACTER = byte_alphabet()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
# For `str.translate`: each character of the alphabet to that of the byte's number, other ones out of Latin-1's reach.
_TO_LATIN_1 = str.maketrans(
    {chr(code): "\uffff" for code in range(256)}
    | {c: chr(byte) for c, byte in CHARACTER_TO_BYTE.items()}
)


@dataclass(frozen=True)
class Token:
    """One entry of a vocabulary: its bytes, or its name when it is an added (special, chat) token.

    `is_byte` marks the byte-fallback tokens `<0xNN>`, which may share their byte with an ordinary token.
    """

    content: bytes
    added: bool = False
    is_byte: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """All tokens of a tokenizer by id (None where an id is unused), and how to spell bytes with them."""

    tokens: tuple[Token | None, ...]
    byte_level: bool
    tokenizer: Tokenizer

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary":
        """Read from a `tokenizers.Tokenizer` or a Hugging Face fast tokenizer.

        Raises `TokenizerError` for vocabularies that are neither byte-level nor SentencePiece-like.
        """
        raw = getattr(tokenizer, "backend_tokenizer", tokenizer)
        kind = type(raw.model).__name__
        if kind not in ("BPE", "Unigram"):
            raise TokenizerError(
                f"the tokenizer is a {kind} model: only BPE and Unigram vocabularies are supported"
            )
        byte_level = any(
            _mentions(described(part), "ByteLevel") for part in (raw.pre_tokenizer, raw.decoder)
        )
        added = raw.get_added_tokens_decoder()
        vocabulary = raw.get_vocab(with_added_tokens=True)
        tokens: list[Token | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        for text, index in vocabulary.items():
            tokens[index] = (
                Token(text.encode(), added=True) if index in added else _token(text, byte_level)
            )
        return cls(tuple(tokens), byte_level, raw)

    def __len__(self) -> int:
        """Number of rows that the ids need: the largest id plus one."""
        return len(self.tokens)

    def fingerprint(self, ids: int | None = None) -> str:
        """SHA-256 of all ordinary tokens (or of the first `ids`) with their ids; added ones may differ in siblings."""
        digest = hashlib.sha256()
        for index, token in enumerate(self.tokens[:ids]):
            if token is not None and not token.added:
                digest.update(f"{index}:{len(token.content)}:".encode() + token.content)
        return digest.hexdigest()

    @cached_property
    def ids(self) -> dict[Token, int]:
        """Id of each token; the first of several ids with the same token."""
        return {
            token: i for i, token in reversed(list(enumerate(self.tokens))) if token is not None
        }

    def find(self, token: Token) -> int | None:
        """The id of the same token here: the same kind first, else any ordinary token of the same bytes."""
        if token in self.ids or token.added:
            return self.ids.get(token)
        return self.ids.get(Token(token.content, is_byte=not token.is_byte))

    def spell(self, content: bytes) -> list[int]:
        """Ids by which this vocabulary's own model spells a byte string, without pre-tokenizer or normaliser.

        Raises `TokenizerError` for bytes that it has no tokens for.
        """
        if self.byte_level:
            ids = self._model_ids("".join(BYTE_TO_CHARACTER[byte] for byte in content))
            if content and not ids:
                raise TokenizerError(
                    f"the source tokenizer has no tokens for {content!r}: its byte alphabet is not whole"
                )
            return ids
        ids = []
        for text, invalid in _utf8_runs(content):
            if text:
                ids += self._model_ids(text.replace(" ", SPACE))
            for byte in invalid:
                index = self.find(Token(bytes([byte]), is_byte=True))
                if index is None:
                    raise TokenizerError(
                        f"the source tokenizer has no byte token <0x{byte:02X}>: it is not lossless"
                    )
                ids.append(index)
        return ids

    def pieces(self, target: "Vocabulary") -> list[list[int]]:
        """For every target id the ids here that stand for it: one where both have the token, else its spelling.

        An added token that this vocabulary lacks is spelled by its name. An unused target id stands for the
        same id here (a padding row), or for nothing.
        """
        rows: list[list[int]] = []
        for index, token in enumerate(target.tokens):
            if token is None:
                rows.append([index] if index < len(self) else self.spell(b" "))
            elif index < len(self) and self.tokens[index] == token:
                rows.append([index])  # also where several ids carry the same token
            elif (same := self.find(token)) is not None:
                rows.append([same])
            else:
                rows.append(self.spell(token.content))
        return rows

    def added_ids(self) -> dict[str, int]:
        """Id of each added token by name."""
        return {
            token.content.decode(): i
            for i, token in enumerate(self.tokens)
            if token is not None and token.added
        }

    def _model_ids(self, text: str) -> list[int]:
        return [piece.id for piece in self.tokenizer.model.tokenize(text)]


def described(component: Any) -> dict[str, Any] | None:
    """A normaliser, pre-tokenizer, or decoder as its tokenizer.json has it, without writing out the whole file."""
    return None if component is None else json.loads(component.__getstate__())


def _mentions(component: dict[str, Any] | None, kind: str) -> bool:
    if component is None:
        return False
    parts = component.get("pretokenizers") or component.get("decoders") or []
    return component["type"] == kind or any(_mentions(part, kind) for part in parts)


def _token(text: str, byte_level: bool) -> Token:
    if byte_level:
        try:
            return Token(text.translate(_TO_LATIN_1).encode("latin-1"))
        except (
            UnicodeEncodeError
        ):  # outside the alphabet: it can only be a token added to the model as text
            return Token(text.encode(), added=True)
    if BYTE_TOKEN.fullmatch(text):
        return Token(bytes([int(text[3:5], 16)]), is_byte=True)
    return Token(text.replace(SPACE, " ").encode())


def _utf8_runs(content: bytes) -> list[tuple[str, bytes]]:
    """Split into (valid text, invalid bytes that follow it) runs."""
    runs: list[tuple[str, bytes]] = []
    while content:
        try:
            runs.append((content.decode(), b""))
            break
        except UnicodeDecodeError as error:
            runs.append((content[: error.start].decode(), content[error.start : error.end]))
            content = content[error.end :]
    return runs
