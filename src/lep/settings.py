"""Every setting with its default, declared once: the recipe, the command line and the functions all read it here."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from lep.errors import LepError

Location = tuple[str | int, ...]  # of a value in nested settings: names, and positions in lists
TaskName = Literal["copy_sentence", "copy_paragraph", "first_word", "last_word", "word_after"]
InitName = Literal["mean", "length-weighted", "first", "last", "random"]
PropagationName = Literal[
    "swap",
    "overlap",
    "conversion",
    "ridge",
    "procrustes",
    "task-arithmetic",
    "exact",
    "residual",
    "new-rows",
]


class Settings(BaseModel):
    """Base of all settings: unknown names are errors, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def given(cls, settings: Self | None, options: Mapping[str, Any]) -> Self:
        """`settings` as they are, or settings with the values of `options`.

        Raises `LepError` for both at once, for an unknown name, with the nearest one, and for a value out of range.
        """
        if settings is not None:
            if options:
                raise LepError(f"give {', '.join(options)} in the settings object, or no object")
            return settings
        try:
            return cls(**options)
        except ValidationError as error:
            raise LepError(f"{cls.__name__}: {first_fault(cls, error).text}") from error


@dataclass(frozen=True)
class Fault:
    """A refused value: where it is, and why it was refused, in one sentence."""

    location: Location
    text: str


def dotted(location: Location) -> str:
    """`evaluate.tasks.1`, as a recipe names a value."""
    return ".".join(map(str, location))


def first_fault(
    settings: type[BaseModel], error: ValidationError, name: Callable[[Location], str] = dotted
) -> Fault:
    """The first fault of a validation; unknown names come before all others.

    `name` says what the user calls the value at a location. The text gives that name, the value,
    what is allowed, and the nearest valid name.
    """
    faults = error.errors()
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    location = fault["loc"]
    if fault["type"] == "extra_forbidden":
        advice = nearest(str(location[-1]), section(settings, location[:-1]).model_fields)
        return Fault(location, f"unknown key '{name(location)}'; {advice}")
    if fault["type"] == "missing":
        return Fault(location, f"the key '{name(location)}' is missing")
    if fault["type"] == "value_error":  # of several settings together
        prefix = f"{name(location)}: " if location else ""
        return Fault(location, f"{prefix}{fault['ctx']['error']}")
    reason = fault["msg"][0].lower() + fault["msg"][1:]
    return Fault(location, f"{name(location)} is {fault['input']!r}: {reason}")


def nearest(name: str, names: Iterable[str]) -> str:
    """Advice on an unknown name: the nearest valid one, or all of them."""
    near = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"the valid ones are {', '.join(names)}"


def section(settings: type[BaseModel], location: Location) -> type[BaseModel]:
    """The class of the nested settings at a location."""
    for part in location:
        annotation = settings.model_fields[str(part)].annotation
        types = (annotation, *get_args(annotation))  # of `Section | None`, too
        settings = next(t for t in types if isinstance(t, type) and issubclass(t, BaseModel))
    return settings


class CorpusSettings(Settings):
    """How text is split and bounded."""

    heldout_share: float = Field(
        0.1, gt=0, lt=1, description="share of the documents held out, by a fixed hash"
    )
    limit_characters: PositiveInt | None = Field(
        None, description="at most so many training characters a language"
    )
    limit_heldout_characters: PositiveInt | None = Field(
        200_000, description="the same for held-out text"
    )
    source_share: float = Field(
        1.0, gt=0, le=1, description="at most this share of a limit from one file"
    )


class BuildSettings(Settings):
    """How raw text becomes a corpus."""

    language: str | None = Field(
        None, description="ISO 639-1 code: documents in another script are dropped"
    )
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {}, description="how many times each document of a source is given; a fraction by hash"
    )
    dedup: Literal["exact", "minhash", "none"] = Field(
        "minhash", description="minhash: near duplicates, too"
    )
    near: float = Field(
        0.7, gt=0, le=1, description="Jaccard similarity from which documents are near duplicates"
    )
    boilerplate: int = Field(
        20,
        ge=0,
        le=65_535,
        description="lines that are in so many documents are taken out; 0: none",
    )
    documents: PositiveInt | None = Field(None, description="at most so many of each hub data set")
    cover: str | None = Field(
        None, description="model of lep init: keep what its new tokens need, and no more"
    )
    contexts: PositiveInt = Field(
        200, description="occurrences that each new token shall have, with cover"
    )
    seed: int = Field(0, description="of the order and of fractions")


class ClusterSettings(Settings):
    """How raw text is cleaned in tasks."""

    language: str | None = Field(
        None, description="ISO 639-1 code: documents in another script are dropped"
    )
    executor: Literal["local", "slurm"] = Field("local", description="where tasks run")
    tasks: PositiveInt = Field(8, description="parts that the files are dealt out to")
    workers: PositiveInt = Field(2, description="tasks at once on this machine")
    partition: str = Field("", description="Slurm partition")
    time: str = Field("10:00:00", description="Slurm time limit of a task")


TOKENIZER_SIZES = {
    "continue": ("new_tokens",),
    "merge": ("new_tokens",),
    "optimize": ("keep", "vocab_size"),
    "bpe": ("vocab_size",),
    "unigram": ("vocab_size",),
}


class TokenizerSettings(Settings):
    """How the vocabulary is made: extended, optimised, or replaced (section 3.1)."""

    method: Literal["continue", "merge", "optimize", "bpe", "unigram"] = Field(
        "continue",
        description="extended by continue or merge (the paper's way), optimised, or replaced",
    )
    new_tokens: PositiveInt | None = Field(None, description="tokens to add: continue, merge")
    vocab_size: PositiveInt | None = Field(
        None, description="tokens of the result: optimize, bpe, unigram"
    )
    keep: PositiveInt | None = Field(None, description="known tokens that stay: optimize")
    script: str = Field(
        "auto", description="Unicode script of new tokens; auto: that of the corpus; any: no rule"
    )

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        needed = TOKENIZER_SIZES[self.method]
        for name in ("new_tokens", "vocab_size", "keep"):
            if (getattr(self, name) is None) == (name in needed):
                verb = "needs" if name in needed else "has no"
                raise ValueError(
                    f"the method {self.method} {verb} {name}: give {' and '.join(needed)}"
                )
        return self

    def size(self, before: int) -> int:
        """Tokens of the result, when there were `before`."""
        return self.vocab_size or before + (self.new_tokens or 0)


class InitSettings(Settings):
    """How rows of new tokens start."""

    method: InitName = Field("mean", description="what fills the vocabulary mapping M")
    output_method: InitName | None = Field(
        None, description="the same for the output table, where it differs"
    )
    calibrate_norms: bool = Field(
        False, description="scale new rows to the median norm of rows of their script"
    )
    seed: int = Field(0, description="of the random control")


class PropagateSettings(Settings):
    """How adapted rows are carried into the instruct model."""

    method: PropagationName = Field("conversion", description="which W and beta rows get")
    output_method: PropagationName | None = Field(
        None, description="the same for the output table, where it differs"
    )
    ridge: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="penalty toward the identity as a share of the mean eigenvalue (default: the method's)",
    )
    frequency_text: list[str] = Field(
        [], description="text whose token counts weigh the rows of a fit"
    )

    def of(self, kind: str) -> str:
        """The method of a table."""
        return self.method if kind == "input" else self.output_method or self.method


class SelectSettings(Settings):
    """On how much, and among what, `auto` chooses."""

    candidates: list[PropagationName] = Field(
        ["swap", "conversion", "ridge", "task-arithmetic", "exact", "residual", "new-rows"],
        min_length=1,
    )
    characters: PositiveInt = Field(
        60_000, description="characters of each language, half of them for the choice"
    )
    prompts: PositiveInt = Field(200, description="prompts, half of them for the choice")
    max_new_tokens: PositiveInt = Field(
        256, description="longest answer of the original model; one cut off is left out"
    )
    copies: int = Field(
        20, ge=0, description="sentences of each language to copy; reported, not decided on"
    )
    veto: PositiveFloat = Field(
        0.01, description="an original language may lose this share of its bits per byte"
    )
    batch_size: PositiveInt = 16
    bootstrap: PositiveInt = Field(1_000, description="resamples behind each 95% interval")
    seed: int = 0


class TrainingSettings(Settings):
    """What every training run has."""

    learning_rate: PositiveFloat = Field(2e-4, description="peak learning rate")
    weight_decay: float = Field(0.1, ge=0)
    warmup_share: float = Field(
        0.05, ge=0, lt=1, description="share of the steps with a rising rate"
    )
    warmup_steps: PositiveInt | None = Field(
        None, description="instead of a share: so many steps (the paper: 100)"
    )
    seed: int = 0
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto",
        description="of the arithmetic; trained weights are float32 (auto: bf16 where hardware multiplies it)",
    )
    activation_checkpointing: bool = Field(
        False, description="less memory, up to half more time: for large models"
    )
    checkpoints: PositiveInt = Field(8, description="resumable states saved on the way")


class PretrainSettings(TrainingSettings):
    """Continued pre-training on plain text (section 3.4 of the paper)."""

    tokens: PositiveInt | None = Field(
        None, description="tokens to train on; a smaller corpus is repeated"
    )
    epochs: PositiveFloat | None = Field(
        None, description="instead of tokens: passes over the corpus (the paper: 1)"
    )
    train: Literal["embeddings", "new_rows", "embeddings+lora"] = Field(
        "embeddings",
        description="what is trained: both tables (the paper), new rows alone, or tables and adapters",
    )
    lora_rank: PositiveInt = Field(
        32, description="of the adapters of embeddings+lora, on all projections"
    )
    lora_alpha: PositiveFloat = Field(
        32, description="what an adapter adds is scaled by alpha over rank"
    )
    sweep: bool = Field(
        False, description="try the rate and parts of it on a fifth of the tokens, take the best"
    )
    schedule: Literal["cosine", "wsd"] = Field(
        "cosine", description="wsd: constant after warm-up, then down to 0"
    )
    decay_share: float = Field(
        0.2, gt=0, le=1, description="share of the steps in which wsd goes down"
    )
    eval_text: dict[str, list[str]] = Field(
        {}, description="held-out text by language: the state that is best on the first one is kept"
    )
    eval_characters: PositiveInt = Field(
        50_000, description="characters of each that are looked at"
    )
    patience: PositiveInt | None = Field(
        None, description="stop after so many looks without a better state"
    )
    block_size: PositiveInt | None = Field(
        None, description="tokens a sample (default: 1024, or the model's context)"
    )
    batch_tokens: PositiveInt | None = Field(
        None, description="tokens a step (default: 1/500 of all, up to 262,144)"
    )
    micro_batch_tokens: PositiveInt = Field(8192, description="tokens that are in memory at once")

    @model_validator(mode="after")
    def _budget(self) -> Self:
        if (self.tokens is None) == (self.epochs is None):
            given = "neither" if self.tokens is None else "both"
            raise ValueError(
                f"tokens and epochs are two ways to say how much is trained on, and {given} is given"
            )
        return self

    def budget(self, corpus_tokens: int) -> int:
        """Tokens to train on, those that fill up the last block of a step or of the corpus included."""
        return self.tokens or max(1, round((self.epochs or 0) * corpus_tokens))


class LoraSettings(TrainingSettings):
    """Tuning of a low-rank adapter on answers."""

    rank: PositiveInt = 32
    alpha: PositiveFloat = 16
    batch_size: PositiveInt = Field(128, description="samples a step")
    micro_batch_size: PositiveInt = Field(16, description="samples that are in memory at once")
    max_length: PositiveInt = Field(
        4096, description="tokens; longer samples are left out, and counted"
    )
    epochs: PositiveFloat = 1.0


class TuneSettings(LoraSettings):
    """Instruction tuning: all projections, the head in full (section 3.7)."""

    learning_rate: PositiveFloat = 5e-5
    weight_decay: float = Field(0.05, ge=0)
    copy_tasks: int = Field(2_000, ge=0, description="copy tasks a language added to the data")


class AnswerSettings(Settings):
    """How the original instruct model's own answers are made, and which are kept (section 3.6)."""

    max_new_tokens: PositiveInt = Field(
        512, description="longest answer; one cut off there is dropped"
    )
    generation_batch: PositiveInt = 32
    samples: PositiveInt = Field(
        1, description="answers to a prompt, the best is kept: one greedy, the others sampled"
    )
    temperature: PositiveFloat = Field(0.8, description="of sampled answers")
    top_p: float = Field(0.95, gt=0, le=1, description="of sampled answers")
    sample_seed: int = 0
    judge: str | None = Field(
        None, description="model that grades answers, or MODEL@URL (default: rules alone)"
    )
    least_grade: int = Field(4, ge=1, le=5, description="worse answers are dropped")


class CalibrateSettings(AnswerSettings, LoraSettings):
    """Self-calibration: first and last layer, embeddings and head in full (section 3.6)."""

    train: Literal["outer_layers", "new_rows"] = Field(
        "outer_layers",
        description="the paper's, or the rows of new tokens alone, which leaves known text as it is",
    )
    learning_rate: PositiveFloat = 2.5e-5
    rank: PositiveInt = 8
    alpha: PositiveFloat = 1
    batch_size: PositiveInt = 64
    max_length: PositiveInt = 8096
    copy_tasks: int = Field(10_000, ge=0, description="copy tasks a language added to the answers")


class BenchmarkSettings(Settings):
    """Which benchmark tasks are run, and how."""

    tasks: list[str] = Field([], description="benchmark tasks or groups; darumeru: the whole of it")
    data: str | None = Field(None, description="folder with the data sets (default: from the hub)")
    shots: int | None = Field(
        None, ge=0, description="examples before each question (default: 5, chat models 0)"
    )
    chat: bool | None = Field(
        None, description="ask through the chat template (default: where there is one)"
    )
    limit: PositiveInt | None = Field(
        None, description="items of each task, chosen by a fixed hash"
    )
    batch_size: PositiveInt = 16
    seed: int = 0


class EvaluateSettings(Settings):
    """What is measured on held-out text."""

    tasks: list[TaskName] = Field(
        ["copy_sentence", "copy_paragraph", "first_word", "last_word", "word_after"],
        description="chat tasks",
    )
    items: PositiveInt = Field(100, description="items of each task and language")
    characters: PositiveInt = Field(
        200_000, description="held-out characters a language for bits per byte"
    )
    window_characters: PositiveInt = Field(
        800, description="characters scored at once, the same for every model"
    )
    batch_size: PositiveInt = 32
    bootstrap: PositiveInt = Field(1_000, description="resamples behind each 95% interval")
    seed: int = 0
    benchmark: BenchmarkSettings = BenchmarkSettings()
    prompts: str | None = Field(
        None, description="jsonl of prompts: answers beside the first model's own (lep evaluate)"
    )
    answer_tokens: PositiveInt = Field(256, description="longest answer to a prompt")
    speed: int = Field(
        0, ge=0, description="texts a language on which speed is measured (lep evaluate)"
    )
