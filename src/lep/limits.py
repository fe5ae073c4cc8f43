"""Limits on what foreign files and servers may cost, each with a variable to raise it."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lep.errors import LepError


@dataclass(frozen=True)
class Limit:
    """A largest value. The environment variable `LEP_MAX_NAME` replaces the default."""

    name: str
    default: int
    unit: str

    @property
    def variable(self) -> str:
        return f"LEP_MAX_{self.name}"

    @property
    def value(self) -> int:
        """Raises `LepError` when the variable holds no positive integer."""
        text = os.environ.get(self.variable, "")
        if text and not re.fullmatch("0*[1-9][0-9]{0,17}", text):
            raise LepError(f"{self.variable} is {text[:40]!r}: give a positive integer")
        return int(text) if text else self.default

    def check(self, size: int, what: str, kind: type[LepError] = LepError) -> None:
        """Raise `kind` when `what`, a sentence's subject, has a `size` above the limit."""
        if size > self.value:
            raise kind(
                f"{what} has {_digits(size)} {self.unit}, the limit is {self.value:,}: "
                f"set {self.variable} higher if you trust it"
            )


def _digits(size: int) -> str:
    return f"{size:,}" if size < 10**30 else "over 10^30"


JSON_BYTES = Limit("JSON_BYTES", 256_000_000, "bytes")  # of JSON, templates, a pack's settings
LINE_BYTES = Limit("LINE_BYTES", 16_000_000, "bytes")  # of a jsonl line or parquet row
DOCUMENT_BYTES = Limit("DOCUMENT_BYTES", 256_000_000, "bytes")  # of a txt file
EXPANSION = Limit("EXPANSION", 1_000, "bytes of content for each byte on disk")
RECIPE_BYTES = Limit("RECIPE_BYTES", 200_000, "bytes")
RECIPE_VALUES = Limit("RECIPE_VALUES", 20_000, "keys and values")
VOCABULARY = Limit("VOCABULARY", 2_000_000, "ids")  # the largest id plus one
TOKEN_CHARACTERS = Limit("TOKEN_CHARACTERS", 10_000, "characters")  # pruning takes their square
LAYERS = Limit("LAYERS", 2_000, "layers or experts")
GROWTH = Limit("GROWTH", 1_000, "characters for each that is given")
PATTERN_SECONDS = Limit("PATTERN_SECONDS", 60, "seconds")  # to cut a chunk of text into words
TEMPLATE_SECONDS = Limit("TEMPLATE_SECONDS", 10, "seconds")  # to render a conversation
TEMPLATE_BYTES = Limit("TEMPLATE_BYTES", 1_000_000_000, "bytes")  # of memory, for the same
CONVERSATION_BYTES = Limit("CONVERSATION_BYTES", 8_000_000, "bytes")  # as the template writes it
REPLY_SECONDS = Limit("REPLY_SECONDS", 600, "seconds")  # for a server's reply, with all tries
REPLY_BYTES = Limit("REPLY_BYTES", 10_000_000, "bytes")
IMPORT_BYTES = Limit("IMPORT_BYTES", 8_000_000_000, "bytes")  # of memory for `lep import`
IMPORT_SECONDS = Limit("IMPORT_SECONDS", 14_400, "seconds")  # of all processors, for the same
RETRY_SECONDS = Limit("RETRY_SECONDS", 60, "seconds")  # before the next try, if a server asks


@contextmanager
def time_limit(limit: Limit, what: str, kind: type[LepError] = LepError) -> Iterator[None]:
    """Raise `kind` when the block, described by `what`, takes more than the limit's seconds.

    Only the main thread of a Unix process can be interrupted: elsewhere there is no limit.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def late(*_: Any) -> None:
        raise kind(
            f"{what} takes more than {limit.value:,} seconds: set {limit.variable} higher if you "
            "trust it"
        )

    handler = signal.signal(signal.SIGALRM, late)
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, limit.value)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def memory_limit(limit: Limit, what: str, kind: type[LepError] = LepError) -> Iterator[None]:
    """Raise `kind` when the block, described by `what`, takes more memory than the limit (Linux).

    Only for blocks of pure Python: other libraries may end the process when memory is short.
    """
    sizes = Path("/proc/self/statm")
    if not sizes.exists():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    most = int(sizes.read_text(encoding="utf-8").split()[0]) * resource.getpagesize() + limit.value
    lower = [each for each in before if each != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([most, *lower]), before[1]))
    try:
        yield
    except MemoryError as error:
        raise kind(
            f"{what} takes more than {limit.value:,} bytes of memory: set {limit.variable} higher "
            "if you trust it"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
