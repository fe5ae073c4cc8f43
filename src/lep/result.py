"""`Result`: what a verb returns, in Python and on the command line."""

from typing import Any


class Result:
    """Base of results: fields are the facts, `str` is what the command line prints and a notebook shows."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # called by IPython
        printer.text(str(self))
