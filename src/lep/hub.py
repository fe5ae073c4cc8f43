"""Models by local folder or hub id."""

import re
from collections import Counter
from pathlib import Path

from lep.errors import CheckpointError

# What a checkpoint may bring along: never pickled weights, never code.
ALLOWED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "README.md"]


def local_folder(source: str | Path, *, weights: bool = True) -> Path:
    """The folder of a model or tokenizer: itself, or its download when `source` is a hub id (`owner/name`).

    Without `weights` only what lies beside them is fetched.

    Raises `CheckpointError` when there is no such folder and the hub cannot give it.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or str(source).startswith((".", "/")):
        raise CheckpointError(
            f"there is no folder {source}: check the path, or give a hub id such as owner/name"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(str(source), allow_patterns=ALLOWED_FILES[0 if weights else 1 :])
        )
    except (
        Exception
    ) as error:  # the hub client raises many kinds; each one means that the model cannot be had
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"there is no folder {source}, and the hub does not give it: {reason}"
        ) from error


def short_names(models: list[str]) -> list[str]:
    """The last part of each path, the whole path where two models would have the same name, numbered where they do."""
    last = [Path(model.partition("@http")[0]).name or model for model in models]
    counts = Counter(last)
    names = [name if counts[name] == 1 else model for name, model in zip(last, models, strict=True)]
    return [name if name not in names[:i] else f"{name} ({i + 1})" for i, name in enumerate(names)]
