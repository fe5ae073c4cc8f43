"""Time and memory of `lep tokenizer extend` on 100 MB and 200 MB of Russian text.

    python benchmarks/extend_speed.py --data DATA [--repeats 3] [--profile]

The tokenizer is Llama 3's, extended by 46,560 tokens. The yardstick is the trainer of the
`tokenizers` library: a new BPE vocabulary of 64,000 tokens on the same 200 MB.
"""

import argparse
import cProfile
import io
import json
import pstats
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import zstandard
from measure import measured

from lep.corpus.read import stream_texts
from lep.tokenizer.write import extend_tokenizer

NEW_TOKENS, MEGABYTES = 46_560, (100, 200)
YARDSTICK = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=64_000, show_progress=False, initial_alphabet=alphabet)
tokenizer.train(sys.argv[1:], trainer)
"""


def first_megabytes(texts: Iterator[str], size: int) -> Iterator[str]:
    """Yield texts up to `size` bytes; the last one is cut."""
    for text in texts:
        encoded = text.encode()[:size]
        yield encoded.decode(errors="ignore")
        size -= len(encoded)
        if size <= 0:
            return


def prepare(data: Path, folder: Path) -> list[Path]:
    """Write the tokenizer's folder and the corpus; returns the corpus files of 100 MB each."""
    base = folder / "llama-3"
    base.mkdir()
    source = data / "tokenizers" / "llama-3"
    with (source / "tokenizer.json.zst").open("rb") as raw:
        (base / "tokenizer.json").write_bytes(
            zstandard.ZstdDecompressor().stream_reader(raw).read()
        )
    shutil.copy(source / "tokenizer_config.json", base)
    texts = stream_texts([data / "train" / "ru"])
    files = [folder / f"{number}.txt" for number in range(2)]
    for file in files:
        with file.open("w", encoding="utf-8") as out:
            out.writelines(text + "\n" for text in first_megabytes(texts, 100_000_000))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = prepare(arguments.data, folder)
        commands = {
            f"{size} MB": [
                str(Path(sys.executable).parent / "lep"),
                "tokenizer",
                "extend",
                "--base",
                str(folder / "llama-3"),
                "--corpus",
                *map(str, files[: size // 100]),
                "--new-tokens",
                str(NEW_TOKENS),
                "--script",
                "cyrillic",
            ]
            for size in MEGABYTES
        }
        commands["yardstick, 200 MB"] = [sys.executable, "-c", YARDSTICK, *map(str, files)]
        costs = {name: [] for name in commands}
        for repeat in range(arguments.repeats):
            for name, command in commands.items():
                output = ["--output", str(folder / f"out-{repeat}-{name}")]
                costs[name].append(measured(command + (output if "extend" in command else [])))
                print(name, costs[name][-1], flush=True)
        for name, runs in costs.items():
            middle = {
                key: statistics.median(getattr(run, key) for run in runs)
                for key in ("wall", "cpu", "peak_bytes")
            }
            print(json.dumps({"case": name, **middle, "bytes": [f.stat().st_size for f in files]}))
        if arguments.profile:
            profile = cProfile.Profile()
            profile.runcall(
                extend_tokenizer,
                folder / "llama-3",
                files,
                NEW_TOKENS,
                folder / "profiled",
                script="cyrillic",
            )
            text = io.StringIO()
            pstats.Stats(profile, stream=text).sort_stats("cumtime").print_stats(
                "lep|tokenizers|zstd|posix.read", 25
            )
            print(text.getvalue())


if __name__ == "__main__":
    main()
