"""What else of a run must fit into its hours on a slow device: prompts, answers, evaluation."""

from lep.calibration.prompts import MOST_DRAFTS
from lep.pipeline.recipe import Recipe

# Shares of the hours; training has 60%, and some are left for reading, writing and practice tasks.
OWN_PROMPTS_SHARE, TASKS_SHARE, ITEMS_SHARE, CHARACTERS_SHARE = 0.1, 0.1, 0.08, 0.05
TASK_TOKENS, TOKEN_CHARACTERS = 200, 3  # of question and answer; of a token
MODELS = 3  # that are evaluated: the original, its mean initialisation, the adapted one
LEAST = {
    "adapt.own_prompts": 0,
    "adapt.prompt_tasks": 4,
    "evaluate.items": 10,
    "evaluate.characters": 10_000,
}


def affordable(recipe: Recipe, tokens: float) -> dict[str, int]:
    """Settings of the recipe that are smaller than usual, because the hours ask for it.

    `tokens` are what the model can read or write in all of the hours. Settings that the recipe
    names stay as they are.
    """
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
    counts = {}
    for name, (share, cost) in costs.items():
        section, _, key = name.partition(".")
        if section == "adapt" and adapt.prompts:
            continue
        settings = getattr(recipe, section)
        count = max(LEAST[name], int(share * tokens / cost))
        if count < getattr(settings, key) and key not in settings.model_fields_set:
            counts[name] = count
    return counts
