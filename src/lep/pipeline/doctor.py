"""What this machine has, and which verbs will not work on it."""

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

import lep
from lep.inference.models import device, multiplies_bf16
from lep.result import Result
from lep.selection.candidates import free_memory

SHOWN = ("torch", "transformers", "tokenizers", "accelerate", "peft", "datasets")
# What needs a package that an extra brings: its module, the extra, and what does not work without.
EXTRAS = {
    "lm_eval": ("eval", "benchmark tasks of lep evaluate (--tasks darumeru)"),
    "convert_hf_to_gguf": ("gguf", "lep export to GGUF, lep import of GGUF files"),
    "xllamacpp": ("llama-cpp", "the proof of lep export that llama.cpp reads the same tokens"),
    "ctranslate2": ("ctranslate2", "lep export --to ctranslate2"),
    "mlx_lm": ("mlx", "lep export --to mlx"),
    "gradio": ("chat", "lep chat in a browser (--terminal works)"),
    "datatrove": ("cluster", "lep corpus --executor"),
    "google.protobuf": ("spm", "tokenizers of SentencePiece in lep import and lep export"),
}
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class Machine(Result):
    """Facts by name, and what does not work: the advice by what needs it."""

    facts: dict[str, str]
    missing: dict[str, str]

    def __str__(self) -> str:
        width = max(map(len, self.facts))
        lines = [f"{name:<{width}}  {fact}" for name, fact in self.facts.items()]
        if self.missing:
            lines += ["", "These will not work:"]
            lines += [f"* {what}: {advice}" for what, advice in self.missing.items()]
        return "\n".join(lines)


def doctor(folder: str | Path = ".") -> Machine:
    """Look at versions, device, memory, the disk of `folder`, the hub and optional packages."""
    facts = {"lep": f"{lep.__version__}, Python {platform.python_version()}"}
    facts |= {name: _version(name) for name in SHOWN}
    facts |= {"device": _device(), "memory": _gigabytes(free_memory())}
    facts |= {"disk": _gigabytes(shutil.disk_usage(folder).free), "hub": _hub()}
    missing = {
        what: f"pip install '.[{extra}]'"
        for module, (extra, what) in EXTRAS.items()
        if not _is_there(module)
    }
    return Machine(facts, missing)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def _device() -> str:
    kind = device().type
    if kind == "cuda":
        free, whole = torch.cuda.mem_get_info()
        of = f"{free / 1e9:.1f} of {whole / 1e9:.1f} GB free"
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {of}"
    faster = "bf16" if multiplies_bf16() else "float32"
    return f"{kind}, {torch.get_num_threads()} threads, products in {faster} are faster"


def _gigabytes(free: float) -> str:
    return f"{free / 1e9:.1f} GB free" if free < float("inf") else "the system does not say"


def _hub() -> str:
    offline = [name for name in OFFLINE if os.environ.get(name, "0").lower() not in ("0", "")]
    if offline:
        return f"offline ({offline[0]} is set): models must be local folders, or downloaded before"
    from huggingface_hub import get_token

    return "online, " + ("with a token" if get_token() else "without a token (hf auth login)")
