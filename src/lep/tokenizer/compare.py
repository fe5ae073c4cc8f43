"""Compare tokenizers on texts: cost, unreachable tokens, words cut differently, speed."""

import math
import operator
import statistics
import time
import timeit
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import regex
from tokenizers import Tokenizer

from lep.corpus.files import Paths, Text, corpus_files, is_txt, several
from lep.corpus.read import cut_at_lines, stream_texts
from lep.errors import LepError, TokenizerError
from lep.hub import local_folder, short_names
from lep.progress import progress
from lep.result import Result
from lep.tokenizer.count import WordCutter
from lep.tokenizer.idmap import IdMap
from lep.tokenizer.load import load_tokenizer, loader_note
from lep.tokenizer.parts import Parts
from lep.tokenizer.reach import unreachable_tokens
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
    round_trip: float  # share of the lines that decode to themselves
    new_share: float  # share of the text's tokens that are new
    new_used: float  # share of the new tokens that occur
    most: float  # symbols per token if each word, as this tokenizer cuts words, were one token

    def __str__(self) -> str:
        return (
            f"{self.symbols_per_token:6.3f} of at most {self.most:.3f} symbols  "
            f"{self.bytes_per_token:6.3f} bytes  "
            f"{self.words_per_token:6.3f} words a token  new {self.new_share:6.1%} of the tokens  "
            f"round trip {self.round_trip:7.2%} of the lines"
        )


@dataclass(frozen=True)
class TextCosts:
    """A text and its cost by tokenizer."""

    name: str
    file: str
    characters: int
    words: int
    bytes: int
    costs: dict[str, Cost]


@dataclass(frozen=True)
class TokenizerFacts:
    """Size, reach and speed of one tokenizer."""

    size: int
    loading_seconds: float
    unreachable: int
    unreachable_examples: list[str]
    characters_per_second: float
    loader_note: str | None  # where AutoTokenizer reads it differently

    def __str__(self) -> str:
        speed = f"encodes {self.characters_per_second / 1e6:.2f}M symbols/s"
        reach = f"{self.size:>9,} tokens  {self.unreachable:>6,} unreachable"
        line = f"{reach}  loads in {self.loading_seconds:.2f} s  {speed}"
        return "\n  ".join(filter(None, [line, self.loader_note]))


@dataclass(frozen=True)
class Difference:
    """A word that two tokenizers cut differently."""

    word: str
    count: int  # in the sample
    before: list[str]
    after: list[str]


@dataclass(frozen=True)
class Comparison(Result):
    """All figures of a comparison; every other tokenizer is compared with `reference`.

    `curves` holds, by tokenizer and language, pairs (new tokens, symbols per token with only so
    many of them).
    """

    reference: str
    tokenizers: dict[str, TokenizerFacts]
    texts: list[TextCosts]
    differences: dict[str, list[Difference]]
    curves: dict[str, dict[str, list[tuple[int, float]]]]
    sample_characters: int  # of all texts alike, for speeds and frequent words

    def by_language(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Symbols per token of all text of a language, and the most, by tokenizer and language.

        The most is what it would be if each word were one token.
        """
        languages = dict.fromkeys(text.name for text in self.texts)
        costs: dict[str, dict[str, tuple[float, float]]] = {}
        for name in self.tokenizers:
            for language in languages:
                here = [text for text in self.texts if text.name == language]
                characters = sum(text.characters for text in here)
                tokens = sum(text.costs[name].tokens for text in here)
                fewest = sum(text.characters / (text.costs[name].most or 1) for text in here)
                both = characters / max(1, tokens), characters / max(1, fewest)
                costs.setdefault(name, {})[language] = both
        return costs

    def __str__(self) -> str:
        width = max(map(len, self.tokenizers))
        lines = []
        for name, languages in self.by_language().items():
            parts = [
                f"{code} {now:.2f} (at most {most:.2f})" for code, (now, most) in languages.items()
            ]
            lines.append(f"symbols per token  {name:<{width}}  {'  '.join(parts)}")
        lines += ["at most: if each word were one token", ""]
        for text in self.texts:
            lines.append(f"{text.name}  {text.file}  {text.characters:,} symbols")
            lines += [f"  {name:<{width}}  {cost}" for name, cost in text.costs.items()]
        facts = (f"{name:<{width}}  {facts}" for name, facts in self.tokenizers.items())
        sample = f"speeds of a sample of {self.sample_characters:,} symbols from all texts"
        return "\n".join([*lines, "", *facts, sample])


def compare_tokenizers(tokenizers: Paths, texts: Text) -> Comparison:
    """Compare tokenizers (folders, hub ids) with the first, on the files of text of each language.

    Raises `LepError` without tokenizers or texts.
    """
    sources = list(map(str, several(tokenizers)))
    if not sources or not texts:
        raise LepError("give at least one tokenizer, and at least one --text NAME=PATH")
    names, folders = short_names(sources), [local_folder(each, weights=False) for each in sources]
    files = {language: corpus_files(paths) for language, paths in texts.items()}
    first = _Loaded.of(folders[0])
    others = [_Loaded.of(folder, first.vocabulary) for folder in folders[1:]]
    loaded = dict(zip(names, [first, *others], strict=True))
    sources_by_language = {language: _sources(paths) for language, paths in files.items()}
    share = SPEED_CHARACTERS // sum(map(len, sources_by_language.values()))
    costs, sample = [], list[str]()
    for language, by_source in sources_by_language.items():
        for source, documents in progress(by_source.items(), f"{language} texts compared"):
            pieces = _pieces(documents)
            sample += _sample(pieces, share)
            costs.append(_text_costs(language, source, pieces, loaded))
    facts = {name: one.facts(sample) for name, one in loaded.items()}
    differences = {name: _differences(first, loaded[name], sample) for name in names[1:]}
    curves = {
        name: {language: _curve(one, _pieces(paths)) for language, paths in files.items()}
        for name, one in loaded.items()
        if one.only_adds
    }
    return Comparison(names[0], facts, costs, differences, curves, sum(map(len, sample)))


@dataclass(frozen=True)
class _Loaded:
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    id_map: IdMap  # from the first tokenizer
    loading_seconds: float
    loader_note: str | None

    @classmethod
    def of(cls, folder: Path, first: Vocabulary | None = None) -> "_Loaded":
        started = time.perf_counter()
        fast = load_tokenizer(folder)
        seconds, tokenizer = time.perf_counter() - started, fast.backend_tokenizer
        vocabulary = Vocabulary.of(tokenizer)
        id_map, note = IdMap.between(first or vocabulary, vocabulary), loader_note(folder, fast)
        return cls(tokenizer, vocabulary, id_map, seconds, note)

    @property
    def only_adds(self) -> bool:
        """Whether it is the first with more tokens, all made by merges."""
        try:
            Parts.of(self.tokenizer)
        except TokenizerError:  # no BPE whose merges can be followed
            return False
        return bool(self.id_map.new) and not self.id_map.dropped

    @cached_property
    def spaces(self) -> bool:
        """Whether it puts a space before every text."""
        return any(text.startswith(" ") for text in self.as_text(self.encode(["a"])[0][:1]))

    def facts(self, sample: list[str]) -> TokenizerFacts:
        lost = unreachable_tokens(self.tokenizer)
        encode = partial(self.tokenizer.encode_batch_fast, sample, add_special_tokens=False)
        seconds = statistics.median(timeit.repeat(encode, number=1, repeat=SPEED_RUNS))
        return TokenizerFacts(
            size=self.vocabulary.count,
            loading_seconds=self.loading_seconds,
            loader_note=self.loader_note,
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
        return [
            token.content.decode(errors="backslashreplace") if token else "" for token in tokens
        ]


def _pieces(paths: list[Path]) -> list[str]:
    return list(cut_at_lines(stream_texts(paths), PIECE_CHARACTERS))


def _sample(pieces: list[str], characters: int) -> list[str]:
    """Some of the pieces of a text, evenly spaced, of about so many characters in all."""
    if characters < PIECE_CHARACTERS:
        pieces = list(cut_at_lines(pieces, max(1, characters)))
    total = sum(map(len, pieces))
    return pieces[:: max(1, math.ceil(total / max(1, characters)))]


def _sources(files: list[Path]) -> dict[str, list[Path]]:
    """Files by text: the txt files of a folder are one text, every other file is one by itself."""
    siblings = Counter(file.parent for file in files)
    sources: dict[str, list[Path]] = {}
    for file in files:
        documents = is_txt(file) and siblings[file.parent] > 1
        sources.setdefault(str(file.parent if documents else file), []).append(file)
    return dict(zip(short_names(list(sources)), sources.values(), strict=True))


def _text_costs(
    language: str, source: str, pieces: list[str], loaded: dict[str, _Loaded]
) -> TextCosts:
    characters, text_bytes = sum(map(len, pieces)), sum(len(piece.encode()) for piece in pieces)
    words = sum(len(WORD.findall(piece)) for piece in pieces)
    amounts = (characters, text_bytes, words)
    costs = {name: _cost(one, pieces, amounts) for name, one in loaded.items()}
    return TextCosts(language, source, characters, words, text_bytes, costs)


def _cost(one: _Loaded, pieces: list[str], amounts: tuple[int, ...]) -> Cost:
    """The cost of a text that has these `amounts` of characters, bytes and words."""
    encoded = one.encode(pieces)
    counts = one.counts(encoded)
    decoded = one.tokenizer.decode_batch(encoded, skip_special_tokens=False)
    total, new = int(counts.sum()), counts[one.id_map.new]
    tokens, words = max(1, total), sum(map(WordCutter.of(one.tokenizer).pieces, pieces))
    symbols_per_token, bytes_per_token, words_per_token = (amount / tokens for amount in amounts)
    return Cost(
        total,
        symbols_per_token,
        bytes_per_token,
        words_per_token,
        round_trip=_round_trip(pieces, decoded),
        new_share=float(new.sum() / tokens),
        new_used=float((new > 0).mean()) if len(new) else 0.0,
        most=amounts[0] / max(1, words),
    )


def _round_trip(pieces: list[str], decoded: list[str]) -> float:
    """Share of the lines that decode to themselves; none of a piece whose line breaks change."""
    lines = same = 0
    for piece, text in zip(pieces, decoded, strict=True):
        before, after = piece.split("\n"), text.split("\n")
        lines += len(before)
        if len(before) == len(after):
            same += sum(map(operator.eq, before, after))
    return same / max(1, lines)


def _differences(first: _Loaded, one: _Loaded, sample: list[str]) -> list[Difference]:
    """The most frequent words that are cut differently."""
    counts = Counter(word for piece in sample for word in piece.split())
    frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:COMPARED_WORDS]
    cuts = (Difference(" " + word, n, first.cut(word), one.cut(word)) for word, n in frequent)
    return list(islice((cut for cut in cuts if cut.before != cut.after), SHOWN_WORDS))


def _curve(one: _Loaded, pieces: list[str]) -> list[tuple[int, float]]:
    """Symbols per token with only some of the new tokens, computed from one encoding with all.

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
