"""What a run takes beside its training, and how much of it fits into few hours on a slow device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lep.calibration.prompts import MOST_DRAFTS
from lep.corpus.read import read_messages
from lep.pipeline.recipe import AdaptStage, Recipe

TASK_TOKENS, TOKEN_CHARACTERS = 200, 3  # of question and answer; of a token
WRITING = 1.5  # tokens that are read in the time in which one is written, or a task is answered
KEPT = 0.5  # of the practice tasks that the original reads
MODELS = 3  # that are evaluated: the original, its mean initialisation, the adapted one
LEAST_PROMPTS = 20  # of which some are dropped
LEAST = {
    "adapt.own_prompts": 0,  # more where there are no tasks to answer
    "adapt.prompt_tasks": 8,  # of which most may be dropped, and LEAST_ANSWERS are needed
    "adapt.practice_tokens": 2_000,
    "evaluate.items": 10,
    "evaluate.characters": 10_000,
}
ANSWERS, PRACTICE, EVALUATION = "prompts and answers", "practice tasks", "evaluation"


class _Cost(NamedTuple):
    """Of a setting that may be smaller than usual."""

    part: str  # of the run that it belongs to
    share: float  # of the hours; training has 60%, and some are left for reading and writing
    tokens: float  # that the model could read in the time that each unit takes


@dataclass(frozen=True)
class Beside:
    """The parts of a run beside its training, in tokens that the model could read in their time."""

    recipe: Recipe
    adapt: AdaptStage
    prompts: int  # that are given, and all answered

    @classmethod
    def of(cls, recipe: Recipe) -> "Beside":
        """Raises `CorpusError` for prompts that cannot be read."""
        adapt = recipe.adapt
        assert adapt is not None
        prompts = len(read_messages(adapt.prompts)) if adapt.prompts and adapt.needs_answers else 0
        return cls(recipe, adapt, prompts)

    def affordable(self, trained: int, tokens: float) -> dict[str, int]:
        """Settings of the recipe that are smaller than usual, because the hours ask for it.

        The training takes `trained` tokens, and `tokens` are what the model can read in all of the
        hours. Settings that the recipe names stay as they are.
        """
        counts = {}
        for name, cost in self._costs().items():
            count = max(self._least(name), int(cost.share * tokens / cost.tokens))
            if count < self._value(name, trained) and not self._is_given(name):
                counts[name] = count
        return counts

    def parts(self, trained: int, counts: Mapping[str, int]) -> dict[str, float]:
        """The tokens of each part. `counts` are settings that replace those of the recipe."""
        parts = {ANSWERS: self._given_answers()} if self.prompts else {}
        for name, cost in self._costs().items():
            value = counts.get(name, self._value(name, trained))
            parts[cost.part] = parts.get(cost.part, 0) + cost.tokens * value
        return parts

    def least(self) -> float:
        """The tokens of all parts at least."""
        total = self._given_answers()
        for name, cost in self._costs().items():
            value = self._value(name, 0) if self._is_given(name) else self._least(name)
            total += cost.tokens * value
        return total

    def _given_answers(self) -> float:
        return WRITING * self.prompts * self.adapt.samples * self.adapt.max_new_tokens

    def _least(self, name: str) -> int:
        """The smallest value that leaves something to answer."""
        has_tasks = self.adapt.prompt_tasks and self.recipe.evaluate.tasks
        is_alone = name == "adapt.own_prompts" and not has_tasks
        return LEAST_PROMPTS if is_alone else LEAST[name]

    def _value(self, name: str, trained: int) -> int:
        if name == "adapt.practice_tokens":
            return self.adapt.practice_for(trained)
        section, _, key = name.partition(".")
        return getattr(getattr(self.recipe, section), key)

    def _is_given(self, name: str) -> bool:
        section, _, key = name.partition(".")
        return key in getattr(self.recipe, section).model_fields_set

    def _costs(self) -> dict[str, _Cost]:
        """Of the settings that may be smaller, as far as the recipe needs them."""
        adapt, evaluate = self.adapt, self.recipe.evaluate
        languages, tasks = len(self.recipe.text), len(evaluate.tasks)
        has_old = adapt.share("old_answers") and self.recipe.old_languages
        sides = bool(adapt.share("answers")) + bool(has_old)  # old languages share their prompts
        written = (MOST_DRAFTS + 1) * adapt.prompt_tokens + adapt.samples * adapt.max_new_tokens
        answered = WRITING * TASK_TOKENS * tasks
        costs = {
            "adapt.own_prompts": _Cost(ANSWERS, 0.07, WRITING * sides * written),
            "adapt.prompt_tasks": _Cost(ANSWERS, 0.07, sides * adapt.samples * answered),
            "adapt.practice_tokens": _Cost(PRACTICE, 0.12, 1 / KEPT),
            "evaluate.items": _Cost(EVALUATION, 0.07, MODELS * languages * answered),
            "evaluate.characters": _Cost(EVALUATION, 0.03, MODELS * languages / TOKEN_CHARACTERS),
        }
        if adapt.prompts:
            del costs["adapt.own_prompts"], costs["adapt.prompt_tasks"]
        if not adapt.share("practice"):
            del costs["adapt.practice_tokens"]
        return {name: cost for name, cost in costs.items() if cost.tokens}
