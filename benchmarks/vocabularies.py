"""Russian vocabularies on real tokenizers: ours, the paper's method and the paper's own.

    python benchmarks/vocabularies.py --data DATA [--output runs/vocabularies] [--only NAME ...]

Sizes are the paper's. Every vocabulary is learned on `train/ru`; English token uses are counted on
`train/en`. Held-out documents of `train/ru` choose the largest share of the text that one source
may have, and held-out documents of both languages choose the number of tokens to keep in place.
`eval/ru` is read once, at the end, for each finished vocabulary. White space is collapsed and text
cut into pieces of 3,000 characters, as in the reference measurements. Finished steps are skipped;
the table is printed from the records in the output folder.
"""

import argparse
import itertools
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import zstandard
from tokenizers import Tokenizer

from lep.corpus.prepare import unit_hash
from lep.corpus.read import Document, corpus_files, read_documents
from lep.tokenizer.count import WordCounts, WordCutter, count_texts
from lep.tokenizer.extend import extend_bpe, merge_vocabulary
from lep.tokenizer.parts import Parts
from lep.tokenizer.prune import kept_tokens, pruned, token_counts
from lep.tokenizer.reach import unreachable_tokens
from lep.tokenizer.train import replacement, replacement_cutter

sys.path.append(str(Path(__file__).parent.parent / "lab"))
from make_pair import group

HELDOUT_SHARE, PIECE, SAMPLE_CHARACTERS = 0.05, 3_000, 400_000
SHARES = (1.0, 0.2, 0.1, 0.05)  # of the text that one source may have
# Languages with a small corpus of sentences.
SMALL = {"kk": "cyrillic", "ka": "georgian", "hi": "devanagari"}
SMALL_TOKENS, SMALL_HELDOUT = (500, 1_000, 2_000), 0.2
KEPT_IN_PLACE = (72_000, 84_000, 96_000, 108_000)
MAX_ENGLISH_LOSS = 0.01
USE_CHARACTERS = 12_000_000  # per language, to count token uses before pruning
# Symbols per token that the paper reports on its own Russian text, by the name of our row.
PAPER = {
    "llama-3": 2.89,
    "llama-3 extended 174,816": 3.78,
    "llama-3 optimized 114,504": 3.40,
    "mistral-7b-v0.1": 2.44,
    "mistral-7b-v0.1 extended 55,328": 3.77,
    "bpe 32,000": 3.76,
    "unigram 32,000": 3.78,
    "bpe 128,000": 4.40,
    "unigram 128,000": 4.35,
}


class Data:
    """The development data, split by author, prompt or document with a fixed hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tokenizer(self, name: str) -> Tokenizer:
        with (self.folder / "tokenizers" / name / "tokenizer.json.zst").open("rb") as raw:
            return Tokenizer.from_str(
                zstandard.ZstdDecompressor().stream_reader(raw).read().decode()
            )

    def documents(self, language: str, source: Path, *, heldout: bool) -> Iterator[Document]:
        for document in read_documents([source], group=group):
            if (unit_hash(document.group) < HELDOUT_SHARE) == heldout:
                yield document

    def sources(self, language: str) -> list[Path]:
        return corpus_files([self.folder / "train" / language])

    def heldout(self, language: str) -> dict[str, list[str]]:
        """Pieces of held-out text by source, with a bounded amount from each."""
        samples = {}
        for source in self.sources(language):
            texts = [d.text for d in self.documents(language, source, heldout=True)]
            pieces = collapsed(texts)[: SAMPLE_CHARACTERS // PIECE]
            if pieces:
                samples[source.name] = pieces
        return samples

    def training(self, language: str, characters: int | None = None) -> Iterator[str]:
        sources = self.sources(language)
        for source in sources:
            taken = 0
            for document in self.documents(language, source, heldout=False):
                if characters is not None and taken > characters / len(sources):
                    break
                taken += len(document.text)
                yield document.text


def collapsed(texts: Iterable[str]) -> list[str]:
    """The texts with white space collapsed, in pieces of 3,000 characters."""
    text = " ".join(" ".join(text.split()) for text in texts)
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def symbols_per_token(tokenizer: Tokenizer, pieces: list[str]) -> float:
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch_fast(pieces, add_special_tokens=False))
    return sum(map(len, pieces)) / tokens


def macro(tokenizer: Tokenizer, heldout: dict[str, list[str]]) -> float:
    """Symbols per token as the mean over the sources, so that no large one dominates."""
    return float(np.mean([symbols_per_token(tokenizer, pieces) for pieces in heldout.values()]))


def mixed(counts: dict[str, WordCounts], share: float) -> WordCounts:
    """Counts of all sources, with large ones scaled down to `share` of the text."""
    total = sum(source.characters for source in counts.values())
    words: Counter[str] = Counter()
    characters = 0
    for source in counts.values():
        weight = min(1.0, share * total / source.characters)
        for word, count in source.counts.items():
            if scaled := round(weight * count):
                words[word] += scaled
        characters += round(weight * source.characters)
    return WordCounts(words, next(iter(counts.values())).script, characters)


def count_sources(
    data: Data, tokenizer: Tokenizer, language: str, script: str
) -> dict[str, WordCounts]:
    return {
        source.name: count_texts(
            tokenizer, (d.text for d in data.documents(language, source, heldout=False)), script
        )
        for source in data.sources(language)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/vocabularies"))
    parser.add_argument("--only", nargs="*", help="prefixes of the rows to run")
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(Data(arguments.data), arguments.output)
    if not arguments.table_only:
        for name, make in bench.rows().items():
            if not arguments.only or any(name.startswith(start) for start in arguments.only):
                bench.row(name, make)
        if not arguments.only:
            bench.small()
    print(bench.table())
    print(bench.small_table())


class Bench:
    """The rows of the table; each is a function that returns a tokenizer."""

    def __init__(self, data: Data, output: Path) -> None:
        self.data, self.output = data, output
        self._counts: dict[tuple[str, str], dict[str, WordCounts]] = {}

    def counts(self, name: str, script: str, cutter: Tokenizer) -> dict[str, WordCounts]:
        key = (WordCutter.of(cutter).fingerprint, script)
        if key not in self._counts:
            # Counts are large, so only one set is held.
            self._counts = {key: count_sources(self.data, cutter, "ru", script)}
        return self._counts[key]

    def share(self) -> float:
        """A source's largest share, chosen on held-out text: Llama 3 with 46,560 new tokens."""
        path = self.output / "share.json"
        if not path.exists():
            tokenizer, heldout = self.data.tokenizer("llama-3"), self.data.heldout("ru")
            counts = self.counts("llama-3", "cyrillic", tokenizer)
            results = {}
            for share in SHARES:
                extension = extend_bpe(Parts.of(tokenizer), mixed(counts, share), 46_560)
                results[share] = macro(extension.parts.vocabulary.tokenizer, heldout)
                figure = f"{results[share]:.4f} symbols per token"
                print(f"share {share}: {figure}, mean over held-out sources", flush=True)
            choice = max(results, key=lambda share: results[share])
            path.write_text(
                json.dumps({"choice": choice, "tried": results}) + "\n", encoding="utf-8"
            )
        return json.loads(path.read_text(encoding="utf-8"))["choice"]

    def rows(self) -> dict[str, Callable[[], Tokenizer]]:
        originals = {name: self._original(name) for name in ("llama-3", "mistral-7b-v0.1", "qwen2")}
        paper = {
            f"darulm {algorithm} {size:,}": self._original(f"darulm-{size}-{algorithm}")
            for size in (32_000, 128_000)
            for algorithm in ("bpe", "unigram")
        }
        extended = {}
        for name, tokens, label in [
            ("llama-3", 46_560, "174,816"),
            ("mistral-7b-v0.1", 23_328, "55,328"),
            ("qwen2", 46_560, "+46,560"),
        ]:
            extended[f"{name} extended {label}"] = self._extended(
                name, tokens, "cyrillic", extend_bpe
            )
            extended[f"{name} merged {label}"] = self._extended(
                name, tokens, "any", merge_vocabulary
            )
        optimized = {
            "llama-3 optimized 114,504": self._optimized(
                64_000, 114_504, in_place=False, merge=False
            ),
            "llama-3 pruned and merged 114,504": self._optimized(
                64_000, 114_504, in_place=False, merge=True
            ),
            "llama-3 in place 128,256": lambda: self._optimized(
                self.kept(), 128_256, in_place=True, merge=False
            )(),
            "llama-3 in place, merged 128,256": lambda: self._optimized(
                self.kept(), 128_256, in_place=True, merge=True
            )(),
        }
        fresh = {
            f"{algorithm} {size:,}": self._replaced(algorithm, size)
            for size in (32_000, 128_000)
            for algorithm in ("bpe", "unigram")
        }
        return originals | extended | optimized | fresh | paper

    def row(self, name: str, make: Callable[[], Tokenizer]) -> None:
        """Build and measure a vocabulary, unless its record exists."""
        folder = self.folder(name)
        if (folder / "record.json").exists():
            return
        start = time.time()
        tokenizer = make()
        seconds = time.time() - start
        texts = {
            f: [
                d.text
                for d in read_documents([self.data.folder / "eval" / "ru" / f"{f}.jsonl.zst"])
            ]
            for f in ("wiki_wikineural", "wiki_xquad")
        }
        record = {
            "name": name,
            "size": tokenizer.get_vocab_size(),
            "seconds": round(seconds, 1),
            "wikineural": symbols_per_token(tokenizer, collapsed(texts["wiki_wikineural"])),
            "xquad": symbols_per_token(tokenizer, collapsed(texts["wiki_xquad"])),
            "heldout_ru": macro(tokenizer, self.data.heldout("ru")),
            "heldout_en": macro(tokenizer, self.data.heldout("en")),
            "unreachable": len(unreachable_tokens(tokenizer)),
            "peak_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        }
        folder.mkdir(exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "record.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
        print(record, flush=True)

    def folder(self, name: str) -> Path:
        return self.output / name.replace(" ", "-").replace(",", "")

    def small(self) -> None:
        """Extend Llama 3 for languages of which it lacks some or all letters.

        A fifth of the sentences is held out.
        """
        path = self.output / "small.json"
        if path.exists():
            return
        original, records = self.data.tokenizer("llama-3"), []
        english = collapsed(
            d.text for d in self.data.documents("en", self.data.sources("en")[0], heldout=True)
        )
        for language, script in SMALL.items():
            sentences = [
                d
                for source in self.data.sources(language)
                for d in read_documents([source], group=group)
            ]
            heldout = collapsed(d.text for d in sentences if unit_hash(d.group) < SMALL_HELDOUT)
            words = count_texts(
                original, [d.text for d in sentences if unit_hash(d.group) >= SMALL_HELDOUT], script
            )
            letters = {c for c in "".join(heldout) if c.isalpha()}
            missing = [
                c for c in letters if len(original.encode(c, add_special_tokens=False).ids) > 1
            ]
            for tokens, (way, method) in itertools.product(
                SMALL_TOKENS, {"continue": extend_bpe, "merge": merge_vocabulary}.items()
            ):
                extended = method(Parts.of(original), words, tokens).parts.vocabulary.tokenizer
                before, after = (
                    t.encode_batch_fast(english, add_special_tokens=False)
                    for t in (original, extended)
                )
                records.append(
                    {
                        "language": language,
                        "way": way,
                        "tokens": tokens,
                        "characters": words.characters,
                        "heldout": sum(map(len, heldout)),
                        "letters": len(letters),
                        "missing": len(missing),
                        "before": symbols_per_token(original, heldout),
                        "after": symbols_per_token(extended, heldout),
                        "english_changed": sum(
                            a.ids != b.ids for a, b in zip(before, after, strict=True)
                        ),
                        "english": len(english),
                        "unreachable": len(unreachable_tokens(extended)),
                    }
                )
                print(records[-1], flush=True)
        path.write_text(json.dumps(records) + "\n", encoding="utf-8")

    def small_table(self) -> str:
        lines = [
            "| language | letters, not tokens before | way | new tokens | symbols per token before "
            "| after | English pieces changed | unreachable |",
            "|---" * 8 + "|",
        ]
        path = self.output / "small.json"
        for r in json.loads(path.read_text(encoding="utf-8")) if path.exists() else []:
            changed = f"{r['english_changed']} of {r['english']}"
            lines.append(
                f"| {r['language']} | {r['letters']}, {r['missing']} | {r['way']} "
                f"| {r['tokens']:,} | {r['before']:.3f} | {r['after']:.3f} | {changed} "
                f"| {r['unreachable']} |"
            )
        return "\n".join(lines)

    def kept(self) -> int:
        """Tokens to keep in place: the fewest with English within 1% on held-out documents."""
        path = self.output / "kept.json"
        if not path.exists():
            original = self.data.tokenizer("llama-3")
            heldout = {language: self.data.heldout(language) for language in ("ru", "en")}
            before = macro(original, heldout["en"])
            results = {}
            for keep in KEPT_IN_PLACE:
                tokenizer = self._optimized(keep, 128_256, in_place=True, merge=False)()
                results[keep] = {
                    language: macro(tokenizer, pieces) for language, pieces in heldout.items()
                }
                print(keep, results[keep], f"English before: {before:.4f}", flush=True)
            least = (1 - MAX_ENGLISH_LOSS) * before
            choice = min(keep for keep, result in results.items() if result["en"] >= least)
            record = {"choice": choice, "english_before": before, "tried": results}
            path.write_text(json.dumps(record) + "\n", encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))["choice"]

    def table(self) -> str:
        lines = [
            "| vocabulary | size | Wikipedia | XQuAD | paper | held-out ru | held-out en "
            "| unreachable | seconds |",
            "|---" * 9 + "|",
        ]
        for name in self.rows():
            path = self.folder(name) / "record.json"
            if path.exists():
                r = json.loads(path.read_text(encoding="utf-8"))
                paper = f"{PAPER[name]:.2f}" if name in PAPER else "-"
                lines.append(
                    f"| {name} | {r['size']:,} | {r['wikineural']:.3f} | {r['xquad']:.3f} "
                    f"| {paper} | {r['heldout_ru']:.3f} | {r['heldout_en']:.3f} "
                    f"| {r['unreachable']:,} | {r['seconds']:.0f} |"
                )
        return "\n".join(lines)

    def _original(self, name: str) -> Callable[[], Tokenizer]:
        return lambda: self.data.tokenizer(name)

    def _extended(
        self, name: str, tokens: int, script: str, method: Callable
    ) -> Callable[[], Tokenizer]:
        def make() -> Tokenizer:
            tokenizer = self.data.tokenizer(name)
            words = mixed(self.counts(name, script, tokenizer), self.share())
            return method(Parts.of(tokenizer), words, tokens).parts.vocabulary.tokenizer

        return make

    def _optimized(
        self, keep: int, size: int, *, in_place: bool, merge: bool
    ) -> Callable[[], Tokenizer]:
        def make() -> Tokenizer:
            tokenizer = self.data.tokenizer("llama-3")
            parts = Parts.of(tokenizer)
            uses = np.zeros(len(parts.names), dtype=np.int64)
            for language in ("en", "ru"):
                uses += token_counts(
                    tokenizer, self.data.training(language, USE_CHARACTERS), len(uses)
                )
            kept = kept_tokens(parts, uses, keep, np.zeros(len(uses), dtype=bool))
            smaller = pruned(parts, kept, in_place=in_place)
            words = mixed(
                self.counts("llama-3", "any" if merge else "cyrillic", tokenizer), self.share()
            )
            method = merge_vocabulary if merge else extend_bpe
            return method(smaller, words, size - keep).parts.vocabulary.tokenizer

        return make

    def _replaced(self, algorithm: str, size: int) -> Callable[[], Tokenizer]:
        def make() -> Tokenizer:
            base = self.data.tokenizer("mistral-7b-v0.1")
            words = mixed(self.counts("new", "any", replacement_cutter(base)), self.share())
            return replacement(base, words, size, algorithm=algorithm)

        return make


if __name__ == "__main__":
    main()
