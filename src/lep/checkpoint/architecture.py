"""Which tensors of an architecture have an axis as long as the vocabulary, found without weights and without names.

The model is built twice on the meta device, with two sizes of the vocabulary. What changes shape is a vocabulary
tensor, and the axis that changes is known: no coincidence of sizes can deceive.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lep.errors import CheckpointError

PROBE = 128  # rows added in the second build: a multiple of the paddings in use


@dataclass(frozen=True)
class Architecture:
    """A model without weights, and where the vocabulary is in it."""

    model: Any  # transformers' PreTrainedModel on the meta device
    tensors: Mapping[
        str, Tensor
    ]  # parameters and stored buffers; a tied one under each of its names
    axes: Mapping[str, int]  # of each tensor that has one, the axis that is the vocabulary
    rows: int  # the vocabulary's size, as config.json says
    size_settings: tuple[tuple[str, ...], ...]  # places in config.json that say it
    other_sizes: Mapping[
        str, str
    ]  # tables of tokens with a size of their own, and the setting that says it

    @classmethod
    def probe(cls, folder: Path, config: dict[str, Any]) -> "Architecture":
        """Raises `CheckpointError` for remote code and for what transformers cannot build."""
        kind = config.get("model_type")
        if config.get("auto_map") and not _is_native(kind):
            raise CheckpointError(
                f"{folder} brings its own code for '{kind}' (auto_map in config.json), which is never run: only "
                "architectures that transformers itself has are supported"
            )
        try:
            return cls._probe(folder, config)
        except CheckpointError:
            raise
        except Exception as error:  # unknown model types and broken settings raise many kinds
            reason = (str(error).strip().splitlines() or [repr(error)])[0]
            raise CheckpointError(
                f"{folder} is not a causal language model that transformers can build: {reason}"
            ) from error

    @classmethod
    def _probe(cls, folder: Path, config: dict[str, Any]) -> "Architecture":
        from transformers import AutoConfig

        loaded = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kind = _model_class(loaded, config)
        text = loaded.get_text_config()
        path = next((path for path, part in _parts(loaded) if part is text), ())
        size, keys, odd_keys = _size_keys(text)
        model = _build(kind, loaded)
        tensors = model.state_dict(keep_vars=True)
        other_sizes = {
            name: key
            for key in odd_keys
            for name in _changed_axes(tensors, _build(kind, _resized(loaded, path, [key])))
        }
        axes = _changed_axes(tensors, _build(kind, _resized(loaded, path, keys)))
        return cls(
            model, tensors, axes, size, _size_settings(config, path, text, keys), other_sizes
        )

    def names_of(self, tensor: Tensor) -> list[str]:
        """All names of one tensor; there are several when it is tied."""
        return [name for name, other in self.tensors.items() if other is tensor]

    def stored_names(self, stored: Iterable[str]) -> dict[str, list[str]]:
        """Names in a checkpoint by name in the model, renamed as transformers does when it loads them."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        steps = get_model_conversion_mapping(self.model)
        renamings = [step for step in steps if isinstance(step, WeightRenaming)]
        converters = [step for step in steps if isinstance(step, WeightConverter)]
        names: dict[str, list[str]] = {}
        for place in sorted(stored, key=dot_natural_key):
            name, _ = rename_source_key(
                place, renamings, converters, self.model.base_model_prefix, self.tensors
            )
            if name not in self.tensors and place in self.tensors:
                name = place
            names.setdefault(name, []).append(place)
        return names


def _is_native(model_type: str | None) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _model_class(loaded: Any, config: dict[str, Any]) -> Any:
    """The class that wrote the checkpoint where it is a generating one, else the causal one of its model type."""
    from transformers.models.auto import modeling_auto as auto

    kinds = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
    )
    known = [kind[type(loaded)] for kind in kinds if type(loaded) in kind]
    if not known:
        raise ValueError(f"transformers has no generating model for {type(loaded).__name__}")
    named = (config.get("architectures") or [None])[0]
    return next((kind for kind in known if kind.__name__ == named), known[0])


def _build(kind: Any, loaded: Any) -> Any:
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        model = kind._from_config(copy.deepcopy(loaded))
    model.tie_weights()  # which comes with the initialisation otherwise
    return model


def _changed_axes(before: Mapping[str, Tensor], model: Any) -> dict[str, int]:
    after = model.state_dict()
    axes: dict[str, int] = {}
    for name, tensor in before.items():
        changed = [
            i
            for i, size in enumerate(tensor.shape)
            if name in after and after[name].shape[i] != size
        ]
        axes |= {name: changed[-1]} if changed else {}
    return axes


def _parts(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A configuration and all that are nested in it, with the attributes that lead to them."""
    yield path, config
    for name in config.sub_configs:
        if hasattr(part := getattr(config, name, None), "sub_configs"):
            yield from _parts(part, (*path, name))


def _size_keys(text: Any) -> tuple[int, list[str], list[str]]:
    """The vocabulary's size, the settings that hold it (its own first), and settings of tables of another size."""
    main = type(text).attribute_map.get("vocab_size", "vocab_size")
    size = getattr(text, main, None)
    if not isinstance(size, int):
        raise ValueError(f"the configuration of '{text.model_type}' has no vocab_size")
    sizes = {
        key: value
        for key, value in vars(text).items()
        if "vocab" in key.lower() and isinstance(value, int)
    }
    alike = [key for key, value in sizes.items() if value == size and key != main]
    odd = [
        key
        for key, value in sizes.items()
        if key.startswith("vocab_size") and value not in (0, size)
    ]
    return size, [main, *alike], odd


def _resized(loaded: Any, path: tuple[str, ...], keys: list[str]) -> Any:
    changed = part = copy.deepcopy(loaded)
    for name in path:
        part = getattr(part, name)
    for key in keys:
        setattr(part, key, getattr(part, key) + PROBE)
    return changed


def _at(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        config = config.get(name) or {}
    return config


def _size_settings(
    config: dict[str, Any], path: tuple[str, ...], text: Any, keys: list[str]
) -> tuple[tuple[str, ...], ...]:
    """Where config.json says each setting of the text model, or should: files differ from what they are loaded as.

    Another name that means the same may be written there; the settings of a nested text model may be written at
    the top (as in early Qwen2-VL), or there as well.
    """
    places: list[tuple[str, ...]] = []
    cut_off = (
        ["unpadded_vocab_size"] if getattr(text, "unpadded_vocab_size", None) else []
    )  # of the logits
    for key in keys + cut_off:
        spelt = [name for name, meaning in type(text).attribute_map.items() if meaning == key] + [
            key
        ]
        levels = [path[:depth] for depth in range(len(path) + 1)]
        found = [
            (*level, name)
            for level in levels
            for name in spelt
            if _at(config, level).get(name) == getattr(text, key)
        ]
        places += found
        nested = any(place[:-1] == path for place in found)
        if not nested and (not found or _at(config, path)):
            places.append((*path, key))
    return tuple(places)
