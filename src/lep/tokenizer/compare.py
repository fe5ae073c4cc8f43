"""Compare tokenizers on texts: what a text costs, what is unused or cut differently, how fast."""

import json
import operator
import statistics
import time
import timeit
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import regex
from tokenizers import Tokenizer
from tokenizers.models import BPE

from lep.corpus.read import corpus_files, cut_at_lines, stream_texts
from lep.errors import LepError
from lep.hub import local_folder, short_names
from lep.result import Result
from lep.tokenizer.count import WordCutter
from lep.tokenizer.idmap import IdMap
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.parts import Parts
from lep.tokenizer.vocabulary import Vocabulary

WORD = regex.compile(r"\p{L}[\p{L}\p{M}]*")
CURVE_POINTS, SHOWN_WORDS, COMPARED_WORDS = 12, 20, 2_000
SPEED_CHARACTERS, SPEED_RUNS = 1_000_000, 3
PIECE_CHARACTERS = 50_000


@dataclass(frozen=True)
class Cost:
    """What one text costs with one tokenizer; a token is new if the first tokenizer lacks it."""

    tokens: int
    symbols_per_token: float
    bytes_per_token: float
    words_per_token: float
    round_trip: float  # share of the pieces given back exactly
    new_share: float  # of the tokens used
    new_used: float  # of the new tokens, those that occur

    def __str__(self) -> str:
        return (
            f"{self.symbols_per_token:6.3f} symbols  {self.bytes_per_token:6.3f} bytes  "
            f"{self.words_per_token:6.3f} words a token  new {self.new_share:6.1%} of the tokens  "
            f"round trip {self.round_trip:7.2%}"
        )


@dataclass(frozen=True)
class TextCosts:
    """One text and its cost by tokenizer. No tokenizer needs fewer tokens than `words_cut`."""

    name: str
    file: str
    characters: int
    words: int
    bytes: int
    words_cut: int
    costs: dict[str, Cost]


@dataclass(frozen=True)
class TokenizerFacts:
    """Size, reach and speed of one tokenizer."""

    size: int
    loading_seconds: float
    unreachable: int
    unreachable_examples: list[str]
    characters_per_second: float

    def __str__(self) -> str:
        loading, speed = self.loading_seconds, self.characters_per_second / 1e6
        return (
            f"{self.size:>9,} tokens  {self.unreachable:>6,} unreachable  "
            f"loads in {loading:.2f} s  encodes {speed:.2f}M symbols/s"
        )


@dataclass(frozen=True)
class Difference:
    """A word that two tokenizers cut differently."""

    word: str
    count: int
    before: list[str]
    after: list[str]


@dataclass(frozen=True)
class Comparison(Result):
    """All figures of a comparison; every other tokenizer is compared with `reference`.

    `curves` holds, by tokenizer and language, (new tokens, symbols per token) when only the first
    so many of the new tokens are there.
    """

    reference: str
    tokenizers: dict[str, TokenizerFacts]
    texts: list[TextCosts]
    differences: dict[str, list[Difference]]
    curves: dict[str, dict[str, list[tuple[int, float]]]]

    def __str__(self) -> str:
        width = max(map(len, self.tokenizers))
        lines = []
        for text in self.texts:
            lines.append(
                f"{text.name}  {text.file}  {text.characters:,} symbols "
                f"(one token a word: {text.characters / text.words_cut:.2f})"
            )
            for name, cost in text.costs.items():
                lines.append(f"  {name:<{width}}  {cost}")
        lines.append("")
        lines += [f"{name:<{width}}  {facts}" for name, facts in self.tokenizers.items()]
        return "\n".join(lines)


def compare_tokenizers(
    tokenizers: Iterable[str | Path], texts: Mapping[str, Iterable[str | Path]]
) -> Comparison:
    """Compare tokenizers (folders, hub ids) with the first of them, on paths of text by language.

    Raises `LepError` without tokenizers or texts.
    """
    sources = list(tokenizers)
    folders = [local_folder(source, weights=False) for source in sources]
    if not folders or not texts:
        raise LepError("give at least one tokenizer, and at least one --text NAME=PATH")
    names = short_names([str(source) for source in sources])
    files = {language: corpus_files(paths) for language, paths in texts.items()}
    first = _Loaded.of(folders[0])
    others = [_Loaded.of(folder, first.vocabulary) for folder in folders[1:]]
    loaded = dict(zip(names, [first, *others], strict=True))
    costs, sample = [], list[str]()
    for language, paths in files.items():
        for source, documents in _sources(paths).items():
            pieces = _pieces(documents)
            if sum(map(len, sample)) < SPEED_CHARACTERS:
                sample += pieces
            costs.append(_text_costs(language, source, pieces, loaded))
    return Comparison(
        names[0],
        {name: one.facts(sample) for name, one in loaded.items()},
        costs,
        {name: _differences(first, loaded[name], sample) for name in names[1:]},
        {
            name: {language: _curve(one, _pieces(paths)) for language, paths in files.items()}
            for name, one in loaded.items()
            if one.only_adds
        },
    )


def unreachable_tokens(tokenizer: Tokenizer) -> list[int]:
    """Ids of ordinary tokens that the model does not give for their own text.

    Whole-word shortcuts (`ignore_merges`) do not count as a way to reach a token.
    """
    spec = json.loads(tokenizer.to_str())
    if spec["model"].get("ignore_merges"):
        spec["model"]["ignore_merges"] = False
        tokenizer = Tokenizer.from_str(json.dumps(spec))
    contents = Vocabulary.of(tokenizer).contents
    return sorted(
        i
        for name, i in tokenizer.get_vocab(with_added_tokens=True).items()
        if contents[i] is not None and [p.id for p in tokenizer.model.tokenize(name)] != [i]
    )


@dataclass(frozen=True)
class _Loaded:
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    id_map: IdMap  # from the first tokenizer
    loading_seconds: float

    @classmethod
    def of(cls, folder: Path, first: Vocabulary | None = None) -> "_Loaded":
        started = time.perf_counter()
        tokenizer = load_tokenizer(folder).backend_tokenizer
        seconds = time.perf_counter() - started
        vocabulary = Vocabulary.of(tokenizer)
        return cls(tokenizer, vocabulary, IdMap.between(first or vocabulary, vocabulary), seconds)

    @property
    def only_adds(self) -> bool:
        """Whether it differs from the first by more tokens only, which its merges make."""
        model = self.tokenizer.model
        lossless = isinstance(model, BPE) and (self.vocabulary.byte_level or model.byte_fallback)
        return lossless and bool(self.id_map.new) and not self.id_map.dropped

    @cached_property
    def spaces(self) -> bool:
        """Whether it puts a space before every text."""
        return any(text.startswith(" ") for text in self.as_text(self.encode(["a"])[0][:1]))

    def facts(self, sample: list[str]) -> TokenizerFacts:
        lost = unreachable_tokens(self.tokenizer)
        encode = partial(self.tokenizer.encode_batch_fast, sample, add_special_tokens=False)
        seconds = statistics.median(timeit.repeat(encode, number=1, repeat=SPEED_RUNS))
        return TokenizerFacts(
            size=sum(token is not None for token in self.vocabulary.tokens),
            loading_seconds=self.loading_seconds,
            unreachable=len(lost),
            unreachable_examples=self.as_text(lost[:SHOWN_WORDS]),
            characters_per_second=sum(map(len, sample)) / seconds,
        )

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def counts(self, encoded: list[list[int]]) -> np.ndarray:
        ids = np.fromiter(chain.from_iterable(encoded), dtype=np.int64)
        return np.bincount(ids, minlength=len(self.vocabulary))

    def cut(self, word: str) -> list[str]:
        """The tokens of a word with a space before it, as text."""
        return self.as_text(self.encode([word if self.spaces else " " + word])[0])

    def as_text(self, ids: list[int]) -> list[str]:
        tokens = (self.vocabulary.tokens[i] for i in ids)
        return [token.content.decode(errors="replace") if token else "" for token in tokens]


def _pieces(paths: list[Path]) -> list[str]:
    return list(cut_at_lines(stream_texts(paths), PIECE_CHARACTERS))


def _sources(files: list[Path]) -> dict[str, list[Path]]:
    """Files by text: the txt files of one folder are one text, every other file is its own."""
    siblings = Counter(file.parent for file in files)
    sources: dict[str, list[Path]] = {}
    for file in files:
        documents = ".txt" in file.suffixes and siblings[file.parent] > 1
        sources.setdefault(str(file.parent if documents else file), []).append(file)
    return dict(zip(short_names(list(sources)), sources.values(), strict=True))


def _text_costs(
    language: str, source: str, pieces: list[str], loaded: dict[str, _Loaded]
) -> TextCosts:
    first, words = next(iter(loaded.values())), sum(len(WORD.findall(piece)) for piece in pieces)
    return TextCosts(
        language,
        source,
        characters=sum(map(len, pieces)),
        words=words,
        bytes=sum(len(piece.encode()) for piece in pieces),
        words_cut=sum(map(WordCutter.of(first.tokenizer).pieces, pieces)),
        costs={name: _cost(one, pieces, words) for name, one in loaded.items()},
    )


def _cost(one: _Loaded, pieces: list[str], words: int) -> Cost:
    encoded = one.encode(pieces)
    counts = one.counts(encoded)
    decoded = one.tokenizer.decode_batch(encoded, skip_special_tokens=False)
    total, new = int(counts.sum()), counts[one.id_map.new]
    tokens = max(1, total)
    return Cost(
        tokens=total,
        symbols_per_token=sum(map(len, pieces)) / tokens,
        bytes_per_token=sum(len(piece.encode()) for piece in pieces) / tokens,
        words_per_token=words / tokens,
        round_trip=statistics.fmean(map(operator.eq, pieces, decoded)),
        new_share=float(new.sum() / tokens),
        new_used=float((new > 0).mean()) if len(new) else 0.0,
    )


def _differences(first: _Loaded, one: _Loaded, sample: list[str]) -> list[Difference]:
    """The most frequent words that are cut differently."""
    counts = Counter(word for piece in sample for word in piece.split())
    differences = (
        Difference(" " + word, count, before, after)
        for word, count in counts.most_common(COMPARED_WORDS)
        if (before := first.cut(word)) != (after := one.cut(word))
    )
    return list(islice(differences, SHOWN_WORDS))


def _curve(one: _Loaded, pieces: list[str]) -> list[tuple[int, float]]:
    """Symbols per token with only the first so many new tokens, from one encoding with all.

    Merges come in order: without the later ones, each of their tokens falls apart into its two.
    """
    merged: dict[int, tuple[int, int]] = {}
    for merge in Parts.of(one.tokenizer).merges:
        merged.setdefault(merge.result, (merge.left, merge.right))
    rank = {result: i for i, result in enumerate(merged)}  # letters, which no merge makes, go first
    new = sorted(one.id_map.new, key=lambda i: (rank.get(i, -1), i))
    counts = one.counts(one.encode(pieces))
    points = []
    for step in range(CURVE_POINTS + 1):
        added = round(step * len(new) / CURVE_POINTS)
        lengths = np.ones(len(counts), dtype=np.int64)
        for i in new[added:]:
            token = one.vocabulary.tokens[i]
            letters = len(token.content if token else b"")
            lengths[i] = sum(lengths[list(merged[i])]) if i in merged else letters
        points.append((added, sum(map(len, pieces)) / int((counts * lengths).sum())))
    return points
