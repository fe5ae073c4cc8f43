"""Settings of initialisation, propagation, and the choice of a method."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from lep.fields import Settings
from lep.settings.kinds import (
    Count,
    InitName,
    Names,
    NonNegative,
    PositiveInt,
    PropagationName,
    Resamples,
    Seed,
)


class InitSettings(Settings):
    """How rows of new tokens are initialised."""

    method: InitName = "mean"
    """How known rows are combined into a new one."""
    output_method: InitName | None = None
    """The same for the output table (default: the method of the input table)."""
    calibrate_norms: bool = False
    """Scale each new row to the median norm of the rows of its script. Compare on held-out text:
    where rows share a large vector, it ruins the model."""
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
    bootstrap: Resamples = 1_000
    """Bootstrap resamples for each 95% interval."""
    seed: Seed = 0
    """Seed of the resamples."""


class CardSettings(Settings):
    """What the records of a model do not say."""

    licence: str | None = None
    """Licence: an identifier of the hub, such as apache-2.0, or another name (default: that of the
    original)."""
    base_model: str | None = None
    """Hub id of the model that it was made from (default: what the folder says)."""
    languages: Annotated[list[str], Names] = Field([])
    """Codes of the new languages, separated by commas (default: that of the run)."""
    name: str | None = None
    """Name of the model (default: the original's with the languages)."""
    evaluated: str | None = None
    """Name that the model has in the evaluation (default: that of its folder)."""


class ExportSettings(Settings):
    """What is written for other programs."""

    to: Literal["gguf", "ctranslate2", "mlx", "sentencepiece"] = "gguf"
    """Format: gguf (a file, for llama.cpp and Ollama), ctranslate2 or mlx (folders), or
    sentencepiece (a tokenizer.model, for other converters)."""
    type: Literal["bf16", "f16", "q8_0", "f32"] = "bf16"
    """Dtype of the matrices."""


class ImportSettings(Settings):
    """What is written of other formats."""

    type: Literal["bf16", "f16", "f32"] | None = None
    """Dtype of the weights (default: bf16 from a GGUF file, otherwise as they are)."""
