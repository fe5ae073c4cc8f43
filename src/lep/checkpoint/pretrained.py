"""Load a checkpoint as transformers' model: nothing in its folder decides what is run or drawn."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from lep.checkpoint.adapter import UNMERGED, has_unmerged
from lep.checkpoint.config import TEXT_PARTS, load_config
from lep.checkpoint.reader import Checkpoint
from lep.errors import CheckpointError, TokenizerError, foreign
from lep.files import read_json
from lep.tokenizer.chat import turn_end

GENERATION = "generation_config.json"
# Settings of an adapter: those that the merge needs, and those that it does not depend on.
SHAPE = "r lora_alpha target_modules rank_pattern alpha_pattern use_rslora use_dora bias"
SHAPE += " fan_in_fan_out layers_to_transform layers_pattern task_type"
INERT = "peft_type base_model_name_or_path inference_mode lora_dropout peft_version revision"
INERT += " init_lora_weights auto_mapping loftq_config qalora_group_size"


def load_pretrained(checkpoint: Checkpoint, dtype: torch.dtype | str) -> PreTrainedModel:
    """The model with its weights. It generates greedily unless told otherwise.

    Of the makers' generation settings only the end tokens are kept: penalties, beams and bans would
    change what we call the greedy answer. Raises `CheckpointError` for what cannot be loaded.
    """
    ends = end_ids(checkpoint)
    with foreign(f"{checkpoint.folder} cannot be loaded", "download it again", CheckpointError):
        return AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            config=load_config(checkpoint.folder),
            generation_config=GenerationConfig(eos_token_id=ends),
            dtype=dtype,
            trust_remote_code=False,
        )


def end_ids(checkpoint: Checkpoint) -> list[int] | None:
    """The tokens that end a text: the tokenizer's EOS, what the chat template writes after an
    answer, and those of the generation settings, else of the configuration.

    Models tuned from a base often keep its settings, which do not know the end of a turn. Raises
    `CheckpointError` for anything but token ids.
    """
    path = checkpoint.folder / GENERATION
    value = read_json(path, CheckpointError).get("eos_token_id") if path.exists() else None
    if value is None:
        inner = (checkpoint.config[key] for key in TEXT_PARTS if checkpoint.config.get(key))
        value = (next(inner, {}) | _without_none(checkpoint.config)).get("eos_token_id")
    ids = [index for index in (value if isinstance(value, list) else [value]) if index is not None]
    if not all(type(index) is int for index in ids):
        raise CheckpointError(
            f"eos_token_id of {checkpoint.folder} is {str(value)[:100]!r}: give token ids"
        )
    with suppress(TokenizerError):  # a tokenizer that cannot be read is refused where it is needed
        ids.insert(0, checkpoint.tokenizer.eos_token_id)
        ids.insert(1, turn_end(checkpoint.tokenizer))
    rows = checkpoint.shape(checkpoint.tables.input)[0]
    return [*dict.fromkeys(i for i in ids if i is not None and 0 <= i < rows)] or None


def merged(model: PreTrainedModel, folder: Path) -> Any:
    """The model with the adapter that lies beside its weights, if there is one.

    Raises `CheckpointError` for an adapter other than a low-rank one in safetensors.
    """
    if not has_unmerged(folder):
        return model
    from peft import LoraConfig, PeftModel

    adapter, advice = folder / UNMERGED, "merge it with peft first, in a safe place"
    if not (adapter / "adapter_model.safetensors").is_file():
        reason = "and pickled weights, which can run code, are not read"
        raise CheckpointError(f"{adapter} has no adapter_model.safetensors, {reason}: {advice}")
    settings = read_json(adapter / "adapter_config.json", CheckpointError)
    if settings.get("peft_type") != "LORA":
        kind = str(settings.get("peft_type"))[:100]
        raise CheckpointError(f"{adapter} is a {kind} adapter, only LORA is merged here: {advice}")
    if isinstance(modules := settings.get("target_modules"), str) and modules != "all-linear":
        raise CheckpointError(f"{adapter} names its modules by a pattern, not a list: {advice}")
    usual, known = LoraConfig().to_dict(), f"{SHAPE} {INERT}".split()
    changed = [name for name, value in settings.items() if value and value != usual.get(name)]
    if others := [name for name in changed if name not in known]:
        raise CheckpointError(
            f"{adapter} sets {others[0][:100]}, which is not known here: {advice}"
        )
    with foreign(f"{adapter} cannot be merged", advice, CheckpointError):
        shape = LoraConfig(**{name: settings[name] for name in SHAPE.split() if name in settings})
        return PeftModel.from_pretrained(model, str(adapter), config=shape).merge_and_unload()


def _without_none(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
