"""The few things that differ from the stock Trainer."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, ProgressCallback, Trainer
from transformers.trainer_utils import get_last_checkpoint

from lep.settings import TrainingSettings

WEIGHTS = "trained.safetensors"


class TrainedOnlyTrainer(Trainer):
    """Saves and resumes the parameters that train, not the frozen body."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        assert isinstance(self.model, PreTrainedModel)
        tensors = {n: p.detach().cpu().contiguous() for n, p in self.model.named_parameters() if p.requires_grad}
        save_file(tensors, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        tensors = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        parameters = dict(self.model.named_parameters())  # type: ignore[union-attr]
        for name, tensor in tensors.items():
            parameters[name].data.copy_(tensor)


class QuietProgress(ProgressCallback):
    """A bar with the loss beside it, instead of a line for every log entry."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def common_arguments(settings: TrainingSettings, folder: Path, steps: int) -> dict[str, Any]:
    """Arguments that every run shares; `steps` is the number of optimizer steps."""
    import torch

    return {
        "output_dir": str(folder),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": settings.precision == "bf16",
        "seed": settings.seed,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_share,
        "max_steps": steps,
        "logging_steps": max(1, steps // 100),
        "save_steps": max(1, steps // settings.checkpoints),
        "save_total_limit": 1,
        "report_to": [],
        "log_level": "error",
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def run(trainer: Trainer, folder: Path) -> list[dict[str, float]]:
    """Train, from the last state in `folder` when there is one; returns the logged losses."""
    from transformers import PrinterCallback

    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(QuietProgress)
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    return [
        {"step": entry["step"], "loss": entry["loss"], "learning_rate": entry["learning_rate"]}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
