"""The command line: one thin command for each stage. Heavy imports wait until a command runs."""

import os
import sys

# isort: off
from lep.cli import (
    runs,
    corpora,
    tokenizers,
    checkpoints,
    training,
)  # each adds its commands to the app, in this order

# isort: on
from lep.cli.common import app
from lep.errors import LepError

__all__ = ["app", "checkpoints", "corpora", "main", "runs", "tokenizers", "training"]


PAIRS = ("--text", "--eval-text")  # their values are NAME=PATH
LISTS = ("--corpus", "--protect", "--frequency-text", *PAIRS)


def expand_lists(arguments: list[str]) -> list[str]:
    """Let options of lists take several values: `--corpus A B` becomes `--corpus A --corpus B`."""
    expanded: list[str] = []
    listing = ""
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        if argument.startswith("-"):
            listing = argument if argument in LISTS else ""
        elif listing and previous != listing and (listing not in PAIRS or "=" in argument):
            expanded.append(listing)
        expanded.append(argument)
    return expanded


def main() -> None:
    """Entry point: user faults are one sentence on standard error and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        app(args=expand_lists(sys.argv[1:]), standalone_mode=True)
    except LepError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # of torch, which is not imported for this
            raise
        reason = str(error).partition(". ")[0]
        print(
            f"error: the device's memory is full ({reason}): take smaller batches, or activation checkpointing",
            file=sys.stderr,
        )
        sys.exit(2)
    except OSError as error:  # a full or read-only disk, met while writing
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
