"""Real tokenizers in llama.cpp: the ids after each change of the vocabulary, equal or refused.

    python benchmarks/export.py --data DATA [--models MODELS] [--only NAME ...] [--chunk 1000]

DATA has `tokenizers/NAME/tokenizer.json.zst` and `train/LANGUAGE`, MODELS folders of models; both
are read in place. Each tokenizer is taken as it is, extended, optimised in place and replaced, and
llama.cpp itself (the package xllamacpp) reads the texts of `lep.exports.sample` and documents in
two languages. Nothing is trained, and no body is converted.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import zstandard

from lep.corpus.read import stream_texts
from lep.errors import LepError
from lep.exports.reading import Reading
from lep.exports.sample import sample
from lep.exports.to_gguf import prove
from lep.exports.vocabulary import gguf_vocabulary
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary
from lep.tokenizer.write import extend_tokenizer, optimize_tokenizer, train_tokenizer

DOCUMENTS, DOCUMENT_CHARACTERS = 50, 2_000  # of each language, which are compared too
PADDING = 8  # rows beyond the vocabulary


def main() -> None:
    arguments = parsed()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpora = {name: corpus(arguments, name, folder) for name in ("ru", "en")}
        documents = [text for each in corpora.values() for text in heldout(each)]
        print("tokenizer | change | tokens | pre-tokenizer | texts | result | seconds", flush=True)
        for name, source in sources(arguments, folder):
            if arguments.only and name not in arguments.only:
                continue
            for change, make in changes(source, corpora["ru"], arguments.chunk).items():
                if arguments.changes and change.split()[0] not in arguments.changes:
                    continue
                output = folder / f"{name}-{change}".replace(" ", "-")
                print(name, change, *row(make, output, documents), sep=" | ", flush=True)
                shutil.rmtree(output, ignore_errors=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--changes", nargs="*", help="changes to try (default: all)")
    parser.add_argument("--characters", type=int, default=3_000_000, help="of text, per language")
    parser.add_argument("--chunk", type=int, default=1_000, help="new tokens of an extension")
    return parser.parse_args()


def corpus(arguments: argparse.Namespace, language: str, folder: Path) -> Path:
    """The beginning of a language's training text, as one file."""
    path, characters = folder / f"{language}.txt", 0
    with path.open("w", encoding="utf-8") as file:
        for text in stream_texts([arguments.data / "train" / language]):
            file.write(f"{text}\n\n")
            characters += len(text)
            if characters > arguments.characters:
                return path
    return path


def heldout(path: Path) -> list[str]:
    """Pieces of a text, evenly from all of it."""
    text = path.read_text(encoding="utf-8")
    step = max(1, len(text) // DOCUMENTS)
    return [text[start : start + DOCUMENT_CHARACTERS] for start in range(0, len(text), step)]


def sources(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each tokenizer."""
    for path in sorted((arguments.data / "tokenizers").iterdir()):
        copy = folder / "sources" / path.name
        copy.mkdir(parents=True)
        with (path / "tokenizer.json.zst").open("rb") as packed:
            content = zstandard.ZstdDecompressor().stream_reader(packed).read()
        (copy / "tokenizer.json").write_bytes(content)
        shutil.copy(path / "tokenizer_config.json", copy)
        yield path.name, copy
    for path in sorted(arguments.models.iterdir()) if arguments.models else ():
        if (path / "tokenizer.json").exists():
            yield path.name, path


def changes(source: Path, text: Path, chunk: int) -> dict:
    """Functions that write a changed tokenizer, by the name of the change."""

    def in_place(output: Path) -> None:
        size = len(Vocabulary.of(load_tokenizer(source)))
        kept = size - chunk
        optimize_tokenizer(source, [text], kept, size, output, script="cyrillic", in_place=True)

    def original(output: Path) -> None:
        shutil.copytree(source, output, ignore=shutil.ignore_patterns("*.safetensors"))

    return {
        "original": original,
        f"extended by {chunk:,}": lambda output: extend_tokenizer(source, [text], chunk, output),
        "in place": in_place,
        "replaced": lambda output: train_tokenizer(source, [text], "bpe", 4 * chunk, output),
    }


def row(make, output: Path, documents: list[str]) -> list:
    """Tokens, pre-tokenizer, texts, result and seconds; the reason where it is refused."""
    start = time.monotonic()
    try:
        make(output)
    except LepError as error:
        return ["-", "-", "-", f"no such tokenizer: {error}", round(time.monotonic() - start)]
    tokenizer = load_tokenizer(output)
    size = len(Vocabulary.of(tokenizer))
    texts = [*sample(tokenizer), *((text, True) for text in documents)]
    pre = "-"
    try:
        metadata = gguf_vocabulary(tokenizer, size + PADDING, [])
        pre = metadata["tokenizer.ggml.pre"]
        result = f"equal, by {prove(tokenizer, metadata, texts)}"
        reading = Reading(metadata)
        for text, inserted in texts:
            ids = tokenizer(text, add_special_tokens=inserted)["input_ids"]
            if reading.read(text, inserted=inserted) != ids:
                result += f"; the second reading differs on {text[:40]!r}"
                break
    except LepError as error:
        result = f"refused: {error}"
    return [f"{size:,}", pre, len(texts), result, round(time.monotonic() - start)]


if __name__ == "__main__":
    main()
