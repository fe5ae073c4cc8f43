"""Settings of training on text and on answers."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from lep.fields import Settings
from lep.settings.kinds import (
    Count,
    Epochs,
    LearningRate,
    Names,
    PositiveInt,
    Seed,
    Share,
    Texts,
    WeightDecay,
)


class TrainingSettings(Settings):
    """Training."""

    learning_rate: LearningRate = 2e-4
    """Peak learning rate."""
    weight_decay: WeightDecay = 0.1
    """Weight decay of AdamW."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the learning rate rises."""
    warmup_steps: PositiveInt | None = None
    """Steps in which the learning rate rises (default: by warm-up share; the paper: 100)."""
    seed: Seed = 0
    """Seed of the order of samples and of the adapters."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Arithmetic of the body; trained weights are float32. auto: bf16 where it is faster."""
    activation_checkpointing: bool = False
    """Recompute activations to save memory; takes up to half more time."""
    checkpoints: PositiveInt = 8
    """Number of saved states from which an interrupted run can continue."""
    report_to: Annotated[list[Literal["tensorboard", "wandb", "mlflow"]], Names] = Field(
        [], exclude=True
    )
    """Programs to report losses to, separated by commas (default: none)."""


TrainedParts = Literal["embeddings", "new_rows", "embeddings+lora", "new_rows+lora"]


class PretrainSettings(TrainingSettings):
    """Continued pre-training (section 3.4 of the paper)."""

    tokens: PositiveInt | None = None
    """Tokens to train on; a smaller corpus is repeated (default: see epochs)."""
    epochs: Epochs | None = None
    """Passes over the corpus, instead of tokens (the paper: 1; default: see tokens)."""
    train: TrainedParts = "embeddings"
    """What to train: both tables (the paper's way), only the rows of new tokens, or either of them
    with low-rank adapters of the body."""
    lora_rank: PositiveInt = 32
    """Rank of the adapters."""
    lora_alpha: PositiveFloat = 32
    """Adapters are scaled by alpha / rank."""
    sweep: bool = False
    """First train on a fifth of the tokens with 0.1, 0.25, 0.5 and 1 times the learning rate, then
    use the best rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Learning rate after warm-up: cosine decay, or constant with a final decay (wsd)."""
    decay_share: Share = 0.2
    """Share of the steps in the final decay, with wsd."""
    eval_text: Texts = Field({})
    """LANGUAGE=PATH: held-out text to evaluate at the start and at each checkpoint; the state that
    is best on the first language, in a mixture on all, is kept (default: none, the last state
    is kept)."""
    eval_characters: PositiveInt = 50_000
    """Characters of held-out text to evaluate per language (by default fewer, where looks would
    take more than a tenth of the time)."""
    patience: PositiveInt | None = None
    """Stop after this many checkpoints without improvement (default: never)."""
    block_size: PositiveInt | None = None
    """Tokens in a sample (default: 1024, or the model's context if that is shorter)."""
    batch_tokens: PositiveInt | None = None
    """Tokens in a step (default: 1/500 of all tokens, at most 262,144; with several streams
    1/1,500, and at least 1,024)."""
    micro_batch_tokens: PositiveInt = 8192
    """Tokens in memory at once."""

    @model_validator(mode="after")
    def _budget(self) -> Self:
        if (self.tokens is None) == (self.epochs is None):
            given = "neither is" if self.tokens is None else "both are"
            raise ValueError(f"give tokens or epochs to say how long to train; {given} given")
        return self

    @property
    def trains_new_rows(self) -> bool:
        """Whether known rows stay as they are."""
        return self.train.startswith("new_rows")

    @property
    def has_adapters(self) -> bool:
        """Whether the body trains, by adapters."""
        return "lora" in self.train

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
    epochs: Epochs = 1.0
    """Passes over the data."""


class TuneSettings(LoraSettings):
    """Instruction tuning (section 3.7 of the paper)."""

    learning_rate: LearningRate = 5e-5
    weight_decay: WeightDecay = 0.05
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
    """Longest answer, in tokens; longer ones are cut off there."""
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
    learning_rate: LearningRate = 2.5e-5
    rank: PositiveInt = 8
    alpha: PositiveFloat = 1
    batch_size: PositiveInt = 64
    max_length: PositiveInt = 8096
    copy_tasks: Count = 10_000
    """Copy tasks per language to add to the answers."""
