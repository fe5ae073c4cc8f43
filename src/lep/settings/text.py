"""Settings of text and tokenizers."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lep.fields import Settings
from lep.settings.kinds import PositiveInt, ProperShare, Seed, Share, Weights


class CorpusSettings(Settings):
    """How text is split and limited."""

    heldout_share: ProperShare = 0.1
    """Share of the documents held out, chosen by a fixed hash."""
    limit_characters: PositiveInt | None = None
    """Most training characters per language (default: no limit)."""
    limit_heldout_characters: PositiveInt | None = 200_000
    """Most held-out characters per language."""
    source_share: Share = 1.0
    """Largest share of a limit that one file may fill."""


class LanguageSettings(Settings):
    """Language."""

    language: str | None = None
    """ISO 639 code; documents in another script are dropped (default: no check)."""


class BuildSettings(LanguageSettings):
    """Cleaning, weighting and shuffling of raw text."""

    weights: Weights = Field({})
    """NAME=WEIGHT,...: how often to give each document of a source; wiki=2,news*=0.5 gives those of
    wiki twice and half of those of news sources (default: once each)."""
    dedup: Literal["exact", "minhash", "none"] = "minhash"
    """Duplicates to drop: exact copies, near duplicates as well (minhash), or none."""
    near: Share = 0.7
    """Jaccard similarity at which two documents are near duplicates."""
    boilerplate: Annotated[int, Field(ge=0, le=65_535)] = 20
    """Remove lines that occur in this many documents or more; 0 keeps all lines."""
    documents: PositiveInt | None = None
    """Documents to take from each hub data set (default: all)."""
    cover: str | None = None
    """Model written by lep init; keep only what its new tokens need (default: keep all)."""
    contexts: PositiveInt = 200
    """Occurrences of each new token to collect, with cover."""
    seed: Seed = 0
    """Seed of the order and of fractional weights."""


class ClusterSettings(LanguageSettings):
    """Cleaning in separate tasks with datatrove."""

    executor: Literal["local", "slurm"] | None = None
    """Clean and deduplicate in tasks, on this machine or on Slurm, and do nothing else (default: do
    all steps in this process)."""
    tasks: PositiveInt = 8
    """Tasks to divide the files among."""
    workers: PositiveInt = 2
    """Tasks that run at once on this machine."""
    partition: str = ""
    """Slurm partition."""
    time: str = "10:00:00"
    """Slurm time limit of a task."""


TOKENIZER_SIZES = {
    "continue": ("new_tokens",),
    "merge": ("new_tokens",),
    "in-place": ("new_tokens",),
    "optimize": ("keep", "vocab_size"),
    "bpe": ("vocab_size",),
    "unigram": ("vocab_size",),
}


class TokenizerSettings(Settings):
    """How the vocabulary is extended, optimised or replaced (section 3.1 of the paper)."""

    method: Literal["continue", "merge", "in-place", "optimize", "bpe", "unigram"] = "continue"
    """Extend the vocabulary (continue; merge is the paper's way; in-place keeps its size), optimise
    or replace it."""
    new_tokens: PositiveInt | None = None
    """Tokens to add; for continue, merge and in-place."""
    vocab_size: PositiveInt | None = None
    """Tokens of the result, special tokens included; for optimize, bpe and unigram."""
    keep: PositiveInt | None = None
    """Known tokens to keep; for optimize."""
    script: str = "auto"
    """Unicode script of new tokens, such as cyrillic; auto: that of the corpus; any: no rule."""

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        needed = TOKENIZER_SIZES[self.method]
        for name in ("new_tokens", "vocab_size", "keep"):
            if (getattr(self, name) is None) == (name in needed):
                verb = "needs" if name in needed else "has no"
                advice = " and ".join(needed)
                raise ValueError(f"the method {self.method} {verb} {name}: give {advice}")
        return self

    @property
    def added(self) -> int:
        """New tokens; of a replaced vocabulary, all."""
        return self.new_tokens or self.size(0) - (self.keep or 0)

    def size(self, before: int) -> int:
        """Tokens of the result, given the number of tokens `before`."""
        if self.method == "in-place":
            return before
        return self.vocab_size or before + (self.new_tokens or 0)
