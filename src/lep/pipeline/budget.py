"""How many new tokens, and how much joint training, a text and a device are good for."""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path

from lep.errors import CorpusError, LepError
from lep.hub import local_folder
from lep.pipeline.affordable import Beside
from lep.pipeline.devices import this_device
from lep.pipeline.forecast import MOST_PASSES
from lep.pipeline.recipe import Recipe
from lep.pipeline.sampled_savings import (
    SAMPLE_CHARACTERS,
    Savings,
    sampled_savings,
    savings_curve,
    text_share,
    token_bytes,
    training_characters,
)
from lep.pipeline.shape import Shape
from lep.progress import duration
from lep.training.pretrain import SWEPT_RATES, SWEPT_SHARE
from lep.training.trainer import uses_bf16

SIZES = tuple(2**power for power in range(8, 16))  # new tokens that are tried
LEAST_SAVED = 0.03  # of the tokens, by the last doubling of the new tokens
# Tokens of joint training for each new token, of which about a twentieth are that token; after a
# pack, whose rows are learned already; and the share of it that is needed at least.
TOKENS_FOR_EACH, TOKENS_AFTER_PACK, LEAST_SHARE = 600, 60, 2 / 3
# Of the hours, at most: for the training, and for all that is planned. The rest is for what is not:
# to read text, to learn the tokenizer, to load and write models.
TRAINING_SHARE, PLANNED_SHARE = 0.6, 0.96
FAMILIAR = 0.7  # of the bytes a token in the known language; models know little of a language below
CHARACTERS_READ = 200_000_000  # of the text at most, to say how many passes a training is


@dataclass(frozen=True)
class Budget:
    """New tokens, tokens to train on, and lines that say why."""

    new_tokens: int
    tokens: int
    text_characters: int  # of the training text, up to `CHARACTERS_READ`
    read_characters: int  # that the training takes of them, repeated ones included
    counts: dict[str, int]  # of prompts, practice and what is evaluated, if the hours allow few
    reason: str


def budget(
    recipe: Recipe,
    *,
    new_tokens: int | None,
    tokens: int | None,
    hours: float | None,
    epochs: float | None = None,
) -> Budget:
    """Choose what is not given: new tokens by the savings of a sample, tokens by what they need.

    Up to the last doubling that still saves `LEAST_SAVED`, the largest size is chosen that text and
    budget can teach: `LEAST_SHARE` of `TOKENS_FOR_EACH`, and at most `MOST_PASSES` over
    the text. With `epochs`, it takes so many passes; with `hours`, what fits into `TRAINING_SHARE`
    of them on this device.

    Raises `CorpusError` for text that yields too few tokens.
    """
    choice = _Choice.of(recipe, new_tokens, tokens, hours, epochs)
    given = "as in the pack" if recipe.adapt and recipe.adapt.from_pack else "as given"
    size, why = choice.best() if new_tokens is None else (new_tokens, given)
    trained, one_pass = choice.training(size), choice.pass_tokens(size)
    saved = ", ".join(f"{1 - 1 / each.ratio:.0%} by {n:,}" for n, each in choice.curve.items())
    passes = f"{trained * choice.share / one_pass:.1f}"
    if choice.characters >= CHARACTERS_READ:
        passes = f"at most {passes}"
    counts = choice.counts(size)
    lines = [
        f"new tokens: {size:,} ({why}); tokens saved: {saved}",
        f"training: {trained:,} tokens, {trained / size:,.0f} for each new token, {passes} passes "
        "over the text",
        choice.time(size, counts),
    ]
    if trained < choice.least(size):
        advice = "give more text or time, or ask for fewer new tokens"
        need = f"each new token needs {choice.least(1):,} tokens of training to be learned well"
        lines.append(f"note: {need}, {choice.for_each:,} are better: {advice}")
    lines += _unfamiliar(recipe)
    if counts:
        fitted = ", ".join(f"{k} {n:,}" for k, n in counts.items())
        lines.append(f"to fit the hours: {fitted}")
    read = round(trained * choice.share * choice.characters / one_pass)
    return Budget(size, trained, choice.characters, read, counts, "\n".join(lines))


def _unfamiliar(recipe: Recipe) -> list[str]:
    """A line for a model whose vocabulary was hardly made for the new language."""
    folder, new = local_folder(recipe.instruct, weights=False), recipe.language
    sizes = {code: token_bytes(folder, paths) for code, paths in recipe.text.items()}
    known = max((code for code in sizes if code != new), key=sizes.__getitem__)
    if sizes[new] >= FAMILIAR * sizes[known]:
        return []
    few = f"a token holds {sizes[new]:.1f} bytes of {new}, and {sizes[known]:.1f} of {known}"
    return [
        f"note: {few}: models with so few tokens for a language often know little of it, which "
        f"cheaper tokens do not change: ask it something in {new} first (lep chat MODEL --terminal)"
    ]


@dataclass(frozen=True)
class _Choice:
    """What the choice depends on."""

    curve: dict[int, Savings]  # by number of new tokens, ascending
    characters: int  # of the training text
    share: float  # of the training that is this text
    for_each: int  # tokens to train on for each new token
    tokens: int | None  # to train on, if they are given
    epochs: float | None  # passes over the text, if they are given
    hours: float | None  # that the run may take, if they are given
    beside: Beside  # what else the run does
    shape: Shape
    speed: float  # operations a second
    recomputes: bool
    passes: float  # tokens that are trained on, with those of a sweep, for each of the training
    speed_note: str

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        new_tokens: int | None,
        tokens: int | None,
        hours: float | None,
        epochs: float | None,
    ) -> "_Choice":
        adapt = recipe.adapt
        assert adapt is not None
        folder = local_folder(recipe.instruct, weights=False)
        characters = training_characters(recipe, CHARACTERS_READ) or CHARACTERS_READ
        shape = Shape.of(folder)
        device = this_device(shape, bf16=uses_bf16(adapt))
        speed = device.operations
        return cls(
            _curve(recipe, folder, new_tokens, characters),
            characters,
            text_share(adapt),
            TOKENS_AFTER_PACK if adapt.from_pack else TOKENS_FOR_EACH,
            tokens,
            epochs,
            hours,
            Beside.of(recipe),
            shape,
            speed,
            adapt.activation_checkpointing,
            1 + len(SWEPT_RATES) * SWEPT_SHARE if adapt.sweep else 1.0,
            f"on this device ({speed / 1e9:,.0f} GFLOP/s, {device.source})",
        )

    def pass_tokens(self, size: int) -> float:
        """Tokens of one pass over the text, by the nearest size that was learned."""
        savings = self.curve[min(self.curve, key=lambda n: abs(n - size))]
        return self.characters * savings.after / savings.heldout_characters

    def training(self, size: int) -> int:
        """Tokens to train so many new tokens on."""
        if self.tokens is not None:
            return self.tokens
        if self.epochs is not None:
            return max(1, round(self.epochs * self.pass_tokens(size) / self.share))
        most = MOST_PASSES * self.pass_tokens(size) / self.share
        taught = self.for_each * size if self.hours is None else self._in_hours(size)[0]
        return max(1, int(min(taught, most)))

    def token_operations(self, size: int) -> float:
        """Of a token of the training, with so many new rows."""
        rows = self.shape.rows_with(size)
        once = self.shape.token_operations(rows, size, recomputes=self.recomputes)
        return once * self.passes

    def reading_operations(self, size: int) -> float:
        """Of a token that is read, with so many new rows."""
        return self.shape.forward_operations(self.shape.rows_with(size))

    def time(self, size: int, counts: dict[str, int]) -> str:
        """A line on how long the run and its parts take."""
        trained, each = self.training(size), self.reading_operations(size)
        operations = {"training": trained * self.token_operations(size)}
        for part, tokens in self.beside.parts(trained, counts).items():
            operations[part] = tokens * each
        seconds = {part: count / self.speed for part, count in operations.items()}
        parts = ", ".join(f"{part} {duration(taken)}" for part, taken in seconds.items())
        whole = f"time: about {duration(sum(seconds.values()))} {self.speed_note}: {parts}"
        if self.beside.recipe.evaluate.benchmark.tasks:
            whole += "; benchmark tasks are extra"
        is_open = self.hours is None and self.tokens is None and self.epochs is None
        return whole + ("; --hours N makes it fit N hours" if is_open else "")

    def counts(self, size: int) -> dict[str, int]:
        """Settings that keep answers, practice tasks and evaluation within the hours.

        Raises `LepError` for hours into which these do not fit at all.
        """
        if self.hours is None:
            return {}
        least = self.beside.least() * self.reading_operations(size) / (1 - TRAINING_SHARE)
        if self.hours * 3600 * self.speed < least:
            needed = ceil(1000 * least / self.speed / 3600) / 1000  # what is said suffices
            raise LepError(
                f"--hours {self.hours:g} is too short for this model on this device: its answers, "
                "practice tasks, the evaluation, and the training's share beside them need "
                f"{needed:g} hours; give --hours {needed:g} or more, or --tokens"
            )
        return self._in_hours(size)[1]

    def _in_hours(self, size: int) -> tuple[int, dict[str, int]]:
        """Tokens to train on, and settings of all else, with which the run takes the hours."""
        assert self.hours is not None
        whole = self.hours * 3600 * self.speed
        trained, each = self.token_operations(size), self.reading_operations(size)
        most = int(TRAINING_SHARE * whole / trained)
        counts = self.beside.affordable(most, whole / each)
        others = sum(self.beside.parts(most, counts).values()) * each
        return min(most, int((PLANNED_SHARE * whole - others) / trained)), counts

    def least(self, size: int) -> int:
        """Tokens of training without which so many new tokens are not learned."""
        return round(LEAST_SHARE * self.for_each * size)

    def best(self) -> tuple[int, str]:
        """The number of new tokens, and why it is not larger."""
        sizes, pairs = list(self.curve), pairwise(self.curve.items())
        useful = [n for (_, less), (n, more) in pairs if 1 - more.after / less.after >= LEAST_SAVED]
        largest = max(useful, default=sizes[0])
        taught = [n for n in sizes if n <= largest and self.training(n) >= self.least(n)]
        if not taught:
            size = max(1, self.training(sizes[0]) // self.least(1))
            return size, "more need more text or training"
        size = max(taught)
        if size < largest:
            return size, "more need more text or training"
        if size < sizes[-1]:
            return size, f"twice as many save less than {LEAST_SAVED:.0%} more"
        return size, "the text yields no more" if size < SIZES[-1] else "more are not tried"


def _curve(
    recipe: Recipe, folder: Path, new_tokens: int | None, characters: int
) -> dict[int, Savings]:
    """Savings by number of new tokens: of all sizes, or up to the number that is given.

    Raises `CorpusError` where the text yields fewer, unless this is only a sample of it.
    """
    paths, settings = recipe.text[recipe.language], recipe.tokenizer
    from_pack = recipe.adapt and recipe.adapt.from_pack
    if settings.method == "continue":
        sizes = [n for n in SIZES if new_tokens is None or n < new_tokens]
        sizes += [] if new_tokens is None else [new_tokens]
        curve = savings_curve(folder, paths, sizes, settings.script)
        most = max(curve)
        is_sampled = characters >= SAMPLE_CHARACTERS
        if not (new_tokens is None or most >= new_tokens or is_sampled or from_pack):
            advice = "give more text or ask for fewer"
            raise CorpusError(f"the text yields only {most:,} of {new_tokens:,} tokens: {advice}")
        return curve
    savings = sampled_savings(folder, paths, settings)
    if savings is None:
        raise CorpusError(f"the text yields too few tokens for {settings.method}: give more")
    return {new_tokens or settings.size(0): savings}
