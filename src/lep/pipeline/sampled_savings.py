"""What an extension saves: tokens of a held-out sample of the corpus, before and after."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lep.corpus.files import corpus_files, stem
from lep.corpus.read import batches, read_file, stream_texts
from lep.errors import CorpusError
from lep.pipeline.recipe import AdaptStage, Recipe
from lep.settings import STREAMS, PretrainSettings, TokenizerSettings
from lep.tokenizer.count import count_texts
from lep.tokenizer.extend import Extension, extend_bpe
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.parts import Parts
from lep.tokenizer.prune import kept_tokens, pruned, token_counts
from lep.tokenizer.train import ALGORITHMS, replacement, replacement_cutter

SAMPLE_CHARACTERS, PIECE_CHARACTERS, HELDOUT_EVERY = 16_000_000, 20_000, 20
CHARACTERS_READ = 1_000_000_000  # of a corpus at most, only to say how many passes a budget is


@dataclass(frozen=True)
class Savings:
    """Tokens of the held-out part of a sample; new tokens are learned on the rest of it."""

    characters: int  # learned from
    heldout_characters: int
    before: int
    after: int

    @property
    def ratio(self) -> float:
        """Tokens before per token after."""
        return self.before / self.after


def sampled_savings(folder: Path, paths: list[str], settings: TokenizerSettings) -> Savings | None:
    """Tokens under the base's vocabulary and under a new one; None if the sample is too small.

    Raises `CorpusError` for a corpus without text.
    """
    learned, heldout = _sample_sides(paths)
    base = load_tokenizer(folder).backend_tokenizer
    try:
        extended = _extended(base, learned, settings)
    except CorpusError:
        return None
    before, after = (_tokens(tokenizer, heldout) for tokenizer in (base, extended))
    return Savings(_characters(learned), _characters(heldout), before, after)


def savings_curve(
    folder: Path, paths: list[str], sizes: Sequence[int], script: str = "auto"
) -> dict[int, Savings]:
    """Savings by number of new tokens; sizes beyond what the sample yields become that number.

    Continued merges are nested: one learning of the largest size holds all smaller ones.

    Raises `CorpusError` for a corpus without text, or with too little for the smallest size.
    """
    learned, heldout = _sample_sides(paths)
    base = load_tokenizer(folder).backend_tokenizer
    parts, words = Parts.of(base), count_texts(base, learned, script)
    extension = extend_bpe(parts, words, max(sizes), fewer=True)
    if (total := len(extension.new)) < min(sizes):
        advice = "give more text or ask for fewer"
        raise CorpusError(f"the text yields only {total:,} of {min(sizes):,} new tokens: {advice}")
    counts = _characters(learned), _characters(heldout), _tokens(base, heldout)
    tokenizers = {
        size: first_tokens(parts, extension, size).tokenizer
        for size in sorted({min(size, total) for size in sizes})
    }
    return {n: Savings(*counts, _tokens(each, heldout)) for n, each in tokenizers.items()}


def first_tokens(parts: Parts, extension: Extension, count: int) -> Parts:
    """The extension of `parts` by the first `count` of its new tokens only."""
    dropped = set(list(extension.new.values())[count:])
    if not dropped:
        return extension.parts
    names = [None if i in dropped else name for i, name in enumerate(extension.parts.names)]
    known = len(parts.merges)
    kept = itertools.takewhile(dropped.isdisjoint, extension.parts.merges[known:])
    return extension.parts.rebuilt(names, [*parts.merges, *kept])


def _sample_sides(paths: list[str]) -> tuple[list[str], list[str]]:
    """Pieces of a sample to learn from, and held-out ones."""
    pieces = _sample(paths, SAMPLE_CHARACTERS)
    if not pieces:
        raise CorpusError(f"the corpus holds no text at all: {', '.join(paths)}")
    heldout = pieces[::HELDOUT_EVERY]
    del pieces[::HELDOUT_EVERY]
    return pieces, heldout


def token_bytes(folder: Path, paths: list[str]) -> float:
    """Bytes of UTF-8 that a token of the model's own vocabulary holds, in a sample of the text."""
    pieces = _sample(paths, SAMPLE_CHARACTERS // HELDOUT_EVERY)
    tokens = _tokens(load_tokenizer(folder).backend_tokenizer, pieces)
    return sum(len(piece.encode()) for piece in pieces) / max(1, tokens)


def text_share(settings: PretrainSettings) -> float:
    """The share of the tokens that are text of the new language (with what is replayed)."""
    if not isinstance(settings, AdaptStage):
        return 1.0
    return settings.share("text") / sum(map(settings.share, STREAMS))


def training_tokens(settings: PretrainSettings, pass_tokens: int | None) -> int:
    """Tokens to train on: the budget, or passes over the text.

    Raises `CorpusError` for passes over a corpus whose tokens are not known.
    """
    if settings.tokens is not None:
        return settings.tokens
    if pass_tokens is None:
        message = "the sample is too small to turn epochs into tokens"
        raise CorpusError(f"{message}: give the tokens to train on")
    return settings.budget(round(pass_tokens / text_share(settings)))


def corpus_tokens(recipe: Recipe, folder: Path, savings: Savings | None) -> int | None:
    """Tokens of one pass over all training text, by the sample; None where nothing is known.

    With a budget in tokens, no more than `CHARACTERS_READ` are read; None for a larger corpus.
    """
    if savings is None:
        return None
    most = CHARACTERS_READ if recipe.training.tokens is not None else None
    characters = training_characters(recipe, most)
    if characters is None:
        return None
    tokens = characters * savings.after / savings.heldout_characters
    base = load_tokenizer(folder).backend_tokenizer
    replay = recipe.pretrain.replay if recipe.pretrain else {}
    for code, share in replay.items():  # an extension keeps the base's tokens
        pieces = _sample(recipe.text[code], SAMPLE_CHARACTERS // HELDOUT_EVERY)
        tokens += share * characters * (_tokens(base, pieces) / max(1, _characters(pieces)))
    return round(tokens)


def training_characters(recipe: Recipe, most: int | None = None) -> int | None:
    """Characters of the new language that are not held out, up to the corpus's limit.

    Reading stops at `most` characters; then None.
    """
    is_given = recipe.language in recipe.heldout  # then all other text is trained on
    share = 1.0 if is_given else 1 - recipe.corpus.heldout_share
    limit, characters = recipe.corpus.limit_characters, 0
    for text in stream_texts(recipe.text[recipe.language]):
        characters += len(text)
        if limit is not None and characters * share >= limit:
            return limit
        if most is not None and characters > most:
            return None
    return round(characters * share)


def _extended(base: Tokenizer, texts: list[str], settings: TokenizerSettings) -> Tokenizer:
    """The vocabulary that the settings make from a sample, in memory."""
    if settings.method in ALGORITHMS:
        words = count_texts(replacement_cutter(base), texts, "any")
        return replacement(base, words, settings.size(0), algorithm=settings.method)
    parts = Parts.of(base)
    words = count_texts(base, texts, settings.script)
    size = len(parts.names)
    kept = size - settings.added if settings.method == "in-place" else settings.keep
    if kept is not None:
        counts = token_counts(base, texts, size)
        parts = pruned(parts, kept_tokens(parts, counts, kept, np.zeros(size, dtype=bool)))
    return extend_bpe(parts, words, settings.added).parts.vocabulary.tokenizer


def _sample(paths: list[str], characters: int) -> list[str]:
    """The first pieces of each file, so that parts of every document are held out.

    Of many files, some from all over the list, until there are enough characters.
    """
    files = corpus_files(paths)
    if len(files) * PIECE_CHARACTERS <= characters:
        count = ceil(characters // len(files) / PIECE_CHARACTERS)
        return [piece for file in files for piece in itertools.islice(_pieces(file), count)]
    stride = ceil(len(files) * PIECE_CHARACTERS / characters)
    ordered = itertools.chain.from_iterable(files[i::stride] for i in range(stride))
    pieces, total = list[str](), 0
    for piece in itertools.chain.from_iterable(itertools.islice(_pieces(f), 1) for f in ordered):
        pieces.append(piece)
        total += len(piece)
        if total >= characters:
            break
    return pieces


def _pieces(file: Path) -> Iterable[str]:
    size = PIECE_CHARACTERS
    texts = (document.text for document in read_file(file, stem(file)) if document.text.strip())
    cut = (text[i : i + size] for text in texts for i in range(0, len(text), size))
    return map("".join, batches(cut, size))


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> int:
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return sum(len(encoding.ids) for encoding in encoded)


def _characters(texts: list[str]) -> int:
    return sum(map(len, texts))
