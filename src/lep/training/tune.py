"""Train a low-rank adapter (and tables in full) on answers, merge it, and publish the merged checkpoint."""

import json
import math
import random
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments, set_seed

from lep.checkpoint.adapter import UNMERGED
from lep.checkpoint.mappings import copy_mappings
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.writer import rewritten_bytes, write_checkpoint
from lep.corpus.prepare import unit_hash
from lep.corpus.read import read_messages, write_records
from lep.errors import CorpusError, LepError
from lep.publish import check_output, check_space, fingerprint, publishing
from lep.settings import LoraSettings, TuneSettings
from lep.tokenizer.chat import chat_ids
from lep.tokenizer.load import copy_tokenizer
from lep.training.frozen import check_frozen, frozen_digest
from lep.training.lora import projections
from lep.training.rows import new_rows, split_tables, stored_tables
from lep.training.trainer import TablesTrainer, chunk_loss, common_arguments, run, uses_bf16

SORTED_BATCHES = 50  # micro-batches whose samples are sorted by length together
MERGE_TOLERANCE = 1e-3  # of the largest logit: what float32 rounding through a merged layer may move


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
Records = list[dict[str, Any]]  # of `messages`


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
    return train_adapter(model, read_messages(data) + (copies or []), output, settings, replace(TUNING, merge=merge))


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
    checkpoint = Checkpoint(model).check()
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
        record |= {"samples": len(samples), "too_long": too_long, "seconds": round(time.time() - started, 1)}
        record |= (facts or {}) | {"settings": settings.model_dump()}
        (partial / "lep" / "tune.json").write_text(json.dumps(record, indent=1) + "\n")
        if answers is not None:
            write_records(partial / "lep" / "answers.jsonl", answers)
        shutil.rmtree(partial / "work")
    return record


def encode_records(
    checkpoint: Checkpoint, records: list[dict[str, Any]], max_length: int
) -> tuple[list[dict[str, list[int]]], int]:
    """Ids and completion mask of each conversation (1 on its last message), and how many were too long.

    Order follows a fixed hash, so that tasks and answers mix. Raises `CorpusError` when nothing is left.
    """
    tokenizer = checkpoint.tokenizer
    if not tokenizer.chat_template:
        raise CorpusError(f"{checkpoint.folder} has no chat template, so conversations cannot be written: give an "
                          "instruct model")  # fmt: skip
    limit = min(max_length, checkpoint.config.get("max_position_embeddings", max_length))
    samples, too_long = [], 0
    for record in sorted(records, key=lambda r: unit_hash(json.dumps(r["messages"], sort_keys=True))):
        messages = record["messages"]
        if messages[-1]["role"] != "assistant":
            raise CorpusError(f"a conversation ends with the role '{messages[-1]['role']}', not with 'assistant': "
                              "tuning data must hold the answers")  # fmt: skip
        prompt, ids = chat_ids(tokenizer, messages[:-1], ask=True), chat_ids(tokenizer, messages)
        if ids[: len(prompt)] != prompt:
            raise LepError(f"the chat template of {checkpoint.folder} does not continue its own prompt: the answers "
                           "cannot be told from the questions")  # fmt: skip
        if len(ids) > limit:
            too_long += 1
            continue
        samples.append({"input_ids": ids, "completion_mask": [0] * len(prompt) + [1] * (len(ids) - len(prompt))})
    if not samples:
        raise CorpusError(f"no conversation to train on: {len(records)} given, {too_long} longer than {limit} tokens")
    return samples, too_long


def _train_adapter(
    checkpoint: Checkpoint, samples: list[dict[str, list[int]]], folder: Path, settings: LoraSettings, scope: Scope
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    import logging

    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer

    logging.getLogger("trl").setLevel(logging.ERROR)
    model = _loaded(checkpoint, settings)
    chosen = lora_arguments(model, checkpoint, settings, scope)
    adapter = get_peft_model(model, LoraConfig(**chosen))
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    steps, batches = _batches(settings, len(samples))
    arguments = SFTConfig(
        max_length=None, packing=False, completion_only_loss=True, **batches,
        **common_arguments(settings, folder / "work" / "trainer", steps),
    )  # fmt: skip

    class AnswerTrainer(SFTTrainer):
        """trl's own loss walks over the vocabulary in tiles made for GPUs, which take very long on a CPU."""

        compute_loss = Trainer.compute_loss

    trainer = AnswerTrainer(
        model=adapter, args=arguments, train_dataset=Dataset.from_list(in_order(samples, settings)),
        processing_class=checkpoint.tokenizer,
    )  # fmt: skip
    chunk_loss(trainer)
    losses = run(trainer, folder / "work" / "trainer")
    # Unwrapped: the trainer leaves its bf16 autocast on the model, which would hide a wrong merge in rounding.
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).float().cpu().eval()
    if not scope.merge:
        _save_adapter(trained, chosen, folder / UNMERGED)
    probe = torch.tensor([max(samples, key=lambda s: len(s["input_ids"]))["input_ids"]])
    with torch.inference_mode():
        expected = trained(input_ids=probe).logits
        merged: PreTrainedModel = trained.merge_and_unload()
        error = ((merged(input_ids=probe).logits - expected).abs().max() / expected.abs().max()).item()
    if error > MERGE_TOLERANCE:
        raise LepError(f"the merged model's logits differ from the adapter's by {error:.1e} of the largest one")
    changed = _changed_tensors(checkpoint, merged)
    if not scope.merge:
        tables = set(checkpoint.tables.by_kind().values())
        changed = {name: tensor for name, tensor in changed.items() if name in tables}
    record = {"steps": steps, "losses": losses, "merge_error": error, "changed_tensors": sorted(changed)}
    return changed, record


def _train_new_rows(
    checkpoint: Checkpoint, samples: list[dict[str, list[int]]], folder: Path, settings: LoraSettings, scope: Scope
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if not scope.merge:
        raise LepError("training new rows makes no adapter that could be left beside the model: leave --no-merge out")
    rows = new_rows(checkpoint)
    model = _loaded(checkpoint, settings)
    model.requires_grad_(False)
    tables = split_tables(model, rows)
    before = frozen_digest(model)
    steps, batches = _batches(settings, len(samples))
    arguments = TrainingArguments(
        remove_unused_columns=False, **batches, **common_arguments(settings, folder / "work" / "trainer", steps)
    )
    trainer = TablesTrainer(
        model=model, args=arguments, train_dataset=in_order(samples, settings), data_collator=collate_answers
    )
    chunk_loss(trainer)
    losses = run(trainer, folder / "work" / "trainer")
    check_frozen(before, model)
    changed = stored_tables(checkpoint, rows, {kind: table.whole() for kind, table in tables.items()})
    return changed, {"steps": steps, "losses": losses, "changed_tensors": sorted(changed)}


def _loaded(checkpoint: Checkpoint, settings: LoraSettings) -> PreTrainedModel:
    dtype = "auto" if uses_bf16(settings) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype, trust_remote_code=False)
    model.config.use_cache = False
    return model


def _batches(settings: LoraSettings, samples: int) -> tuple[int, dict[str, Any]]:
    """Optimizer steps, and how samples, in the order of `in_order`, are shared out to them."""
    accumulation, micro = _micro_batches(settings)
    steps = max(1, round(settings.epochs * samples / (micro * accumulation)))
    return steps, {
        "per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "sequential",
    }  # fmt: skip


def _micro_batches(settings: LoraSettings) -> tuple[int, int]:
    """How many of them make a step, and the samples of each."""
    accumulation = math.ceil(settings.batch_size / settings.micro_batch_size)
    return accumulation, math.ceil(settings.batch_size / accumulation)


def in_order(samples: list[dict[str, list[int]]], settings: LoraSettings) -> list[dict[str, list[int]]]:
    """The samples of all epochs in a random order in which those of a micro-batch are of like length.

    So little is padded, and a step still has samples of every length. The order is that of the seed alone, so that
    an interrupted training finds it again.
    """
    rng, micro = random.Random(settings.seed), _micro_batches(settings)[1]
    epochs = [sample for _ in range(math.ceil(settings.epochs)) for sample in rng.sample(samples, len(samples))]
    wanted = epochs[: max(1, round(settings.epochs * len(samples)))]
    ordered: list[dict[str, list[int]]] = []
    for start in range(0, len(wanted), SORTED_BATCHES * micro):
        part = sorted(wanted[start : start + SORTED_BATCHES * micro], key=lambda sample: len(sample["input_ids"]))
        batches = [part[i : i + micro] for i in range(0, len(part), micro)]
        last = [batches.pop()] if len(batches[-1]) < micro else []  # stays last, so that the others stay whole
        rng.shuffle(batches)
        ordered += [sample for batch in batches + last for sample in batch]
    return ordered


def collate_answers(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Samples of `encode_records` as a batch: (n, longest) ids and mask, and labels on the answers alone."""
    width = max(len(sample["input_ids"]) for sample in samples)
    ids, mask = torch.zeros(2, len(samples), width, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for row, sample in enumerate(samples):
        tokens, learned = (torch.tensor(sample[name]) for name in ("input_ids", "completion_mask"))
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, : len(tokens)] = torch.where(learned == 1, tokens, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _save_adapter(trained: Any, arguments: dict[str, Any], folder: Path) -> None:
    """The adapter of the body in peft's format, without the tables that trained in full: these are the model's."""
    from peft import LoraConfig, get_peft_model_state_dict

    factors = {name: t.contiguous() for name, t in get_peft_model_state_dict(trained).items() if "lora_" in name}
    folder.mkdir(exist_ok=True)
    save_file(factors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    alone = {name: value for name, value in arguments.items() if name not in ("modules_to_save", "ensure_weight_tying")}
    LoraConfig(**alone, inference_mode=True).save_pretrained(str(folder))


def lora_arguments(
    model: PreTrainedModel, checkpoint: Checkpoint, settings: LoraSettings, scope: Scope
) -> dict[str, Any]:
    """Arguments of peft's LoraConfig for any architecture: projections and layers are found by looking."""
    inside = projections(model)
    layers = 1 + max(number for _, number, _ in inside)
    arguments: dict[str, Any] = {
        "r": settings.rank, "lora_alpha": settings.alpha, "task_type": "CAUSAL_LM",
        "target_modules": sorted({name for _, _, name in inside}),
        "modules_to_save": [
            name.removesuffix(".weight").rsplit(".", 1)[-1]
            for kind in scope.tables
            if (name := getattr(checkpoint.tables, kind) or checkpoint.tables.input)
        ],
    }  # fmt: skip
    if scope.layers == "outer":
        arguments |= {"layers_to_transform": [0, layers - 1], "layers_pattern": inside[0][0]}
    if checkpoint.tables.output is None:
        arguments |= {"modules_to_save": arguments["modules_to_save"][:1], "ensure_weight_tying": True}
    return arguments


def _changed_tensors(checkpoint: Checkpoint, merged: PreTrainedModel) -> dict[str, torch.Tensor]:
    changed = {}
    for name, tensor in merged.state_dict().items():
        if name in checkpoint.shard_of:
            before = checkpoint.tensor(name)
            after = tensor.to(before.dtype)
            if not torch.equal(before, after):
                changed[name] = after.contiguous()
    return changed
