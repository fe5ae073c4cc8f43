"""What a recipe takes and saves, before anything is loaded: tokens, hours, memory, disk."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from lep.errors import LepError
from lep.hub import local_folder
from lep.pipeline.devices import Device, named_device
from lep.pipeline.recipe import Grid, Recipe
from lep.pipeline.recipe_file import load_grid
from lep.pipeline.sampled_savings import (
    Savings,
    corpus_tokens,
    sampled_savings,
    text_share,
    training_tokens,
)
from lep.pipeline.shape import Shape, training_memory
from lep.progress import duration
from lep.result import Result
from lep.settings import JointSettings, LoraSettings, PretrainSettings, TrainingSettings
from lep.tokenizer.train import ALGORITHMS
from lep.training.data import LARGEST_BLOCK, batch_of
from lep.training.pretrain import STATE_COPIES, SWEPT_RATES, SWEPT_SHARE, saved_states
from lep.training.trainer import uses_bf16

SERVED_RATE = 2_500  # old tokens a second and device, for the break-even in tokens
STATES_WITH_LOOKS = 3  # saved at once: the best, the last and the next
TRAININGS = ("pretrain", "adapt")  # sections that train rows on text
# Up to four passes teach nearly as much as new text does (Muennighoff et al. 2023, 2305.16264).
MOST_PASSES = 4


@dataclass(frozen=True)
class Forecast(Result):
    """Arithmetic from the recipe, the model's configuration, and the speed of a device."""

    recipe: Recipe
    shape: Shape
    device: Device
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
        return tokens / (3600 * self.device.operations) * self._operations(adapt)

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
        return 3600 * self.device.operations / self.token_operations

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
            width=2 if _has_bf16(settings, self.device) else 4,
            on_cpu=self.device.is_cpu,
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
        shape, rows, device = self.shape, self.trained_rows, self.device
        memory, most = self.memory, device.memory_bytes
        needed = {stage: sum(parts.values()) for stage, parts in memory.items()}
        first = next(iter(memory))
        sizes = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in memory[first].items())
        others = "".join(f"; {stage} {_gb(needed[stage])}" for stage in [*needed][1:])
        covered = "pretraining" if self.recipe.pretrain else "joint training"
        extra = "calibration, tuning" if self.recipe.pretrain else "practice tasks"
        cells = f"the first of {self.cells} combinations and seeds, which share stages:"
        lines = [
            *([cells] if self.cells > 1 else []),
            f"{shape.body / 1e9:.2f}B parameters in the body, {shape.tables} table(s) of "
            f"{shape.rows:,} to {self.rows:,} x {shape.hidden:,}; {rows:,} rows of each train",
            f"{self.tokens:,} tokens in {self.steps:,} steps: {_time(self.training_hours)} on "
            f"{device.name} at {device.source} ({self.tokens_an_hour / 1e6:,.1f}M tokens an hour, "
            f"{self.token_operations / 1e9:.1f} GFLOP a token){self._trainings()}",
            *self._passes(),
            f"memory {_gb(needed[first])} GB of {_gb(most)}: {sizes}{others}",
            f"disk about {_gb(self.disk_bytes)} GB besides the corpus and the given models, "
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
        return f"; {_time(self.hours)} with {names}" if names else ""

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
        serving = "serving the language with the old vocabulary on that device"
        paid = f"{_time(self.hours)} of training pay off after {_time(hours)} of {serving}"
        if not self.device.is_cpu:
            tokens = hours * 3600 * SERVED_RATE / 1e6
            paid += f", {tokens:,.0f}M tokens at {SERVED_RATE:,} a second"
        return [saved, paid]


def _has_bf16(settings: TrainingSettings, device: Device) -> bool:
    """Whether products on a device that may not be this one are computed in bf16."""
    is_gpu = settings.precision == "auto" and not device.is_cpu
    return is_gpu or uses_bf16(settings)


def _time(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else duration(3600 * hours)


def _gb(size: float) -> str:
    return f"{size / 1e9:.{0 if size >= 1e10 else 1}f}"


def forecast(
    recipe: str | Path | Recipe | Grid,
    gpu: str = "here",
    *,
    hours: float | None = None,
    overrides: Sequence[str] = (),
) -> Forecast:
    """What a recipe takes and saves; with `hours`, for the tokens that fit. Reads no weights.

    `gpu` is a name of `DEVICES`, or "here" for the device of this process.

    Raises `LepError` for an unknown device or no time, `CorpusError` for text that cannot be read,
    `RecipeError` for a fault in the recipe.
    """
    if hours is not None and not hours > 0:
        raise LepError(f"--hours is {hours:g}: give a time above 0")
    grid = load_grid(recipe, overrides)
    first = grid.cells[0].recipe
    folder = local_folder(first.base or first.instruct, weights=False)
    shape = Shape.of(folder)
    device = named_device(gpu, shape, bf16=uses_bf16(first.training))
    savings = sampled_savings(folder, first.text[first.language], first.tokenizer)
    pass_tokens = corpus_tokens(first, folder, savings)
    cells = len(grid.cells)
    result = Forecast(first, shape, device, LARGEST_BLOCK, savings, pass_tokens, cells)
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
