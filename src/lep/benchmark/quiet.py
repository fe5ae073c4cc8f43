"""lm-evaluation-harness without its messages and progress bars."""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr

NEEDS_HARNESS = (
    "benchmark tasks and servers need lm-evaluation-harness: install lep with its extra 'eval'"
)


@contextmanager
def quiet() -> Iterator[None]:
    """lm-evaluation-harness tells every step and draws bars into files, too; its faults are exceptions all the same."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    shown = nullcontext(sys.stderr) if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    try:
        with shown:
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
