"""Continued pre-training on plain text: embeddings and head train, the body is frozen (section 3.4)."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetGenerationError
from transformers import AutoModelForCausalLM, TrainingArguments, set_seed

from lep.checkpoint.mappings import INIT_FILE, MAPPING_FILES
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.writer import rewritten_bytes, write_checkpoint
from lep.corpus.pack import pack, tokenize_documents
from lep.corpus.read import corpus_files, read_documents
from lep.errors import LepError
from lep.publish import check_output, check_space, fingerprint, publishing
from lep.settings import PretrainSettings
from lep.tokenizer.load import copy_tokenizer
from lep.training.frozen import check_frozen, frozen_digest
from lep.training.trainer import ChunkedLossTrainer, common_arguments, run, uses_bf16

LARGEST_BATCH_TOKENS, LEAST_STEPS, LARGEST_BLOCK = 262_144, 500, 1024  # the paper's batch and block
STATE_COPIES = 6  # of the float32 tables: weights and two moments, in two saved states


def pretrain(model: str | Path, corpus: list[str | Path], output: Path, settings: PretrainSettings) -> dict[str, Any]:
    """Train the tables of `model` on the documents of `corpus` and write the result to `output`.

    Tables train in float32 whatever the checkpoint's dtype, and are stored in that dtype again. A run that was
    interrupted continues from its last state when it is started again with the same arguments. Every frozen
    tensor is proven unchanged, bit for bit.

    Returns the record that is also written to `lep/pretrain.json`: losses in nats per token, tokens, seconds.
    """
    checkpoint, files = Checkpoint(model).check(), corpus_files(corpus)
    stamps = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    key = fingerprint([checkpoint.stamp(), stamps, settings.model_dump()])
    check_output(output)
    tables_bytes = sum(math.prod(checkpoint.shape(name)) * 4 for name in checkpoint.tables.names)
    check_space(output, rewritten_bytes(checkpoint, checkpoint.tables.names) + STATE_COPIES * tables_bytes)
    with publishing(output, resume_key=key) as partial:
        set_seed(settings.seed)
        started = time.time()
        tables, record = _train(checkpoint, corpus, partial / "work", settings, key)
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


def _train(
    checkpoint: Checkpoint, corpus: list[str | Path], work: Path, settings: PretrainSettings, key: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    context = checkpoint.config.get("max_position_embeddings", LARGEST_BLOCK)
    block = min(settings.block_size or LARGEST_BLOCK, context)
    blocks = packed_blocks(checkpoint, corpus, block, work / "packed", key)
    sequences, accumulation, steps = schedule(settings, block, len(blocks))
    dtype = "auto" if uses_bf16(settings) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype, trust_remote_code=False)
    model.requires_grad_(False)
    trained = {checkpoint.tables.input: model.get_input_embeddings().weight}
    if checkpoint.tables.output is not None:
        trained[checkpoint.tables.output] = model.get_output_embeddings().weight
    for table in trained.values():
        table.data = table.data.float()  # Adam's small steps would vanish in bf16
        table.requires_grad_(True)
    model.config.use_cache = False
    before = frozen_digest(model)
    arguments = TrainingArguments(
        per_device_train_batch_size=sequences // accumulation, gradient_accumulation_steps=accumulation,
        **common_arguments(settings, work / "trainer", steps),
    )  # fmt: skip
    trainer = ChunkedLossTrainer(model=model, args=arguments, train_dataset=blocks, data_collator=collate)
    losses = run(trainer, work / "trainer")
    check_frozen(before, model)
    tables = {name: table.detach().cpu().to(checkpoint.tensor(name).dtype) for name, table in trained.items()}
    tokens = _tokens(blocks)
    record = {
        "tokens": round(trainer.state.epoch * tokens), "steps": steps, "block_size": block, "corpus_tokens": tokens,
        "frozen_tensors": len(before), "losses": losses,
    }  # fmt: skip
    return tables, record


def schedule(settings: PretrainSettings, block: int, blocks: int) -> tuple[int, int, int]:
    """Sequences a step (no more than there are), accumulation steps, and optimizer steps for a token budget."""
    batch = settings.batch_tokens or min(LARGEST_BATCH_TOKENS, settings.tokens // LEAST_STEPS)
    sequences = min(blocks, max(1, round(batch / block)))
    accumulation = max(1, math.ceil(sequences * block / settings.micro_batch_tokens))
    micro = math.ceil(sequences / accumulation)
    return micro * accumulation, accumulation, max(1, math.ceil(settings.tokens / (micro * accumulation * block)))


def packed_blocks(checkpoint: Checkpoint, corpus: list[str | Path], block: int, folder: Path, key: str) -> Dataset:
    """The corpus as memory-mapped blocks of token ids; no token is lost, the last block may be shorter."""

    def generate() -> Iterator[dict[str, Any]]:
        for ids in pack(tokenize_documents(read_documents(corpus), checkpoint.tokenizer), block):
            yield {"input_ids": ids}

    features = Features({"input_ids": List(Value("int32"))})
    try:
        return Dataset.from_generator(generate, features=features, cache_dir=str(folder), fingerprint=key)
    except DatasetGenerationError as error:  # datasets wraps what the reader has to say
        if isinstance(error.__cause__, LepError):
            raise error.__cause__ from None
        raise


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Stack blocks; a shorter one is filled at its end, where the loss does not look."""
    width = max(len(sample["input_ids"]) for sample in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.int64)
    labels = torch.full_like(ids, -100)
    for row, sample in enumerate(samples):
        tokens = torch.as_tensor(sample["input_ids"], dtype=torch.int64)
        ids[row, : len(tokens)] = labels[row, : len(tokens)] = tokens
    return {"input_ids": ids, "labels": labels}


def _tokens(blocks: Dataset) -> int:
    import pyarrow.compute

    return int(pyarrow.compute.sum(pyarrow.compute.list_value_length(blocks.data.column("input_ids"))).as_py())
