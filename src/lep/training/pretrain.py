"""Continued pre-training on plain text: embeddings and head train, the body is frozen (section 3.4)."""

import json
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainingArguments, set_seed

from lep.checkpoint.adapter import Factors, added, joined, save_factors, saved_factors
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import Rows
from lep.checkpoint.writer import rewritten_bytes, write_checkpoint
from lep.corpus.read import corpus_files, file_stamps
from lep.errors import TrainingError
from lep.publish import check_output, check_space, fingerprint
from lep.settings import PretrainSettings
from lep.tokenizer.load import copy_tokenizer
from lep.training.data import (
    LARGEST_BLOCK,
    batch_of,
    collate,
    isolates,
    packed_blocks,
    schedule,
    tokens_of,
)
from lep.training.frozen import check_frozen, frozen_digest
from lep.training.lora import adapter_factors, add_adapter
from lep.training.processes import (
    add_in_float32,
    held_share,
    is_main,
    join,
    main_first,
    publishing_once,
    wait,
    world_size,
)
from lep.training.rows import new_rows, split_tables, stored_tables, whole_tables
from lep.training.trainer import (
    TablesTrainer,
    chunk_loss,
    common_arguments,
    free_memory,
    look_steps,
    on_one_device,
    run,
    uses_bf16,
)
from lep.training.watch import HeldoutText
from lep.transfer.coverage import check_vocabulary
from lep.transfer.mappings import copy_mappings

STATE_COPIES = 3  # of the float32 tables in a saved state: weights and two moments
SWEPT_RATES, SWEPT_SHARE = (
    (0.1, 0.25, 0.5, 1.0),
    0.2,
)  # of the learning rate, and of the tokens (section 3.4)


def pretrain(
    model: str | Path, corpus: list[str | Path], output: Path, settings: PretrainSettings
) -> dict[str, Any]:
    """Train the tables of `model`, or their new rows, on the documents of `corpus` and write the result to `output`.

    What trains is float32 whatever the checkpoint's dtype, and is stored in that dtype again. Documents do not see
    each other. A run that was interrupted continues from its last state when it is started again with the same
    arguments. Every frozen tensor, and every row that stays, is proven unchanged, bit for bit. In several processes
    (`torchrun`, `accelerate launch`) all call this, and the first one writes.

    Returns the record that is also written to `lep/pretrain.json`: losses in nats per token, tokens, seconds.
    """
    for name in ("patience", "sweep"):
        if getattr(settings, name) and not settings.eval_text:
            raise TrainingError(
                f"{name} needs held-out text to look at: give eval_text (--eval-text NAME=PATH)"
            )
    checkpoint, files = Checkpoint(model).check(), corpus_files(corpus)
    check_vocabulary(corpus, checkpoint)
    files += corpus_files(path for paths in settings.eval_text.values() for path in paths)
    key = fingerprint([checkpoint.stamp(), file_stamps(files), settings.model_dump()])
    check_output(output)
    rows = _trained_rows(checkpoint, settings)
    names = checkpoint.tables.by_kind()
    floats = sum(len(rows[kind]) * checkpoint.shape(name)[1] for kind, name in names.items())
    changed = checkpoint.shard_of if "lora" in settings.train else names.values()
    check_space(
        output,
        rewritten_bytes(checkpoint, changed) + saved_states(settings) * STATE_COPIES * 4 * floats,
    )
    join()
    with publishing_once(output, key) as folder:
        started = time.time()
        heldout = HeldoutText(settings.eval_text, settings.eval_characters, checkpoint)
        context = checkpoint.config.get("max_position_embeddings", LARGEST_BLOCK)
        block = min(settings.block_size or LARGEST_BLOCK, context)
        with main_first():
            blocks = packed_blocks(checkpoint, corpus, block, folder / "work" / "packed", key)
        settings = settings.model_copy(
            update={"tokens": settings.budget(len(blocks) * block), "epochs": None}
        )
        settings = settings.model_copy(
            update={"batch_tokens": batch_of(settings)}
        )  # of a sweep's trials, too
        task = _Task(checkpoint, rows, blocks, block, heldout)
        swept = _sweep(task, folder / "work", settings) if settings.sweep else {}
        used = settings.model_copy(
            update={"learning_rate": swept.get("best", settings.learning_rate)}
        )
        trained, record = task.train(folder / "work" / "trainer", used)
        record |= {"seconds": round(time.time() - started, 1), "settings": used.model_dump()}
        record |= {"sweep": swept} if swept else {}
        if is_main():
            _write(checkpoint, trained, record, folder)
    return record


def saved_states(settings: PretrainSettings) -> int:
    """States that lie on the disk at once: the last one and the one being written, and the best one where one looks."""
    return 3 if settings.eval_text else 2


def _trained_rows(checkpoint: Checkpoint, settings: PretrainSettings) -> dict[str, Tensor]:
    """The rows of each table that train, (n,) int64."""
    if settings.train == "new_rows":
        return new_rows(checkpoint)
    return {
        kind: torch.arange(checkpoint.shape(name)[0])
        for kind, name in checkpoint.tables.by_kind().items()
    }


@dataclass(frozen=True)
class _Trained:
    tables: dict[str, Tensor]  # by name, in the checkpoint's dtype
    factors: Factors  # of what adapters add to the body


@dataclass(frozen=True)
class _Task:
    """What a training and the trials before it have in common."""

    checkpoint: Checkpoint
    rows: dict[str, Tensor]
    blocks: Dataset
    block: int
    heldout: HeldoutText

    def train(self, folder: Path, settings: PretrainSettings) -> tuple[_Trained, dict[str, Any]]:
        set_seed(settings.seed)
        sequences, accumulation, steps = schedule(
            settings, self.block, len(self.blocks), world_size()
        )
        dtype = "auto" if uses_bf16(settings) else torch.float32
        model = AutoModelForCausalLM.from_pretrained(
            self.checkpoint.folder, dtype=dtype, trust_remote_code=False
        )
        model.requires_grad_(False)
        model.config.use_cache = False
        isolated = isolates(model)
        names: dict[str, str] = {}
        if "lora" in settings.train:
            names = add_adapter(model, self.checkpoint, settings.lora_rank, settings.lora_alpha)
        if settings.train == "new_rows":
            tables = {kind: table.whole for kind, table in split_tables(model, self.rows).items()}
        else:
            tables = whole_tables(model, self.rows)
        before = frozen_digest(model)
        chosen = common_arguments(settings, folder, steps)
        chosen |= _schedule_arguments(settings, steps) | _watch_arguments(settings, steps)
        arguments = TrainingArguments(
            per_device_train_batch_size=sequences // accumulation // world_size(),
            gradient_accumulation_steps=accumulation,
            remove_unused_columns=False,
            **chosen,
        )
        trainer = TablesTrainer(
            model=model,
            args=on_one_device(arguments),
            train_dataset=self.blocks,
            data_collator=partial(collate, isolated=isolated),
            eval_dataset=self.blocks.select([0])
            if settings.eval_text
            else None,  # asked for; `heldout` is looked at
        )
        trainer.heldout = self.heldout
        add_in_float32(trainer.accelerator.state)
        if settings.patience:
            trainer.add_callback(EarlyStoppingCallback(settings.patience))
        chunk_loss(trainer)
        losses = run(trainer, folder)
        wait()  # the best state has been read by all before the first process removes it
        check_frozen(before, model)
        factors = adapter_factors(model, names)
        found = {kind: table() for kind, table in tables.items()}
        trained = _Trained(stored_tables(self.checkpoint, self.rows, found), factors)
        tokens = tokens_of(self.blocks)
        record = {
            "tokens": round(trainer.state.epoch * tokens),
            "steps": steps,
            "block_size": self.block,
            "corpus_tokens": tokens,
            "blocks": len(self.blocks),
            "trained_rows": {kind: len(found) for kind, found in self.rows.items()},
            "documents_isolated": isolated,
            "frozen_tensors": len(before),
            "processes": world_size(),
            "share_of_weights_held": held_share(model),
            "losses": losses,
        }
        if settings.eval_text:
            if trainer.state.best_model_checkpoint is None:
                raise TrainingError(
                    f"no state of the training at {settings.learning_rate:g} could be used: {losses[-1]}"
                )
            record["best_step"] = int(str(trainer.state.best_model_checkpoint).rpartition("-")[2])
            record["looks"] = self.heldout.looks(trainer.state.log_history)
        del trainer, model, tables, found
        free_memory()
        return trained, record


def _sweep(task: _Task, work: Path, settings: PretrainSettings) -> dict[str, Any]:
    """Bits per byte of the first held-out text after a short training at each rate, by rate, and the best rate.

    A trial that was finished is not run again.
    """
    language = next(iter(settings.eval_text))
    found: dict[float, float | None] = {}
    for share in SWEPT_RATES:
        rate = share * settings.learning_rate
        place = work / f"sweep-{rate:g}"
        score = work / f"{place.name}.json"
        if score.exists():
            found[rate] = json.loads(score.read_text())
        else:
            short = {
                "tokens": max(1, round(SWEPT_SHARE * settings.budget(0))),
                "learning_rate": rate,
                "checkpoints": 1,
            }
            try:
                _, record = task.train(place, settings.model_copy(update=short))
                found[rate] = min(look["bits_per_byte"][language] for look in record["looks"])
            except TrainingError:  # it diverged
                found[rate] = None
            free_memory()
            if is_main():
                score.write_text(json.dumps(found[rate]))
                shutil.rmtree(place, ignore_errors=True)
            wait()
    usable = {rate: bits for rate, bits in found.items() if bits is not None}
    if not usable:
        rates = ", ".join(f"{rate:g}" for rate in found)
        raise TrainingError(
            f"every rate of the sweep diverged ({rates}): give a lower learning rate"
        )
    best = min(usable, key=lambda rate: usable[rate])
    return {"bits_per_byte": {f"{rate:g}": bits for rate, bits in found.items()}, "best": best}


def _write(checkpoint: Checkpoint, trained: _Trained, record: dict[str, Any], folder: Path) -> None:
    changed: dict[str, Tensor | Rows] = {**trained.tables, **added(checkpoint, trained.factors)}
    write_checkpoint(checkpoint, changed, folder)
    copy_tokenizer(checkpoint.folder, folder)
    (folder / "lep").mkdir(exist_ok=True)
    copy_mappings(checkpoint, folder)
    factors = joined(saved_factors(checkpoint.folder), trained.factors)
    if factors:
        save_factors(factors, folder)
    (folder / "lep" / "pretrain.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(folder / "work")


def _watch_arguments(settings: PretrainSettings, steps: int) -> dict[str, Any]:
    if not settings.eval_text:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": look_steps(steps, settings.checkpoints),
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{next(iter(settings.eval_text))}",
        "greater_is_better": False,
        "restore_callback_states_from_checkpoint": settings.patience is not None,
    }


def _schedule_arguments(settings: PretrainSettings, steps: int) -> dict[str, Any]:
    if settings.schedule == "cosine":
        return {}
    decay = {"num_decay_steps": max(1, round(settings.decay_share * steps))}
    return {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": decay}
