"""`Result`: what a verb returns, in Python and on the command line."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from lep.publish import publish_texts


class Result:
    """Base of results, frozen dataclasses; `str` is what a command prints and a notebook shows."""

    def saved(self, path: str | Path | None) -> Self:
        """The result itself, after its facts are written as JSON if there is a path.

        Raises `OutputError` for a file that exists already.
        """
        if path:
            publish_texts({Path(path): self.as_json()})
        return self

    def as_json(self) -> str:
        """All facts as an indented JSON object."""
        facts = getattr(self, "record", None) or asdict(self)  # type: ignore[call-overload]
        return json.dumps(facts, ensure_ascii=False, indent=1) + "\n"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # called by IPython
        printer.text(str(self))
