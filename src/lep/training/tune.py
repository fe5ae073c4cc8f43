"""Train a low-rank adapter (and tables in full) on answers, merge it, and publish the merged checkpoint."""

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments, set_seed

from lep.checkpoint.adapter import UNMERGED, check_merged
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.writer import rewritten_bytes, write_checkpoint
from lep.corpus.read import read_messages, write_records
from lep.errors import LepError, TrainingError
from lep.publish import check_output, check_space, fingerprint, publishing
from lep.settings import LoraSettings, TuneSettings
from lep.tokenizer.load import copy_tokenizer
from lep.training.frozen import check_frozen, frozen_digest
from lep.training.lora import projections, stored_weights
from lep.training.rows import new_rows, split_tables, stored_tables
from lep.training.samples import (
    Records,
    Samples,
    batches,
    collate_answers,
    encode_records,
    in_order,
)
from lep.training.trainer import (
    TablesTrainer,
    chunk_loss,
    common_arguments,
    free_memory,
    on_one_device,
    run,
    uses_bf16,
)
from lep.transfer.mappings import copy_mappings

PROBE_TOKENS = 128  # of the longest sample, on which the merge is proven
MERGE_TOLERANCE = (
    1e-3  # of the largest logit: what float32 rounding through a merged layer may move
)


@dataclass(frozen=True)
class Scope:
    """What an adapter trains: LoRA on the projections of some layers, some tables in full."""

    layers: Literal["all", "outer", "none"]
    tables: tuple[str, ...]  # of "input", "output"
    new_rows_only: bool = False
    merge: bool = True  # else the body stays, and its adapter is left beside the model, in adapter/


TUNING = Scope("all", ("output",))  # section 3.7
CALIBRATION = Scope("outer", ("input", "output"))  # section 3.6
NEW_ROWS = Scope("none", ("input", "output"), new_rows_only=True)


def tune(
    model: str | Path,
    data: str | Path,
    output: Path,
    settings: TuneSettings,
    copies: Records | None = None,
    *,
    merge: bool = True,
) -> dict[str, Any]:
    """Instruction tuning on a `messages` jsonl file, and on copy tasks (`corpus.copies.copy_records`)."""
    return train_adapter(
        model, read_messages(data) + (copies or []), output, settings, replace(TUNING, merge=merge)
    )


def train_adapter(
    model: str | Path,
    records: Records,
    output: Path,
    settings: LoraSettings,
    scope: Scope,
    *,
    facts: dict[str, Any] | None = None,
    answers: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train on the last message of each record, merge, prove the merge, and write the model to `output`.

    An interrupted run continues when it is started again with the same arguments. Returns the record that is
    also written to `lep/tune.json`, `facts` included; `answers` are written beside it.
    """
    checkpoint = check_merged(Checkpoint(model).check())
    key = fingerprint([checkpoint.stamp(), records, settings.model_dump(), vars(scope)])
    check_output(output)
    check_space(output, 2 * rewritten_bytes(checkpoint, checkpoint.shard_of))
    samples, too_long = encode_records(checkpoint, records, settings.max_length)
    with publishing(output, resume_key=key) as partial:
        set_seed(settings.seed)
        started = time.time()
        train = _train_new_rows if scope.new_rows_only else _train_adapter
        changed, record = train(checkpoint, samples, partial, settings, scope)
        write_checkpoint(checkpoint, changed, partial)
        copy_tokenizer(checkpoint.folder, partial)
        (partial / "lep").mkdir(exist_ok=True)
        copy_mappings(checkpoint, partial)
        record |= {
            "samples": len(samples),
            "too_long": too_long,
            "seconds": round(time.time() - started, 1),
        }
        record |= (facts or {}) | {"settings": settings.model_dump()}
        (partial / "lep" / "tune.json").write_text(json.dumps(record, indent=1) + "\n")
        if answers is not None:
            write_records(partial / "lep" / "answers.jsonl", answers)
        shutil.rmtree(partial / "work")
    return record


def _train_adapter(
    checkpoint: Checkpoint, samples: Samples, folder: Path, settings: LoraSettings, scope: Scope
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    import logging

    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer

    logging.getLogger("trl").setLevel(logging.ERROR)
    model = _loaded(checkpoint, settings)
    names = adapted_weights(model, checkpoint, scope)
    chosen = lora_arguments(checkpoint, settings, scope, list(names))
    adapter = get_peft_model(model, LoraConfig(**chosen))
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    steps, shared = batches(settings, len(samples))
    arguments = SFTConfig(
        max_length=None,
        packing=False,
        completion_only_loss=True,
        **shared,
        **common_arguments(settings, folder / "work" / "trainer", steps),
    )

    class AnswerTrainer(SFTTrainer):
        """trl's own loss walks over the vocabulary in tiles made for GPUs, which take very long on a CPU."""

        compute_loss = Trainer.compute_loss

    trainer = AnswerTrainer(
        model=adapter,
        args=on_one_device(arguments),
        train_dataset=Dataset.from_list(in_order(samples, settings)),
        processing_class=checkpoint.tokenizer,
    )
    chunk_loss(trainer)
    losses = run(trainer, folder / "work" / "trainer")
    # Unwrapped: the trainer leaves its bf16 autocast on the model, which would hide a wrong merge in rounding.
    trained = (
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        .cpu()
        .float()
        .eval()
    )
    del trainer, model, adapter
    free_memory()
    if not scope.merge:
        _save_adapter(trained, chosen, folder / UNMERGED)
    probe = torch.tensor(
        [max(samples, key=lambda s: len(s["input_ids"]))["input_ids"][:PROBE_TOKENS]]
    )
    with torch.inference_mode():
        expected = trained(input_ids=probe).logits
        merged: PreTrainedModel = trained.merge_and_unload()
        error = (
            (merged(input_ids=probe).logits - expected).abs().max() / expected.abs().max()
        ).item()
    if error > MERGE_TOLERANCE:
        raise LepError(
            f"the merged model's logits differ from the adapter's by {error:.1e} of the largest one"
        )
    tables = {"input": merged.get_input_embeddings(), "output": merged.get_output_embeddings()}
    trained_weights = {
        name: tables[kind].weight for kind, name in checkpoint.tables.by_kind().items()
    }
    if scope.merge:
        trained_weights |= {
            place: merged.get_submodule(name).weight for name, place in names.items()
        }
    changed = _changed(checkpoint, trained_weights)
    if not changed and scope.merge:
        raise TrainingError(
            f"{steps} steps changed no weight: give a higher learning rate, or more samples or epochs"
        )
    record = {
        "steps": steps,
        "losses": losses,
        "merge_error": error,
        "changed_tensors": sorted(changed),
    }
    return changed, record


def _train_new_rows(
    checkpoint: Checkpoint, samples: Samples, folder: Path, settings: LoraSettings, scope: Scope
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if not scope.merge:
        raise LepError(
            "training new rows makes no adapter that could be left beside the model: leave --no-merge out"
        )
    rows = new_rows(checkpoint)
    model = _loaded(checkpoint, settings)
    model.requires_grad_(False)
    tables = split_tables(model, rows)
    before = frozen_digest(model)
    steps, shared = batches(settings, len(samples))
    arguments = TrainingArguments(
        remove_unused_columns=False,
        **shared,
        **common_arguments(settings, folder / "work" / "trainer", steps),
    )
    trainer = TablesTrainer(
        model=model,
        args=on_one_device(arguments),
        train_dataset=in_order(samples, settings),
        data_collator=collate_answers,
    )
    chunk_loss(trainer)
    losses = run(trainer, folder / "work" / "trainer")
    check_frozen(before, model)
    changed = stored_tables(
        checkpoint, rows, {kind: table.whole() for kind, table in tables.items()}
    )
    del trainer, model, tables
    free_memory()
    return changed, {"steps": steps, "losses": losses, "changed_tensors": sorted(changed)}


def _loaded(checkpoint: Checkpoint, settings: LoraSettings) -> PreTrainedModel:
    dtype = "auto" if uses_bf16(settings) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, dtype=dtype, trust_remote_code=False
    )
    model.config.use_cache = False
    return model


def _save_adapter(trained: Any, arguments: dict[str, Any], folder: Path) -> None:
    """The adapter of the body in peft's format, without the tables that trained in full: these are the model's."""
    from peft import LoraConfig, get_peft_model_state_dict

    factors = {
        name: t.contiguous()
        for name, t in get_peft_model_state_dict(trained).items()
        if "lora_" in name
    }
    folder.mkdir(exist_ok=True)
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    alone = {
        name: value
        for name, value in arguments.items()
        if name not in ("modules_to_save", "ensure_weight_tying")
    }
    LoraConfig(**alone, inference_mode=True).save_pretrained(str(folder))


def adapted_weights(model: PreTrainedModel, checkpoint: Checkpoint, scope: Scope) -> dict[str, str]:
    """The projections that get adapters, by module, with the names that their weights have in the checkpoint."""
    layers = projections(model, checkpoint)
    outer = (min(layers.values()), max(layers.values()))
    chosen = [name for name, number in layers.items() if scope.layers == "all" or number in outer]
    return stored_weights(model, checkpoint, chosen)


def lora_arguments(
    checkpoint: Checkpoint, settings: LoraSettings, scope: Scope, projections: list[str]
) -> dict[str, Any]:
    """Arguments of peft's LoraConfig for any architecture."""
    arguments: dict[str, Any] = {
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "task_type": "CAUSAL_LM",
        "target_modules": projections,
        "modules_to_save": [
            name.removesuffix(".weight").rsplit(".", 1)[-1]
            for kind in scope.tables
            if (name := getattr(checkpoint.tables, kind) or checkpoint.tables.input)
        ],
    }
    if checkpoint.tables.output is None:
        arguments |= {
            "modules_to_save": arguments["modules_to_save"][:1],
            "ensure_weight_tying": True,
        }
    return arguments


def _changed(checkpoint: Checkpoint, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those that are not what the checkpoint has under their names, in its type."""
    changed = {}
    for name, tensor in weights.items():
        before = checkpoint.tensor(name)
        after = tensor.detach().to(before.dtype)
        if not torch.equal(before, after):
            changed[name] = after.contiguous()
    return changed
