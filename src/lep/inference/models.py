"""Load a checkpoint for inference."""

import time
from functools import cache
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

SIDE, MEASUREMENTS = 512, 7  # of the matrices that are multiplied, and how often
FASTER = 0.8  # of the time of float32


def device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache  # a device stays as it is, and measuring it takes a tenth of a second
def multiplies_bf16() -> bool:
    """Whether the device multiplies bf16 faster than float32: GPUs, CPUs with AMX, and others where
    a product of it is measured to. Flags do not tell: some CPUs with AVX512-BF16 are slower at it.
    """
    if device().type == "cuda" or torch.cpu._is_amx_tile_supported():
        return True
    seconds, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)  # a thread's own time is the same beside other programs
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.ones(SIDE, SIDE, dtype=dtype) for _ in range(2))
        times = []
        for _ in range(MEASUREMENTS):
            start = time.thread_time()
            left @ right
            times.append(time.thread_time() - start)
        seconds[dtype] = min(times)
    torch.set_num_threads(threads)
    return seconds[torch.bfloat16] < FASTER * seconds[torch.float32]


def load_model(source: str | Path, *, writes: bool = False) -> tuple[PreTrainedModel, Checkpoint]:
    """The model in evaluation mode, and its checkpoint: float32 on a CPU, stored dtype on a GPU.

    An adapter beside the model is merged into it, in memory. A model that `writes` is one whose
    weights nobody reads or changes: on a CPU its layers are packed (`lep.inference.packed`).
    """
    return _loaded(source, "auto" if device().type == "cuda" else torch.float32, writes=writes)


def load_writer(source: str | Path) -> tuple[PreTrainedModel, Checkpoint]:
    """A model that writes what others learn from, and its checkpoint. Models stored in bf16 stay so
    where the device multiplies it, others are in float32 on a CPU. Scores are of `load_model`.
    """
    return _loaded(source, "auto" if multiplies_bf16() else torch.float32, writes=True)


def _loaded(
    source: str | Path, dtype: torch.dtype | str, *, writes: bool
) -> tuple[PreTrainedModel, Checkpoint]:
    checkpoint = Checkpoint(source).check()
    model = merged(load_pretrained(checkpoint, dtype), checkpoint.folder)
    model = model.to(device()).eval()
    if device().type == "cpu" and model.dtype != torch.bfloat16:
        model = model.float()  # a CPU does not multiply float16
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
