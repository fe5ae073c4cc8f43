"""Find every tensor of a checkpoint that has a row per token, by building its architecture without weights.

The model is built twice on the meta device, with two sizes of the vocabulary. What changes shape is a vocabulary
tensor, and the axis that changes is known: no guess by names, no coincidence of sizes.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lep.checkpoint.stream import DTYPES, Entry
from lep.errors import CheckpointError

PROBE = 128  # rows added in the second build: a multiple of the paddings in use
MIXABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)  # types that rows can be mixed in

# Integers whose rows a new token takes from its main piece: the experts of each token (hash routing of DeepSeek V4).
COPIED = (".tid2eid",)


@dataclass(frozen=True)
class Tables:
    """Names of the tensors with a row per token. `output` is None when the head is tied to the input table.

    `aliases` are further copies of a tied table that the file holds; they must always equal it. `others` are all
    other tensors whose first axis is the vocabulary: head bias, per-layer embeddings, tables of parts that the
    architecture does not load. `size_settings` are the places in config.json that say the number of rows.
    """

    input: str
    output: str | None
    aliases: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    size_settings: tuple[tuple[str, ...], ...] = (("vocab_size",),)

    @property
    def names(self) -> list[str]:
        return [self.input] if self.output is None else [self.input, self.output]


def find_tables(folder: Path, config: dict[str, Any], entries: Mapping[str, Entry]) -> Tables:
    """Where the vocabulary is in a checkpoint with this config.json and these tensors.

    Raises `CheckpointError` for an architecture that cannot be built, has no usable head, or has a vocabulary
    tensor that cannot be converted row by row, and for shapes that disagree with the configuration.
    """
    loaded = _load_config(folder, config)
    text, path = _text_config(loaded)
    sizes = _sizes(text)
    try:
        small, big = _build(loaded, config), _build(_resized(loaded, path, list(sizes), PROBE), config)
    except Exception as error:  # broken settings raise many kinds
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise CheckpointError(
            f"{folder} is not a causal language model that transformers can build: {reason}"
        ) from error
    rows = next(iter(sizes.values()))
    before, after = small.state_dict(keep_vars=True), big.state_dict(keep_vars=True)
    axes = {name: _changed_axis(before[name], after[name]) for name in before if name in after}
    stored = _stored_names(small, entries)
    _refuse_other_sizes(folder, loaded, config, before)
    tied = _Tied(folder, before, axes, stored, entries)
    head = small.get_output_embeddings()
    if head is None:
        raise CheckpointError(f"{folder} ({loaded.model_type}) has no output embeddings, which is not supported yet")
    first = tied.table(small.get_input_embeddings(), "input embeddings")
    last = tied.table(head, "output embeddings")
    if before[first].shape[0] != rows:
        raise CheckpointError(
            f"{folder} ({loaded.model_type}) makes {before[first].shape[0]:,} rows for a vocab_size of {rows:,}: rows "
            "that are not tokens are not supported yet"
        )
    inputs = tied.stored_copies(first)
    same = before[last] is before[first]
    outputs = [] if same else tied.stored_copies(last)
    if not same and len(outputs) > 1:
        raise CheckpointError(f"{folder} holds its output embeddings twice, as {outputs[0]} and {outputs[1]}")
    used = {*inputs, *outputs}
    tied.check_others(used)
    unknown = _unknown_tensors(folder, entries, stored, set(before), rows)
    others = [name for model in axes if axes[model] is not None for name in stored.get(model, [])] + unknown
    tables = Tables(
        inputs[0], None if same else outputs[0], tuple(inputs[1:]),
        tuple(dict.fromkeys(name for name in others if name not in used)),
        tuple((*path, key) for key in _written_keys(_at(config, path), text, list(sizes))),
    )  # fmt: skip
    for name in (*tables.names, *tables.aliases, *tables.others):
        _check_dtype(folder, name, entries[name])
    return tables


@dataclass(frozen=True)
class _Tied:
    """The parameters of a model, which of them are the same tensor, and their names in the checkpoint."""

    folder: Path
    tensors: Mapping[str, Tensor]
    axes: Mapping[str, int | None]
    stored: Mapping[str, list[str]]
    entries: Mapping[str, Entry]

    def table(self, module: nn.Module, what: str) -> str:
        """Name of the one vocabulary table (two axes) inside a module."""
        inside = {id(p) for p in module.parameters()}
        found = {id(t): name for name, t in reversed(list(self.tensors.items()))
                 if id(t) in inside and self.axes.get(name) is not None and t.dim() > 1}  # fmt: skip
        names = list(found.values())
        if len(names) != 1:
            raise CheckpointError(
                f"{self.folder} has {len(names)} tables with a row per token in its {what} ({type(module).__name__}): "
                "models with exactly one are supported"
            )
        self.check(names[0])
        return names[0]

    def copies(self, name: str) -> list[str]:
        """All names in the model of one tensor, its own first."""
        same = [other for other, tensor in self.tensors.items() if tensor is self.tensors[name]]
        return [name, *(other for other in same if other != name)]

    def stored_copies(self, name: str) -> list[str]:
        """Names of a table in the checkpoint: those of the model first."""
        found = [place for model in self.copies(name) for place in self.stored.get(model, [])]
        if not found:
            raise CheckpointError(
                f"{self.folder} has no tensor {name}: the checkpoint is incomplete, or its tie_word_embeddings setting "
                "is wrong"
            )
        return found

    def check_others(self, used: set[str]) -> None:
        """Raise `CheckpointError` for a vocabulary tensor whose rows are not the vocabulary's."""
        for model, axis in self.axes.items():
            if axis is not None and not set(self.stored.get(model, [])) <= used:
                self.check(model)

    def check(self, name: str) -> None:
        axis, shape = self.axes[name], tuple(self.tensors[name].shape)
        if axis != 0:
            raise CheckpointError(f"{self.folder} has the vocabulary on axis {axis} of {name} {list(shape)}: "
                                  "only rows can be converted")  # fmt: skip
        for place in self.stored.get(name, []):
            found = self.entries[place].shape
            if found != shape:
                raise CheckpointError(
                    f"{place} of {self.folder} has the shape {list(found)}, its config.json makes it {list(shape)}: "
                    "transformers cannot load it; correct the configuration or save the model again"
                )


def _load_config(folder: Path, config: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    kind = config.get("model_type")
    if config.get("auto_map") and kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"{folder} brings its own code for '{kind}' (auto_map in config.json), which is never run: only "
            "architectures that transformers itself has are supported"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # unknown model types and broken settings raise many kinds
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise CheckpointError(
            f"{folder} is not a causal language model that transformers can build: {reason}"
        ) from error


def _model_class(loaded: Any, config: dict[str, Any]) -> Any:
    """The class that wrote the checkpoint where it is a generating one, else the causal one of its model type."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    named = (config.get("architectures") or [None])[0]
    kinds = (auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
             auto.MODEL_FOR_MULTIMODAL_LM_MAPPING)  # fmt: skip
    known = [kind[type(loaded)] for kind in kinds if type(loaded) in kind]
    for candidate in known:
        if candidate.__name__ == named:
            return candidate
    if not known:
        raise ValueError(f"{type(loaded).__name__} is the configuration of none of its generating models")
    return getattr(transformers, known[0].__name__)


def _build(loaded: Any, config: dict[str, Any]) -> Any:
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        model = _model_class(loaded, config)._from_config(copy.deepcopy(loaded))
    model.tie_weights()  # which comes with the initialisation otherwise
    return model


def _text_config(loaded: Any) -> tuple[Any, tuple[str, ...]]:
    """The configuration of the text model and the attributes that lead to it."""
    text = loaded.get_text_config()
    return text, next((path for path, part in _parts(loaded) if part is text), ())


def _parts(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, config
    for name in config.sub_configs:
        if hasattr(part := getattr(config, name, None), "sub_configs"):
            yield from _parts(part, (*path, name))


def _sizes(text: Any) -> dict[str, int]:
    """Settings of a configuration that hold the vocabulary's size: the one itself first, then those equal to it."""
    main = type(text).attribute_map.get("vocab_size", "vocab_size")
    size = getattr(text, main, None)
    if not isinstance(size, int):
        raise CheckpointError(f"the configuration of '{text.model_type}' has no vocab_size")
    alike = [key for key, value in vars(text).items() if "vocab" in key.lower() and value == size]
    return dict.fromkeys([main, *alike], size)


def _resized(loaded: Any, path: tuple[str, ...], keys: list[str], more: int) -> Any:
    changed = copy.deepcopy(loaded)
    part = changed
    for name in path:
        part = getattr(part, name)
    for key in keys:
        setattr(part, key, getattr(part, key) + more)
    return changed


def _refuse_other_sizes(folder: Path, loaded: Any, config: dict[str, Any], before: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` for a table of tokens with a size of its own, such as Gemma 3n's per-layer embeddings."""
    text, path = _text_config(loaded)
    rows = next(iter(_sizes(text).values()))
    odd = [key for key, value in vars(text).items()
           if key.startswith("vocab_size") and isinstance(value, int) and value not in (0, rows)]  # fmt: skip
    if not odd:
        return
    after = _build(_resized(loaded, path, odd, PROBE), config).state_dict(keep_vars=True)
    for name, tensor in before.items():
        if name in after and _changed_axis(tensor, after[name]) is not None:
            raise CheckpointError(
                f"{name} of {folder} has {len(tensor):,} rows for a vocabulary of {rows:,} ({odd[0]} in config.json): a "
                "table of tokens with a size of its own is not supported yet"
            )


def _at(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        config = config.get(name) or {}
    return config


def _written_keys(settings: dict[str, Any], text: Any, keys: list[str]) -> list[str]:
    """The spelling of each setting in the file: another name that means the same may be written there."""
    spelt = []
    for key in keys:
        synonyms = [name for name, meaning in type(text).attribute_map.items() if meaning == key]
        spelt.append(next((name for name in synonyms if name in settings and key not in settings), key))
    if "unpadded_vocab_size" in settings or hasattr(text, "unpadded_vocab_size"):
        spelt.append("unpadded_vocab_size")  # logits beyond it are cut off
    return list(dict.fromkeys(spelt))


def _changed_axis(before: Tensor, after: Tensor) -> int | None:
    axes = [i for i, (a, b) in enumerate(zip(before.shape, after.shape, strict=True)) if a != b]
    return axes[-1] if axes else None


def _stored_names(model: Any, entries: Mapping[str, Entry]) -> dict[str, list[str]]:
    """Names in the checkpoint of each tensor of the model, renamed as transformers does when it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    known, prefix = model.state_dict(), model.base_model_prefix
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    names: dict[str, list[str]] = {}
    for place in sorted(entries, key=dot_natural_key):
        name, _ = rename_source_key(place, renamings, converters, prefix, known)
        if name not in known and place in known:
            name = place
        names.setdefault(name, []).append(place)
    return names


def _unknown_tensors(
    folder: Path, entries: Mapping[str, Entry], stored: Mapping[str, list[str]], known: set[str], rows: int
) -> list[str]:
    """Tensors that the architecture does not load and that have a row per token, by their size."""
    places = [place for model, names in stored.items() if model not in known for place in names]
    for place in places:
        if rows in entries[place].shape[1:]:
            raise CheckpointError(
                f"{place} of {folder}, which transformers does not load, seems to have the vocabulary on an axis that "
                f"is not its first ({list(entries[place].shape)}): only rows can be converted"
            )
    return [place for place in places if entries[place].shape[:1] == (rows,)]


def _check_dtype(folder: Path, name: str, entry: Entry) -> None:
    if DTYPES.get(entry.dtype) in MIXABLE or name.endswith(COPIED):
        return
    reason = (
        "what integers say about a token cannot be mixed for a new one"
        if entry.dtype.startswith(("I", "U", "BOOL")) and not name.endswith(".weight")
        else "give the model as it was before quantisation"
    )
    raise CheckpointError(f"{name} of {folder} has a row per token and is stored as {entry.dtype}: {reason}")
