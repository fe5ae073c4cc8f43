"""config.json: checked before transformers reads it, and without what would run or fetch code."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lep.errors import CheckpointError, foreign
from lep.files import read_json
from lep.limits import LAYERS

CONFIG = "config.json"
TEXT_PARTS = ("decoder", "generator", "text_config")  # keys of a nested text model
COUNT = re.compile(r"(layers?|experts?|blocks|depth)$")  # settings that say how many modules
KeyPath = tuple[str, ...]  # keys that lead to a setting in a nested configuration


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a model's config.json.

    Raises `CheckpointError` where it is missing or broken, where it names a kernel, which loading
    would download and run, and for more layers than can be built.
    """
    path = folder / CONFIG
    if not path.exists():
        raise CheckpointError(f"{folder} has no {CONFIG}: it is not a model folder")
    config = read_json(path, CheckpointError)
    for key, value in _settings(config):
        if key.endswith("_implementation") and "/" in str(value):
            raise CheckpointError(
                f"{path} names the kernel {str(value)[:100]} ({key}), which would be downloaded "
                "and run: delete this setting"
            )
        if COUNT.search(key) and type(value) is int:
            LAYERS.check(value, f"{key} in {path}", CheckpointError)
    for key in TEXT_PARTS:
        if not isinstance(config.get(key) or {}, dict):
            raise CheckpointError(f"{key} in {path} is no object: download it again")
    return config


def load_config(folder: Path) -> Any:
    """What transformers makes of a config.json that `read_config` accepts, with plain attention.

    Raises `CheckpointError` for a configuration that transformers cannot read.
    """
    from transformers import AutoConfig

    with foreign(
        f"{folder / CONFIG} is not understood by transformers",
        "give a causal language model that this version of transformers knows",
        CheckpointError,
    ):
        loaded = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        for _, part in parts(loaded):
            part._attn_implementation = part._experts_implementation = None
    return loaded


def parts(config: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """A configuration and all nested in it, with the attributes that lead to them."""
    yield path, config
    for name in config.sub_configs:
        if hasattr(part := getattr(config, name, None), "sub_configs"):
            yield from parts(part, (*path, name))


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    """Every setting in a configuration, however deep."""
    inner = value.items() if isinstance(value, dict) else ()
    for key, each in inner:
        yield key, each
        yield from _settings(each)
    for each in value if isinstance(value, list) else ():
        yield from _settings(each)
