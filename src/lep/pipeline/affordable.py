"""What else of a run must fit into its hours on a slow device: prompts, answers, evaluation."""

from lep.calibration.prompts import MOST_DRAFTS
from lep.pipeline.recipe import Recipe

# Shares of the hours; training has 60%, and some are left for reading, writing and practice tasks.
OWN_PROMPTS_SHARE, TASKS_SHARE, ITEMS_SHARE, CHARACTERS_SHARE = 0.1, 0.1, 0.08, 0.05
TASK_TOKENS, TOKEN_CHARACTERS = 200, 3  # of question and answer; of a token
MODELS = 3  # that are evaluated: the original, its mean initialisation, the adapted one
LEAST = {
    "adapt.own_prompts": 0,
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
        count = max(LEAST[name], int(share * tokens / cost))
        if count < _value(recipe, name) and not _is_given(recipe, name):
            counts[name] = count
    return counts


def least_tokens(recipe: Recipe) -> float:
    """What the model must read or write at least, beside the training."""
    total = 0.0
    for name, (_, cost) in _costs(recipe).items():
        value = _value(recipe, name)
        total += cost * (value if _is_given(recipe, name) else min(LEAST[name], value))
    return total


def _value(recipe: Recipe, name: str) -> int:
    section, _, key = name.partition(".")
    return getattr(getattr(recipe, section), key)


def _costs(recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Of the settings that may shrink: their share of the hours, and tokens for each unit."""
    adapt, evaluate = recipe.adapt, recipe.evaluate
    assert adapt is not None
    languages, tasks = len(recipe.text), len(evaluate.tasks)
    written = (MOST_DRAFTS + 1) * adapt.prompt_tokens + adapt.max_new_tokens
    costs = {
        "adapt.own_prompts": (OWN_PROMPTS_SHARE, languages * written),
        "adapt.prompt_tasks": (TASKS_SHARE, languages * tasks * TASK_TOKENS),
        "evaluate.items": (ITEMS_SHARE, MODELS * languages * tasks * TASK_TOKENS),
        "evaluate.characters": (CHARACTERS_SHARE, MODELS * languages / TOKEN_CHARACTERS),
    }
    if adapt.prompts:
        return {name: cost for name, cost in costs.items() if not name.startswith("adapt.")}
    return costs


def _is_given(recipe: Recipe, name: str) -> bool:
    section, _, key = name.partition(".")
    return key in getattr(recipe, section).model_fields_set
