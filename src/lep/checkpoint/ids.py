"""Token ids that the files beside the weights name, when ids move."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.writer import carried_settings
from lep.errors import CheckpointError
from lep.files import read_json, write_json
from lep.tokenizer.id_settings import known_ids, possible_ids, remap_ids
from lep.tokenizer.load import CONFIG
from lep.tokenizer.vocabulary import Token, Vocabulary


def remap_files(folder: Path, moved: dict[int, int]) -> None:
    """Replace moved token ids in the settings beside config.json of a model folder, in place."""
    for path, settings in carried_settings(folder).items():
        if (changed := remap_ids(settings, moved)) != settings:
            write_json(path, changed, indent=2)


def check_named(model: Checkpoint, target: Vocabulary, new_ids: Mapping[int, int]) -> None:
    """Raise `CheckpointError` for a setting of the model whose ids cannot follow their tokens.

    `new_ids` are the ids in the target of the model's tokens. A setting may name a token that the
    target lacks; an id without a token, which becomes a new token; or it may be unknown, and hold
    token ids that would have to change.
    """
    known = set(new_ids.values())
    for path, settings in _settings(model).items():
        for name, index in known_ids(settings, model.shape(model.tables.input)[0]):
            is_token = _token(model.vocabulary, index) is not None
            if is_token and index not in new_ids:
                raise CheckpointError(
                    f"{name} in {path} is {index}, a token that the new tokenizer lacks: protect "
                    "a text that holds it, or delete the setting"
                )
            if not is_token and index not in known and (token := _token(target, index)):
                content = token.content.decode(errors="backslashreplace")
                raise CheckpointError(
                    f"{name} in {path} is {index}, which is no token of the model but would be the "
                    f"new token {content!r}: delete the setting, or give it a token's id"
                )
        for name, index in possible_ids(settings) if path.name != CONFIG else ():
            if _token(model.vocabulary, index) and (new := new_ids.get(index)) != index:
                fate = "is dropped" if new is None else f"moves to {new}"
                raise CheckpointError(
                    f"{name} in {path} holds {index}, which may be a token's id, and that token "
                    f"{fate}: delete the setting, and write it into the result yourself"
                )


def _token(vocabulary: Vocabulary, index: int) -> Token | None:
    return vocabulary.tokens[index] if 0 <= index < len(vocabulary) else None


def _settings(model: Checkpoint) -> dict[Path, dict[str, Any]]:
    files = {model.folder / "config.json": model.config} | carried_settings(model.folder)
    if (path := model.folder / CONFIG).exists():
        settings = read_json(path, CheckpointError)
        settings.pop("added_tokens_decoder", None)
        files[path] = settings
    return files
