"""Load a checkpoint for inference."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lep.checkpoint.reader import Checkpoint

CONTEXT = 4_096  # of a model whose configuration names none


def device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(source: str | Path) -> tuple[PreTrainedModel, Checkpoint]:
    """The model in evaluation mode, and its checkpoint. float32 on a CPU, the stored dtype on a GPU."""
    checkpoint = Checkpoint(source).check()
    dtype = "auto" if device().type == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype, trust_remote_code=False)
    return model.to(device()).eval(), checkpoint


def context_of(checkpoint: Checkpoint) -> int:
    """Tokens that the model can see at once."""
    text = checkpoint.config.get("text_config") or checkpoint.config
    return text.get("max_position_embeddings") or CONTEXT
