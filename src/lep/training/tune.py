"""Train a low-rank adapter (and tables in full) on answers, merge it, and publish the result."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from transformers import Trainer, set_seed

from lep.checkpoint.adapter import UNMERGED, check_merged
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.writer import rewritten_bytes
from lep.corpus.copies import copy_records
from lep.corpus.files import Text
from lep.corpus.read import read_messages, write_records
from lep.durable import discard
from lep.errors import CorpusError, LepError, TrainingError
from lep.publish import check_output, check_space, fingerprint, publishing
from lep.settings import CalibrateSettings, LoraSettings, TuneSettings
from lep.training import lora, trainable_rows
from lep.training.reporters import check_reporters
from lep.training.results import Loss, TuneResult, write_record
from lep.training.samples import Records, Sample, batches, collate_answers, encode_records, in_order
from lep.training.trainer import (
    TablesTrainer,
    TrainedOnlyTrainer,
    load_to_train,
    run,
    training_arguments,
    with_precision,
    write_trained,
)

PROBE_TOKENS = 128  # of the longest sample, on which the merge is proven


@dataclass(frozen=True)
class Scope:
    """What trains: LoRA on the projections of some layers, and some tables in full."""

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
    output: str | Path,
    settings: TuneSettings | None = None,
    copies: Records | None = None,
    *,
    text: Text | None = None,
    heldout: Text | None = None,
    merge: bool = True,
    **options: Any,
) -> TuneResult:
    """Instruction tuning on a `messages` jsonl file, and on copy tasks.

    Writes the tuned model, with a record in `lep/tune.json`, to the new folder `output`. Settings
    are given as keywords or as one object, for example `rank=16`. `copy_tasks` of each language are
    made from `text`, {language: files}, and share no text with `heldout`; or `copies` are given as
    records. With `merge=False` the adapter is left beside the model, in `adapter/`.

    Raises `CorpusError` for unusable conversations and for copy tasks without text,
    `CheckpointError` and `OutputError` for model and output, `TrainingError` for a loss that
    diverges or steps that change nothing.
    """
    settings = TuneSettings.given(settings, options)
    if copies is None:
        copies = copy_tasks(settings, text, heldout)
    records = read_messages(data) + copies
    return train_adapter(model, records, output, settings, replace(TUNING, merge=merge))


def copy_tasks(
    settings: TuneSettings | CalibrateSettings, text: Text | None, heldout: Text | None
) -> Records:
    """Copy tasks that are made from `text`; none without text.

    Raises `CorpusError` where a number of them was given, and no text.
    """
    if not text and settings.copy_tasks and "copy_tasks" in settings.model_fields_set:
        raise CorpusError(
            f"--copy-tasks is {settings.copy_tasks}, and there is no text to make them from: give "
            "--text LANGUAGE=PATH, or leave --copy-tasks out"
        )
    return copy_records(text or {}, settings.copy_tasks, settings.seed, heldout)


def train_adapter(
    model: str | Path,
    records: Records,
    output: str | Path,
    settings: LoraSettings,
    scope: Scope,
    *,
    facts: Mapping[str, Any] | None = None,
    answers: Records | None = None,
) -> TuneResult:
    """Train on the last message of each record, merge, prove the merge, and write the model.

    An interrupted run continues when it is called again with the same arguments. `facts` are more
    fields of the result; `answers` are written to `lep/answers.jsonl`.
    """
    if scope.new_rows_only and not scope.merge:
        raise LepError("training new rows makes no adapter to leave beside: leave --no-merge out")
    check_reporters(settings)
    settings = with_precision(settings)
    output, checkpoint = Path(output), check_merged(Checkpoint(model).check())
    rows = trainable_rows.new_token_rows(checkpoint) if scope.new_rows_only else None
    key = fingerprint([checkpoint.stamp(), records, settings.model_dump(), vars(scope)])
    check_output(output)
    check_space(output, 2 * rewritten_bytes(checkpoint, checkpoint.shard_of))
    samples, too_long = encode_records(checkpoint, records, settings.max_length)
    with publishing(output, resume_key=key) as folder:
        set_seed(settings.seed)
        loaded = load_to_train(checkpoint, settings).requires_grad_(False)
        task = _Task(checkpoint, loaded, samples, settings, scope, folder)
        trained = _train_new_rows(task, rows) if rows else _train_adapter(task)
        write_trained(checkpoint, trained.changed, folder)
        result = TuneResult(
            steps=batches(settings, len(samples))[0],
            losses=trained.losses,
            merge_error=trained.merge_error,
            changed_tensors=sorted(trained.changed),
            samples=len(samples),
            too_long=too_long,
            seconds=trained.seconds,
            settings=settings,
            output=output,
            **(facts or {}),
        )
        write_record(result, folder / "lep" / "tune.json")
        if answers is not None:
            write_records(folder / "lep" / "answers.jsonl", answers)
        discard(folder / "work")
    return result


@dataclass(frozen=True)
class _Task:
    checkpoint: Checkpoint
    model: Any
    samples: list[Sample]
    settings: LoraSettings
    scope: Scope
    folder: Path

    def run(self, trainer: type[Trainer]) -> tuple[list[Loss], float]:
        steps, options = batches(self.settings, len(self.samples))
        states = self.folder / "work" / "trainer"
        arguments = training_arguments(self.settings, states, steps, options)
        samples = in_order(self.samples, self.settings)
        return run(trainer(self.model, arguments, collate_answers, samples))


@dataclass(frozen=True)
class _Trained:
    changed: dict[str, Tensor]  # by name, in the checkpoint's dtype
    losses: list[Loss]
    seconds: float
    merge_error: float | None = None


def _train_new_rows(task: _Task, rows: trainable_rows.TableRows) -> _Trained:
    trainable_rows.split_tables(task.model, rows)
    before = trainable_rows.frozen_digest(task.model)
    losses, seconds = task.run(TablesTrainer)
    trainable_rows.check_frozen(before, task.model)
    tables = trainable_rows.stored_tables(task.checkpoint, rows, task.model)
    return _Trained(tables, losses, seconds)


def _train_adapter(task: _Task) -> _Trained:
    checkpoint, settings, scope, model = task.checkpoint, task.settings, task.scope, task.model
    outer, tables = scope.layers == "outer", checkpoint.tables
    names = lora.add_adapter(model, checkpoint, settings.rank, settings.alpha, outer=outer)
    trainable_rows.whole_tables(model, scope.tables if tables.output else ["input"])
    losses, seconds = task.run(TrainedOnlyTrainer)
    # The Trainer wraps the forward in bf16 autocast, which would hide a wrong merge in rounding.
    vars(model).pop("forward", None)
    model.cpu().float().eval()
    clear_device_cache(garbage_collection=True)
    if not scope.merge:
        lora.save_adapter(model, names, settings, task.folder / UNMERGED)
    longest = max(task.samples, key=lambda sample: len(sample.ids))
    error = lora.merge(model, torch.tensor([longest.ids[:PROBE_TOKENS]]))
    layers = trainable_rows.table_layers(model)
    weights = {name: layers[kind].weight for kind, name in tables.by_kind().items()}
    if scope.merge:
        for module, name in names.items():
            weights[name] = model.get_submodule(module).base_layer.weight
    changed = _changed(checkpoint, weights)
    if not changed and scope.merge:
        advice = "give a higher learning rate, or more samples or epochs"
        raise TrainingError(f"{losses[-1].step} steps changed no weight: {advice}")
    return _Trained(changed, losses, seconds, error)


def _changed(checkpoint: Checkpoint, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that differ from the checkpoint's, in its dtype."""
    changed = {}
    for name, tensor in weights.items():
        before = checkpoint.tensor(name)
        after = tensor.detach().to(before.dtype)
        if not torch.equal(before, after):
            changed[name] = after.contiguous()
    return changed
