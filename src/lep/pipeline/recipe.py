"""The recipe: one typed YAML file that holds everything a run depends on. This is its schema."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat

from lep.pipeline.recipe_faults import Key
from lep.settings import (
    CalibrateSettings,
    CorpusSettings,
    EvaluateSettings,
    InitSettings,
    PretrainSettings,
    PropagationName,
    SelectSettings,
    Settings,
    TokenizerSettings,
    TuneSettings,
)

MethodName = Literal[PropagationName, "auto"]
Listed = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
Strings = Annotated[list[str], Listed]
Models = Annotated[list[Literal[MethodName, "direct"]], Listed]
SomeModels = Annotated[Models, Field(min_length=1)]

# Settings that name files or folders; `*` stands for every key of a section.
PATHS: tuple[tuple[str, ...], ...] = (
    ("base",),
    ("instruct",),
    ("text", "*"),
    ("heldout", "*"),
    ("pretrain", "eval_text", "*"),
    ("calibrate", "prompts"),
    ("calibrate", "judge"),
    ("tune", "data"),
    ("evaluate", "benchmark", "data"),
)


class PretrainStage(PretrainSettings):
    """Continued pre-training on the new language, with replayed text of the old ones."""

    replay: dict[str, PositiveFloat] = Field(
        {}, description="old text to mix in: characters of a language per character of the new one"
    )


class CalibrateStage(CalibrateSettings):
    """Self-calibration of some of the propagated models."""

    after: SomeModels = Field(
        ["conversion"], description="propagated models to calibrate, or direct"
    )
    new_rows: Models = Field(
        [], description="models to calibrate in their new rows alone, besides those of after"
    )
    prompts: str | None = Field(
        None, description="messages jsonl (default: tasks made from the training text)"
    )
    prompt_tasks: int = Field(100, gt=0, description="generated prompts per task and language")


class TuneStage(TuneSettings):
    """Instruction tuning of some of the propagated models."""

    after: SomeModels = Field(["conversion"], description="propagated models to tune, or direct")
    data: str | None = Field(
        None, description="messages jsonl (default: tasks made from the training text)"
    )
    data_tasks: int = Field(300, gt=0, description="generated samples per task and language")


class Recipe(Settings):
    """A whole run. Paths are relative to the recipe's folder; `${NAME:-default}` reads the environment."""

    name: str = Field(description="names the run folder, runs/NAME")
    title: str = Field("", description="heading of the report")
    note: str = Field("", description="a sentence at the top of the report")
    base: str = Field(description="base model: folder or hub id")
    instruct: str = Field(description="instruct model tuned from it")
    language: str = Field(description="the new language, one of those under text")
    text: dict[str, Strings] = Field(description="corpus paths by language code", min_length=1)
    heldout: dict[str, Strings] = Field({}, description="held-out text by language, if any")
    corpus: CorpusSettings = CorpusSettings()
    tokenizer: TokenizerSettings
    init: InitSettings = InitSettings()
    pretrain: PretrainStage
    propagate: list[MethodName] = Field(["swap", "overlap", "conversion"], min_length=1)
    direct: bool = Field(
        False, description="add a baseline: new rows of the instruct model trained on the same text"
    )
    select: SelectSettings = Field(
        SelectSettings(), description="how auto chooses, if propagate lists it"
    )
    calibrate: CalibrateStage | None = None
    tune: TuneStage | None = None
    evaluate: EvaluateSettings = EvaluateSettings()

    def faults(self) -> Iterator[tuple[Key, str]]:
        """Settings that contradict each other: the key, and what is wrong with it."""
        old = [code for code in self.text if code != self.language]
        if self.language not in self.text:
            yield (
                ("language",),
                f"language is '{self.language}', and text has only {', '.join(self.text)}",
            )
        for code in self.heldout:
            if code not in self.text:
                yield ("heldout", code), f"heldout has '{code}', and text has not"
        for code in self.pretrain.replay:
            if code not in old:
                known = ", ".join(old) or "none"
                yield (
                    ("pretrain", "replay", code),
                    f"replay has '{code}', and the old languages of text are {known}",
                )
        for name in ("speed", "prompts"):
            if getattr(self.evaluate, name):
                yield (
                    ("evaluate", name),
                    f"evaluate.{name} compares models: give --{name} to lep evaluate after the run",
                )
        yield from self._missing_models()

    def _missing_models(self) -> Iterator[tuple[Key, str]]:
        models = [*self.propagate, *(["direct"] if self.direct else [])]
        for stage, key in (("calibrate", "after"), ("calibrate", "new_rows"), ("tune", "after")):
            for name in getattr(getattr(self, stage), key, ()):
                if name not in models:
                    why = "propagate does not list"
                    if name == "direct":
                        why = "the recipe does not make: set direct: true"
                    yield (stage, key), f"{stage} comes after '{name}', which {why}"


class GridSettings(Settings):
    """Several runs in one recipe: each combination of the axes' values, for each seed. Common stages run once."""

    axes: dict[str, dict[str, dict[str, Any]]] = Field(
        {}, description="axis, value, and what it changes in the recipe"
    )
    cells: list[dict[str, Strings]] = Field(
        [], description="combinations to run: those that match one of these (default: all)"
    )
    seeds: list[int] = Field([0], min_length=1, description="of pretrain, calibrate and tune")

    def faults(self) -> Iterator[tuple[Key, str]]:
        """Names that make no folder, or that no axis has: the key, and what is wrong with it."""
        for axis, values in self.axes.items():
            for key in ((axis,), *((axis, value) for value in values)):
                if not re.fullmatch(r"[\w-]+", key[-1]):
                    yield (
                        ("axes", *key),
                        f"'{key[-1]}' becomes part of folder names: use letters, digits, - and _",
                    )
        for number, cell in enumerate(self.cells):
            for axis, values in cell.items():
                known = self.axes.get(axis, {})
                for value in (value for value in values if value not in known):
                    names = ", ".join(known or self.axes) or "none"
                    yield (
                        ("cells", number, axis),
                        f"no axis '{axis}' has a value '{value}' (known: {names})",
                    )
        if not self.combinations():
            yield (), "the grid has no combination: give each axis a value"

    def combinations(self) -> list[dict[str, str]]:
        """The value of each axis in each cell."""
        products = itertools.product(*self.axes.values())
        every = (dict(zip(self.axes, values, strict=True)) for values in products)
        return [
            labels
            for labels in every
            if not self.cells
            or any(
                all(labels.get(a) in values for a, values in cell.items()) for cell in self.cells
            )
        ]


@dataclass(frozen=True)
class Cell:
    """One combination of a grid: a value for each axis, the seed (None without a grid), and its recipe."""

    labels: dict[str, str]
    seed: int | None
    recipe: Recipe


@dataclass(frozen=True)
class Grid:
    """The content of a recipe file: one cell, or several if it has a grid."""

    cells: list[Cell]

    @property
    def name(self) -> str:
        return self.cells[0].recipe.name

    @property
    def is_single(self) -> bool:
        return self.cells[0].seed is None
