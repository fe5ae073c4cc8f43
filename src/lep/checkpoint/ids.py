"""Token ids that configurations name, when ids move."""

import json
import re
from pathlib import Path
from typing import Any

ID_SETTING = re.compile(r"token_ids?$|suppress_tokens$")


def remap_ids(settings: dict[str, Any], moved: dict[int, int]) -> dict[str, Any]:
    """Settings with moved token ids replaced, in the entries that hold token ids and nowhere else."""

    def remap(value: Any) -> Any:
        if isinstance(value, list):
            return [remap(entry) for entry in value]
        return moved.get(value, value) if isinstance(value, int) and not isinstance(value, bool) else value

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
            values = value if isinstance(value, list) else [value]
            found[name] = {i for i in values if isinstance(i, int) and not isinstance(i, bool)}
        elif isinstance(value, dict):
            found |= named_ids(value)
    return found


def remap_generation_config(folder: Path, moved: dict[int, int]) -> None:
    """The same for the generation settings of a model folder, in place."""
    path = folder / "generation_config.json"
    if moved and path.exists():
        path.write_text(json.dumps(remap_ids(json.loads(path.read_text()), moved), indent=2) + "\n")
