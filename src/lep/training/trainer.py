"""Where our trainings differ from the stock Trainer."""

import math
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from lep.checkpoint.pretrained import load_pretrained
from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import Rows, save_tensors
from lep.checkpoint.writer import write_checkpoint
from lep.durable import sync_tree
from lep.errors import OutputError, TrainingError
from lep.inference.models import multiplies_bf16
from lep.progress import Lines, is_terminal
from lep.settings import TrainingSettings
from lep.tokenizer.load import copy_tokenizer
from lep.training.heldout import HeldoutText
from lep.training.loss import chunk_loss
from lep.training.optimizer import decay_touched_rows, scale_epsilon
from lep.training.processes import reshard, shard_like, whole, world_size
from lep.training.reporters import finish, name_logs, run_name
from lep.training.results import Loss
from lep.training.states import START, STATE, WEIGHTS, last_state, states_in
from lep.training.streams import LOSS, StreamSums
from lep.transfer.mappings import copy_mappings

S = TypeVar("S", bound=TrainingSettings)
LOOK_SECONDS = "look_seconds"  # in the log
LOSS_OF_TEXT = f"{LOSS}text"
SHARED, ADAPTER = "table.shared", "lora_"  # in the names of parameters
# Nats a token by which the mean of the last reports is above all of the first: no longer noise.
RISE, FIRST_REPORTS, REPORTS = 1.0, 3, 10


class TrainedOnlyTrainer(Trainer):
    """Saves and resumes what trains, not the frozen body; in one process or many."""

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """The stock schedule from its second step on: in its first one, the rate is zero."""
        if self.lr_scheduler is None:
            scheduler = super().create_scheduler(num_training_steps + 1, optimizer)
            with warnings.catch_warnings():  # torch wants an optimizer step before
                warnings.simplefilter("ignore", UserWarning)
                scheduler.step()
        return self.lr_scheduler

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        tensors = {name: whole(p).cpu().contiguous() for name, p in trained.items()}
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_tensors(folder / WEIGHTS, tensors)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        state, last = folder / f"checkpoint-{self.state.global_step}", last_state(folder)
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                sync_tree(state)  # before older ones are deleted
                best = Path(self.state.best_model_checkpoint or state).name
                for other in states_in(folder):
                    if other.name not in (state.name, best):
                        shutil.rmtree(other)
        except (OSError, SafetensorError, RuntimeError) as error:  # a full disk raises any of them
            free = shutil.disk_usage(folder).free
            raise OutputError(
                f"the state {state} could not be saved ({error}; {free / 1e9:.2f} GB are free): "
                f"make room and start the same command again, it goes on from "
                f"{last or 'the beginning'}"
            ) from error

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:  # where it is, the stock method saves the frozen body too
            return super()._save_optimizer_and_scheduler(output_dir)
        saved = self.optimizer.state_dict()
        for number, moments in saved["state"].items():
            saved["state"][number] = {name: whole(t).cpu() for name, t in moments.items()}
        if self.args.should_save:
            torch.save(saved, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        saved = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, moments in saved["state"].items():
            for name, value in moments.items():
                moments[name] = shard_like(value, parameters[number])
        self.optimizer.load_state_dict(saved)
        scheduler = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        self.lr_scheduler.load_state_dict(scheduler)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        parameters = dict(self.model.named_parameters())
        for name, tensor in load_file(Path(resume_from_checkpoint) / WEIGHTS).items():
            parameters[name].copy_(shard_like(tensor, parameters[name]))


class TablesTrainer(TrainedOnlyTrainer):
    """Trains tables; with held-out text, the state that is best on it is kept."""

    heldout: HeldoutText
    stream_sums: StreamSums | None = None  # of a mixture
    stream_weights: Tensor  # of a mixture, by number of the stream
    output_rate: float = 1.0  # of the output table, as a share of the input table's
    adapter_rate: float | None = None  # where it is not that of the tables
    is_mixture = False
    control: Any

    def log(self, logs: dict[str, float], *args: Any, **options: Any) -> None:
        """Add what the streams of a mixture lost, and give the loss without their weights."""
        if "loss" in logs and self.stream_sums is not None:
            logs |= self.stream_sums.report(self._summed)
        super().log(logs, *args, **options)

    def _summed(self, sums: Tensor) -> Tensor:
        """Sums of all processes; on devices, which add no float64, in float32."""
        return self.accelerator.reduce(sums.float().to(self.accelerator.device), "sum").cpu()

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """All but the input table, which decays by rows (`create_optimizer`)."""
        table = {id(parameter) for parameter in self.model.get_input_embeddings().parameters()}
        return [name for name, parameter in model.named_parameters() if id(parameter) not in table]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        optimizer.param_groups[1]["decay_of_touched_rows"] = self.args.weight_decay
        optimizer.param_groups[0]["lr"] *= self.output_rate
        self._apart(optimizer, SHARED, weight_decay=0.0, decay_of_touched_rows=0.0)
        rate = {"lr": self.adapter_rate} if self.adapter_rate else {}
        self._apart(optimizer, ADAPTER, keeps_epsilon=True, **rate)
        optimizer.register_step_pre_hook(decay_touched_rows)
        if self.is_mixture:
            optimizer.register_step_pre_hook(scale_epsilon)
        return optimizer

    def _apart(self, optimizer: torch.optim.Optimizer, part: str, **changes: Any) -> None:
        """Put parameters with `part` in their names into groups of their own: their gradients have
        another size than those of tables."""
        ids = {id(p) for name, p in self.model.named_parameters() if part in name}
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if id(p) in ids]
            if own:
                group["params"] = [p for p in group["params"] if id(p) not in ids]
                optimizer.add_param_group(group | changes | {"params": own})

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        began = time.monotonic()
        if self.state.global_step == 0 and self.is_fsdp_enabled:
            self._allocate()
        with self.accelerator.autocast():
            look = self.heldout.look(self.model)
        reshard(self.model)
        if lost := [name for name in self.heldout.texts if not math.isfinite(look[name])]:
            raise TrainingError(
                f"the model gives held-out text {lost[0]} no finite likelihood at step "
                f"{self.state.global_step}: the learning rate {self.args.learning_rate:g} is too "
                "high, or the model is damaged"
            )
        metrics = {f"eval_{name}": value for name, value in look.items()}
        metrics[LOOK_SECONDS] = time.monotonic() - began
        self.log(metrics)
        handler = self.callback_handler
        self.control = handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.state.global_step == 0:
            self._keep_start(metrics)
        elif metrics[self.args.metric_for_best_model] < self.state.best_metric:
            self.control.should_save = True  # it has not diverged, however hard the step's text
        return metrics

    @torch.no_grad()
    def _allocate(self) -> None:
        """A first forward pass: FSDP's buffers must not be those of the looks' inference mode."""
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self.args.device)
        with self.accelerator.autocast():
            self.model(input_ids=ids)

    def _keep_start(self, metrics: dict[str, float]) -> None:
        """Save the start, which stays the best state where training makes nothing better.

        It has weights alone: no run continues from it.
        """
        self._determine_best_metric(metrics, None)
        self.state.best_model_checkpoint = str(Path(str(self.args.output_dir)) / START)
        self.save_model(self.state.best_model_checkpoint)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


class QuietProgress(ProgressCallback):
    """A bar with the loss beside it on a terminal, elsewhere a line a minute."""

    lines: Lines

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.lines = Lines("training, steps", state.max_steps - state.global_step)
        if is_terminal():
            super().on_train_begin(args, state, control, **options)

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.lines.one_more()
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **options)

    def on_train_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **options)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


class TimeInLog(TrainerCallback):
    """Adds the seconds of training, before and after interruptions, to each entry of the log."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started = time.monotonic() - training_seconds(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        state.log_history[-1]["seconds"] = time.monotonic() - self.started


def training_seconds(state: TrainerState) -> float:
    """Seconds of training up to the last entry of the log, without those that were lost."""
    return max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)


class StopWhenDiverging(TrainerCallback):
    """Ends a training whose loss is not a number, or stays far above the first ones.

    Of a mixture, it is that of the text: the whole loss changes with what a step holds. A report
    may be of a few hundred tokens of one text, so that only the mean of several says something. No
    state is saved after a high report, unless it is the best so far on held-out text.
    """

    def __init__(self) -> None:
        self.bad = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        logs = logs or {}
        if "loss" not in logs:
            return
        lost = not math.isfinite(logs["loss"])
        name = LOSS_OF_TEXT if any(key.startswith(LOSS) for key in logs) else "loss"
        if name not in logs and not lost:  # a report without text
            return
        losses = [entry[name] for entry in state.log_history if name in entry]  # this one too
        loss, first = logs.get(name, logs["loss"]), max(losses[:FIRST_REPORTS], default=math.nan)
        lost = lost or not math.isfinite(loss)
        self.bad = lost or loss > first + RISE
        if self.bad:
            control.should_save = False  # the step of this loss has asked for a save
        enough = len(losses) >= FIRST_REPORTS + REPORTS
        if lost or (enough and fmean(losses[-REPORTS:]) > first + RISE):
            states = [s for s in states_in(Path(args.output_dir)) if s.name != START]
            kept = f"the last state before is {states[-1]}" if states else "no state had been saved"
            raise TrainingError(
                f"the loss went from {first:.2f} to {loss:.2f} nats a token by step "
                f"{state.global_step} of {args.max_steps}: the learning rate "
                f"{args.learning_rate:g} is too high, give a lower one; {kept}"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bad:
            control.should_save = False


def uses_bf16(settings: TrainingSettings) -> bool:
    """Whether products are computed in bf16: "auto" asks the device."""
    if settings.precision != "auto":
        return settings.precision == "bf16"
    return multiplies_bf16()


def with_precision(settings: S) -> S:
    """Settings that name their precision: an interrupted training keeps it, and records say it."""
    return settings.model_copy(update={"precision": "bf16" if uses_bf16(settings) else "float32"})


def load_to_train(checkpoint: Checkpoint, settings: TrainingSettings) -> PreTrainedModel:
    """The model, in float32 unless products are computed in bf16: then as its tables are stored."""
    dtype = checkpoint.table_type if uses_bf16(settings) else torch.float32
    model = load_pretrained(checkpoint, dtype)
    model.config.use_cache = False
    return model


def training_arguments(
    settings: TrainingSettings, folder: Path, steps: int, options: dict[str, Any]
) -> TrainingArguments:
    """Arguments of a run of `steps` optimizer steps; `options` add to the common ones."""
    renamed = hasattr(TrainingArguments, "activation_checkpointing")  # in newer transformers
    checkpointing = "activation_checkpointing" if renamed else "gradient_checkpointing"
    warmup_steps = settings.warmup_steps or math.ceil(settings.warmup_share * steps)
    common = {
        "output_dir": str(folder),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": uses_bf16(settings),
        "seed": settings.seed,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(warmup_steps, steps),
        "max_steps": steps,
        "logging_steps": logging_steps(steps),
        "logging_nan_inf_filter": False,  # a loss that is not a number must be seen
        "save_steps": look_steps(steps, settings.checkpoints),
        "report_to": list(settings.report_to),
        "run_name": run_name(folder),
        "log_level": "error",
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        checkpointing: settings.activation_checkpointing,
    }
    arguments = TrainingArguments(**common | options)
    if world_size() == 1:  # without a launcher, Trainer would use all GPUs by `nn.DataParallel`
        arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def logging_steps(steps: int) -> int:
    """Steps between reported losses: a hundredth of all."""
    return max(1, steps // 100)


def look_steps(steps: int, looks: int) -> int:
    """Steps between saved states: a multiple of `logging_steps`, so that a loss is seen before."""
    return logging_steps(steps) * max(1, steps // (looks * logging_steps(steps)))


def run(trainer: Trainer) -> tuple[list[Loss], float]:
    """Train with the chunked loss, from the last state in the output folder.

    Returns the losses, and the seconds of training.
    """
    chunk_loss(trainer)
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    for more in (QuietProgress, TimeInLog):
        trainer.add_callback(more)
    trainer.add_callback(StopWhenDiverging())
    name_logs(trainer)
    last = last_state(Path(str(trainer.args.output_dir)))
    state = TrainerState.load_from_json(str(last / STATE)) if last else TrainerState()
    if last and state.global_step >= trainer.args.max_steps:
        # It was killed after its last step; train() would add one more.
        trainer.state = state
        trainer._load_from_checkpoint(state.best_model_checkpoint or str(last))
    else:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        finish(trainer)
    losses = [
        Loss(entry["step"], entry["loss"], entry["learning_rate"])
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return losses, round(training_seconds(trainer.state), 1)


def write_trained(source: Checkpoint, changed: Mapping[str, Tensor | Rows], folder: Path) -> None:
    """Write a checkpoint with trained tensors, its tokenizer and mappings into `folder`."""
    write_checkpoint(source, changed, folder)
    copy_tokenizer(source.folder, folder)
    (folder / "lep").mkdir(exist_ok=True)
    copy_mappings(source, folder)
