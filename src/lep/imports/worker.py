"""The process that reads what strangers made: python -m lep.imports.worker SCRATCH

SCRATCH/task.json says what to do, SCRATCH/report.json what came out. Libraries are loaded after the
process has given up the network, other programs and other files.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lep.errors import CheckpointError, LepError, foreign
from lep.imports.sandbox import REPORT, TASK, confine

Report = dict[str, Any]


def gguf(source: Path, output: Path, type: str) -> Report:
    """A GGUF file as a model folder; what the file says of its tokenizer."""
    from lep.files import write_json
    from lep.imports.gguf_file import GgufFile
    from lep.imports.vocabulary import checked, token_ids, write_tokenizer
    from lep.imports.weights import unpack

    file = GgufFile.open(source)
    metadata = checked(file.metadata, source)
    model_ids, generation_ids = token_ids(metadata)
    facts = unpack(file, output, type, model_ids)
    context = json.loads((output / "config.json").read_text(encoding="utf-8"))
    write_tokenizer(metadata, output, context["max_position_embeddings"])
    write_json(output / "generation_config.json", generation_ids, indent=2)
    return facts | {"metadata": metadata}


def pickles(source: Path, output: Path, type: str | None) -> Report:
    """The tensors in pytorch_model*.bin, as safetensors."""
    from lep.imports.pickles import convert

    return {"tensors": convert(source, output, type)}


def sentencepiece(source: Path, output: Path) -> Report:
    """tokenizer.json from tokenizer.model."""
    from lep.imports.sentencepiece import convert

    return {"class": convert(source, output)}


def sentencepiece_ids(source: Path, output: Path, texts: list[str]) -> Report:
    """The ids that tokenizer.model gives."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    return {"ids": [model.encode(text) for text in texts]}


TASKS: dict[str, Callable[..., Report]] = {
    task.__name__: task for task in (gguf, pickles, sentencepiece, sentencepiece_ids)
}


def linked(source: Path) -> list[Path]:
    """Where weights are that are links in a folder, as in the hub's cache."""
    files = source.iterdir() if source.is_dir() else ()
    return [file.resolve() for file in files if file.is_symlink()]


def perform(task: str, source: Path, output: Path, **options: Any) -> Report:
    """Do a task. Raises `LepError`, whatever a library raises."""
    advice = "the file is damaged, or no model that lep knows"
    with foreign(f"{source} cannot be imported", advice, CheckpointError):
        return TASKS[task](source, output, **options)


def _main(scratch: Path) -> None:
    task = json.loads((scratch / TASK).read_text(encoding="utf-8"))
    source, output = Path(task["source"]), Path(task["output"])
    files = source.iterdir() if source.is_dir() else [source]
    size = sum(file.stat().st_size for file in files if file.is_file())
    enforced = confine([source, *linked(source)], [output, scratch], size)
    try:
        report = perform(task["task"], source, output, **task["options"])
    except LepError as error:
        report = {"error": str(error).replace(str(source), task["shown"])}
    report["enforced"] = enforced
    (scratch / REPORT).write_text(json.dumps(report), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # whatever a library registered for the end is not needed


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
