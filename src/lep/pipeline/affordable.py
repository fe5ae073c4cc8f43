"""What a run takes beside its training, and how much of it fits into few hours on a slow device."""

from collections.abc import Mapping
from typing import NamedTuple

from lep.calibration.prompts import MOST_DRAFTS
from lep.corpus.read import read_messages
from lep.pipeline.recipe import Recipe

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
    """Of a setting that may shrink."""

    part: str  # of the run that it belongs to
    share: float  # of the hours; training has 60%, and some are left for reading and writing
    tokens: float  # that the model reads for each unit, or could read in that time


def affordable(recipe: Recipe, trained: int, tokens: float) -> dict[str, int]:
    """Settings of the recipe that are smaller than usual, because the hours ask for it.

    The training takes `trained` tokens, and `tokens` are what the model can read in all of the
    hours. Settings that the recipe names stay as they are.
    """
    counts = {}
    for name, cost in _costs(recipe).items():
        count = max(_least(recipe, name), int(cost.share * tokens / cost.tokens))
        if count < _value(recipe, name, trained) and not _is_given(recipe, name):
            counts[name] = count
    return counts


def tokens_beside(recipe: Recipe, trained: int, counts: Mapping[str, int]) -> dict[str, float]:
    """What the model could read in the time of each part of a run beside its training.

    `counts` are settings that replace those of the recipe.
    """
    parts: dict[str, float] = {}
    for name, cost in _costs(recipe).items():
        value = counts.get(name, _value(recipe, name, trained))
        parts[cost.part] = parts.get(cost.part, 0) + cost.tokens * value
    adapt = recipe.adapt
    assert adapt is not None
    if adapt.prompts and adapt.needs_answers:
        prompts = sum(1 for _ in read_messages(adapt.prompts))
        parts = {ANSWERS: WRITING * adapt.max_new_tokens * prompts} | parts
    return parts


def least_tokens(recipe: Recipe) -> float:
    """What the model must be able to read at least, beside the training."""
    total = 0.0
    for name, cost in _costs(recipe).items():
        is_given = _is_given(recipe, name)
        total += cost.tokens * (_value(recipe, name, 0) if is_given else _least(recipe, name))
    return total


def _least(recipe: Recipe, name: str) -> int:
    """The smallest value that leaves something to answer."""
    adapt = recipe.adapt
    assert adapt is not None
    alone = name == "adapt.own_prompts" and not (adapt.prompt_tasks and recipe.evaluate.tasks)
    return LEAST_PROMPTS if alone else LEAST[name]


def _value(recipe: Recipe, name: str, trained: int) -> int:
    if name == "adapt.practice_tokens":
        assert recipe.adapt is not None
        return recipe.adapt.practice_for(trained)
    section, _, key = name.partition(".")
    return getattr(getattr(recipe, section), key)


def _costs(recipe: Recipe) -> dict[str, _Cost]:
    """Of the settings that may shrink, as far as the recipe needs them."""
    adapt, evaluate = recipe.adapt, recipe.evaluate
    assert adapt is not None
    languages, tasks = len(recipe.text), len(evaluate.tasks)
    sides = min(languages, 2)  # old languages share their prompts
    written = (MOST_DRAFTS + 1) * adapt.prompt_tokens + adapt.max_new_tokens
    answered = WRITING * TASK_TOKENS * tasks
    costs = {
        "adapt.own_prompts": _Cost(ANSWERS, 0.07, WRITING * sides * written),
        "adapt.prompt_tasks": _Cost(ANSWERS, 0.07, sides * answered),
        "adapt.practice_tokens": _Cost(PRACTICE, 0.12, 1 / KEPT),
        "evaluate.items": _Cost(EVALUATION, 0.07, MODELS * languages * answered),
        "evaluate.characters": _Cost(EVALUATION, 0.03, MODELS * languages / TOKEN_CHARACTERS),
    }
    if adapt.prompts or not adapt.needs_answers:
        del costs["adapt.own_prompts"], costs["adapt.prompt_tasks"]
    if not adapt.share("practice"):
        del costs["adapt.practice_tokens"]
    return {name: cost for name, cost in costs.items() if cost.tokens}


def _is_given(recipe: Recipe, name: str) -> bool:
    section, _, key = name.partition(".")
    return key in getattr(recipe, section).model_fields_set
