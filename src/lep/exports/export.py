"""Write a model for other programs, and prove that they read text as it does."""

from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from lep.checkpoint.reader import Checkpoint
from lep.corpus.files import Paths, several
from lep.corpus.read import stream_texts
from lep.exports import to_ctranslate2, to_gguf, to_mlx, to_sentencepiece
from lep.exports.job import Exported, Job
from lep.exports.sample import sample
from lep.publish import check_space
from lep.settings import ExportSettings

# Modules with `check(output)`, which fails early, and `write(job)`, which writes what it proved.
TARGETS: dict[str, Any] = {
    "gguf": to_gguf,
    "ctranslate2": to_ctranslate2,
    "mlx": to_mlx,
    "sentencepiece": to_sentencepiece,
}
BYTES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "q8_0": 34 / 32}  # of a parameter
TEXTS, TEXT_CHARACTERS = 200, 2_000  # of the user's texts: how many are compared, and their lengths


def export(
    model: str | Path,
    output: str | Path,
    settings: ExportSettings | None = None,
    *,
    text: Paths = (),
    **options: Any,
) -> Exported:
    """Write a model for another program: a GGUF file, or a folder for CTranslate2 or MLX.

    The program's public converter maps the tensors. Before the output takes its name, more than
    200 texts and those under `text` must have the ids of tokenizer.json there; a folder must have
    transformers' log-probabilities and greedy answers too.

    Raises `OutputError` where the output exists, `TokenizerError` for a tokenizer that the program
    cannot follow or that gives other ids, `CheckpointError` for an architecture that its converter
    does not know, and for a folder that answers otherwise.
    """
    settings = ExportSettings.given(settings, options)
    target, output = TARGETS[settings.to], Path(output)
    target.check(output)
    source = Checkpoint(model).check()
    sizes = sum(prod(entry.shape) for entry in source.entries.values())
    check_space(output, int(sizes * BYTES[settings.type]))
    texts = [*sample(source.tokenizer), *((each, True) for each in _given(text))]
    return target.write(Job(source, output, settings.type, texts))


def _given(paths: Paths) -> list[str]:
    """The beginnings of the first texts of the user."""
    texts = islice(stream_texts(paths), TEXTS) if (paths := several(paths)) else ()
    return [text[:TEXT_CHARACTERS] for text in texts]
