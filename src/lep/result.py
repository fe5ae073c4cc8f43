"""`Result`: what a verb returns, in Python and on the command line."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from lep.files import write_json


class Result:
    """Base of results, frozen dataclasses; `str` is what a command prints and a notebook shows."""

    def saved(self, path: str | Path | None) -> Self:
        """The result itself, after its facts are written as JSON if there is a path."""
        if path:
            facts = getattr(self, "record", None) or asdict(self)  # type: ignore[call-overload]
            write_json(Path(path), facts, indent=1)
        return self

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # called by IPython
        printer.text(str(self))
