"""Time and memory of the whole `lep corpus` command on raw text.

    python benchmarks/corpus.py --data DATA [--megabytes 100 1000] [--output runs/corpus]

The input is one jsonl file of documents from `DATA/train/ru`, with at most an eighth of the amount
from one source. If that is not enough text, random sentences are mixed into further documents.
"""

import argparse
import json
import random
import shutil
import sys
from pathlib import Path

from measure import measured

from lep.corpus.read import corpus_files, read_lines

MIXED = 40  # sentences of a mixed document


def raw_text(data: Path, bytes_wanted: int, path: Path) -> int:
    """Write raw documents to a jsonl file; returns its size in bytes."""
    total = 0
    with path.open("w", encoding="utf-8") as out:
        for file in corpus_files([data / "train" / "ru"]):
            taken = 0
            for line in read_lines(file):
                if total >= bytes_wanted or taken >= bytes_wanted / 8:
                    break
                out.write(line)
                taken += len(line.encode())
                total += len(line.encode())
        if total < bytes_wanted:
            sentences = [
                part
                for file in corpus_files([data / "train" / "ru"])
                for line in read_lines(file)
                for part in json.loads(line)["text"].replace("\n", " ").split(". ")
            ]
            draw = random.Random(0)
            while total < bytes_wanted:
                text = ". ".join(draw.choices(sentences, k=MIXED))
                line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
                out.write(line)
                total += len(line.encode())
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100])
    parser.add_argument("--output", type=Path, default=Path("runs/corpus"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for megabytes in arguments.megabytes:
        raw = arguments.output / f"raw-{megabytes}.jsonl"
        corpus = arguments.output / f"made-{megabytes}"
        size = raw_text(arguments.data, megabytes * 1_000_000, raw)
        shutil.rmtree(corpus, ignore_errors=True)
        lep = str(Path(sys.executable).parent / "lep")
        cost = measured([lep, "corpus", str(raw), "--language", "ru", "--output", str(corpus)])
        print(f"{size / 1e6:.0f} MB: {cost}", flush=True)


if __name__ == "__main__":
    main()
