"""Models by local folder or hub id."""

import re
from collections import Counter
from pathlib import Path

from lep.errors import CheckpointError

# What is downloaded: never pickled weights, never code.
ALLOWED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md"]


def local_folder(source: str | Path, *, weights: bool = True) -> Path:
    """The folder of a model or tokenizer, or of its download when `source` is a hub id.

    Without `weights` only the other files are downloaded. Raises `CheckpointError` when there is no
    such folder and the hub does not provide it.
    """
    folder, name = Path(source), str(source)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "/")):
        raise CheckpointError(
            f"there is no folder {source}: check the path, or give a hub id such as owner/name"
        )
    from huggingface_hub import snapshot_download

    patterns = ALLOWED_FILES if weights else ALLOWED_FILES[1:]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; all mean that there is no model
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"there is no folder {source}, and the hub does not provide it: {reason}"
        ) from error


def short_names(models: list[str]) -> list[str]:
    """The last part of each path; the whole path where two share it, numbered where it repeats."""
    last = [Path(model.partition("@http")[0]).name or model for model in models]
    counts = Counter(last)
    names = [name if counts[name] == 1 else model for name, model in zip(last, models, strict=True)]
    return [name if name not in names[:i] else f"{name} ({i + 1})" for i, name in enumerate(names)]
