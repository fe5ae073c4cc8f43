"""Continued pre-training on plain text: embeddings and head train, the body is frozen (section 3.4)."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainingArguments, set_seed

from lep.checkpoint.mappings import INIT_FILE, MAPPING_FILES, saved_mappings
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.writer import rewritten_bytes, write_checkpoint
from lep.corpus.pack import packed, token_pieces
from lep.corpus.read import corpus_files, read_documents
from lep.errors import CheckpointError, LepError, TrainingError
from lep.publish import check_output, check_space, fingerprint, publishing
from lep.settings import PretrainSettings
from lep.tokenizer.load import copy_tokenizer
from lep.training.frozen import check_frozen, frozen_digest
from lep.training.rows import split_tables
from lep.training.trainer import ChunkedLossTrainer, common_arguments, run, uses_bf16
from lep.training.watch import HeldoutText

LARGEST_BATCH_TOKENS, LEAST_STEPS, LARGEST_BLOCK = 262_144, 500, 1024  # the paper's batch and block
STATE_COPIES = 6  # of the float32 tables: weights and two moments, in two saved states


def pretrain(model: str | Path, corpus: list[str | Path], output: Path, settings: PretrainSettings) -> dict[str, Any]:
    """Train the tables of `model`, or their new rows, on the documents of `corpus` and write the result to `output`.

    What trains is float32 whatever the checkpoint's dtype, and is stored in that dtype again. Documents do not see
    each other. A run that was interrupted continues from its last state when it is started again with the same
    arguments. Every frozen tensor, and every row that stays, is proven unchanged, bit for bit.

    Returns the record that is also written to `lep/pretrain.json`: losses in nats per token, tokens, seconds.
    """
    if settings.patience and not settings.eval_text:
        raise TrainingError("patience needs held-out text to look at: give eval_text (--eval-text NAME=PATH)")
    checkpoint, files = Checkpoint(model).check(), corpus_files(corpus)
    files += corpus_files(path for paths in settings.eval_text.values() for path in paths)
    stamps = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = fingerprint([checkpoint.stamp(), stamps, settings.model_dump()])
    check_output(output)
    rows = _trained_rows(checkpoint, settings)
    names = checkpoint.tables.by_kind()
    floats = sum(len(rows[kind]) * checkpoint.shape(name)[1] for kind, name in names.items())
    check_space(output, rewritten_bytes(checkpoint, names.values()) + STATE_COPIES * 4 * floats)
    with publishing(output, resume_key=key) as partial:
        set_seed(settings.seed)
        started = time.time()
        tables, record = _train(checkpoint, rows, corpus, partial / "work", settings, key)
        write_checkpoint(checkpoint, tables, partial)
        copy_tokenizer(checkpoint.folder, partial)
        (partial / "lep").mkdir(exist_ok=True)
        for file in (*MAPPING_FILES.values(), INIT_FILE):
            if (checkpoint.folder / file).exists():
                shutil.copyfile(checkpoint.folder / file, partial / file)
        record |= {"seconds": round(time.time() - started, 1), "settings": settings.model_dump()}
        (partial / "lep" / "pretrain.json").write_text(json.dumps(record, indent=1) + "\n")
        shutil.rmtree(partial / "work")
    return record


def _trained_rows(checkpoint: Checkpoint, settings: PretrainSettings) -> dict[str, torch.Tensor]:
    """The rows of each table that train, (n,) int64."""
    names = checkpoint.tables.by_kind()
    if settings.train == "embeddings":
        return {kind: torch.arange(checkpoint.shape(name)[0]) for kind, name in names.items()}
    mappings = saved_mappings(checkpoint)
    rows = {kind: mapping.new_rows() for kind, mapping in (mappings or {}).items()}
    if not mappings or not all(map(len, rows.values())):
        raise CheckpointError(
            f"{checkpoint.folder} does not say which of its rows are new (lep/mapping.safetensors): initialise it with "
            "lep init, or train all embeddings"
        )
    return rows


def _train(
    checkpoint: Checkpoint, rows: dict[str, torch.Tensor], corpus: list[str | Path], work: Path,
    settings: PretrainSettings, key: str,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:  # fmt: skip
    heldout = HeldoutText(settings.eval_text, settings.eval_characters, checkpoint.tokenizer)
    context = checkpoint.config.get("max_position_embeddings", LARGEST_BLOCK)
    block = min(settings.block_size or LARGEST_BLOCK, context)
    blocks = packed_blocks(checkpoint, corpus, block, work / "packed", key)
    sequences, accumulation, steps = schedule(settings, block, len(blocks))
    dtype = "auto" if uses_bf16(settings) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype, trust_remote_code=False)
    model.requires_grad_(False)
    model.config.use_cache = False
    isolated = isolates(model)
    if settings.train == "new_rows":
        split = split_tables(model, rows)
        whole = {kind: table.whole for kind, table in split.items()}
    else:
        weights = {"input": model.get_input_embeddings().weight, "output": model.get_output_embeddings().weight}
        for kind in rows:
            weights[kind].data = weights[kind].data.float()  # Adam's small steps would vanish in bf16
            weights[kind].requires_grad_(True)
        whole = {kind: weights[kind].detach for kind in rows}
    before = frozen_digest(model)
    chosen = common_arguments(settings, work / "trainer", steps)
    chosen |= _schedule_arguments(settings, steps) | _watch_arguments(settings, steps)
    arguments = TrainingArguments(
        per_device_train_batch_size=sequences // accumulation, gradient_accumulation_steps=accumulation,
        remove_unused_columns=False, **chosen,
    )  # fmt: skip
    trainer = ChunkedLossTrainer(
        model=model, args=arguments, train_dataset=blocks, data_collator=partial(collate, isolated=isolated),
        eval_dataset=blocks.select([0]) if heldout.texts else None,  # asked for; `heldout` is what is looked at
    )  # fmt: skip
    trainer.heldout = heldout
    if settings.patience:
        trainer.add_callback(EarlyStoppingCallback(settings.patience))
    losses = run(trainer, work / "trainer")
    check_frozen(before, model)
    tables = {}
    for kind, name in checkpoint.tables.by_kind().items():
        old = checkpoint.tensor(name)
        tables[name] = whole[kind]().cpu().to(old.dtype)
        stay = torch.ones(len(old), dtype=torch.bool).index_fill_(0, rows[kind], False)
        if not torch.equal(tables[name][stay], old[stay]):
            raise AssertionError(f"a row of {name} that stays changed during training")
    tokens = _tokens(blocks)
    record = {
        "tokens": round(trainer.state.epoch * tokens), "steps": steps, "block_size": block, "corpus_tokens": tokens,
        "blocks": len(blocks), "trained_rows": {kind: len(found) for kind, found in rows.items()},
        "documents_isolated": isolated, "frozen_tensors": len(before), "losses": losses,
    }  # fmt: skip
    if settings.eval_text:
        record |= {
            "best_step": int(str(trainer.state.best_model_checkpoint).rpartition("-")[2]),
            "heldout_bits_per_byte": [
                {"step": entry["step"]} | {name: entry[f"eval_{name}"] for name in settings.eval_text}
                for entry in trainer.state.log_history if f"eval_{next(iter(settings.eval_text))}" in entry
            ],
        }  # fmt: skip
    return tables, record


def _watch_arguments(settings: PretrainSettings, steps: int) -> dict[str, Any]:
    if not settings.eval_text:
        return {}
    return {
        "eval_strategy": "steps", "eval_steps": max(1, steps // settings.checkpoints), "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{next(iter(settings.eval_text))}", "greater_is_better": False,
        "restore_callback_states_from_checkpoint": settings.patience is not None,
    }  # fmt: skip


def _schedule_arguments(settings: PretrainSettings, steps: int) -> dict[str, Any]:
    if settings.schedule == "cosine":
        return {}
    decay = {"num_decay_steps": max(1, round(settings.decay_share * steps))}
    return {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": decay}


@torch.no_grad()
def isolates(model: Any) -> bool:
    """Whether position ids that begin again keep the pieces of a block apart in this architecture."""
    ids = torch.arange(16, device=model.device)[None] % model.config.get_text_config().vocab_size
    positions = torch.arange(8, device=model.device).repeat(2)[None]
    try:
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 8:].float()
    except (TypeError, ValueError):  # knows no position ids
        return False
    alone = model(input_ids=ids[:, 8:], use_cache=False).logits.float()
    return bool((together - alone).abs().max() <= 0.02 * alone.abs().max())


def batch_of(settings: PretrainSettings) -> int:
    """Tokens a step."""
    return settings.batch_tokens or max(1, min(LARGEST_BATCH_TOKENS, settings.tokens // LEAST_STEPS))


def schedule(settings: PretrainSettings, block: int, blocks: int) -> tuple[int, int, int]:
    """Sequences a step (no more than there are), accumulation steps, and optimizer steps for a token budget."""
    sequences = min(blocks, max(1, round(batch_of(settings) / block)))
    accumulation = max(1, math.ceil(sequences * block / settings.micro_batch_tokens))
    micro = math.ceil(sequences / accumulation)
    return micro * accumulation, accumulation, max(1, math.ceil(settings.tokens / (micro * accumulation * block)))


def packed_blocks(checkpoint: Checkpoint, corpus: list[str | Path], block: int, folder: Path, key: str) -> Dataset:
    """The corpus as memory-mapped blocks of token ids and the lengths of the pieces in them; no token is lost."""

    def generate() -> Iterator[dict[str, Any]]:
        for pieces in packed(token_pieces(read_documents(corpus), checkpoint.tokenizer, block), block):
            yield {"input_ids": [token for piece in pieces for token in piece], "lengths": [len(p) for p in pieces]}

    features = Features({"input_ids": List(Value("int32")), "lengths": List(Value("int32"))})
    try:
        return Dataset.from_generator(generate, features=features, cache_dir=str(folder), fingerprint=key)
    except DatasetGenerationError as error:  # datasets wraps what the reader has to say
        if isinstance(error.__cause__, LepError):
            raise error.__cause__ from None
        raise


def collate(samples: list[dict[str, Any]], *, isolated: bool = True) -> dict[str, torch.Tensor]:
    """Stack blocks; a shorter one is filled at its end, where the loss does not look.

    Positions begin again with each piece, which keeps pieces apart; what a piece begins with is not predicted from the
    one before.
    """
    width = max(len(sample["input_ids"]) for sample in samples)
    ids, positions = torch.zeros(2, len(samples), width, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for row, sample in enumerate(samples):
        tokens = torch.as_tensor(sample["input_ids"], dtype=torch.int64)
        ids[row, : len(tokens)] = labels[row, : len(tokens)] = tokens
        lengths = [*sample["lengths"], width - len(tokens)]
        positions[row] = torch.cat([torch.arange(length) for length in lengths])
        labels[row, torch.tensor([0, *lengths[:-2]]).cumsum(0)] = -100
    return {"input_ids": ids, "labels": labels} | ({"position_ids": positions} if isolated else {})


def _tokens(blocks: Dataset) -> int:
    import pyarrow.compute

    return int(pyarrow.compute.sum(pyarrow.compute.list_value_length(blocks.data.column("input_ids"))).as_py())
