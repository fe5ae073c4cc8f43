"""Limits on what foreign files and servers may cost, each with a variable to raise it."""

import os
from dataclasses import dataclass

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
        if text and (not text.isascii() or not text.isdigit() or int(text[:18]) == 0):
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


JSON_BYTES = Limit("JSON_BYTES", 256_000_000, "bytes")
LINE_BYTES = Limit("LINE_BYTES", 64_000_000, "bytes")
DOCUMENT_BYTES = Limit("DOCUMENT_BYTES", 256_000_000, "bytes")  # a txt file is one document
EXPANSION = Limit("EXPANSION", 1_000, "bytes of content for each byte on disk")
RECIPE_BYTES = Limit("RECIPE_BYTES", 200_000, "bytes")
RECIPE_VALUES = Limit("RECIPE_VALUES", 20_000, "keys and values")
LAYERS = Limit("LAYERS", 10_000, "layers")
