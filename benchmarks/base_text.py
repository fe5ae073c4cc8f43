"""New tokens for a base model in several languages: what text costs, before and after training.

    python benchmarks/base_text.py --base GEMMA --data DATA --output DIR [--languages ru kk ka]

For each language the vocabulary is extended on DATA/train/LANGUAGE, and the new rows are trained on
it with a fifth of English text. A tenth of the documents, by a hash of their group, is held out.
Bits per byte are of that text, and of pieces of it that are repeated: a model that still copies
predicts these well. The original is measured on the same texts. What is finished is read again.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import lep
from lep.checkpoint.reader import Checkpoint
from lep.corpus.prepare import prepare
from lep.corpus.read import read_documents, write_records
from lep.files import read_json, write_json
from lep.inference.models import load_model
from lep.settings import NewRowsSettings
from lep.training.heldout import HeldoutText

ENGLISH = "en"
CHARACTERS, HELDOUT = 3_000_000, 60_000  # of each language, at most
MEASURED = 20_000  # characters
SHARES = {"text": 0.8, "old_text": 0.2}
LOOKS = 4


def split(data: Path, language: str, output: Path) -> tuple[Path, Path]:
    """Files of training and of held-out text."""
    files = output / f"{language}.train.jsonl", output / f"{language}.heldout.jsonl"
    if not all(file.exists() for file in files):
        both = prepare(
            read_documents([data / "train" / language]),
            limit_characters=CHARACTERS,
            limit_heldout_characters=HELDOUT,
            source_share=0.2 if language in ("ru", ENGLISH) else 1.0,
        )
        for file, side in zip(files, (both.train, both.heldout), strict=True):
            write_records(file, map(asdict, side))
    return files


def measured(base: Path, text: dict[str, list[str]], file: Path) -> dict[str, float]:
    """What a look at the original shows."""
    if not file.exists():
        model, checkpoint = load_model(base)
        write_json(file, HeldoutText(text, MEASURED, checkpoint).look(model))
    return read_json(file)


def symbols(model: Path, file: Path) -> float:
    """Characters a token of held-out text."""
    texts = [document.text for document in read_documents([file])]
    encoded = Checkpoint(model).tokenizer(texts, add_special_tokens=False)["input_ids"]
    return sum(map(len, texts)) / sum(map(len, encoded))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/LANGUAGE")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--languages", nargs="+", default=["ru", "kk", "ka"])
    parser.add_argument("--new-tokens", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=60_000)
    a = parser.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    english, english_heldout = split(a.data, ENGLISH, a.output)
    print(
        "| language | characters a token | after | text: original | mean rows | trained "
        "| repeated: original | mean rows | trained | en text | trained | seconds |\n"
        + "|---" * 12
        + "|"
    )
    for language in a.languages:
        folder = a.output / language
        folder.mkdir(exist_ok=True)
        train, heldout = split(a.data, language, a.output)
        text = {language: [str(heldout)], ENGLISH: [str(english_heldout)]}
        tokenizer, start, trained = (folder / name for name in ("tokenizer", "start", "trained"))
        if not tokenizer.exists():
            lep.extend_tokenizer(a.base, [train], a.new_tokens, tokenizer)
        if not start.exists():
            lep.initialise(a.base, tokenizer, start)
        if not trained.exists():
            settings = NewRowsSettings(
                tokens=a.tokens,
                checkpoints=LOOKS,
                eval_text=text,
                eval_characters=MEASURED,
                old_text=[str(english)],
                shares=SHARES,
            )
            lep.pretrain(start, [train], trained, settings)
        record = json.loads((trained / "lep" / "pretrain.json").read_text(encoding="utf-8"))
        before = measured(a.base, text, folder / "original.json")
        first, last = (
            record["looks"][0],
            min(record["looks"], key=lambda look: look["bits_per_byte"][language]),
        )
        numbers = [
            f"{symbols(a.base, heldout):.2f}",
            f"{symbols(start, heldout):.2f}",
            *_bits(before[language], first, last, "bits_per_byte", language),
            *_bits(before[f"{language} copied"], first, last, "copied_bits_per_byte", language),
            f"{before[ENGLISH]:.4f}",
            f"{last['bits_per_byte'][ENGLISH]:.4f}",
            f"{record['seconds'] - record.get('look_seconds', 0):,.0f}",
        ]
        print(f"| {language} | {' | '.join(numbers)} |", flush=True)


def _bits(before: float, first: dict, last: dict, kind: str, language: str) -> list[str]:
    return [f"{value:.3f}" for value in (before, first[kind][language], last[kind][language])]


if __name__ == "__main__":
    main()
