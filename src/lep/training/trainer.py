"""The few things that differ from the stock Trainer."""

import gc
import json
import shutil
from dataclasses import fields
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import ProgressCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from lep.errors import OutputError
from lep.settings import TrainingSettings
from lep.training.loss import linear_cross_entropy
from lep.training.processes import local, parted, share_out, whole, world_size
from lep.training.rows import head_tables
from lep.training.watch import HeldoutText, StopWhenDiverging

WEIGHTS, STATE = "trained.safetensors", "trainer_state.json"

# What some architectures do to logits; capping cannot be seen while logits are small.
LOGIT_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


class TrainedOnlyTrainer(Trainer):
    """Saves and resumes the parameters that train, not the frozen body; in one process or in many."""

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
        except (
            OSError,
            SafetensorError,
            RuntimeError,
        ) as error:  # a full disk is any of them, by who met it
            free = shutil.disk_usage(folder).free
            raise OutputError(
                f"the state {folder}/checkpoint-{self.state.global_step} could not be saved ({error}; {free / 1e9:.2f} "
                f"GB are free): make room and start the same command again, it goes on from {last or 'the beginning'}"
            ) from error

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:  # where it is, the stock method saves the frozen body too
            return super()._save_optimizer_and_scheduler(output_dir)
        saved = self.optimizer.state_dict()
        saved["state"] = {
            number: {name: whole(value).cpu() for name, value in moments.items()}
            for number, moments in saved["state"].items()
        }
        if self.args.should_save:
            torch.save(saved, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled or checkpoint is None:
            return super()._load_optimizer_and_scheduler(checkpoint)
        saved = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        parameters = [
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ]
        for number, moments in saved["state"].items():
            saved["state"][number] = {
                name: parted(value, parameters[number]) for name, value in moments.items()
            }
        self.optimizer.load_state_dict(saved)
        self.lr_scheduler.load_state_dict(
            torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        )

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        parameters = dict(self.model.named_parameters())  # type: ignore[union-attr]
        for name, tensor in load_file(Path(resume_from_checkpoint) / WEIGHTS).items():
            parameters[name].copy_(parted(tensor, parameters[name]))


class TablesTrainer(TrainedOnlyTrainer):
    """Trains tables on plain text; where there is held-out text, the state that is best on it is kept."""

    heldout: HeldoutText | None = None
    control: Any

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Not those of the input table: `create_optimizer` lets it decay by rows."""
        table = {id(parameter) for parameter in self.model.get_input_embeddings().parameters()}  # type: ignore[union-attr]
        return [name for name, parameter in model.named_parameters() if id(parameter) not in table]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        optimizer.param_groups[1]["decay_of_touched_rows"] = self.args.weight_decay
        optimizer.register_step_pre_hook(decay_touched_rows)
        return optimizer

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        assert self.heldout is not None
        with self.accelerator.autocast():
            found = self.heldout.look(self.model)
        share_out(self.model)
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


@torch.no_grad()
def decay_touched_rows(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Weight decay of rows that have a gradient in this step: what no text of it uses does not shrink either."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("decay_of_touched_rows") else ():
            if parameter.grad is not None:
                rows, slopes = local(parameter), local(parameter.grad)
                shrunk = 1 - group["lr"] * group["decay_of_touched_rows"]
                rows.mul_(torch.where((slopes != 0).any(1, keepdim=True), shrunk, 1.0))


def chunk_loss(trainer: Trainer) -> bool:
    """Let the model return nothing but the loss where labels are given, made a few learned tokens at a time.

    Logits of tokens x vocabulary never exist. Body and head stay modules that are called, as wrappers for several
    processes need it. Changes nothing, and returns False, where logits are not plain.
    """
    model: Any = trainer.model
    if hasattr(model, "get_base_model"):  # of peft
        model = model.get_base_model()
    with trainer.accelerator.autocast():
        if not head_is_plain(model):
            return False
    head = model.get_output_embeddings()
    project, forward = head.forward, model.forward

    def head_forward(hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        return project(hidden) if labels is None else head_loss(head, hidden, labels)

    def loss_forward(
        *args: Any, labels: Any = None, num_items_in_batch: Any = None, **others: Any
    ) -> Any:
        if labels is None:
            return forward(*args, **others)
        hidden = (
            model.get_decoder()(*args, **others | {"use_cache": False})
            .last_hidden_state[:, :-1]
            .flatten(0, 1)
        )
        targets = labels[:, 1:].flatten()
        learned = targets != -100
        total = head(hidden[learned], targets[learned])
        return {
            "loss": total / (learned.sum() if num_items_in_batch is None else num_items_in_batch)
        }

    head.forward, model.forward = head_forward, loss_forward
    trainer.model_accepts_loss_kwargs = True
    return True


def head_loss(head: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum in nats of the cross-entropies of (n, h) hidden states, in the type that autocast asks for."""
    tables, bias, place = head_tables(head)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        return linear_cross_entropy(
            hidden, labels if place is None else place[labels], tables, bias
        )


@torch.no_grad()
def head_is_plain(model: Any) -> bool:
    """Whether the logits are just the head on the decoder's output (no scaling, no capping in between)."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    config = model.config.get_text_config()
    if decoder is None or any(getattr(config, name, None) for name in LOGIT_SETTINGS):
        return False
    ids = torch.arange(2, 10, device=model.device)[None] % config.vocab_size
    tables, bias, place = head_tables(model.get_output_embeddings())
    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state.float()
    ours = torch.cat([hidden @ table.float().T for table in tables], dim=-1)
    ours = (ours if bias is None else ours + bias)[..., slice(None) if place is None else place]
    theirs = model(input_ids=ids, use_cache=False).logits
    return bool((ours - theirs).abs().max() <= 0.02 * theirs.abs().max())


class QuietProgress(ProgressCallback):
    """A bar with the loss beside it, instead of a line for every log entry."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if (
            state.is_world_process_zero
            and self.training_bar is not None
            and logs
            and "loss" in logs
        ):
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def uses_bf16(settings: TrainingSettings) -> bool:
    """Whether products are computed in bf16; by itself where that is faster: on GPUs, and on CPUs with AMX.

    Other CPUs emulate it, and take nearly twice the time of float32 (docs/log.md).
    """
    if settings.precision != "auto":
        return settings.precision == "bf16"
    return torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()


def common_arguments(settings: TrainingSettings, folder: Path, steps: int) -> dict[str, Any]:
    """Arguments that every run shares; `steps` is the number of optimizer steps."""
    return {
        "output_dir": str(folder),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": uses_bf16(settings),
        "seed": settings.seed,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "lr_scheduler_type": "cosine",
        # The rate of a warm-up's first step is zero: the last step is never one of them.
        "warmup_steps": min(
            settings.warmup_steps or ceil(settings.warmup_share * steps), steps - 1
        ),
        "max_steps": steps,
        "logging_steps": logging_steps(steps),
        "logging_nan_inf_filter": False,  # a loss that is no number must be seen
        "save_steps": look_steps(steps, settings.checkpoints),
        "save_total_limit": 1,
        "report_to": [],
        "log_level": "error",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        _checkpointing_name(): settings.activation_checkpointing,
    }


def logging_steps(steps: int) -> int:
    return max(1, steps // 100)


def look_steps(steps: int, looks: int) -> int:
    """Steps between states that are saved and looked at: just after a loss was seen, so that none is saved unseen."""
    return logging_steps(steps) * max(1, steps // (looks * logging_steps(steps)))


def on_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Without a launcher one device trains, where the Trainer would take all that it sees by `nn.DataParallel`."""
    if world_size() == 1:
        arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def free_memory() -> None:
    """Give back what a finished training held: trainer and model hold each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _checkpointing_name() -> str:
    """`gradient_checkpointing` has another name in newer releases of transformers."""
    names = {field.name for field in fields(TrainingArguments)}
    return next(
        name for name in ("activation_checkpointing", "gradient_checkpointing") if name in names
    )


def run(trainer: Trainer, folder: Path) -> list[dict[str, float]]:
    """Train, from the last state in `folder` when there is one; returns the logged losses."""
    from transformers import PrinterCallback

    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(QuietProgress)
    trainer.add_callback(StopWhenDiverging())
    last = last_state(folder)
    saved = json.loads((last / STATE).read_text()) if last else {}
    if last and saved["global_step"] >= trainer.args.max_steps:
        trainer.state = TrainerState.load_from_json(str(last / STATE))
        # Trained to the end, then killed: one more step would be too many.
        trainer._load_from_checkpoint(saved["best_model_checkpoint"] or str(last))
    else:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return [
        {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry["learning_rate"]}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


def last_state(folder: Path) -> Path | None:
    """The newest whole state in a folder; states that a kill left half written are removed."""
    states = sorted(
        folder.glob("checkpoint-*"), key=lambda place: int(place.name.rpartition("-")[2])
    )
    while states:
        try:
            json.loads((states[-1] / STATE).read_text())  # the file that the trainer writes last
            return states[-1]
        except (OSError, ValueError):
            shutil.rmtree(states.pop(), ignore_errors=True)  # by the first process that sees it
    return None
