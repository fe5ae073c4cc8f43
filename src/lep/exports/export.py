"""Write a model for other programs, and prove that they read text as it does."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import Paths, stream_texts
from lep.errors import CheckpointError, TokenizerError
from lep.exports.convert import convert
from lep.exports.llama_cpp import llama_cpp_ids, runtime
from lep.exports.metadata import check_installed, read_tokenizer
from lep.exports.pre_tokenizers import ELSEWHERE
from lep.exports.reading import Reading
from lep.exports.sample import sample
from lep.exports.vocabulary import Metadata, gguf_vocabulary
from lep.files import read_json
from lep.publish import check_files, check_space, publishing_files
from lep.result import Result
from lep.settings import ExportSettings
from lep.tokenizer.chat import first_added_token, rendered
from lep.tokenizer.vocabulary import described

BYTES = {"f32": 4.0, "bf16": 2.0, "f16": 2.0, "q8_0": 34 / 32}  # of a parameter
TEXTS, TEXT_CHARACTERS = 200, 2_000  # of the user's texts: how many are compared, and their lengths
SHOWN_IDS, SHOWN_CHARACTERS = 12, 60  # in the sentence of a difference
ENDS = 3  # tokens that a GGUF file can name as ends: of text, of a turn, of a message
ANSWER = "Qz7"  # a content that no template writes itself
READING = "an independent reading of the file's merges or scores"


@dataclass(frozen=True)
class Exported(Result):
    """A file for another program, and how its tokenizer was proven."""

    output: Path
    modelfile: Path
    type: str
    tokens: int  # rows, with padding
    pre_tokenizer: str  # llama.cpp's name
    texts: int  # that have the same ids
    proven_by: str
    stops: list[str]
    notes: list[str]

    def __str__(self) -> str:
        size = self.output.stat().st_size / 1e6
        lines = [
            f"{self.tokens:,} tokens, pre-tokenizer {self.pre_tokenizer}, {self.type}: "
            f"{self.output}, {size:.1f} MB",
            f"ids equal on {self.texts:,} of {self.texts:,} texts, by {self.proven_by}",
            f"for Ollama: ollama create NAME -f {self.modelfile}",
        ]
        return "\n".join([*lines, *self.notes])


def export(
    model: str | Path,
    output: str | Path,
    settings: ExportSettings | None = None,
    *,
    text: Paths = (),
    **options: Any,
) -> Exported:
    """Write a model as a GGUF file for llama.cpp and Ollama, and a Modelfile beside it.

    The public converter maps the tensors; the tokenizer is written from tokenizer.json, so that
    vocabularies that no converter has seen are right too. Before the file takes its name, more than
    200 texts and those under `text` must have the ids of tokenizer.json, in llama.cpp itself where
    the package xllamacpp is installed, otherwise by a second reading of what the file holds.

    Raises `OutputError` where a file exists, `TokenizerError` for a tokenizer that llama.cpp cannot
    follow or that gives other ids, `CheckpointError` for an architecture that the converter does
    not know.
    """
    settings = ExportSettings.given(settings, options)
    check_installed()
    output = Path(output)
    modelfile = output.with_name(f"{output.stem}.Modelfile")
    check_files([output, modelfile])
    source = Checkpoint(model).check()
    sizes = sum(prod(entry.shape) for entry in source.entries.values())
    check_space(output, int(sizes * BYTES[settings.type]))
    tokenizer = source.tokenizer
    ends = _ends(source)
    metadata = gguf_vocabulary(tokenizer, source.shape(source.tables.input)[0], ends)
    texts = [*sample(tokenizer), *((each, True) for each in _given(text))]
    proven_by = prove(tokenizer, metadata, texts)
    stops = [tokenizer.convert_ids_to_tokens(index) for index in ends]
    with publishing_files([output, modelfile]) as (file, beside):
        _write(source.folder, Path(file.name), settings.type, metadata)
        beside.write(_modelfile(output.name, stops).encode())
    pre = metadata["tokenizer.ggml.pre"]
    rows = len(metadata["tokenizer.ggml.tokens"])
    about = notes(tokenizer, stops)
    return Exported(
        output, modelfile, settings.type, rows, pre, len(texts), proven_by, stops, about
    )


def prove(
    tokenizer: PreTrainedTokenizerFast, metadata: Metadata, texts: Sequence[tuple[str, bool]]
) -> str:
    """Who gives the ids of the tokenizer on all texts.

    Raises `TokenizerError` for the first text with other ids.
    """
    if composes(tokenizer):
        texts = [(tokenizer.backend_tokenizer.normalizer.normalize_str(t), i) for t, i in texts]
    name = runtime()
    if name:
        results = llama_cpp_ids(metadata, texts)
    else:
        reading = Reading(metadata)
        results = [reading.read(text, inserted=inserted) for text, inserted in texts]
    for (text, inserted), ids in zip(texts, results, strict=True):
        expected = tokenizer(text, add_special_tokens=inserted)["input_ids"]
        if ids != expected:
            raise TokenizerError(_difference(text, expected, ids, name or READING))
    return name or READING


def composes(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the tokenizer composes characters (NFC), which llama.cpp does not."""
    return (described(tokenizer.backend_tokenizer.normalizer) or {}).get("type") == "NFC"


def _difference(text: str, expected: list[int], ids: list[int], reader: str) -> str:
    """The sentence about the first place where ids differ."""
    pairs = zip(expected, ids, strict=False)
    start = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(ids)))
    first, second = (each[start : start + SHOWN_IDS] for each in (expected, ids))
    return (
        f"the exported tokenizer would give other ids: {text[:SHOWN_CHARACTERS]!r} has the ids "
        f"{first} from position {start}, by {reader} {second}; nothing was written: "
        f"{ELSEWHERE}"
    )


def _write(folder: Path, file: Path, kind: str, metadata: Metadata) -> None:
    """Convert, and read back what the file says of its tokenizer."""
    with tempfile.TemporaryDirectory() as temporary:
        vocabulary = Path(temporary) / "tokenizer.json"
        vocabulary.write_text(json.dumps(metadata), encoding="utf-8")
        convert(folder, file, kind, vocabulary)
    written, rows = read_tokenizer(file)
    keys = sorted(metadata.keys() | written.keys())
    if wrong := [key for key in keys if metadata.get(key) != written.get(key)]:
        raise CheckpointError(
            f"the converter wrote another {wrong[0]} than it was given: install the "
            "version that lep names, pip install 'lep[gguf]'"
        )
    if rows != (tokens := len(metadata["tokenizer.ggml.tokens"])):
        raise CheckpointError(
            f"the converter wrote {rows:,} rows of embeddings for {tokens:,} tokens: {ELSEWHERE}"
        )


def _ends(source: Checkpoint) -> list[int]:
    """Ids of the tokens that end an answer: the tokenizer's EOS, the template's, the settings'."""
    tokenizer, path = source.tokenizer, source.folder / "generation_config.json"
    generation = read_json(path, CheckpointError) if path.exists() else {}
    named = generation.get("eos_token_id", source.config.get("eos_token_id"))
    given = [tokenizer.eos_token_id, _turn_end(tokenizer)]
    given += named if isinstance(named, list) else [named]
    known = len(source.vocabulary)
    return list(dict.fromkeys(i for i in given if isinstance(i, int) and 0 <= i < known))


def _turn_end(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The added token that the template writes after an answer."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ANSWER}]
    after = rendered(tokenizer, messages).partition(ANSWER)[2]
    return first_added_token(tokenizer, after.lstrip())


def _given(paths: Iterable[str | Path]) -> list[str]:
    """The beginnings of the first texts of the user."""
    texts = islice(stream_texts(list(paths)), TEXTS) if paths else ()
    return [text[:TEXT_CHARACTERS] for text in texts]


def _modelfile(name: str, stops: list[str]) -> str:
    """What Ollama makes a model of; the template is in the GGUF file."""
    quoted = (json.dumps(stop, ensure_ascii=False) for stop in stops)
    return "\n".join([f"FROM ./{name}", *(f"PARAMETER stop {stop}" for stop in quoted)]) + "\n"


def notes(tokenizer: PreTrainedTokenizerFast, stops: list[str]) -> list[str]:
    """What a user must know of a file that is right."""
    lines = []
    if composes(tokenizer):
        lines.append("llama.cpp does not compose characters (NFC): give it composed text")
    if more := stops[ENDS:]:
        lines.append(f"stops that the GGUF file has no place for: {' '.join(more)}")
    return lines
