"""Models by local folder or hub id."""

import re
import shlex
from collections import Counter
from itertools import chain
from pathlib import Path

from lep.errors import CheckpointError, redacted
from lep.limits import JSON_BYTES

# What is downloaded: never pickled weights, never code.
ALLOWED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md"]
ALLOWED_FILES += ["LICENSE*", "NOTICE*", "USE_POLICY*"]
# Files and folders of a model that are read or copied as they are.
SUBFOLDERS = ("lep", "adapter", "additional_chat_templates")
READ = "lep lep/* adapter adapter/* additional_chat_templates *.json *.jsonl *.jinja *.model *.txt"
READ += " *.py LICENSE* NOTICE* USE_POLICY*"

TEXT_SUFFIXES = (".json", ".jinja", ".txt", ".model")


def local_folder(source: str | Path, *, weights: bool = True) -> Path:
    """The folder of a model or tokenizer, or of its download when `source` is a hub id.

    Without `weights` only the other files are downloaded. Raises `CheckpointError` when there is no
    such folder and the hub does not provide it, and for a folder with pipes or settings that are
    too large, which other libraries would read without asking.
    """
    folder, name = Path(source), str(source)
    if folder.is_dir():
        return _checked(folder)
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file, not a folder: {_advice(folder)}")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "/")):
        raise CheckpointError(
            f"there is no folder {source}: check the path, or give a hub id such as owner/name"
        )
    from huggingface_hub import constants, snapshot_download

    patterns = ALLOWED_FILES if weights else ALLOWED_FILES[1:]
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; all mean that there is no model
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if constants.HF_HUB_OFFLINE:
            reason = "it was not downloaded before, and HF_HUB_OFFLINE says not to ask"
        raise CheckpointError(
            f"there is no folder {source}, and no such model of the hub ({reason}): check the "
            "path, or the name"
        ) from error
    return _checked(folder)


def _checked(folder: Path) -> Path:
    """Return a folder. Raises `CheckpointError` for a file in it that is a link to the outside, a
    pipe, or too large.

    What such a file holds would be read, and copied into results. Weights may be links: they are
    read as tensors only. The links of the hub's cache, to its own `blobs`, stay inside.
    """
    inside = [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parents[1] / "blobs")
    folders = (folder, *(folder / name for name in SUBFOLDERS))
    for file in chain.from_iterable(each.iterdir() for each in folders if each.is_dir()):
        if not any(map(file.match, READ.split())) or not file.exists():
            continue
        if not any(map(file.resolve().is_relative_to, inside)):
            raise CheckpointError(
                f"{file} is a link to {file.resolve()}, outside its folder: put a copy in its "
                "place, or give the folder that it leads to"
            )
        if not (file.is_file() or file.is_dir()):
            raise CheckpointError(f"{file} is no regular file: copy the folder again")
        if file.suffix in TEXT_SUFFIXES and file.is_file():  # other libraries read it whole
            JSON_BYTES.check(file.stat().st_size, str(file), CheckpointError)
    return folder


GGUF, PICKLES = ".gguf", (".bin", ".pt", ".pth")
PICKLED_MODEL = "pytorch_model*.bin"  # what transformers reads


def gguf_advice(file: Path) -> str:
    """How to make a model folder of a GGUF file."""
    return (
        "lep reads model folders with safetensors. Take the repository from which the GGUF file "
        f"was made, or convert the file: {import_command(file, file.with_suffix(''))}"
    )


def import_command(source: Path, output: Path) -> str:
    """The command that makes a model folder of other formats, for a POSIX shell."""
    return shlex.join(["lep", "import", str(source), "--output", str(output)])


def weights_advice(folder: Path) -> str | None:
    """What to do with a folder that has weights in other formats only; None if it has not."""
    if any(folder.glob("*.safetensors")):
        return None
    if ggufs := sorted(folder.glob(f"*{GGUF}")):
        return f"{folder} has a GGUF file only ({ggufs[0].name}): {gguf_advice(ggufs[0])}"
    if pickles := sorted(folder.glob(PICKLED_MODEL)):
        return f"{folder} has pickled weights only ({pickles[0].name}): {pickles_advice(folder)}"
    if pickles := sorted(p for p in folder.iterdir() if p.suffix in PICKLES):
        return (
            f"{folder} has pickled weights only ({pickles[0].name}), which can run code when "
            "loaded: take the model in the format of transformers, with safetensors"
        )
    return None


def pickles_advice(folder: Path) -> str:
    """How to convert pickled weights without running what is in them."""
    output = folder.with_name(folder.resolve().name + "-safetensors")
    return (
        "they can run code when loaded, and only lep import reads them, in a process that can "
        f"touch nothing else: {import_command(folder, output)}"
    )


def _advice(file: Path) -> str:
    """What to give instead of a file."""
    if file.suffix == GGUF:
        return gguf_advice(file)
    if file.match(PICKLED_MODEL):
        return f"give its folder; if that has no safetensors, {pickles_advice(file.parent)}"
    if (file.parent / "config.json").is_file():
        return f"give the folder {file.parent}"
    return "give the folder of a model"


def short_names(models: list[str]) -> list[str]:
    """The last part of each path; the whole path where two share it, numbered where it repeats."""
    last = [Path(model.partition("@http")[0]).name or model for model in models]
    counts = Counter(last)
    names = [
        name if counts[name] == 1 else redacted(model)
        for name, model in zip(last, models, strict=True)
    ]
    for i, name in enumerate(names):
        number = i + 1
        while names[i] in names[:i] or (names[i] != name and names[i] in names[i + 1 :]):
            names[i], number = f"{name} ({number})", number + 1
    return names
