"""The recipe: one typed YAML file that holds everything a run depends on. This is its schema."""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from lep.fields import ByName, FileName, nearest
from lep.limits import RECIPE_VALUES
from lep.settings import (
    LOGIT_STEP,
    RELATIVE_RATE,
    STREAMS,
    AnswerSettings,
    CalibrateSettings,
    CorpusSettings,
    Count,
    EvaluateSettings,
    InitSettings,
    NewRowsSettings,
    OwnPromptSettings,
    PositiveInt,
    PracticeSettings,
    PretrainSettings,
    PropagationName,
    ProperShare,
    Seed,
    SelectSettings,
    Settings,
    TokenizerSettings,
    TuneSettings,
    Weights,
)

MethodName = Literal[PropagationName, "auto"]
Listed = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
Strings = Annotated[list[str], Listed]
ByLanguage = Annotated[dict[str, Strings], ByName]
Models = Annotated[list[Literal[MethodName, "direct"]], Listed]
SomeModels = Annotated[Models, Field(min_length=1)]
Fault = tuple[str, str]  # a key, and what is wrong with it
# After a pack: rows that have learned already are spoilt at the rate of new ones, and the old
# language has more to mend than the new one (docs/log.md).
AFTER_PACK: dict[str, Any] = {
    "relative_rate": RELATIVE_RATE / 8,
    "logit_step": LOGIT_STEP / 8,
    "shares": {"text": 0.15, "answers": 0.1, "practice": 0.3, "old_text": 0.15, "old_answers": 0.3},
}

# Tokens of practice tasks that are made, for each that is trained on: most are read several times.
# With three times as many, which the original must read, answers are hardly better (docs/log.md).
PRACTICE_MADE = 0.4


class PretrainStage(PretrainSettings):
    """Continued pre-training on the new language, with replayed text of the old ones."""

    replay: Annotated[dict[str, PositiveFloat], ByName] = Field(
        {}, description="characters of an old language to mix in, per character of the new one"
    )


class CalibrateStage(CalibrateSettings):
    """Self-calibration of some of the propagated models."""

    after: SomeModels = Field(["conversion"], description="propagated models, or direct")
    new_rows: Models = Field([], description="models to calibrate in their new rows alone")
    prompts: str | None = Field(None, description="messages jsonl (default: from training text)")
    prompt_tasks: PositiveInt = Field(100, description="generated prompts per task and language")


class TuneStage(TuneSettings):
    """Instruction tuning of some of the propagated models."""

    after: SomeModels = Field(["conversion"], description="propagated models, or direct")
    data: str | None = Field(None, description="messages jsonl (default: from training text)")
    data_tasks: PositiveInt = Field(300, description="generated samples per task and language")


class AdaptStage(NewRowsSettings, AnswerSettings, OwnPromptSettings, PracticeSettings):
    """Joint training of the instruct model's new rows, and what the instruct model gives for it."""

    # Stages fill these in.
    old_text: ClassVar[list[str]] = []  # type: ignore[misc]
    answers: ClassVar[None] = None  # type: ignore[misc]
    practice_tasks: ClassVar[None] = None  # type: ignore[misc]
    eval_text: ClassVar[dict[str, list[str]]] = {}  # type: ignore[misc]

    prompts: str | None = Field(None, description="messages jsonl (default: made from the text)")
    prompt_tasks: Count = Field(
        100, description="generated prompts per task, as many in all old languages together"
    )
    looks_share: ProperShare = Field(0.02, description="of the training text, to choose a state on")
    after: Annotated[list[MethodName], Listed] = Field(
        [], description="propagated models whose new rows are trained in the same way"
    )
    from_pack: str | None = Field(
        None,
        description="pack of an instruct model to start from: an eighth of the usual rate, "
        "and more of the old language (shares 0.15, 0.1, 0.3, 0.15 and 0.3)",
    )

    @model_validator(mode="before")
    @classmethod
    def _after_pack(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("from_pack"):
            usual = dict(AFTER_PACK)
            if values.get("relative_rate") or values.get("learning_rate"):
                usual |= {"relative_rate": None, "logit_step": LOGIT_STEP}  # no eighth of these
            return usual | values | {"shares": _with_usual(values.get("shares"), usual["shares"])}
        return values

    def share(self, stream: str) -> float:
        """The tokens of a stream of the mixture, relative to the others."""
        return self.shares.get(stream, STREAMS[stream])

    @property
    def needs_answers(self) -> bool:
        """Whether the original's answers are in the mixture."""
        return bool(self.share("answers") or self.share("old_answers"))

    def practice_for(self, tokens: int) -> int:
        """Tokens of practice tasks to make for a training of so many tokens."""
        share = self.share("practice") / sum(map(self.share, STREAMS))
        return self.practice_tokens or max(1, round(PRACTICE_MADE * share * tokens))


def _with_usual(given: Any, usual: dict[str, float]) -> Any:
    """Shares with those that are not given; what is no share is left to the field to refuse."""
    try:
        return usual | TypeAdapter(Weights).validate_python(given or {})
    except ValidationError:
        return given


def _usual_methods(given: dict[str, Any]) -> list[MethodName]:
    return ["swap", "overlap", "conversion"] if given.get("base") else []


class Recipe(Settings):
    """A whole run. Paths start at the recipe's folder; `${NAME:-default}` reads the environment.

    With `base` and `pretrain` the base model learns, and its rows are carried into the instruct
    model (the paper's way); with `adapt` the instruct model learns itself.
    """

    name: FileName = Field(description="names the run folder, runs/NAME")
    title: str = Field("", description="heading of the report")
    note: str = Field("", description="a sentence at the top of the report")
    base: str | None = Field(None, description="base model: folder or hub id")
    instruct: str = Field(description="instruct model, tuned from the base if there is one")
    language: str = Field(description="the new language, one of those under text")
    text: ByLanguage = Field(description="corpus paths by language code", min_length=1)
    heldout: ByLanguage = Field({}, description="held-out text by language, if any")
    corpus: CorpusSettings = CorpusSettings()
    tokenizer: TokenizerSettings
    init: InitSettings = InitSettings()
    adapt: AdaptStage | None = Field(None, description="joint training of new rows")
    pretrain: PretrainStage | None = None
    propagate: list[MethodName] = Field(default_factory=_usual_methods)
    direct: bool = Field(False, description="baseline: train new rows of the instruct model")
    select: SelectSettings = Field(SelectSettings(), description="how auto chooses a method")
    calibrate: CalibrateStage | None = None
    tune: TuneStage | None = None
    evaluate: EvaluateSettings = EvaluateSettings()

    @property
    def old_languages(self) -> list[str]:
        """The languages of the text that the model knows."""
        return [code for code in self.text if code != self.language]

    @property
    def training(self) -> PretrainSettings:
        """The settings of the first training: of the base model, or else of the new rows."""
        training = self.pretrain or self.adapt
        assert training is not None
        return training

    def faults(self) -> Iterator[Fault]:
        """Settings that contradict each other."""
        languages = ", ".join(self.text)
        if self.language not in self.text:
            yield "language", f"language is '{self.language}', and text has only {languages}"
        for code in self.heldout:
            if code not in self.text:
                yield f"heldout.{code}", f"heldout has '{code}', and text has only {languages}"
        yield from self._training_faults()
        if self.pretrain:
            for code in self.pretrain.replay:
                if code not in self.old_languages:
                    message = f"replay has '{code}', and the old languages of text are "
                    names = ", ".join(self.old_languages) or "none"
                    yield f"pretrain.replay.{code}", message + names
        if self.adapt:
            yield from self._adapt_faults(self.adapt)
        for name in ("speed", "prompts"):
            if getattr(self.evaluate, name):
                message = f"compares models: give --{name} to lep evaluate after the run"
                yield f"evaluate.{name}", f"evaluate.{name} {message}"
        if not self.evaluate.tasks:
            yield from self._faults_without_tasks()
        models = [*self.propagate, *(["direct"] if self.direct else [])]
        trained = [(name, "after") for name in ("adapt", "calibrate", "tune")]
        for stage, key in (*trained, ("calibrate", "new_rows")):
            for name in getattr(getattr(self, stage), key, ()):
                if name not in models:
                    direct = "the recipe does not make: set direct: true"
                    missing = direct if name == "direct" else "propagate does not list"
                    yield f"{stage}.{key}", f"{stage} comes after '{name}', which {missing}"

    def _faults_without_tasks(self) -> Iterator[Fault]:
        """Stages whose prompts are made from the tasks that the evaluation names."""
        needed = {
            "calibrate.prompts": self.calibrate and not self.calibrate.prompts,
            "tune.data": self.tune and not self.tune.data,
            "propagate": "auto" in self.propagate and not self.calibrate,
        }
        for key, is_needed in needed.items():
            if is_needed:
                stage, advice = key.partition(".")[0], "give prompts of your own, or name tasks"
                reason = f"{stage} takes tasks made from the text, and evaluate.tasks is empty"
                yield key, f"{reason}: {advice}"

    def _training_faults(self) -> Iterator[Fault]:
        """What is missing to train a base model, or an instruct model."""
        if not (self.base or self.pretrain or self.adapt):
            ways = "adapt (the instruct model learns) or base and pretrain (its base learns)"
            yield "", f"the recipe trains nothing: give {ways}"
        if self.base and not self.pretrain:
            yield "base", "base has no pretrain: say there how the base model is trained"
        if self.base and not self.propagate:
            yield "propagate", "propagate is empty: name how the base's rows are carried over"
        if self.base:
            return
        for name in ("pretrain", "propagate", "direct", "calibrate", "tune"):
            if getattr(self, name):
                advice = "base is not set: give the base of the instruct model, or adapt instead"
                yield name, f"{name} is part of training a base model, and {advice}"

    def _adapt_faults(self, adapt: AdaptStage) -> Iterator[Fault]:
        for name in adapt.shares:
            if name not in STREAMS:
                yield f"adapt.shares.{name}", f"no stream is '{name}'; {nearest(name, STREAMS)}"
        if not adapt.share("text"):
            yield "adapt.shares.text", "the share of text is 0: the training needs new text"
        old = [stream for stream in ("old_text", "old_answers") if adapt.share(stream)]
        if old and not self.old_languages:
            zero = ",".join(f"{stream}=0" for stream in old)
            reason = "the mixture has text and answers of a language that the model knows"
            advice = f"give its text, or set adapt.shares={zero}"
            yield "adapt", f"text has only {self.language}, and {reason}: {advice}"
        if adapt.needs_answers and not (adapt.prompts or adapt.prompt_tasks or adapt.own_prompts):
            advice = "give prompts, prompt_tasks or own_prompts, or set their share to 0"
            yield "adapt", f"the mixture has answers, and there is nothing to answer: {advice}"
        if adapt.from_pack and self.base:
            advice = "leave base and pretrain out"
            yield "adapt.from_pack", f"a pack brings its own tokens, not those of a base: {advice}"


class GridSettings(Settings):
    """Many runs in one recipe: combinations of values, for each seed. Common stages run once."""

    axes: dict[str, dict[str, dict[str, Any]]] = Field(
        {}, description="axis, value, and what it changes in the recipe"
    )
    cells: list[dict[str, Strings]] = Field(
        [], description="combinations to run: those that match one of these (default: all)"
    )
    seeds: list[Seed] = Field([0], min_length=1, description="of each training")

    def faults(self) -> Iterator[Fault]:
        """Names that make no folder, or that no axis has."""
        count = math.prod(map(len, self.axes.values())) * len(self.seeds)
        if count > RECIPE_VALUES.value:
            most = f"the limit is {RECIPE_VALUES.value:,}"
            yield (
                "axes",
                f"the grid has {count:,} combinations and seeds, {most}: give fewer values",
            )
            return
        keys = {axis: axis for axis in self.axes}
        keys |= {f"{axis}.{value}": value for axis in self.axes for value in self.axes[axis]}
        for key, name in keys.items():
            if not re.fullmatch(r"[\w-]{1,64}", name):
                message = "becomes part of folder names: use up to 64 letters, digits, - and _"
                yield f"axes.{key}", f"'{name}' {message}"
        for number, cell in enumerate(self.cells):
            for axis, values in cell.items():
                for value in sorted(set(values) - set(self.axes.get(axis, {}))):
                    known = ", ".join(self.axes.get(axis, self.axes)) or "none"
                    message = f"no axis '{axis}' has a value '{value}' (known: {known})"
                    yield f"cells.{number}.{axis}", message
        if not self.combinations():
            yield "", "the grid has no combination: give each axis a value"

    def combinations(self) -> list[dict[str, str]]:
        """The value of each axis in each cell."""
        products = itertools.product(*self.axes.values())
        every = (dict(zip(self.axes, values, strict=True)) for values in products)
        wanted = self.cells or [{}]  # what names no axis matches every combination
        return [
            labels
            for labels in every
            if any(all(labels.get(axis) in cell[axis] for axis in cell) for cell in wanted)
        ]


@dataclass(frozen=True)
class Cell:
    """One combination of a grid: a value for each axis, a seed (None without a grid), a recipe."""

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
