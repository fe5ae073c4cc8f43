"""Settings of evaluation."""

from typing import Annotated, Self, get_args

from pydantic import Field

from lep.fields import Settings
from lep.settings.kinds import Count, Names, PositiveInt, Resamples, Seed, TaskName


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
    bootstrap: Resamples = 1_000
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
