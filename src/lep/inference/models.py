"""Load a checkpoint for inference."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lep.checkpoint.config import load_config, read_config
from lep.checkpoint.pretrained import load_pretrained, merged
from lep.checkpoint.reader import Checkpoint
from lep.corpus.files import file_stamps
from lep.hub import local_folder
from lep.inference.generate import CONTEXT
from lep.inference.packed import pack
from lep.publish import fingerprint
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary


def device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(source: str | Path, *, writes: bool = False) -> tuple[PreTrainedModel, Checkpoint]:
    """The model in evaluation mode, and its checkpoint: float32 on a CPU, stored dtype on a GPU.

    An adapter beside the model is merged into it, in memory. A model that `writes` is one whose
    weights nobody reads or changes: on a CPU its layers are packed (`lep.inference.packed`).
    """
    checkpoint = Checkpoint(source).check()
    dtype = "auto" if device().type == "cuda" else torch.float32
    model = merged(load_pretrained(checkpoint, dtype), checkpoint.folder)
    model = model.to(device()).eval()
    if writes:
        pack(model)
    return model, checkpoint


class Description:
    """Configuration and tokenizer of a model whose weights are behind a server."""

    def __init__(self, source: str | Path) -> None:
        self.folder = local_folder(source, weights=False)
        self.config = read_config(self.folder)
        self.tokenizer = load_tokenizer(self.folder)
        self.vocabulary = Vocabulary.of(self.tokenizer)

    def stamp(self) -> list[Any]:
        """What changes when the model changes, as far as local files show it."""
        files = file_stamps(sorted(self.folder.glob("*.safetensors")))
        return [str(self.folder.resolve()), fingerprint(self.config), len(self.vocabulary), files]


def context_of(checkpoint: Checkpoint | Description, default: int = CONTEXT) -> int:
    """Number of tokens that the model can attend to; `default` where it does not say so.

    Configurations have several names for it, which transformers knows.
    """
    config = load_config(checkpoint.folder).get_text_config()
    return getattr(config, "max_position_embeddings", None) or default
