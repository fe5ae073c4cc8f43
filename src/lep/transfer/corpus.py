"""`lep corpus`: raw text in, one clean, mixed and shuffled corpus out."""

from pathlib import Path
from typing import Any

from lep.corpus.build import write_corpus
from lep.settings import BuildSettings


def build_corpus(paths: list[str | Path], output: Path, settings: BuildSettings) -> dict[str, Any]:
    """Write the corpus of the documents under `paths`; with `settings.cover`, only what that model's new tokens need.

    Returns the sheet (`lep.corpus.build.write_corpus`).
    """
    if not settings.cover:
        return write_corpus(paths, output, settings)
    from lep.transfer.coverage import (
        Coverage,  # needs torch and transformers, most of the memory of a run
    )

    return write_corpus(paths, output, settings, Coverage(settings.cover, settings.contexts))
