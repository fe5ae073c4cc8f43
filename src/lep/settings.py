"""Every setting, declared once: recipes, command line and library read it here.

`lep VERB --help` shows the string below a field, and the docstring of its class as the heading.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from lep.fields import ByName, Settings, split_names, split_paths, split_weights

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

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
ProperShare = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=1 << 31)]
Texts = Annotated[dict[str, list[str]], BeforeValidator(split_paths), ByName]  # paths by language
Weights = Annotated[dict[str, NonNegative], BeforeValidator(split_weights)]
Names = BeforeValidator(split_names)  # of lists: A,B is A and B


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
    """ISO 639-1 code; documents in another script are dropped (default: no check)."""


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
    "optimize": ("keep", "vocab_size"),
    "bpe": ("vocab_size",),
    "unigram": ("vocab_size",),
}


class TokenizerSettings(Settings):
    """How the vocabulary is extended, optimised or replaced (section 3.1 of the paper)."""

    method: Literal["continue", "merge", "optimize", "bpe", "unigram"] = "continue"
    """Extend the vocabulary (continue; merge is the paper's way), optimise or replace it."""
    new_tokens: PositiveInt | None = None
    """Tokens to add; for continue and merge."""
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

    def size(self, before: int) -> int:
        """Tokens of the result, given the number of tokens `before`."""
        return self.vocab_size or before + (self.new_tokens or 0)


class InitSettings(Settings):
    """How rows of new tokens are initialised."""

    method: InitName = "mean"
    """How known rows are combined into a new one."""
    output_method: InitName | None = None
    """The same for the output table (default: the method of the input table)."""
    calibrate_norms: bool = False
    """Scale each new row to the median norm of the rows of its script."""
    seed: Seed = 0
    """Seed of the method random."""


class PropagateSettings(Settings):
    """How adapted rows are carried into the instruct model."""

    method: PropagationName = "conversion"
    """How rows are propagated."""
    output_method: PropagationName | None = None
    """The same for the output table (default: the method of the input table)."""
    ridge: NonNegative | None = None
    """Penalty toward the identity, as a share of the mean eigenvalue (default: the method's)."""
    frequency_text: list[str] = Field([])
    """Text whose token counts weight the rows of a fit (default: all rows count the same)."""

    def of(self, kind: str) -> str:
        """The method of a table."""
        return self.method if kind == "input" else self.output_method or self.method


class MethodSettings(PropagateSettings):
    """How adapted rows are carried into the instruct model, or that auto chooses."""

    method: Literal[PropagationName, "auto"] = "conversion"  # type: ignore[assignment]


class SelectSettings(Settings):
    """How the method auto chooses."""

    candidates: Annotated[list[PropagationName], Field(min_length=1), Names] = Field(
        ["swap", "conversion", "ridge", "task-arithmetic", "exact", "residual", "new-rows"]
    )
    """Methods to choose from."""
    characters: PositiveInt = 60_000
    """Characters of text per language; half of them are for the choice, half for the report."""
    prompts: PositiveInt = 200
    """Number of prompts; half of them are for the choice, half for the report."""
    max_new_tokens: PositiveInt = 256
    """Longest answer of the original model, in tokens; longer ones are left out."""
    copies: Count = 20
    """Sentences per language to copy; this is reported and does not influence the choice."""
    veto: PositiveFloat = 0.01
    """Share of its bits per byte that an original language may lose."""
    batch_size: PositiveInt = 16
    """Texts or prompts in a batch."""
    bootstrap: PositiveInt = 1_000
    """Bootstrap resamples for each 95% interval."""
    seed: Seed = 0
    """Seed of the resamples."""


class TrainingSettings(Settings):
    """Training."""

    learning_rate: PositiveFloat = 2e-4
    """Peak learning rate."""
    weight_decay: NonNegative = 0.1
    """Weight decay of AdamW."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the learning rate rises."""
    warmup_steps: PositiveInt | None = None
    """Steps in which the learning rate rises (default: by warm-up share; the paper: 100)."""
    seed: Seed = 0
    """Seed of the order of samples and of the adapters."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Arithmetic of the body; trained weights are float32. auto: bf16 if the device supports it."""
    activation_checkpointing: bool = False
    """Recompute activations to save memory; takes up to half more time."""
    checkpoints: PositiveInt = 8
    """Number of saved states from which an interrupted run can continue."""


class PretrainSettings(TrainingSettings):
    """Continued pre-training (section 3.4 of the paper)."""

    tokens: PositiveInt | None = None
    """Tokens to train on; a smaller corpus is repeated (default: see epochs)."""
    epochs: PositiveFloat | None = None
    """Passes over the corpus, instead of tokens (the paper: 1; default: see tokens)."""
    train: Literal["embeddings", "new_rows", "embeddings+lora"] = "embeddings"
    """What to train: both tables (the paper's way), only the rows of new tokens, or the tables and
    low-rank adapters of the body."""
    lora_rank: PositiveInt = 32
    """Rank of the adapters, with embeddings+lora."""
    lora_alpha: PositiveFloat = 32
    """Adapters are scaled by alpha / rank, with embeddings+lora."""
    sweep: bool = False
    """First train on a fifth of the tokens with 0.1, 0.25, 0.5 and 1 times the learning rate, then
    use the best rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Learning rate after warm-up: cosine decay, or constant with a final decay (wsd)."""
    decay_share: Share = 0.2
    """Share of the steps in the final decay, with wsd."""
    eval_text: Texts = Field({})
    """LANGUAGE=PATH: held-out text to evaluate at each checkpoint; the state that is best on the
    first language is kept (default: none, the last state is kept)."""
    eval_characters: PositiveInt = 50_000
    """Characters of held-out text to evaluate per language (by default fewer, where looks would
    take more than a tenth of the time)."""
    patience: PositiveInt | None = None
    """Stop after this many checkpoints without improvement (default: never)."""
    block_size: PositiveInt | None = None
    """Tokens in a sample (default: 1024, or the model's context if that is shorter)."""
    batch_tokens: PositiveInt | None = None
    """Tokens in a step (default: 1/500 of all tokens, at most 262,144)."""
    micro_batch_tokens: PositiveInt = 8192
    """Tokens in memory at once."""

    @model_validator(mode="after")
    def _budget(self) -> Self:
        if (self.tokens is None) == (self.epochs is None):
            given = "neither is" if self.tokens is None else "both are"
            raise ValueError(f"give tokens or epochs to say how long to train; {given} given")
        return self

    def budget(self, corpus_tokens: int) -> int:
        """Tokens to train on, including those that fill the last block of a step or corpus."""
        return self.tokens or max(1, round((self.epochs or 0) * corpus_tokens))


class LoraSettings(TrainingSettings):
    """Low-rank adapters trained on answers."""

    rank: PositiveInt = 32
    """Rank of the adapters."""
    alpha: PositiveFloat = 16
    """Adapters are scaled by alpha / rank."""
    batch_size: PositiveInt = 128
    """Samples in a step."""
    micro_batch_size: PositiveInt = 16
    """Samples in memory at once."""
    max_length: PositiveInt = 4096
    """Longest sample, in tokens; longer ones are left out and counted."""
    epochs: PositiveFloat = 1.0
    """Passes over the data."""


class TuneSettings(LoraSettings):
    """Instruction tuning (section 3.7 of the paper)."""

    learning_rate: PositiveFloat = 5e-5
    weight_decay: NonNegative = 0.05
    copy_tasks: Count = 2_000
    """Copy tasks per language to add to the data."""


class AnswerTuning(Settings):
    """Copy tasks and the adapter."""

    text: Texts = Field({})
    """LANGUAGE=PATH: text to make copy tasks from (default: none)."""
    eval_text: Texts = Field({})
    """LANGUAGE=PATH: text used for evaluation; no copy task shares any of it (default: none)."""
    merge: bool = True
    """Merge the adapter into the model, or write it to adapter/."""

    def keywords(self) -> dict[str, Any]:
        """What `lep.tune` and `lep.calibrate` call them."""
        return {"text": self.text, "heldout": self.eval_text, "merge": self.merge}


class AnswerSettings(Settings):
    """Answers of the original instruct model (section 3.6 of the paper)."""

    max_new_tokens: PositiveInt = 512
    """Longest answer, in tokens; longer ones are dropped."""
    generation_batch: PositiveInt = 32
    """Prompts answered at once."""
    samples: PositiveInt = 1
    """Answers to each prompt, one greedy and the others sampled; the best is kept."""
    temperature: PositiveFloat = 0.8
    """Temperature of sampled answers."""
    top_p: Share = 0.95
    """Probability mass that answers are sampled from."""
    sample_seed: Seed = 0
    """Seed of sampled answers."""
    judge: str | None = None
    """Model that grades answers from 1 to 5, or MODEL@URL for one behind a server (default: rules
    decide alone)."""
    least_grade: Annotated[int, Field(ge=1, le=5)] = 4
    """Lowest grade of answers to keep."""


class CalibrateSettings(AnswerSettings, LoraSettings):
    """Self-calibration (section 3.6 of the paper)."""

    train: Literal["outer_layers", "new_rows"] = "outer_layers"
    """What to train: first and last layer, embeddings and head (the paper's way), or only the rows
    of new tokens, which leaves known text unchanged."""
    learning_rate: PositiveFloat = 2.5e-5
    rank: PositiveInt = 8
    alpha: PositiveFloat = 1
    batch_size: PositiveInt = 64
    max_length: PositiveInt = 8096
    copy_tasks: Count = 10_000
    """Copy tasks per language to add to the answers."""


class ScoringSettings(Settings):
    """Scoring."""

    batch_size: PositiveInt = 32
    """Texts or prompts in a batch (benchmark tasks: 16 by default)."""
    seed: Seed = 0
    """Seed of tasks, resamples and chosen items."""


class BenchmarkSettings(ScoringSettings):
    """Benchmark tasks."""

    tasks: list[str] = Field([])
    """Benchmark tasks or groups of them; darumeru: the whole benchmark (default: none)."""
    data: str | None = None
    """Folder with the data sets (default: they are downloaded)."""
    shots: Count | None = None
    """Examples before each question (default: 5; chat models: 0)."""
    chat: bool | None = None
    """Ask through the chat template (default: if the model has one)."""
    limit: PositiveInt | None = None
    """Items of each task, chosen by a fixed hash (default: all)."""
    batch_size: PositiveInt = 16


class EvaluateSettings(ScoringSettings):
    """Measures on held-out text."""

    tasks: Annotated[list[TaskName], Names] = Field([*get_args(TaskName)])
    """Chat tasks made from the text."""
    items: PositiveInt = 100
    """Items of each chat task and language."""
    characters: PositiveInt = 200_000
    """Held-out characters per language for bits per byte."""
    window_characters: PositiveInt = 800
    """Characters scored at once, the same for all models."""
    bootstrap: PositiveInt = 1_000
    """Bootstrap resamples for each 95% interval."""
    benchmark: BenchmarkSettings = Field(default_factory=BenchmarkSettings)
    """Benchmark tasks to run as well."""
    prompts: str | None = None
    """Prompts (jsonl with messages) to answer and compare with the first model's answers; only for
    lep evaluate (default: none)."""
    answer_tokens: PositiveInt = 256
    """Longest answer to such a prompt, in tokens."""
    speed: Count = 0
    """Texts per language to measure speed on; only for lep evaluate."""

    def with_tasks(self, names: list[str]) -> Self:
        """With the chat tasks among the names, and the others as benchmark tasks."""
        chat = [name for name in names if name in get_args(TaskName)]
        others = [name for name in names if name not in chat]
        benchmark = self.benchmark.model_copy(update={"tasks": [*self.benchmark.tasks, *others]})
        return self.model_copy(update={"tasks": chat, "benchmark": benchmark})
