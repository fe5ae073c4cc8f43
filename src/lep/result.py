"""`Result`: what a verb returns, in Python and on the command line."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from lep.publish import publish_text


class Result:
    """Base of results, frozen dataclasses; `str` is what a command prints and a notebook shows."""

    def saved(self, path: str | Path | None) -> Self:
        """The result itself, after its facts are written as JSON if there is a path.

        Raises `OutputError` for a file that exists already.
        """
        if path:
            facts = getattr(self, "record", None) or asdict(self)  # type: ignore[call-overload]
            text = json.dumps(facts, ensure_ascii=False, indent=1)
            publish_text(Path(path), text + "\n", replace=False)
        return self

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # called by IPython
        printer.text(str(self))
