"""Compare tokenizers on texts: what a text costs, what is never used, what is cut differently, and how fast."""

import json
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import regex
from tokenizers import Tokenizer
from tokenizers.models import BPE

from lep.corpus.read import corpus_files, cut_at_lines, stream_texts
from lep.errors import LepError
from lep.hub import local_folder, short_names
from lep.tokenizer.count import WordCutter
from lep.tokenizer.idmap import IdMap
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.parts import Parts
from lep.tokenizer.vocabulary import Vocabulary

WORD = regex.compile(r"\p{L}[\p{L}\p{M}]*")
CURVE_POINTS, SHOWN_WORDS, LOOKED_AT_WORDS = 12, 20, 2_000
SPEED_CHARACTERS, SPEED_RUNS = 1_000_000, 3
PIECE_CHARACTERS = 50_000


@dataclass(frozen=True)
class Cost:
    """What one file costs under one tokenizer. `new` counts tokens that the first tokenizer does not have."""

    tokens: int
    symbols_per_token: float
    bytes_per_token: float
    words_per_token: float
    round_trip: float  # share of the texts given back exactly
    new_share: float  # of the tokens used
    new_used: float  # of the new tokens, those that occur


def compare_tokenizers(
    sources: Iterable[str | Path], texts: dict[str, list[str | Path]]
) -> dict[str, Any]:
    """All figures as a JSON-like record; the first tokenizer is the one that the others are compared with.

    `texts` holds paths by language (or any name). Raises `LepError` without tokenizers or texts.
    """
    sources = list(sources)
    folders = [local_folder(source, weights=False) for source in sources]
    if not folders or not texts:
        raise LepError("give at least one tokenizer, and at least one --text NAME=PATH")
    names = short_names([str(source) for source in sources])
    files = {name: corpus_files(paths) for name, paths in texts.items()}
    loaded = {name: _Loaded.of(folder) for name, folder in zip(names, folders, strict=True)}
    first = loaded[names[0]]
    record: dict[str, Any] = {
        "reference": names[0],
        "tokenizers": {},
        "texts": [],
        "differences": {},
        "curves": {},
    }
    sample: list[str] = []
    for language, paths in files.items():
        for source, together in _sources(paths).items():
            pieces = list(cut_at_lines(stream_texts(together), PIECE_CHARACTERS))
            if sum(map(len, sample)) < SPEED_CHARACTERS:
                sample += pieces
            record["texts"].append(_text_record(language, source, pieces, first, loaded))
    for name, one in loaded.items():
        record["tokenizers"][name] = one.facts | {
            "characters_per_second": _speed(one.tokenizer, sample)
        }
        if one is not first:
            record["differences"][name] = _differences(first, one, sample)
            if _only_adds(first, one):
                record["curves"][name] = {
                    language: _curve(
                        first, one, list(cut_at_lines(stream_texts(paths), PIECE_CHARACTERS))
                    )
                    for language, paths in files.items()
                }
    return record


def unreachable_tokens(tokenizer: Tokenizer) -> list[int]:
    """Ids of ordinary tokens that the model does not give for their own text, whole-word shortcuts left aside."""
    spec = json.loads(tokenizer.to_str())
    if spec["model"].get("ignore_merges"):
        spec["model"]["ignore_merges"] = False
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    vocabulary = Vocabulary.of(tokenizer)
    names = {i: name for name, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    return [
        i
        for i, token in enumerate(vocabulary.tokens)
        if token
        and not token.added
        and not token.is_byte
        and [p.id for p in tokenizer.model.tokenize(names[i])] != [i]
    ]


def comparison_table(record: dict[str, Any]) -> str:
    """The record as a text table: each text with all tokenizers, then the tokenizers themselves."""
    width = max(len(name) for name in record["tokenizers"])
    lines = []
    for text in record["texts"]:
        floor = text["characters"] / text["words_cut"]
        lines.append(
            f"{text['name']}  {text['file']}  {text['characters']:,} symbols (one token a word: {floor:.2f})"
        )
        for name, cost in text["costs"].items():
            lines.append(
                f"  {name:<{width}}  {cost['symbols_per_token']:6.3f} symbols  {cost['bytes_per_token']:6.3f} bytes  "
                f"{cost['words_per_token']:6.3f} words a token  new {cost['new_share']:6.1%} of the tokens  "
                f"round trip {cost['round_trip']:7.2%}"
            )
    lines.append("")
    for name, facts in record["tokenizers"].items():
        lines.append(
            f"{name:<{width}}  {facts['size']:>9,} tokens  {facts['unreachable']:>6,} unreachable  loads in "
            f"{facts['loading_seconds']:.2f} s  encodes {facts['characters_per_second'] / 1e6:.2f}M symbols/s"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class _Loaded:
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    facts: dict[str, Any]

    @cached_property
    def spaces(self) -> bool:
        """Whether it puts a space before every text."""
        tokens = (
            self.vocabulary.tokens[i]
            for i in self.tokenizer.encode("a", add_special_tokens=False).ids[:1]
        )
        return any(token is not None and token.content.startswith(b" ") for token in tokens)

    @classmethod
    def of(cls, folder: Path) -> "_Loaded":
        started = time.perf_counter()
        tokenizer = load_tokenizer(folder).backend_tokenizer
        seconds = time.perf_counter() - started
        vocabulary, lost = Vocabulary.of(tokenizer), unreachable_tokens(tokenizer)
        shown = [vocabulary.tokens[i].content.decode(errors="replace") for i in lost[:SHOWN_WORDS]]  # type: ignore[union-attr]
        size = sum(token is not None for token in vocabulary.tokens)
        facts = {
            "size": size,
            "loading_seconds": seconds,
            "unreachable": len(lost),
            "unreachable_examples": shown,
        }
        return cls(tokenizer, vocabulary, facts)


def _sources(files: list[Path]) -> dict[str, list[Path]]:
    """Files that are one text: the txt files of a folder, each of which is a document, and every other file."""
    found: dict[str, list[Path]] = {}
    beside = Counter(file.parent for file in files)
    for file in files:
        documents = ".txt" in file.suffixes and beside[file.parent] > 1
        found.setdefault(str(file.parent if documents else file), []).append(file)
    names = short_names(list(found))
    return dict(zip(names, found.values(), strict=True))


def _text_record(
    language: str, source: str, pieces: list[str], first: _Loaded, loaded: dict[str, _Loaded]
) -> dict[str, Any]:
    words = sum(len(WORD.findall(piece)) for piece in pieces)
    cutter = WordCutter.of(first.tokenizer)
    return {
        "name": language,
        "file": source,
        "characters": sum(map(len, pieces)),
        "words": words,
        "bytes": sum(len(piece.encode()) for piece in pieces),
        "words_cut": sum(cutter.pieces(p) for p in pieces),
        "costs": {name: asdict(_cost(first, one, pieces, words)) for name, one in loaded.items()},
    }


def _cost(first: _Loaded, one: _Loaded, pieces: list[str], words: int) -> Cost:
    encoded = one.tokenizer.encode_batch(pieces, add_special_tokens=False)
    counts = np.zeros(len(one.vocabulary), dtype=np.int64)
    for each in encoded:
        counts += np.bincount(each.ids, minlength=len(counts))
    decoded = one.tokenizer.decode_batch([each.ids for each in encoded], skip_special_tokens=False)
    new = np.array(IdMap.between(first.vocabulary, one.vocabulary).new, dtype=np.int64)
    tokens = max(1, int(counts.sum()))
    return Cost(
        tokens=int(counts.sum()),
        symbols_per_token=sum(map(len, pieces)) / tokens,
        bytes_per_token=sum(len(piece.encode()) for piece in pieces) / tokens,
        words_per_token=words / tokens,
        round_trip=statistics.fmean(a == b for a, b in zip(pieces, decoded, strict=True)),
        new_share=float(counts[new].sum() / tokens),
        new_used=float((counts[new] > 0).mean()) if len(new) else 0.0,
    )


def _speed(tokenizer: Tokenizer, sample: list[str]) -> float:
    """Characters a second of encoding a batch on all cores: the median of several runs."""
    seconds = []
    for _ in range(SPEED_RUNS):
        started = time.perf_counter()
        tokenizer.encode_batch_fast(sample, add_special_tokens=False)
        seconds.append(time.perf_counter() - started)
    return sum(map(len, sample)) / statistics.median(seconds)


def _only_adds(first: _Loaded, one: _Loaded) -> bool:
    """Whether all that tells one from the first is more tokens, which its merges make."""
    found = IdMap.between(first.vocabulary, one.vocabulary)
    model = one.tokenizer.model
    lossless = isinstance(model, BPE) and (one.vocabulary.byte_level or model.byte_fallback)
    return bool(found.new) and not found.dropped and lossless


def _differences(first: _Loaded, one: _Loaded, sample: list[str]) -> list[dict[str, Any]]:
    """The most frequent words that are cut differently, with both ways."""
    counts = Counter(" " + word for piece in sample for word in piece.split())
    found: list[dict[str, Any]] = []
    for word, count in counts.most_common(LOOKED_AT_WORDS):
        before, after = (_cut(each, word) for each in (first, one))
        if before != after and len(found) < SHOWN_WORDS:
            found.append({"word": word, "count": count, "before": before, "after": after})
    return found


def _cut(loaded: _Loaded, word: str) -> list[str]:
    ids = loaded.tokenizer.encode(word[1:] if loaded.spaces else word, add_special_tokens=False).ids
    tokens = (loaded.vocabulary.tokens[i] for i in ids)
    return [token.content.decode(errors="replace") if token else "" for token in tokens]


def _curve(first: _Loaded, one: _Loaded, pieces: list[str]) -> list[tuple[int, float]]:
    """Symbols per token with only the first so many new tokens, from one encoding with all of them.

    Merges come in order: without the later ones, each of their tokens falls apart into what it was made of.
    """
    parts = Parts.of(one.tokenizer)
    made: dict[int, tuple[int, int]] = {}
    for merge in parts.merges:
        made.setdefault(merge.result, (merge.left, merge.right))
    position = {
        result: i for i, result in enumerate(made)
    }  # the order in which they were learned; letters come first
    new = sorted(
        IdMap.between(first.vocabulary, one.vocabulary).new, key=lambda i: (position.get(i, -1), i)
    )
    counts = np.zeros(len(one.vocabulary), dtype=np.int64)
    for each in one.tokenizer.encode_batch_fast(pieces, add_special_tokens=False):
        counts += np.bincount(each.ids, minlength=len(counts))
    points = []
    for step in range(CURVE_POINTS + 1):
        added = round(step * len(new) / CURVE_POINTS)
        lengths = np.ones(len(counts), dtype=np.int64)
        for i in new[added:]:
            token = one.vocabulary.tokens[i]
            lengths[i] = (
                sum(lengths[list(made[i])]) if i in made else len(token.content if token else b"")
            )
        points.append((added, sum(map(len, pieces)) / int((counts * lengths).sum())))
    return points
