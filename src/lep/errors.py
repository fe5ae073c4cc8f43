"""The exceptions: everything that a user can cause is a `LepError` with a complete message."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_REASON = 300  # characters of a foreign message that are repeated
# What a terminal may take for a command: control characters, marks that reorder text, and halves of
# characters, which cannot be printed.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
KEYS = ("OPENAI_API_KEY", "HF_TOKEN")  # environment variables that servers may echo
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")  # user:password of a URL


class LepError(Exception):
    """A fault that the user can fix; the command line prints it and exits with code 2."""


class CheckpointError(LepError):
    """A model folder that is missing, incomplete, unsafe, or inconsistent with its tokenizer."""


class TokenizerError(LepError):
    """A tokenizer that cannot be read, extended, or published without changing its meaning."""


class CorpusError(LepError):
    """Text or prompts that are missing, unreadable, or empty."""


class TrainingError(LepError):
    """A training that failed for a reason that the user can fix."""


class RecipeError(LepError):
    """An invalid recipe; the message names file and line."""


class OutputError(LepError):
    """An output that cannot be written: it exists already, or the disk is too small."""


class LepWarning(UserWarning):
    """What a user should know; the command line prints it as a line that begins `note:`."""


def note(text: str) -> None:
    """Tell the user something, once, on standard error."""
    warnings.warn(printable(text), LepWarning, stacklevel=2)


def printable(text: str) -> str:
    """Text with control characters spelled out, so that a terminal shows and does not obey them.

    >>> printable("\\x1b[2J one\\ntwo")
    '\\\\x1b[2J one\\ntwo'
    """
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def check_utf8(text: str, kind: type[LepError] = LepError) -> None:
    """Raise `kind` for a name of other bytes than UTF-8, which no record of a result could hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise kind(f"the name {text} is not UTF-8: rename it") from error


def redacted(text: str) -> str:
    """Text without the keys of the environment, and without user and password in its URLs.

    >>> redacted("401 for https://me:word@host/v1")
    '401 for https://***@host/v1'
    """
    for key in filter(None, map(os.environ.get, KEYS)):
        text = text.replace(key, "***")
    return _CREDENTIALS.sub("***", text)


@contextmanager
def foreign(fault: str, advice: str, kind: type[LepError] = LepError) -> Iterator[None]:
    """Make one sentence, `FAULT (REASON): ADVICE`, of any exception while foreign content is read.

    Everything that strangers made is read inside such a block: what a broken or hostile file makes
    a library raise cannot be listed. Raises `kind`; a `LepError` passes as it is.
    """
    try:
        yield
    except LepError:
        raise
    except BaseException as error:
        # A panic of a Rust library is no Exception; a full device is no fault of the content.
        name = type(error).__name__
        is_fault = isinstance(error, Exception) or name == "PanicException"
        if not is_fault or name == "OutOfMemoryError":
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0][:LONGEST_REASON].rstrip(":. ")
        if isinstance(error, MemoryError):
            reason = "it needs more memory"
        elif isinstance(error, RecursionError):
            reason = "it is nested too deep"
        raise kind(f"{fault} ({printable(reason)}): {advice}") from error
