"""Programs that a training reports to while it runs: TensorBoard, Weights & Biases, MLflow."""

import re
import sys
from pathlib import Path

from transformers import Trainer
from transformers.integrations import (
    TensorBoardCallback,
    is_mlflow_available,
    is_tensorboard_available,
    is_wandb_available,
)

from lep.errors import TrainingError
from lep.settings import TrainingSettings

AVAILABLE = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
    "mlflow": is_mlflow_available,
}
LOGS = Path("tensorboard")  # where TENSORBOARD_LOGGING_DIR is not set
_PARTIAL = re.compile(r"(.+)\.[0-9a-f]{16}\.partial")


def check_reporters(settings: TrainingSettings) -> None:
    """Raise `TrainingError` for a program that is not installed."""
    for name in settings.report_to:
        if not AVAILABLE[name]():
            raise TrainingError(
                f"report_to names {name}, and its package is not installed: pip install {name}, or "
                "leave it out"
            )


def run_name(folder: Path) -> str:
    """The name of a training that saves its states in `folder`: that of its output.

    >>> run_name(Path("out", "ru.0123456789abcdef.partial", "work", "trainer"))
    'ru'
    >>> run_name(Path("run", ".work", "adapt-1.0123456789abcdef.partial", "work", "sweep-0.1"))
    'run/adapt-1/sweep-0.1'
    """
    for parent in folder.parents:
        if match := _PARTIAL.fullmatch(parent.name):
            run = [parent.parent.parent.name] if parent.parent.name == ".work" else []
            trial = [folder.name] if folder.name.startswith("sweep") else []
            return "/".join([*run, match[1], *trial])
    return folder.name


def name_logs(trainer: Trainer) -> None:
    """Let TensorBoard's files stay: states, beside which they usually are, are deleted."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(LOGS / str(trainer.args.run_name))


def finish(trainer: Trainer) -> None:
    """End the run at Weights & Biases, so that the next training begins one of its own."""
    if "wandb" in trainer.args.report_to and trainer.is_world_process_zero():
        sys.modules["wandb"].finish()
