"""What a recipe takes and saves, before anything is loaded: tokens, hours, memory, disk."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from lep.checkpoint.architecture import Architecture
from lep.checkpoint.config import read_config
from lep.errors import LepError
from lep.hub import local_folder
from lep.pipeline.recipe import Grid, Recipe
from lep.pipeline.recipe_file import load_grid
from lep.pipeline.sampled_savings import (
    Savings,
    corpus_tokens,
    sampled_savings,
    text_share,
    training_tokens,
)
from lep.result import Result
from lep.settings import JointSettings, LoraSettings, PretrainSettings, TrainingSettings
from lep.tokenizer.load import load_tokenizer
from lep.tokenizer.train import ALGORITHMS
from lep.tokenizer.vocabulary import Vocabulary
from lep.training.data import LARGEST_BLOCK, batch_of
from lep.training.loss import GPU_LOSS_CHUNK, LOGIT_SETTINGS, LOSS_CHUNK
from lep.training.pretrain import STATE_COPIES, SWEPT_RATES, SWEPT_SHARE, saved_states

UTILISATION = 0.4  # of a device's peak that training of large models reaches
CONTEXT_TOKENS = 2_000  # that a served answer looks back on, with the old vocabulary
SERVED_RATE = 2_500  # old tokens a second and device, for the break-even in tokens
STATES_WITH_LOOKS = 3  # saved at once: the best, the last and the next
TRAININGS = ("pretrain", "adapt")  # sections that train rows on text
# Up to four passes teach nearly as much as new text does (Muennighoff et al. 2023, 2305.16264).
MOST_PASSES = 4


@dataclass(frozen=True)
class Device:
    """Peak of dense bf16 products, operations a second, and memory as CUDA reports it."""

    flops: float
    memory_bytes: float


DEVICES = {  # "80 GB" of a name are GiB, of which some are reserved
    "h200": Device(989e12, 139.8 * 2**30),
    "h100": Device(989e12, 79.1 * 2**30),
    "a100": Device(312e12, 79.1 * 2**30),
    "l40s": Device(362e12, 44.4 * 2**30),
    "rtx4090": Device(165e12, 23.6 * 2**30),
    "rtx3090": Device(71e12, 23.6 * 2**30),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, from its configuration."""

    body: int  # parameters outside the tables
    rows: int  # of a table
    hidden: int
    tables: int  # 1 if they are tied
    layers: int
    inner: int
    cache: int  # elements of the KV cache per token
    plain: bool  # logits are just the head's products, so that the loss takes them in chunks
    ids: int  # rows that the tokenizer needs; the others are padding

    @classmethod
    def of(cls, folder: Path) -> "Shape":
        """Raises `CheckpointError` if the folder holds no causal language model."""
        probed = Architecture.probe(folder, read_config(folder))
        model, text = probed.model, probed.model.config.get_text_config()
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        tables = {id(module.weight) for module in ends}
        rows, hidden = ends[0].weight.shape
        unique = {id(tensor): tensor for tensor in probed.tensors.values()}
        body = sum(tensor.numel() for key, tensor in unique.items() if key not in tables)
        layers, heads = text.num_hidden_layers, text.num_attention_heads
        inner = getattr(text, "intermediate_size", None) or 4 * hidden
        head = getattr(text, "head_dim", None) or hidden // heads
        cache = 2 * layers * (getattr(text, "num_key_value_heads", None) or heads) * head
        plain = not any(getattr(text, name, None) for name in LOGIT_SETTINGS)
        ids = len(Vocabulary.of(load_tokenizer(folder)))
        return cls(body, rows, hidden, len(tables), layers, inner, cache, plain, ids)

    def token_operations(self, rows: int, trained_rows: int, *, recomputes: bool) -> float:
        """Forward and backward through body and head, and the gradient of the head's rows.

        Activation checkpointing (`recomputes`) adds a second forward pass through the body.
        """
        again = 2 * self.body if recomputes else 0
        return 2 * self.forward_operations(rows) + again + 2 * trained_rows * self.hidden

    def forward_operations(self, rows: int) -> float:
        """Of a token that is read or written, through body and head."""
        return 2 * (self.body + rows * self.hidden)

    def rows_with(self, new_tokens: int) -> int:
        """Rows of a table with so many new tokens: padding rows are used first."""
        return max(self.rows, self.ids + new_tokens)

    def speedup(self, savings: Savings, new_rows: int) -> float:
        """How many times as fast text is generated, by the parameters and cache read per token."""
        share = savings.after / savings.before
        old = self.body + self.rows * self.hidden + self.cache * CONTEXT_TOKENS
        new = self.body + new_rows * self.hidden + self.cache * CONTEXT_TOKENS * share
        return old / (share * new)


def training_memory(
    shape: Shape,
    rows: int,
    trained: int,
    tokens: int,
    *,
    width: int,
    on_cpu: bool = False,
    recomputes: bool = False,
    maps: bool = False,
) -> dict[str, float]:
    """Bytes of a training by what they hold: tables of `rows`, of which `trained` train, each step.

    Frozen weights and products have `width` bytes an element; what trains has float32 weights,
    gradients and two moments. With `recomputes`, states between layers are float32, and the rest
    is of one layer. `maps` in common train too, on float32 features of the rows.
    """
    table, copies = rows * shape.hidden, trained * shape.hidden * shape.tables
    features = (2 + 2 * shape.hidden) * shape.tables if maps else 0
    frozen = shape.body + (table * shape.tables if trained < rows else 0)
    layer = width * (8 * shape.hidden + 4 * shape.inner)
    layers = 4 * shape.hidden * shape.layers + layer if recomputes else layer * shape.layers
    chunk = LOSS_CHUNK if on_cpu else GPU_LOSS_CHUNK
    logits = 4 if on_cpu and width == 4 else 3 * 4  # a CPU's float32 softmax is in place
    head = width * table if width < 4 else 0
    return {
        "frozen weights": width * frozen,
        "trained rows with gradients and moments": 16 * copies,
        **({"maps in common": (4 * trained + 16 * shape.hidden) * features} if maps else {}),
        "16-bit head and its gradient": head + 4 * trained * shape.hidden,
        "logits": logits * (chunk if shape.plain else tokens) * rows,
        "activations": tokens * layers,
    }


@dataclass(frozen=True)
class Forecast(Result):
    """Arithmetic, not measurement: it follows from the recipe, the configuration and `DEVICES`."""

    recipe: Recipe
    shape: Shape
    gpu: str
    tokens: int
    savings: Savings | None
    pass_tokens: int | None = None  # tokens of one pass over the text, where they are known
    cells: int = 1  # of the recipe's grid; the forecast is for the first
    command: str = ""  # that trains for the hours asked for

    @property
    def rows(self) -> int:
        """Of a table, with the new vocabulary; new tokens use padding rows first."""
        ids = self.recipe.tokenizer.size(self.shape.ids)
        return ids if ids < self.shape.ids else max(ids, self.shape.rows)

    @property
    def new_rows(self) -> int:
        settings = self.recipe.tokenizer
        if settings.method in ALGORITHMS:
            return self.rows  # a replaced vocabulary keeps hardly any
        return settings.added

    @property
    def settings(self) -> PretrainSettings:
        """Of the training that `tokens` and `steps` are of."""
        return self.recipe.training

    @property
    def trained_rows(self) -> int:
        return self._trained_rows(self.settings)

    def _trained_rows(self, settings: PretrainSettings) -> int:
        return self.new_rows if settings.trains_new_rows else self.rows

    @property
    def steps(self) -> int:
        settings = self.settings.model_copy(update={"tokens": self.tokens})
        return ceil(self.tokens / batch_of(settings))

    @property
    def hours(self) -> float:
        """On one device, with sweep, baseline and joint training where the recipe has them."""
        return self.training_hours * self.passes + self.joint_hours

    @property
    def joint_hours(self) -> float:
        """Of joint training beside the training of a base model."""
        adapt = self.recipe.adapt
        if adapt is None or self.recipe.pretrain is None:
            return 0.0
        tokens = (1 + len(adapt.after)) * training_tokens(adapt, self.pass_tokens)
        return tokens / (3600 * DEVICES[self.gpu].flops * UTILISATION) * self._operations(adapt)

    @property
    def training_hours(self) -> float:
        """Of one training on one device, that of `tokens` and `steps`."""
        return self.tokens / self.tokens_an_hour

    @property
    def passes(self) -> float:
        """All tokens that are trained on, with sweep and baseline, over those of one training."""
        once = 1 + len(SWEPT_RATES) * SWEPT_SHARE if self.settings.sweep else 1.0
        return once * (1 + self.recipe.direct)

    @property
    def tokens_an_hour(self) -> float:
        return 3600 * DEVICES[self.gpu].flops * UTILISATION / self.token_operations

    @property
    def token_operations(self) -> float:
        return self._operations(self.settings)

    def _operations(self, settings: PretrainSettings) -> float:
        rows, again = self._trained_rows(settings), settings.activation_checkpointing
        return self.shape.token_operations(self.rows, rows, recomputes=again)

    @property
    def memory(self) -> dict[str, dict[str, float]]:
        """Bytes on the device by stage and by what they hold; small adapters are left out."""
        calibrate, tune = self.recipe.calibrate, self.recipe.tune
        memory = {}
        for name in TRAININGS:
            if settings := getattr(self.recipe, name):
                tokens = min(settings.micro_batch_tokens, self.tokens)
                memory[name] = self._memory(self._trained_rows(settings), tokens, settings)
        if calibrate:
            whole = (self.rows, self.shape.tables)
            trained = (self.new_rows, 0) if calibrate.train == "new_rows" else whole
            memory["calibrate"] = self._tuning_memory(*trained, calibrate)
        if tune:  # the head alone
            memory["tune"] = self._tuning_memory(self.rows, 1, tune)
        return memory

    def _tuning_memory(self, rows: int, copies: int, settings: LoraSettings) -> dict[str, float]:
        """Of tuning on answers; peft keeps a copy of each table that it trains."""
        tokens = settings.micro_batch_size * settings.max_length
        table_bytes = 2 * self.rows * self.shape.hidden
        return self._memory(rows, tokens, settings) | {"copies of tables": copies * table_bytes}

    def _memory(self, rows: int, tokens: int, settings: TrainingSettings) -> dict[str, float]:
        """For so many training rows in each table, and tokens at once."""
        return training_memory(
            self.shape,
            self.rows,
            rows,
            tokens,
            width=4 if settings.precision == "float32" else 2,
            recomputes=settings.activation_checkpointing,
            maps=isinstance(settings, JointSettings) and settings.has_maps,
        )

    @property
    def disk_bytes(self) -> int:
        """Written in a run: tables of each model (bodies are linked), saved states, tokens."""
        recipe, shape = self.recipe, self.shape
        tuned = sum(len(stage.after) for stage in (recipe.calibrate, recipe.tune) if stage)
        linked = len(recipe.calibrate.new_rows) if recipe.calibrate else 0
        based = (2 if recipe.pretrain else 0) + len(recipe.propagate) + recipe.direct
        joint = 1 + len(recipe.adapt.after) if recipe.adapt else 0
        models = 1 + joint + based + linked + tuned
        tables = models * self.rows * shape.hidden * shape.tables
        kept = saved_states(recipe.pretrain) if recipe.pretrain else STATES_WITH_LOOKS
        states = kept * STATE_COPIES
        saved = states * self.trained_rows * shape.hidden * shape.tables
        # Later bodies are not linked to one with an adapter.
        has_adapters = recipe.pretrain and recipe.pretrain.has_adapters
        bodies = models - 2 - linked if has_adapters else tuned
        if recipe.adapt and recipe.adapt.has_adapters:
            bodies += joint
        return 2 * tables + 2 * bodies * shape.body + 4 * saved + 4 * self.tokens

    def __str__(self) -> str:
        shape, rows, gpu = self.shape, self.trained_rows, self.gpu
        memory, most = self.memory, DEVICES[gpu].memory_bytes
        needed = {stage: sum(parts.values()) for stage, parts in memory.items()}
        first = next(iter(memory))
        sizes = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in memory[first].items())
        others = "".join(f"; {stage} {needed[stage] / 1e9:.0f}" for stage in [*needed][1:])
        covered = "pretraining" if self.recipe.pretrain else "joint training"
        extra = "calibration, tuning" if self.recipe.pretrain else "practice tasks"
        cells = f"the first of {self.cells} combinations and seeds, which share stages:"
        lines = [
            *([cells] if self.cells > 1 else []),
            f"{shape.body / 1e9:.2f}B parameters in the body, {shape.tables} table(s) of "
            f"{shape.rows:,} to {self.rows:,} x {shape.hidden:,}; {rows:,} rows of each train",
            f"{self.tokens:,} tokens in {self.steps:,} steps: {self.training_hours:.1f} hours on "
            f"one {gpu} at {UTILISATION:.0%} of its peak ({self.tokens_an_hour / 1e6:.0f}M tokens "
            f"an hour, {self.token_operations / 1e9:.1f} GFLOP a token){self._trainings()}",
            *self._passes(),
            f"memory {needed[first] / 1e9:.0f} GB of {most / 1e9:.0f}: {sizes}{others}",
            f"disk about {self.disk_bytes / 1e9:.0f} GB besides the corpus and the given models, "
            "if these are on the same disk (otherwise bodies are copied)",
            f"hours cover {covered} only: answers, {extra} and evaluation are extra",
            *(self._advice(stage) for stage, size in needed.items() if size > most),
            *self._worth(),
            *([f"to train so: {self.command}"] if self.command else []),
        ]
        return "\n".join(lines)

    def _passes(self) -> list[str]:
        if self.pass_tokens is None:
            return []
        share = text_share(self.settings)
        passes = share * self.tokens / self.pass_tokens
        line = f"that is {passes:,.2f} passes over about {self.pass_tokens:,} tokens of text"
        if share < 1:
            line += f", which is {share:.0%} of the mixture"
        if passes <= MOST_PASSES:
            return [line]
        hours = self.hours * MOST_PASSES / passes
        advice = f"more than {MOST_PASSES} teach little: give more text, or train {hours:.2g} hours"
        return [f"{line}; {advice} ({self._section}.epochs={MOST_PASSES})"]

    @property
    def _section(self) -> str:
        return "pretrain" if self.recipe.pretrain else "adapt"

    def _trainings(self) -> str:
        parts = [(self.settings.sweep, "the sweep")]
        parts.append((self.recipe.direct, "the baseline on the instruct model"))
        parts.append((self.joint_hours > 0, "joint training"))
        names = " and ".join(name for wanted, name in parts if wanted)
        return f"; {self.hours:.1f} hours with {names}" if names else ""

    def _advice(self, stage: str) -> str:
        settings = getattr(self.recipe, stage)
        size = "micro_batch_tokens" if stage in TRAININGS else "micro_batch_size"
        ways = [f"lower {stage}.{size} ({getattr(settings, size):,})"]
        if not settings.activation_checkpointing:
            ways.append(f"set {stage}.activation_checkpointing")
        if stage != "tune" and settings.train != "new_rows":
            ways.append("train new_rows")
        return f"{stage} does not fit: {', '.join([*ways, 'add fewer tokens'])}"

    def _worth(self) -> list[str]:
        if self.savings is None:
            return ["tokens saved: unknown, the sample is too small to learn so many tokens from"]
        speedup, ratio = self.shape.speedup(self.savings, self.rows), self.savings.ratio
        characters = f"{self.savings.characters / 1e6:.1f}M characters (more text saves more)"
        gains = f"generation {speedup:.2f} times as fast, {ratio:.2f} times the context"
        saved = f"tokens saved, learned on {characters}: {ratio:.2f} times fewer; {gains}"
        if speedup <= 1:
            return [saved, "the larger tables cost more than the tokens save: add fewer"]
        hours = self.hours / (1 - 1 / speedup)
        serving = "device hours of serving the language with the old vocabulary"
        served = f"{hours * 3600 * SERVED_RATE / 1e6:,.0f}M tokens at {SERVED_RATE:,} a second"
        paid = f"these {self.hours:.1f} hours pay off after {hours:.0f} {serving}, {served}"
        return [saved, paid]


def forecast(
    recipe: str | Path | Recipe | Grid,
    gpu: str = "h100",
    *,
    hours: float | None = None,
    overrides: Sequence[str] = (),
) -> Forecast:
    """What a recipe takes and saves; with `hours`, for the tokens that fit. Reads no weights.

    Raises `LepError` for an unknown device or no time, `CorpusError` for text that cannot be read,
    `RecipeError` for a fault in the recipe.
    """
    if gpu not in DEVICES:
        raise LepError(f"--gpu is '{gpu}': the known ones are {', '.join(DEVICES)}")
    if hours is not None and not hours > 0:
        raise LepError(f"--hours is {hours:g}: give a time above 0")
    grid = load_grid(recipe, overrides)
    first = grid.cells[0].recipe
    folder = local_folder(first.base or first.instruct, weights=False)
    savings = sampled_savings(folder, first.text[first.language], first.tokenizer)
    pass_tokens, shape = corpus_tokens(first, folder, savings), Shape.of(folder)
    cells = len(grid.cells)
    result = Forecast(first, shape, gpu, LARGEST_BLOCK, savings, pass_tokens, cells)
    if hours is None:
        return replace(result, tokens=training_tokens(first.training, pass_tokens))
    if hours <= result.joint_hours:
        advice = "give more hours, or leave adapt out"
        raise LepError(
            f"joint training alone takes {result.joint_hours:.2g} of {hours:g} hours: {advice}"
        )
    rest = hours - result.joint_hours
    tokens = max(LARGEST_BLOCK, int(rest * result.tokens_an_hour / result.passes))
    section = "pretrain" if first.pretrain else "adapt"
    kept = [o for o in overrides if not o.startswith((f"{section}.tokens=", f"{section}.epochs="))]
    path = str(recipe) if isinstance(recipe, str | Path) else "RECIPE.yaml"
    command = shlex.join(["lep", "run", path, *kept, f"{section}.tokens={tokens}"])
    return replace(result, tokens=tokens, command=command)
