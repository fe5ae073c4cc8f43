"""Which tensors of an architecture have an axis as long as the vocabulary.

The model is built twice on the meta device, with two sizes of the vocabulary. A tensor that changes
its shape is a vocabulary tensor, and the axis that changes is the vocabulary. Neither weights nor a
list of names are needed, and equal sizes cannot be confused.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lep.checkpoint.config import CONFIG, KeyPath, load_config, parts
from lep.errors import CheckpointError, foreign

PROBE = 128  # rows added in the second build: a multiple of the paddings in use


@dataclass(frozen=True)
class Architecture:
    """A model without weights, and the vocabulary in its tensors."""

    model: Any  # transformers' PreTrainedModel on the meta device
    tensors: Mapping[str, Tensor]  # parameters and stored buffers; tied ones under each name
    axes: Mapping[str, int]  # the vocabulary's axis of each tensor that has one
    rows: int  # the vocabulary's size, as config.json says
    size_settings: tuple[KeyPath, ...]  # paths in config.json that say it
    other_sizes: Mapping[str, str]  # tables of tokens with another size: the setting that says it

    @classmethod
    def probe(cls, folder: Path, config: dict[str, Any]) -> "Architecture":
        """Raises `CheckpointError` for remote code and for what transformers cannot build."""
        from transformers import CONFIG_MAPPING

        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            raise CheckpointError(f"{folder / CONFIG} names no model_type: it is not a model's")
        if config.get("auto_map") and model_type not in CONFIG_MAPPING:
            raise CheckpointError(
                f"{folder} brings its own code for '{model_type}' (auto_map in config.json), which "
                "is never run: only architectures that transformers itself has are supported"
            )
        with foreign(
            f"{folder} is not a causal language model that transformers can build",
            "correct its config.json, or give another model",
            CheckpointError,
        ):
            return cls._probe(folder, config)

    @classmethod
    def _probe(cls, folder: Path, config: dict[str, Any]) -> "Architecture":
        loaded = load_config(folder)
        model_class = _model_class(loaded, config)
        size, keys, other_keys = _size_keys(loaded.get_text_config())
        model = _build(model_class, loaded)
        tensors = model.state_dict(keep_vars=True)
        axes = _changed_axes(tensors, _build(model_class, loaded, keys))
        other_sizes = {
            name: key
            for key in other_keys
            for name in _changed_axes(tensors, _build(model_class, loaded, [key]))
        }
        return cls(model, tensors, axes, size, _size_settings(config, loaded, keys), other_sizes)

    def names_of(self, tensor: Tensor) -> list[str]:
        """All names of one tensor: several when it is tied."""
        return [name for name, other in self.tensors.items() if other is tensor]

    def stored_names(self, stored: Iterable[str]) -> dict[str, list[str]]:
        """Names in a checkpoint by name in the model, renamed as transformers loads them."""
        from transformers import core_model_loading as loading
        from transformers.conversion_mapping import get_model_conversion_mapping

        steps = get_model_conversion_mapping(self.model)
        renamings = [step for step in steps if isinstance(step, loading.WeightRenaming)]
        converters = [step for step in steps if isinstance(step, loading.WeightConverter)]
        prefix = self.model.base_model_prefix
        names: dict[str, list[str]] = {}
        for key in sorted(stored, key=loading.dot_natural_key):
            name, _ = loading.rename_source_key(key, renamings, converters, prefix, self.tensors)
            renamed = name in self.tensors or key not in self.tensors
            names.setdefault(name if renamed else key, []).append(key)
        return names


def _model_class(loaded: Any, config: dict[str, Any]) -> Any:
    """The class that wrote the checkpoint if it generates text, else the causal one of its type."""
    from transformers.models.auto import modeling_auto as auto

    mappings = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
    )
    classes = [mapping[type(loaded)] for mapping in mappings if type(loaded) in mapping]
    if not classes:
        raise ValueError(f"transformers has no generating model for {type(loaded).__name__}")
    writer = (config.get("architectures") or [None])[0]
    return next((cls for cls in classes if cls.__name__ == writer), classes[0])


def _build(model_class: Any, loaded: Any, longer: Iterable[str] = ()) -> Any:
    """The model on the meta device, `PROBE` added to some settings of its text part."""
    from transformers.initialization import no_init_weights

    config = copy.deepcopy(loaded)
    text = config.get_text_config()
    for key in longer:
        setattr(text, key, getattr(text, key) + PROBE)
    with torch.device("meta"), no_init_weights():
        model = model_class._from_config(config)
    model.tie_weights()  # otherwise part of the initialisation
    return model


def _changed_axes(before: Mapping[str, Tensor], model: Any) -> dict[str, int]:
    """The last axis that has another size in `model`, of each tensor that has one."""
    after, axes = model.state_dict(), {}
    for name, tensor in before.items():
        sizes = zip(tensor.shape, after[name].shape, strict=True) if name in after else ()
        if changed := [axis for axis, (old, new) in enumerate(sizes) if old != new]:
            axes[name] = changed[-1]
    return axes


def _size_keys(text: Any) -> tuple[int, list[str], list[str]]:
    """The vocabulary's size, the settings that hold it, and those of other sizes."""
    main = type(text).attribute_map.get("vocab_size", "vocab_size")
    size = getattr(text, main, None)
    if not isinstance(size, int):
        raise ValueError(f"the configuration of '{text.model_type}' has no vocab_size")
    sizes = {
        key: value
        for key, value in vars(text).items()
        if "vocab" in key.lower() and isinstance(value, int)
    }
    equal = [key for key, value in sizes.items() if value == size and key != main]
    others = [k for k, n in sizes.items() if k.startswith("vocab_size") and n not in (0, size)]
    return size, [main, *equal], others


def _size_settings(config: dict[str, Any], loaded: Any, keys: list[str]) -> tuple[KeyPath, ...]:
    """The paths where config.json says each setting of the text model, or should say it.

    The file may use a synonym of a setting, and may hold the settings of a nested text model at the
    top (as in early Qwen2-VL), or in both places.
    """
    text, settings = loaded.get_text_config(), []
    path = next((path for path, part in parts(loaded) if part is text), ())
    levels: dict[KeyPath, dict[str, Any]] = {(): config}
    for depth, name in enumerate(path):
        levels[path[: depth + 1]] = levels[path[:depth]].get(name) or {}
    logits = ["unpadded_vocab_size"] if getattr(text, "unpadded_vocab_size", None) else []
    for key in keys + logits:
        synonyms = [name for name, meaning in type(text).attribute_map.items() if meaning == key]
        written = [
            (*level, name)
            for level, part in levels.items()
            for name in (*synonyms, key)
            if part.get(name) == getattr(text, key)
        ]
        settings += written
        nested = any(setting[:-1] == path for setting in written)
        if not nested and (not written or levels[path]):
            settings.append((*path, key))
    return tuple(settings)
