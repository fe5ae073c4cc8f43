"""What else of a run must fit into its hours on a slow device: prompts, answers, evaluation."""

from lep.calibration.prompts import MOST_DRAFTS
from lep.pipeline.recipe import Recipe

# Shares of the hours; training has 60%, and some are left for reading, writing and practice tasks.
OWN_PROMPTS_SHARE, TASKS_SHARE, ITEMS_SHARE, CHARACTERS_SHARE = 0.1, 0.1, 0.08, 0.05
TASK_TOKENS, TOKEN_CHARACTERS = 200, 3  # of question and answer; of a token
MODELS = 3  # that are evaluated: the original, its mean initialisation, the adapted one
LEAST_PROMPTS = 20  # of which some are dropped
LEAST = {
    "adapt.own_prompts": 0,  # more where there are no tasks to answer
    "adapt.prompt_tasks": 8,  # of which most may be dropped, and LEAST_ANSWERS are needed
    "evaluate.items": 10,
    "evaluate.characters": 10_000,
}


def affordable(recipe: Recipe, tokens: float) -> dict[str, int]:
    """Settings of the recipe that are smaller than usual, because the hours ask for it.

    `tokens` are what the model can read or write in all of the hours. Settings that the recipe
    names stay as they are.
    """
    counts = {}
    for name, (share, cost) in _costs(recipe).items():
        count = max(_least(recipe, name), int(share * tokens / cost))
        if count < _value(recipe, name) and not _is_given(recipe, name):
            counts[name] = count
    return counts


def least_tokens(recipe: Recipe) -> float:
    """What the model must read or write at least, beside the training."""
    total = 0.0
    for name, (_, cost) in _costs(recipe).items():
        value = _value(recipe, name)
        total += cost * (value if _is_given(recipe, name) else min(_least(recipe, name), value))
    return total


def _least(recipe: Recipe, name: str) -> int:
    """The smallest value that leaves something to answer."""
    adapt = recipe.adapt
    assert adapt is not None
    alone = name == "adapt.own_prompts" and not (adapt.prompt_tasks and recipe.evaluate.tasks)
    return LEAST_PROMPTS if alone else LEAST[name]


def _value(recipe: Recipe, name: str) -> int:
    section, _, key = name.partition(".")
    return getattr(getattr(recipe, section), key)


def _costs(recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Of the settings that may shrink: their share of the hours, and tokens for each unit."""
    adapt, evaluate = recipe.adapt, recipe.evaluate
    assert adapt is not None
    languages, tasks = len(recipe.text), len(evaluate.tasks)
    sides = min(languages, 2)  # old languages share their prompts
    written = (MOST_DRAFTS + 1) * adapt.prompt_tokens + adapt.max_new_tokens
    costs = {
        "adapt.own_prompts": (OWN_PROMPTS_SHARE, sides * written),
        "adapt.prompt_tasks": (TASKS_SHARE, sides * tasks * TASK_TOKENS),
        "evaluate.items": (ITEMS_SHARE, MODELS * languages * tasks * TASK_TOKENS),
        "evaluate.characters": (CHARACTERS_SHARE, MODELS * languages / TOKEN_CHARACTERS),
    }
    has_prompts_to_make = not adapt.prompts and bool(
        adapt.share("answers") or adapt.share("old_answers")
    )
    return {
        name: (share, cost)
        for name, (share, cost) in costs.items()
        if cost and (has_prompts_to_make or not name.startswith("adapt."))
    }


def _is_given(recipe: Recipe, name: str) -> bool:
    section, _, key = name.partition(".")
    return key in getattr(recipe, section).model_fields_set
