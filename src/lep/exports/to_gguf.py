"""GGUF, for llama.cpp and Ollama: the public converter's tensors, and our tokenizer."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from lep.errors import CheckpointError, CorpusError, TokenizerError
from lep.exports.convert import convert
from lep.exports.job import Exported, Job, Texts, check_ids, composed, composes
from lep.exports.llama_cpp import llama_cpp_chat_ids, llama_cpp_ids, runtime
from lep.exports.metadata import check_installed, read_tokenizer
from lep.exports.ollama import PROVEN, Turns, messages_of, modelfile
from lep.exports.pre_tokenizers import ELSEWHERE
from lep.exports.reading import Reading
from lep.exports.rows import check_rows
from lep.exports.vocabulary import TEMPLATE, Metadata, gguf_vocabulary
from lep.publish import check_files, publishing_files
from lep.tokenizer.chat import Record, chat_ids, with_fixed_date

ENDS = 3  # tokens that a GGUF file can name as ends: of text, of a turn, of a message
READING = "an independent reading of the file's merges or scores"


def check(output: Path) -> None:
    """Raise `LepError` where a package is missing, `OutputError` where a file exists."""
    check_installed()
    check_files([output, _beside(output)])


def write(job: Job) -> Exported:
    """Write a GGUF file, and a Modelfile beside it.

    The rows of tokens are compared with the model's. The tokenizer is written from tokenizer.json,
    so that vocabularies that no converter has seen are right too. All texts must have its ids, in
    llama.cpp itself where the package xllamacpp is installed, otherwise by a second reading of what
    the file holds.
    """
    job.check_ends("llama.cpp")
    metadata = gguf_vocabulary(job.tokenizer, job.rows, job.ends)
    proven_by = prove(job.tokenizer, metadata, job.texts)
    same, different = filled(job.tokenizer, metadata)
    beside, turns = _beside(job.output), None
    if job.tokenizer.chat_template:
        turns = Turns.of(job.tokenizer, adds_bos=metadata["tokenizer.ggml.add_bos_token"])
    with publishing_files([job.output, beside]) as (file, recipe):
        _write(job.source.folder, Path(file.name), job.type, metadata)
        check_rows(Path(file.name), job.source)
        recipe.write(modelfile(job.output.name, job.stops, turns).encode())
    return Exported(
        output=job.output,
        to="gguf",
        type=job.type,
        tokens=job.rows,
        tokenizer=f"pre-tokenizer {metadata['tokenizer.ggml.pre']}",
        texts=len(job.texts),
        proven_by=proven_by,
        agreement=f"ids equal in {same} conversations by llama.cpp's template engine"
        if same
        else "",
        stops=job.stops,
        notes=[
            f"for Ollama: ollama create NAME -f {beside}",
            *different,
            *notes(job.tokenizer, job.stops, turns),
        ],
    )


def prove(tokenizer: PreTrainedTokenizerFast, metadata: Metadata, texts: Texts) -> str:
    """Who gives the ids of the tokenizer on all texts.

    Raises `TokenizerError` for the first text with other ids.
    """
    if composes(tokenizer):
        texts = composed(texts)
    reader, results = ids_of(metadata, texts)
    check_ids(tokenizer, texts, results, reader, ELSEWHERE)
    return reader


def ids_of(metadata: Metadata, texts: Texts) -> tuple[str, list[list[int]]]:
    """Who read the texts with a file's metadata, llama.cpp where it is installed, and the ids."""
    if name := runtime():
        return name, llama_cpp_ids(metadata, texts)
    reading = Reading(metadata)
    return READING, [reading.read(text, inserted=inserted) for text, inserted in texts]


def filled(tokenizer: PreTrainedTokenizerFast, metadata: Metadata) -> tuple[int, list[str]]:
    """Compare conversations that llama.cpp writes by the template with those of transformers.

    How many have the same ids, and what to know where one has not. None are compared without the
    runtime or a template.
    """
    expected = list(_conversations(tokenizer)) if runtime() and TEMPLATE in metadata else []
    if not expected:
        return 0, []
    dated = metadata | {TEMPLATE: with_fixed_date(metadata[TEMPLATE])}
    try:
        results = llama_cpp_chat_ids(dated, [messages for messages, _ in expected])
    except TokenizerError:  # the texts were read before: it is the template
        results = [None] * len(expected)
    for (messages, ids), result in zip(expected, results, strict=True):
        if ids != result:
            roles = ", ".join(message["role"] for message in messages)
            return 0, [
                f"llama.cpp does not fill the chat template as transformers does ({roles}): send "
                "it whole texts (/completion), or give it a template of its own (--chat-template)"
            ]
    return len(expected), []


def _conversations(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[list[Record], list[int]]]:
    """Conversations that the template allows, up to the next answer, and their ids."""
    for roles in dict.fromkeys(map(tuple, PROVEN)):
        messages = messages_of(roles)
        with suppress(CorpusError):
            yield messages, chat_ids(tokenizer, messages, ask=True)


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
            "version that lep names, pip install '.[gguf]'"
        )
    if rows != (tokens := len(metadata["tokenizer.ggml.tokens"])):
        raise CheckpointError(
            f"the converter wrote {rows:,} rows of embeddings for {tokens:,} tokens: {ELSEWHERE}"
        )


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.stem}.Modelfile")


def notes(
    tokenizer: PreTrainedTokenizerFast, stops: list[str], turns: Turns | None = None
) -> list[str]:
    """What a user must know of a file that is right."""
    lines = []
    if tokenizer.chat_template and turns is None:
        lines.append(
            "Ollama has its own template language, which cannot express the model's template: "
            "add a TEMPLATE to the Modelfile, or Ollama formats conversations differently"
        )
    if composes(tokenizer):
        lines.append("llama.cpp does not compose characters (NFC): give it composed text")
    if more := stops[ENDS:]:
        lines.append(f"stops that the GGUF file has no place for: {' '.join(more)}")
    return lines
