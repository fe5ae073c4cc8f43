"""Load tokenizers verbatim, and publish them so that every loader reads the same ids."""

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lep.errors import CheckpointError, TokenizerError
from lep.hub import local_folder

# Files of other formats that would contradict a changed tokenizer.json.
STALE_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "added_tokens.json",
    "special_tokens_map.json",
)
TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
CARRIED_FILES = ("tokenizer_config.json", TEMPLATE, TEMPLATES)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a local folder or hub id, exactly as its tokenizer.json says.

    `AutoTokenizer` rebuilds some tokenizers by model type and changes their ids; this never does. Only lengths that the
    file cuts or fills texts to are left out. Raises `CheckpointError` when the folder or its tokenizer.json is missing,
    `TokenizerError` when it is broken.
    """
    folder = local_folder(source, weights=False)
    if not (folder / "tokenizer.json").exists():
        raise CheckpointError(
            f"{folder} has no tokenizer.json: save the tokenizer in the fast format first"
        )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        raise TokenizerError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if getattr(
        tokenizer.backend_tokenizer.model, "dropout", None
    ):  # it is for training: ids would be drawn by chance
        tokenizer.backend_tokenizer.model.dropout = None
    return tokenizer


def write_tokenizer(
    spec: dict[str, Any], like: Path, output: Path, tokenizer: PreTrainedTokenizerFast | None = None
) -> None:
    """Write `spec` (the content of tokenizer.json) with the configuration and chat template of the folder `like`.

    The class is set to the one that loads tokenizer.json verbatim. `tokenizer` is that of `like`, where it is loaded.
    """
    output.mkdir(parents=True, exist_ok=True)
    for name in CARRIED_FILES:
        if (like / name).is_dir():
            shutil.copytree(like / name, output / name, dirs_exist_ok=True)
        elif (like / name).exists():
            shutil.copyfile(like / name, output / name)
    (output / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    settings = (
        json.loads((like / "tokenizer_config.json").read_text())
        if (output / CARRIED_FILES[0]).exists()
        else {}
    )
    settings = (
        special_names(tokenizer or load_tokenizer(like))
        | settings
        | {"tokenizer_class": "PreTrainedTokenizerFast"}
    )
    settings.pop(
        "added_tokens_decoder", None
    )  # tokenizer.json says it, with the ids that are right
    text = json.dumps(settings, ensure_ascii=False, indent=2)
    (output / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def special_names(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Names of the special tokens, wherever the folder has them from (older ones: special_tokens_map.json)."""
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    return {
        name: str(value) for name in names if (value := getattr(tokenizer, name, None)) is not None
    }


def copy_tokenizer(source: Path, output: Path) -> None:
    """Copy a tokenizer folder's own files as they are."""
    for name in ("tokenizer.json", *CARRIED_FILES, *STALE_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, output / name)
        elif (source / name).is_dir():
            shutil.copytree(source / name, output / name, dirs_exist_ok=True)


def keep_chat_template(source: Path, output: Path) -> None:
    """Carry the chat template of the folder `source` to a tokenizer that was written without one."""
    config = output / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
    if "chat_template" in settings or (output / TEMPLATE).exists():
        return
    theirs = source / "tokenizer_config.json"
    template = (
        json.loads(theirs.read_text(encoding="utf-8")).get("chat_template")
        if theirs.exists()
        else None
    )
    for name in (TEMPLATE, TEMPLATES):
        if (source / name).is_dir():
            shutil.copytree(source / name, output / name, dirs_exist_ok=True)
        elif (source / name).exists():
            shutil.copyfile(source / name, output / name)
    if template and not (output / TEMPLATE).exists():
        text = json.dumps(settings | {"chat_template": template}, ensure_ascii=False, indent=2)
        config.write_text(text + "\n", encoding="utf-8")


def check_loaders(
    folder: Path, texts: list[str], fast: PreTrainedTokenizerFast | None = None
) -> None:
    """Raise `TokenizerError` unless AutoTokenizer, the fast class and raw `tokenizers` give identical ids.

    `fast` is the folder's tokenizer, where it is loaded.
    """
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.no_truncation()
    raw.no_padding()
    loaded = {
        "AutoTokenizer": AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        "PreTrainedTokenizerFast": fast or load_tokenizer(folder),
    }
    for name, tokenizer in loaded.items():
        for text in texts:
            expected, got = raw.encode(text).ids, tokenizer(text)["input_ids"]
            if expected != got:
                raise TokenizerError(
                    f"{name} reads {folder} differently from its tokenizer.json (on {text[:40]!r}: {got[:8]} instead "
                    f"of {expected[:8]}): the model type rebuilds tokenizers; load it with PreTrainedTokenizerFast"
                )
