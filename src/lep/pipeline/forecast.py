"""What a recipe will take, told from configuration and a sample of text: tokens, hours, memory, disk, and its worth."""

import itertools
import json
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lep.checkpoint.architecture import Architecture
from lep.corpus.read import batches, corpus_files, read_file, stream_texts
from lep.errors import CorpusError, LepError
from lep.hub import local_folder
from lep.pipeline.recipe import Recipe
from lep.settings import TokenizerSettings, TrainingSettings
from lep.tokenizer.count import count_texts
from lep.tokenizer.extend import extend_bpe
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.parts import Parts
from lep.tokenizer.prune import kept_tokens, pruned, token_counts
from lep.tokenizer.train import ALGORITHMS, replacement, replacement_cutter
from lep.training.data import LARGEST_BLOCK, batch_of
from lep.training.loss import GPU_LOSS_CHUNK
from lep.training.pretrain import STATE_COPIES, SWEPT_RATES, SWEPT_SHARE, saved_states
from lep.training.trainer import LOGIT_SETTINGS

UTILISATION = 0.4  # of a device's peak that training of large models reaches
SAMPLE_CHARACTERS, SAMPLE_PIECE, HELDOUT_EVERY = 16_000_000, 20_000, 20
CONTEXT_TOKENS = 2_000  # that a served answer looks back on, with the old vocabulary
SERVED_RATE = 2_500  # old tokens a second and device, for the break-even in tokens


@dataclass(frozen=True)
class Device:
    """Peak of dense bf16 products, operations a second, and memory."""

    flops: float
    memory_bytes: float


DEVICES = {
    "h200": Device(989e12, 141e9),
    "h100": Device(989e12, 80e9),
    "a100": Device(312e12, 80e9),
    "l40s": Device(362e12, 48e9),
    "rtx4090": Device(165e12, 24e9),
    "rtx3090": Device(71e12, 24e9),
}


@dataclass(frozen=True)
class Shape:
    """Parameters of a model, from its configuration."""

    body: int
    rows: int  # of a table
    hidden: int
    tables: int  # 1 where they are tied
    layers: int
    inner: int
    cache: int  # elements of the KV cache for one token
    plain: bool  # whether logits are just the head's products, so that the loss needs few of them at once

    @classmethod
    def of(cls, folder: Path) -> "Shape":
        """Raises `CheckpointError` for what is no causal language model."""
        config = json.loads((folder / "config.json").read_text())
        probed = Architecture.probe(folder, config)
        text = probed.model.config.get_text_config()
        rows, hidden = probed.model.get_input_embeddings().weight.shape
        unique = {id(tensor): tensor for tensor in probed.tensors.values()}
        tables = {
            id(module.weight)
            for module in (
                probed.model.get_input_embeddings(),
                probed.model.get_output_embeddings(),
            )
        }
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
        return cls(
            sum(t.numel() for key, t in unique.items() if key not in tables),
            rows,
            hidden,
            len(tables),
            text.num_hidden_layers,
            getattr(text, "intermediate_size", None) or 4 * hidden,
            2 * text.num_hidden_layers * heads * head,
            not any(getattr(text, name, None) for name in LOGIT_SETTINGS),
        )


@dataclass(frozen=True)
class Savings:
    """Held-out tokens of a sample before and after the extension, learned on the rest of the sample."""

    characters: int
    heldout: int  # characters of the rest, on which the tokens are counted
    before: int
    after: int

    def speed(self, shape: Shape, new_rows: int) -> float:
        """How many times as fast text is generated, by the parameters and cache that each token reads."""
        ratio = self.after / self.before
        old = shape.body + shape.rows * shape.hidden + shape.cache * CONTEXT_TOKENS
        new = shape.body + new_rows * shape.hidden + shape.cache * CONTEXT_TOKENS * ratio
        return old / (ratio * new)


@dataclass(frozen=True)
class Plan:
    """Arithmetic, no measurement: every figure follows from the recipe, the configuration and `Device`."""

    recipe: Recipe
    shape: Shape
    name: str
    tokens: int
    savings: Savings | None

    @property
    def device(self) -> Device:
        return DEVICES[self.name]

    @property
    def rows(self) -> int:
        return self.recipe.tokenizer.size(self.shape.rows)

    @property
    def trained_rows(self) -> int:
        if self.recipe.pretrain.train != "new_rows" or self.recipe.tokenizer.method in ALGORITHMS:
            return self.rows  # a replaced vocabulary keeps hardly any
        return self.rows - (self.recipe.tokenizer.keep or self.shape.rows)

    @property
    def steps(self) -> int:
        return ceil(
            self.tokens / batch_of(self.recipe.pretrain.model_copy(update={"tokens": self.tokens}))
        )

    @property
    def hours(self) -> float:
        """Of training on one device, the baseline on the instruct model included."""
        return self.tokens * self.passes / self.tokens_an_hour

    @property
    def passes(self) -> float:
        """What is trained on in all, sweep and baseline included, over the tokens of the training itself."""
        once = 1 + len(SWEPT_RATES) * SWEPT_SHARE if self.recipe.pretrain.sweep else 1.0
        return once * (1 + self.recipe.direct)

    @property
    def tokens_an_hour(self) -> float:
        return 3600 * self.device.flops * UTILISATION / self.token_operations

    @property
    def token_operations(self) -> float:
        """Forward, and backward to the activations, through body and head; and the gradient of the head's rows.

        With activation checkpointing, once more forward through the body.
        """
        through = self.shape.body + self.rows * self.shape.hidden
        again = 2 * self.shape.body if self.recipe.pretrain.activation_checkpointing else 0
        return 4 * through + again + 2 * self.trained_rows * self.shape.hidden

    @property
    def memory(self) -> dict[str, float]:
        """Bytes on the device: 16-bit weights, what trains in float32 (weights, gradients, moments), the rest."""
        settings = self.recipe.pretrain
        rows = self.trained_rows if settings.train == "new_rows" else self.rows
        return self._memory(rows, min(settings.micro_batch_tokens, self.tokens), settings)

    @property
    def stages(self) -> dict[str, dict[str, float]]:
        """The same for every training of the recipe; adapters, which are small, are left out."""
        recipe, found = self.recipe, {"pretrain": self.memory}
        for name, settings in (("calibrate", recipe.calibrate), ("tune", recipe.tune)):
            if settings is not None:
                some = (
                    name == "calibrate"
                    and recipe.calibrate
                    and recipe.calibrate.train == "new_rows"
                )
                tokens = settings.micro_batch_size * settings.max_length
                found[name] = self._memory(
                    self.rows - self.shape.rows if some else self.rows, tokens, settings
                )
                if not some:  # peft keeps what it trains a copy of; tuning trains the head alone
                    copies = self.shape.tables if name == "calibrate" else 1
                    found[name]["the tables as they were"] = (
                        2 * self.rows * self.shape.hidden * copies
                    )
        return found

    def _memory(self, rows: int, tokens: int, settings: TrainingSettings) -> dict[str, float]:
        """For so many training rows of each table, and tokens at once. States between layers are float32."""
        shape = self.shape
        table, trained = self.rows * shape.hidden, rows * shape.hidden * shape.tables
        frozen = shape.body + (table * shape.tables if rows < self.rows else 0)
        layer = 2 * (8 * shape.hidden + 4 * shape.inner)
        layers = (
            4 * shape.hidden * shape.layers + layer
            if settings.activation_checkpointing
            else layer * shape.layers
        )
        return {
            "weights that stay": 2 * frozen,
            "rows that train, their gradients and moments": 16 * trained,
            "the head in 16 bits and its gradient": 2 * table + 4 * rows * shape.hidden,
            "logits": 3 * 4 * (GPU_LOSS_CHUNK if shape.plain else tokens) * self.rows,
            "activations": tokens * layers,
        }

    @property
    def disk_bytes(self) -> int:
        """Written while it runs: tables of each model (bodies are linked), saved states, packed tokens."""
        recipe = self.recipe
        after = [len(stage.after) if stage else 0 for stage in (recipe.calibrate, recipe.tune)]
        linked = len(recipe.calibrate.new_rows) if recipe.calibrate else 0
        models = 3 + len(recipe.propagate) + recipe.direct + linked + sum(after)
        table = self.rows * self.shape.hidden * self.shape.tables
        states = (
            saved_states(recipe.pretrain)
            * STATE_COPIES
            * 4
            * self.trained_rows
            * self.shape.hidden
            * self.shape.tables
        )
        rewritten = (
            models - 2 - linked if "lora" in recipe.pretrain.train else sum(after)
        )  # their bodies are not linked
        bodies = 2 * rewritten * self.shape.body
        return 2 * models * table + bodies + states + 4 * self.tokens

    def __str__(self) -> str:
        shape, most = self.shape, self.device.memory_bytes
        needed = {name: sum(parts.values()) for name, parts in self.stages.items()}
        others = "".join(
            f"; {name} {size / 1e9:.0f}" for name, size in needed.items() if name != "pretrain"
        )
        parts = ", ".join(f"{what} {size / 1e9:.1f}" for what, size in self.memory.items())
        lines = [
            f"{shape.body / 1e9:.2f}B parameters in the body, {shape.tables} table(s) of {shape.rows:,} to "
            f"{self.rows:,} x {shape.hidden:,}; {self.trained_rows:,} rows of each train",
            f"{self.tokens:,} tokens in {self.steps:,} steps: {self.hours:.1f} hours on one {self.name} at "
            f"{UTILISATION:.0%} of its peak ({self.tokens_an_hour / 1e6:.0f}M tokens an hour, "
            f"{self.token_operations / 1e9:.1f} GFLOP a token)",
            f"memory {needed['pretrain'] / 1e9:.0f} GB of {most / 1e9:.0f}: {parts}{others}",
            f"disk about {self.disk_bytes / 1e9:.0f} GB beside the corpus and the given models, where these lie on the "
            "same disk (else bodies are copied)",
            "hours are those of pretraining: answers, calibration, tuning and evaluation come on top",
        ]
        lines += [self._advice(name) for name, size in needed.items() if size > most]
        return "\n".join([*lines, *self._worth()])

    def _advice(self, stage: str) -> str:
        settings = getattr(self.recipe, stage)
        size = "micro_batch_tokens" if stage == "pretrain" else "micro_batch_size"
        ways = [f"lower {stage}.{size} ({getattr(settings, size):,})"]
        if not settings.activation_checkpointing:
            ways.append(f"set {stage}.activation_checkpointing")
        if stage != "tune" and settings.train != "new_rows":
            ways.append("train new_rows")
        return f"{stage} does not fit: {', '.join([*ways, 'add fewer tokens'])}"

    def _worth(self) -> list[str]:
        if self.savings is None:
            return ["tokens saved: the sample is too small to learn so many tokens from"]
        speed, ratio = (
            self.savings.speed(self.shape, self.rows),
            self.savings.before / self.savings.after,
        )
        saved = (
            f"tokens saved, learned on {self.savings.characters / 1e6:.1f}M characters (more text saves more): "
            f"{ratio:.2f} times fewer; generation {speed:.2f} times as fast, {ratio:.2f} times the context"
        )
        if speed <= 1:
            return [saved, "the larger tables cost more than the tokens save: add fewer"]
        repaid = self.hours / (1 - 1 / speed)
        return [
            saved,
            f"the training is repaid after {repaid:.0f} device hours of serving the language with the old vocabulary, "
            f"{repaid * 3600 * SERVED_RATE / 1e6:,.0f}M tokens at {SERVED_RATE:,} a second",
        ]


def make_plan(recipe: Recipe, device: str, hours: float | None = None) -> Plan:
    """The plan of a recipe; with `hours`, its token budget is what fits into them. No weights are read.

    Raises `LepError` for an unknown device or no time, `CorpusError` for text that cannot be read.
    """
    if device not in DEVICES:
        raise LepError(f"--gpu is '{device}': the known ones are {', '.join(DEVICES)}")
    if hours is not None and not hours > 0:
        raise LepError(f"--hours is {hours:g}: give a time above 0")
    folder = local_folder(recipe.base, weights=False)
    paths = recipe.text[recipe.language]
    savings = sampled_savings(
        folder, paths if isinstance(paths, list) else [paths], recipe.tokenizer
    )
    plan = Plan(recipe, Shape.of(folder), device, LARGEST_BLOCK, savings)
    if hours is None:
        return replace(plan, tokens=_budget(recipe, folder, savings))
    return replace(plan, tokens=max(LARGEST_BLOCK, int(hours * plan.tokens_an_hour / plan.passes)))


def _budget(recipe: Recipe, folder: Path, savings: Savings | None) -> int:
    """Tokens that a recipe trains on; for passes over a corpus, from its characters and those of a token."""
    if recipe.pretrain.tokens is not None:
        return recipe.pretrain.tokens
    if savings is None:
        raise CorpusError(
            "pretrain.epochs of so small a sample cannot be told in tokens: give pretrain.tokens"
        )
    limit, characters = recipe.corpus.limit_characters, 0
    for text in stream_texts(recipe.text[recipe.language]):
        characters += len(text)
        if limit is not None and characters * (1 - recipe.corpus.heldout_share) >= limit:
            break
    if recipe.heldout.get(recipe.language) is None:
        characters = round(characters * (1 - recipe.corpus.heldout_share))
    characters = min(characters, limit or characters)
    tokens = characters * savings.after / savings.heldout
    for (
        code,
        share,
    ) in recipe.pretrain.replay.items():  # in the base's tokens, which an extension keeps
        tokens += share * characters * _cost(folder, recipe.text[code])
    return recipe.pretrain.budget(round(tokens))


def _cost(folder: Path, paths: str | list[str]) -> float:
    """Tokens a character of a sample of text."""
    files = corpus_files([paths] if isinstance(paths, str) else paths)
    pieces = [
        piece
        for file in files
        for piece in _sample(file, SAMPLE_CHARACTERS // HELDOUT_EVERY // len(files))
    ]
    encoded = load_tokenizer(folder).backend_tokenizer.encode_batch_fast(
        pieces, add_special_tokens=False
    )
    return sum(len(each.ids) for each in encoded) / max(1, sum(map(len, pieces)))


def sampled_savings(folder: Path, paths: list[str], settings: TokenizerSettings) -> Savings | None:
    """Tokens of held-out pieces of a sample, under the base's vocabulary and under one made on the others."""
    files = corpus_files(paths)
    pieces = [piece for file in files for piece in _sample(file, SAMPLE_CHARACTERS // len(files))]
    if not pieces:
        raise CorpusError(f"the corpus holds no text at all: {', '.join(map(str, files))}")
    heldout = pieces[::HELDOUT_EVERY]
    learned = [piece for i, piece in enumerate(pieces) if i % HELDOUT_EVERY]
    base = load_tokenizer(folder).backend_tokenizer
    try:
        found = _learned(base, learned, settings)
    except CorpusError:
        return None
    before, after = (
        sum(len(e.ids) for e in tokenizer.encode_batch_fast(heldout, add_special_tokens=False))
        for tokenizer in (base, found)
    )
    return Savings(sum(map(len, learned)), sum(map(len, heldout)), before, after)


def _learned(base: Tokenizer, texts: list[str], settings: TokenizerSettings) -> Tokenizer:
    """The vocabulary that the settings make of a sample, in memory."""
    if settings.method in ALGORITHMS:
        words = count_texts(replacement_cutter(base), texts, "any")
        return replacement(base, words, settings.size(0), algorithm=settings.method)
    parts = Parts.of(base)
    words = count_texts(base, texts, settings.script)
    if settings.keep is not None:
        size = len(parts.names)
        counts = token_counts(base, texts, size)
        parts = pruned(parts, kept_tokens(parts, counts, settings.keep, np.zeros(size, dtype=bool)))
    added = settings.new_tokens or settings.size(0) - (settings.keep or 0)
    return extend_bpe(parts, words, added).parts.vocabulary.tokenizer


def _sample(file: Path, characters: int) -> list[str]:
    """The first pieces of a file, cut so that a document is learned from and held out in turn."""
    cut = (
        text[start : start + SAMPLE_PIECE]
        for text in (document.text for document in read_file(file) if document.text.strip())
        for start in range(0, len(text), SAMPLE_PIECE)
    )
    return [
        "".join(texts)
        for texts in itertools.islice(batches(cut, SAMPLE_PIECE), ceil(characters / SAMPLE_PIECE))
    ]
