"""Run the public converter with our tokenizer in the place of the one that it would guess.

A process of its own: python -m lep.exports.convert MODEL FILE TYPE TOKENIZER_JSON
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from lep.errors import CheckpointError, printable
from lep.exports.metadata import CONVERTER, add_metadata
from lep.exports.pre_tokenizers import ELSEWHERE
from lep.exports.vocabulary import Metadata

LONGEST_REASON = 300  # characters of the converter's last line


def convert(model: Path, file: Path, kind: str, tokenizer: Path) -> None:
    """Write a model as GGUF, its tokenizer as the JSON file `tokenizer` says.

    Raises `CheckpointError` for a model that the converter does not know or cannot convert.
    """
    command = [sys.executable, "-m", __name__, *map(str, (model.resolve(), file, kind, tokenizer))]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env=offline
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or ["no reason given"]
        reason = lines[-1].strip().removeprefix("ERROR:").removeprefix("hf-to-gguf:")
        raise CheckpointError(
            f"{model} cannot be converted to GGUF ({printable(reason[:LONGEST_REASON])}): "
            f"{ELSEWHERE}"
        )


def _main(model: str, file: str, kind: str, tokenizer: str) -> None:
    converter: Any = import_module(CONVERTER)
    metadata: Metadata = json.loads(Path(tokenizer).read_text(encoding="utf-8"))
    known = converter.get_model_class

    def with_tokenizer(*arguments: Any, **options: Any) -> Any:
        architecture = known(*arguments, **options)
        architecture.set_vocab = lambda self: add_metadata(self.gguf_writer, metadata)
        return architecture

    converter.get_model_class = with_tokenizer
    converter.ModelBase.load_hparams = staticmethod(_with_context(converter.ModelBase.load_hparams))
    sys.argv = [CONVERTER, model, "--outfile", file, "--outtype", kind]
    converter.main()


def _with_context(load: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The converter asks GPT-2 for `n_ctx`, which transformers 5 no longer writes."""

    def loaded(*arguments: Any, **options: Any) -> dict[str, Any]:
        settings = load(*arguments, **options)
        known = "n_positions" in settings
        return ({"n_ctx": settings["n_positions"]} if known else {}) | settings

    return loaded


if __name__ == "__main__":
    _main(*sys.argv[1:])
