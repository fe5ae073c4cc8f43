"""Where our trainings differ from the stock Trainer."""

import json
import shutil
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from lep.checkpoint.reader import Checkpoint
from lep.checkpoint.stream import Rows
from lep.checkpoint.writer import write_checkpoint
from lep.errors import OutputError
from lep.settings import TrainingSettings
from lep.tokenizer.load import copy_tokenizer
from lep.training.loss import linear_cross_entropy
from lep.training.processes import local, reshard, shard_like, whole, world_size
from lep.training.results import Loss
from lep.training.trainable_rows import head_tables
from lep.training.watch import HeldoutText, StopWhenDiverging, states_in
from lep.transfer.mappings import copy_mappings

WEIGHTS, STATE = "trained.safetensors", "trainer_state.json"

# What some architectures do to logits; capping cannot be seen while logits are small.
LOGIT_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


class TrainedOnlyTrainer(Trainer):
    """Saves and resumes what trains, not the frozen body; in one process or many."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        assert self.model is not None
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        tensors = {name: whole(p).cpu().contiguous() for name, p in trained.items()}
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / WEIGHTS)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir))
        last = last_state(folder)
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:  # a full disk raises any of them
            free = shutil.disk_usage(folder).free
            raise OutputError(
                f"the state {folder}/checkpoint-{self.state.global_step} could not be saved "
                f"({error}; {free / 1e9:.2f} GB are free): make room and start the same command "
                f"again, it goes on from {last or 'the beginning'}"
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
        parameters = dict(self.model.named_parameters())  # type: ignore[union-attr]
        for name, tensor in load_file(Path(resume_from_checkpoint) / WEIGHTS).items():
            parameters[name].copy_(shard_like(tensor, parameters[name]))


class TablesTrainer(TrainedOnlyTrainer):
    """Trains tables; with held-out text, the state that is best on it is kept."""

    heldout: HeldoutText | None = None
    control: Any

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """All but the input table, which decays by rows (`create_optimizer`)."""
        inputs = self.model.get_input_embeddings()  # type: ignore[union-attr]
        table = {id(parameter) for parameter in inputs.parameters()}
        return [name for name, parameter in model.named_parameters() if id(parameter) not in table]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        optimizer.param_groups[1]["decay_of_touched_rows"] = self.args.weight_decay
        optimizer.register_step_pre_hook(decay_touched_rows)
        return optimizer

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        assert self.heldout is not None
        with self.accelerator.autocast():
            look = self.heldout.look(self.model)
        reshard(self.model)  # type: ignore[arg-type]
        metrics = {f"eval_{name}": value for name, value in look.items()}
        self.log(metrics)
        on_evaluate = self.callback_handler.on_evaluate
        self.control = on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


@torch.no_grad()
def decay_touched_rows(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Weight decay of the rows with a gradient in this step; unused rows do not shrink."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("decay_of_touched_rows") else ():
            if parameter.grad is not None:
                rows, slopes = local(parameter), local(parameter.grad)
                shrunk = 1 - group["lr"] * group["decay_of_touched_rows"]
                rows.mul_(torch.where((slopes != 0).any(1, keepdim=True), shrunk, 1.0))


def chunk_loss(trainer: Trainer) -> bool:
    """Let the model return only the loss where labels are given, by `linear_cross_entropy`.

    Body and head stay modules that are called, as the wrappers for several processes need. Changes
    nothing, and returns False, where the logits are not plain.
    """
    model: Any = trainer.model
    with trainer.accelerator.autocast():
        if not head_is_plain(model):
            return False
    head = model.get_output_embeddings()
    project, forward = head.forward, model.forward

    def head_forward(hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        return project(hidden) if labels is None else head_loss(head, hidden, labels)

    def loss_forward(
        *args: Any, labels: Any = None, num_items_in_batch: Any = None, **others: Any
    ) -> Any:
        if labels is None:
            return forward(*args, **others)
        states = model.get_decoder()(*args, **others | {"use_cache": False}).last_hidden_state
        hidden, targets = states[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        learned = targets != -100
        total = head(hidden[learned], targets[learned])
        count = learned.sum() if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / count}

    head.forward, model.forward = head_forward, loss_forward
    trainer.model_accepts_loss_kwargs = True
    return True


def head_loss(head: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    """Sum in nats of the cross-entropies of (n, h) hidden states, in the dtype of autocast."""
    tables, bias, position = head_tables(head)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    rows = labels if position is None else position[labels]
    with torch.autocast(device, enabled=False):
        return linear_cross_entropy(hidden, rows, tables, bias)


@torch.no_grad()
def head_is_plain(model: Any) -> bool:
    """Whether the logits are just the head on the decoder's output, without scaling or capping."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    config = model.config.get_text_config()
    if decoder is None or any(getattr(config, name, None) for name in LOGIT_SETTINGS):
        return False
    ids = torch.arange(2, 10, device=model.device)[None] % config.vocab_size
    tables, bias, position = head_tables(model.get_output_embeddings())
    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state.float()
    plain = torch.cat([hidden @ table.float().T for table in tables], dim=-1)
    plain = plain if bias is None else plain + bias
    plain = plain if position is None else plain[..., position]
    logits = model(input_ids=ids, use_cache=False).logits
    return bool((plain - logits).abs().max() <= 0.02 * logits.abs().max())


class QuietProgress(ProgressCallback):
    """A bar with the loss beside it, instead of a line for every log entry."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def uses_bf16(settings: TrainingSettings) -> bool:
    """Whether products are computed in bf16: "auto" does so on GPUs, and on CPUs with AMX.

    Other CPUs emulate it, and take nearly twice the time of float32 (docs/log.md).
    """
    if settings.precision != "auto":
        return settings.precision == "bf16"
    return torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()


def load_to_train(checkpoint: Checkpoint, settings: TrainingSettings) -> PreTrainedModel:
    """The model, in float32 unless products are computed in bf16."""
    dtype = "auto" if uses_bf16(settings) else torch.float32
    options = {"dtype": dtype, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, **options)
    model.config.use_cache = False
    return model


def training_arguments(
    settings: TrainingSettings, folder: Path, steps: int, options: dict[str, Any]
) -> TrainingArguments:
    """Arguments of a run of `steps` optimizer steps; `options` add to the common ones."""
    renamed = hasattr(TrainingArguments, "activation_checkpointing")  # in newer transformers
    checkpointing = "activation_checkpointing" if renamed else "gradient_checkpointing"
    warmup_steps = settings.warmup_steps or ceil(settings.warmup_share * steps)
    common = {
        "output_dir": str(folder),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": uses_bf16(settings),
        "seed": settings.seed,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "lr_scheduler_type": "cosine",
        # The first warm-up step has the rate zero, so that the last step is never one.
        "warmup_steps": min(warmup_steps, steps - 1),
        "max_steps": steps,
        "logging_steps": logging_steps(steps),
        "logging_nan_inf_filter": False,  # a loss that is not a number must be seen
        "save_steps": look_steps(steps, settings.checkpoints),
        "save_total_limit": 1,
        "report_to": [],
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


def run(trainer: Trainer) -> list[Loss]:
    """Train with the chunked loss, from the last state in the output folder; returns the losses."""
    chunk_loss(trainer)
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(QuietProgress)
    trainer.add_callback(StopWhenDiverging())
    last = last_state(Path(str(trainer.args.output_dir)))
    saved = json.loads((last / STATE).read_text()) if last else {}
    if last and saved["global_step"] >= trainer.args.max_steps:
        # It was killed after its last step; train() would add one more.
        trainer.state = TrainerState.load_from_json(str(last / STATE))
        trainer._load_from_checkpoint(saved["best_model_checkpoint"] or str(last))
    else:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return [
        Loss(entry["step"], entry["loss"], entry["learning_rate"])
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def last_state(folder: Path) -> Path | None:
    """The newest whole state in a folder. Deletes states that a kill left half written."""
    for state in reversed(states_in(folder)):
        try:
            (state / WEIGHTS).stat()  # a state of an older version has other files
            json.loads((state / STATE).read_text())  # what the Trainer writes last
            return state
        except (OSError, ValueError):
            shutil.rmtree(state, ignore_errors=True)  # another process may have done so
    return None


def write_trained(source: Checkpoint, changed: Mapping[str, Tensor | Rows], folder: Path) -> None:
    """Write a checkpoint with trained tensors, its tokenizer and mappings into `folder`."""
    write_checkpoint(source, changed, folder)
    copy_tokenizer(source.folder, folder)
    (folder / "lep").mkdir(exist_ok=True)
    copy_mappings(source, folder)
