"""Continued pre-training on plain text: the tables train, the body is frozen (section 3.4)."""

import json
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from torch import Tensor
from transformers import EarlyStoppingCallback, set_seed

from lep.checkpoint.adapter import Factors, added, check_merged, joined, save_factors, saved_factors
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.writer import rewritten_bytes
from lep.corpus.files import Paths, all_paths, corpus_files, file_stamps
from lep.durable import discard, sync_tree
from lep.errors import TrainingError
from lep.files import parse_json, read_text
from lep.inference.models import context_of
from lep.publish import check_output, check_space, fingerprint, publish_text
from lep.settings import RELATIVE_RATE, JointSettings, PretrainSettings
from lep.training import data, lora, processes, streams, trainable_rows
from lep.training.heldout import ALL_LANGUAGES, HeldoutText
from lep.training.rates import relative_rates
from lep.training.reporters import check_reporters
from lep.training.results import PretrainResult, Sweep, TableRate, write_record
from lep.training.states import check_step, last_state, state_step
from lep.training.trainer import (
    LOOK_SECONDS,
    TablesTrainer,
    load_to_train,
    look_steps,
    run,
    training_arguments,
    with_precision,
    write_trained,
)
from lep.transfer.coverage import check_vocabulary
from lep.transfer.mappings import saved_mappings

STATE_COPIES = 3  # of the float32 tables in a saved state: weights and two moments
SWEPT_RATES = (0.1, 0.25, 0.5, 1.0)  # of the learning rate (section 3.4)
SWEPT_SHARE = 0.2  # of the tokens
# Of a mixture. A row of the input table has a gradient only where its token occurs, and the usual
# .999 forgets the steps without one so slowly that a rare token takes many times the rate.
ADAM_BETA2 = 0.98
LORA_RATE = 2e-4  # of adapters beside rows with a relative rate


def pretrain(
    model: str | Path,
    corpus: Paths,
    output: str | Path,
    settings: PretrainSettings | None = None,
    **options: Any,
) -> PretrainResult:
    """Train the tables of `model`, or their new rows, on the documents of `corpus`.

    Writes the trained model, with a record in `lep/pretrain.json`, to the new folder `output`.
    Settings are given as keywords or as one object, for example `tokens=2_000_000`. Trained tensors
    are float32, and stored in the checkpoint's dtype again. Documents do not see each other. All
    frozen tensors and rows are proven unchanged, bit for bit. An interrupted run continues when it
    is called again with the same arguments. Under `torchrun` or `accelerate launch`, all processes
    call this, and the first one writes.

    Raises `CheckpointError`, `CorpusError` and `OutputError` for unusable inputs or output,
    `TrainingError` for a loss that diverges.
    """
    output, settings = Path(output), with_precision(_settings(settings, options))
    for name in ("patience", "sweep"):
        if getattr(settings, name) and not settings.eval_text:
            raise TrainingError(
                f"{name} needs held-out text to look at: give eval_text (--eval-text NAME=PATH)"
            )
    check_reporters(settings)
    check_output(output)
    checkpoint, files = check_merged(Checkpoint(model).check()), corpus_files(corpus)
    check_vocabulary(corpus, checkpoint)
    files += corpus_files(all_paths(settings.eval_text))
    if isinstance(settings, JointSettings):
        files += streams.files_of(settings)
    key = fingerprint([checkpoint.stamp(), file_stamps(files), settings.model_dump()])
    rows, new_rows = _trained_rows(checkpoint, settings), _new_rows(checkpoint)
    names = checkpoint.tables.by_kind()
    floats = sum(len(rows[kind]) * checkpoint.shape(name)[1] for kind, name in names.items())
    states = saved_states(settings) * STATE_COPIES * 4 * floats
    changed = checkpoint.shard_of if settings.has_adapters else names.values()
    check_space(output, states + rewritten_bytes(checkpoint, changed))
    processes.join()
    key = processes.from_main(key)  # each disk may have its own times of the same files
    with processes.publishing_once(output, key) as folder:
        work = folder / "work"
        heldout = HeldoutText(settings.eval_text, settings.eval_characters, checkpoint)
        block = settings.block_size or data.LARGEST_BLOCK
        block = min(block, context_of(checkpoint, block))
        with processes.main_first():
            packed = work / "packed"
            if isinstance(settings, JointSettings) and settings.is_mixture:
                new = set(new_rows.tolist())
                blocks = streams.mixed_blocks(checkpoint, corpus, settings, new, block, packed, key)
                tokens = len(blocks) * block  # they are the whole training
            else:
                budget = settings.tokens
                blocks = data.packed_blocks(checkpoint, corpus, block, packed, key, budget)
                tokens = settings.budget(len(blocks) * block)
        settings = _updated(settings, tokens=tokens, epochs=None)
        settings = _updated(settings, batch_tokens=data.batch_of(settings))  # a sweep uses the same
        shares = settings, block, len(blocks), processes.world_size()
        data.check_sharing(*shares)
        check_step(work, data.schedule(*shares)[0])
        first = blocks[0]["input_ids"]
        if rates := relative_rates(checkpoint, rows, settings, first, work):
            settings = _updated(settings, learning_rate=rates["input"].rate)
        if look := data.look_tokens(settings):
            heldout.limit(look)
        task = _Task(checkpoint, rows, new_rows, blocks, block, heldout, output, rates)
        sweep = _sweep(task, work, settings) if settings.sweep else None
        if sweep:
            settings = _updated(settings, learning_rate=sweep.best)
        result, tables, factors = task.train(work / "trainer", settings)
        clear_device_cache(garbage_collection=True)
        result = replace(result, sweep=sweep)
        if processes.is_main():
            write_trained(checkpoint, {**tables, **added(checkpoint, factors)}, folder)
            if factors := joined(saved_factors(checkpoint.folder), factors):
                save_factors(factors, folder)
            write_record(result, folder / "lep" / "pretrain.json")
            sync_tree(folder)  # before the state that the training could go on from is gone
            discard(work)
    return result


def saved_states(settings: PretrainSettings) -> int:
    """States on the disk at once: the last, the one being written, the best on `eval_text`."""
    return 3 if settings.eval_text else 2


def _settings(settings: PretrainSettings | None, options: dict[str, Any]) -> PretrainSettings:
    """The settings given; those of plain text where nothing belongs to a mixture."""
    if isinstance(settings, PretrainSettings) and not isinstance(settings, JointSettings):
        return PretrainSettings.given(settings, options)
    joint = JointSettings.given(settings, options)
    usual = joint.is_mixture and joint.trains_new_rows
    if usual and not {"learning_rate", "relative_rate"} & joint.model_fields_set:
        return joint.model_copy(update={"relative_rate": RELATIVE_RATE})
    if joint.is_mixture or joint.relative_rate or joint.lora_rate:
        return joint
    return PretrainSettings(
        **joint.model_dump(include={*PretrainSettings.model_fields}, exclude_unset=True),
        **joint.unhashed(),
    )


def _updated(settings: PretrainSettings, **values: Any) -> PretrainSettings:
    return settings.model_copy(update=values)


def _trained_rows(checkpoint: Checkpoint, settings: PretrainSettings) -> dict[str, Tensor]:
    """The rows of each table that train, (n,) int64."""
    if settings.trains_new_rows:
        return trainable_rows.new_token_rows(checkpoint)
    names = checkpoint.tables.by_kind()
    return {kind: torch.arange(checkpoint.shape(name)[0]) for kind, name in names.items()}


def _new_rows(checkpoint: Checkpoint) -> Tensor:
    """The input rows of new tokens, (n,) int64; none where they are not known."""
    mappings = saved_mappings(checkpoint, appended=True)
    return mappings["input"].new_rows() if mappings else torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class _Task:
    """What a training and the trials of its sweep have in common."""

    checkpoint: Checkpoint
    rows: dict[str, Tensor]
    new_rows: Tensor
    blocks: Dataset
    block: int
    heldout: HeldoutText
    output: Path
    rates: dict[str, TableRate] | None

    def train(
        self, folder: Path, settings: PretrainSettings
    ) -> tuple[PretrainResult, dict[str, Tensor], Factors]:
        """Train once, with states in `folder`. Raises `TrainingError` when the loss diverges."""
        set_seed(settings.seed)
        model = load_to_train(self.checkpoint, settings).requires_grad_(False)
        isolated, names = data.isolates(model), {}
        if settings.has_adapters:
            rank, alpha = settings.lora_rank, settings.lora_alpha
            names = lora.add_adapter(model, self.checkpoint, rank, alpha)
        if settings.trains_new_rows:
            trainable_rows.split_tables(model, self.rows, self._features(settings))
        else:
            trainable_rows.whole_tables(model, self.rows)
        before = trainable_rows.frozen_digest(model)
        trainer = self._trainer(model, folder, settings, isolated=isolated)
        if self.is_mixture:
            trainer.stream_sums = streams.StreamSums()
            trainer.stream_weights = streams.stream_weights(settings.train)
        processes.wait()  # each has read the weights in its own time
        losses, seconds = run(trainer)
        processes.wait()  # until all have read the best state, which the first process deletes
        trainable_rows.check_frozen(before, model)
        tables = trainable_rows.stored_tables(self.checkpoint, self.rows, model)
        state, packed_tokens = trainer.state, data.tokens_of(self.blocks)
        best = state.best_model_checkpoint
        result = PretrainResult(
            tokens=round(state.epoch * packed_tokens),
            steps=state.global_step,
            block_size=self.block,
            packed_tokens=packed_tokens,
            blocks=len(self.blocks),
            step_tokens=self._schedule(settings)[0] * self.block,
            trained_rows={kind: len(rows) for kind, rows in self.rows.items()},
            documents_isolated=isolated,
            frozen_tensors=len(before),
            processes=processes.world_size(),
            share_of_weights_held=processes.held_share(model),
            losses=losses,
            best_step=state_step(best) if best else None,
            looks=self.heldout.looks(state.log_history) if best else None,
            **self._mixture(settings, state.log_history),
            seconds=seconds,
            look_seconds=round(sum(e.get(LOOK_SECONDS, 0) for e in state.log_history), 1),
            rates=self._peaks(settings),
            settings=settings,
            output=self.output,
        )
        return result, tables, lora.adapter_factors(model, names)

    def _schedule(self, settings: PretrainSettings) -> tuple[int, int, int]:
        return data.schedule(settings, self.block, len(self.blocks), processes.world_size())

    def _peaks(self, settings: PretrainSettings) -> dict[str, TableRate] | None:
        """Peak rates of the tables in this training; those of a sweep are shares of the usual."""
        if not self.rates:
            return None
        share = settings.learning_rate / self.rates["input"].rate
        return {
            table: TableRate(peak.rate * share, peak.share * share)
            for table, peak in self.rates.items()
        }

    def _features(self, settings: PretrainSettings) -> dict[str, Tensor] | None:
        """The features of new rows that train a map in common, if they do."""
        wanted = isinstance(settings, JointSettings) and settings.has_maps
        if not (wanted and self.is_mixture):
            return None
        return trainable_rows.row_features(self.checkpoint, self.rows)

    @property
    def is_mixture(self) -> bool:
        return "streams" in self.blocks.column_names

    def _mixture(
        self, settings: PretrainSettings, history: list[dict[str, float]]
    ) -> dict[str, Any]:
        """What a result says about its mixture."""
        if not (isinstance(settings, JointSettings) and self.is_mixture):
            return {}
        mixture, new_rows = streams.Mixture.of(self.blocks), self.new_rows.tolist()
        measured = new_rows and settings.trains_new_rows  # tables as a whole do not tell them apart
        return {
            "streams": mixture.records(history),
            "new_token_mass": streams.logged(history, streams.MASS) if measured else None,
            "below_practice": mixture.rarer_than(settings.practice, new_rows),
            "median_learned": mixture.median_count(new_rows),
        }

    def _trainer(
        self, model: Any, folder: Path, settings: PretrainSettings, *, isolated: bool
    ) -> TablesTrainer:
        sequences, accumulation, steps = self._schedule(settings)
        options: dict[str, Any] = {"gradient_accumulation_steps": accumulation}
        options["per_device_train_batch_size"] = sequences // accumulation // processes.world_size()
        if self.is_mixture:
            options["adam_beta2"] = ADAM_BETA2
        if settings.schedule == "wsd":
            decay = max(1, round(settings.decay_share * steps))
            options["lr_scheduler_type"] = "warmup_stable_decay"
            options["lr_scheduler_kwargs"] = {"num_decay_steps": decay}
        if first := next(iter(settings.eval_text), None):
            options |= {
                "eval_strategy": "steps",
                "eval_steps": look_steps(steps, settings.checkpoints),
                "eval_on_start": last_state(folder) is None,
                "load_best_model_at_end": True,
                "metric_for_best_model": f"eval_{ALL_LANGUAGES if self.is_mixture else first}",
                "greater_is_better": False,
                "restore_callback_states_from_checkpoint": settings.patience is not None,
            }
        trainer = TablesTrainer(
            model=model,
            args=training_arguments(settings, folder, steps, options),
            train_dataset=self.blocks,
            data_collator=partial(data.collate, isolated=isolated),
            # The Trainer demands one; `evaluate` uses `heldout`.
            eval_dataset=self.blocks.select([0]) if settings.eval_text else None,
        )
        trainer.heldout, trainer.is_mixture = self.heldout, self.is_mixture
        if self.rates and "output" in self.rates:
            trainer.output_rate = self.rates["output"].rate / self.rates["input"].rate
        if isinstance(settings, JointSettings):
            trainer.adapter_rate = settings.lora_rate or (LORA_RATE if self.rates else None)
        processes.add_in_float32(trainer.accelerator.state)
        if settings.patience:
            trainer.add_callback(EarlyStoppingCallback(settings.patience))
        return trainer


def _sweep(task: _Task, work: Path, settings: PretrainSettings) -> Sweep:
    """A short training at each rate. Raises `TrainingError` when all diverge."""
    rates = [share * settings.learning_rate for share in SWEPT_RATES]
    scores = {rate: _trial(task, work / f"sweep-{rate:g}", settings, rate) for rate in rates}
    by_rate = {f"{rate:g}": bits for rate, bits in scores.items()}
    usable = {rate: bits for rate, bits in scores.items() if bits is not None}
    if not usable:
        raise TrainingError(
            f"every rate of the sweep diverged ({', '.join(by_rate)}): give a lower learning rate"
        )
    return Sweep(by_rate, best=min(usable, key=lambda rate: usable[rate]))


def _trial(task: _Task, folder: Path, settings: PretrainSettings, rate: float) -> float | None:
    """The lowest bits per byte of held-out text at a rate; None when training diverges.

    Of the first text, or of a mixture the geometric mean of all: as the best state is chosen. A
    finished trial is read from its file.
    """
    file = folder.with_name(f"{folder.name}.json")
    if file.exists():
        return parse_json(read_text(file), str(file))
    tokens = max(1, round(SWEPT_SHARE * settings.budget(0)))
    short = _updated(settings, tokens=tokens, learning_rate=rate, checkpoints=1)
    try:
        looks = task.train(folder, short)[0].looks or []
        measured = [list(look.bits_per_byte.values()) for look in looks if look.step]
        bits = min(geometric_mean(each if task.is_mixture else each[:1]) for each in measured)
    except TrainingError:
        bits = None
    clear_device_cache(garbage_collection=True)
    if processes.is_main():
        publish_text(file, json.dumps(bits))
        shutil.rmtree(folder, ignore_errors=True)
    processes.wait()
    return bits
