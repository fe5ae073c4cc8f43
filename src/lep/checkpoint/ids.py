"""Token ids that configurations name, when ids move."""

import json
import re
from pathlib import Path
from typing import Any

from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError

ID_SETTING = re.compile(r"token_ids?$|token_index$|suppress_tokens$|bad_words_ids$")
GENERATION = "generation_config.json"


def remap_ids(settings: dict[str, Any], moved: dict[int, int]) -> dict[str, Any]:
    """Settings with moved token ids replaced, in the entries that hold token ids and nowhere else."""

    def remap(value: Any) -> Any:
        if isinstance(value, list):
            return [remap(entry) for entry in value]
        return (
            moved.get(value, value)
            if isinstance(value, int) and not isinstance(value, bool)
            else value
        )

    changed = dict(settings)
    for name, value in settings.items():
        if ID_SETTING.search(name):
            changed[name] = remap(value)
        elif isinstance(value, dict):
            changed[name] = remap_ids(value, moved)
    return changed


def named_ids(settings: dict[str, Any]) -> dict[str, set[int]]:
    """The token ids that each setting names, nested ones too."""
    found: dict[str, set[int]] = {}
    for name, value in settings.items():
        if ID_SETTING.search(name):
            found.setdefault(name, set()).update(_integers(value))
        elif isinstance(value, dict):
            for inner, ids in named_ids(value).items():
                found.setdefault(inner, set()).update(ids)
    return found


def _integers(value: Any) -> set[int]:
    if isinstance(value, list):
        return set().union(*map(_integers, value))
    return {value} if isinstance(value, int) and not isinstance(value, bool) else set()


def check_named(model: Checkpoint, dropped: set[int]) -> None:
    """Raise `CheckpointError` when a setting of the model names a token that a new vocabulary has dropped."""
    generation = model.folder / GENERATION
    written = json.loads(generation.read_text(encoding="utf-8")) if generation.exists() else {}
    for place, settings in (("config.json", model.config), (GENERATION, written)):
        for name, ids in named_ids(settings).items():
            if lost := ids & dropped:
                raise CheckpointError(
                    f"{name} in {model.folder / place} is {min(lost)}, a token that the new tokenizer lacks: protect a "
                    "text that holds it when pruning, or take the token out of the setting"
                )


def remap_generation_config(folder: Path, moved: dict[int, int]) -> None:
    """The same for the generation settings of a model folder, in place."""
    path = folder / GENERATION
    if moved and path.exists():
        path.write_text(json.dumps(remap_ids(json.loads(path.read_text()), moved), indent=2) + "\n")
