"""Token ids that configurations name, when ids move."""

import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError
from lep.files import read_json, write_json

ID_SETTING = re.compile(r"token_ids?$|token_index$|suppress_tokens$|bad_words_ids$")
GENERATION = "generation_config.json"


def remap_ids(settings: dict[str, Any], moved: dict[int, int]) -> dict[str, Any]:
    """Settings with moved token ids replaced, in the entries that hold token ids only."""
    changed = deepcopy(settings)
    for _, holder, key in _ids(changed):
        holder[key] = moved.get(holder[key], holder[key])
    return changed


def remap_generation_config(folder: Path, moved: dict[int, int]) -> None:
    """Replace moved token ids in the generation settings of a model folder, in place."""
    if moved and (settings := _generation(folder)):
        write_json(folder / GENERATION, remap_ids(settings, moved), indent=2)


def check_named(model: Checkpoint, dropped: set[int]) -> None:
    """Raise `CheckpointError` when a setting of the model names one of the `dropped` tokens."""
    files = {"config.json": model.config, GENERATION: _generation(model.folder)}
    for file, settings in files.items():
        for name, holder, key in _ids(settings):
            if holder[key] in dropped:
                raise CheckpointError(
                    f"{name} in {model.folder / file} is {holder[key]}, a token that the new "
                    "tokenizer lacks: protect a text that holds it, or delete the setting"
                )


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / GENERATION
    return read_json(path, CheckpointError) if path.exists() else {}


def _ids(settings: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Each token id in settings: the setting's name, and the container and key that hold it."""
    for name, value in settings.items():
        if ID_SETTING.search(name):
            yield from ((name, holder, key) for holder, key in _integers(settings, name))
        elif isinstance(value, dict):
            yield from _ids(value)


def _integers(holder: Any, key: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(holder[key], list):
        for index in range(len(holder[key])):
            yield from _integers(holder[key], index)
    elif type(holder[key]) is int:
        yield holder, key
