"""Which stages a recipe has, and how they depend on each other."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from lep.benchmark.harness import Benchmark
from lep.benchmark.tasks import resolve
from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import corpus_files, read_messages
from lep.errors import CheckpointError
from lep.pipeline.recipe import Recipe
from lep.pipeline.stage import Source, Stage, with_upstream
from lep.pipeline.stages import (
    Corpus,
    Models,
    answers_stage,
    auto_stage,
    calibrate_stage,
    copies_stage,
    corpus_stage,
    evaluate_stage,
    init_base_stage,
    init_instruct_stage,
    part,
    pretrain_stage,
    propagate_stage,
    replay_stage,
    tasks_stage,
    tokenizer_stage,
    tune_stage,
    unjudged_stage,
)
from lep.settings import CalibrateSettings


@dataclass(frozen=True)
class RecipeStages:
    """The stages that evaluate the models of a recipe, by the model's name in the table."""

    instruct_models: dict[str, Stage]
    base_models: dict[str, Stage]

    @property
    def all(self) -> list[Stage]:
        """These and all that they depend on, in an order in which they can run: evaluation is last."""
        evaluations = [*self.instruct_models.values(), *self.base_models.values()]
        models = chain.from_iterable(stage.upstream for stage in evaluations)
        return with_upstream([*models, *evaluations])


def recipe_stages(recipe: Recipe) -> RecipeStages:
    """The stages of a recipe; checks models, text and prompts, and runs nothing."""
    models = checked_models(recipe)
    text, heldout = (
        {code: corpus_files(paths) for code, paths in texts.items()}
        for texts in (recipe.text, recipe.heldout)
    )
    split = corpus_stage(text, heldout, recipe.corpus)
    corpus = Corpus(split, list(text), recipe.language)
    tokenizer = tokenizer_stage(models.base, corpus, recipe.tokenizer)
    init = init_base_stage(models.base, tokenizer, recipe.init)
    init_instruct = init_instruct_stage(models, init)
    replay = replay_stage(corpus, recipe.pretrain.replay) if recipe.pretrain.replay else None
    adapted = pretrain_stage("pretrain", init, corpus, replay, recipe.pretrain)
    prompts = _prompts(recipe, corpus)
    propagated = {
        method: auto_stage(models, adapted, corpus, prompts, recipe.select)
        if method == "auto"
        else propagate_stage(method, models, adapted)
        for method in recipe.propagate
    }
    if recipe.direct:
        new_rows = recipe.pretrain.model_copy(update={"train": "new_rows"})
        propagated["direct"] = pretrain_stage("direct", init_instruct, corpus, replay, new_rows)
    instruct_models: dict[str, Source] = {
        "original instruct": models.instruct,
        "mean initialisation": init_instruct,
        **propagated,
        **_calibrated(recipe, models.instruct, corpus, prompts, propagated),
        **_tuned(recipe, corpus, propagated),
    }
    base_models: dict[str, Source] = {
        "original base": models.base,
        "mean initialisation": init,
        "after training": adapted,
    }
    return RecipeStages(
        _evaluated(recipe, instruct_models, corpus, "instruct"),
        _evaluated(recipe, base_models, corpus, "base"),
    )


def checked_models(recipe: Recipe) -> Models:
    """The models of a recipe. Whatever is wrong with them or with given data shows before anything runs.

    Raises `CheckpointError` for a damaged model and for an instruct model without a chat template,
    `CorpusError` for prompts in another format, `LepError` for unknown benchmark tasks.
    """
    base, instruct = (Checkpoint(m).check().folder for m in (recipe.base, recipe.instruct))
    for path in (recipe.calibrate and recipe.calibrate.prompts, recipe.tune and recipe.tune.data):
        if path:
            read_messages(path)
    if names := resolve(recipe.evaluate.benchmark.tasks):
        for model in (base, instruct):
            Benchmark(Checkpoint(model), names, recipe.evaluate.benchmark)
    chats = recipe.calibrate or recipe.tune or "auto" in recipe.propagate
    if chats and not Checkpoint(instruct).tokenizer.chat_template:
        raise CheckpointError(
            f"{instruct} has no chat template, so it cannot be calibrated, tuned or asked: give an "
            "instruct model, or leave calibrate, tune and auto out of the recipe"
        )
    return Models(base, instruct)


def _prompts(recipe: Recipe, corpus: Corpus) -> Source:
    if recipe.calibrate and recipe.calibrate.prompts:
        return Path(recipe.calibrate.prompts)
    count = recipe.calibrate.prompt_tasks if recipe.calibrate else recipe.select.prompts
    return tasks_stage("prompts", corpus, recipe.evaluate.tasks, count, recipe.evaluate.seed + 1)


def _calibrated(
    recipe: Recipe, instruct: Path, corpus: Corpus, prompts: Source, models: dict[str, Stage]
) -> dict[str, Stage]:
    if recipe.calibrate is None:
        return {}
    stage = recipe.calibrate
    unjudged = unjudged_stage(instruct, prompts, stage)
    answers = answers_stage(instruct, prompts, unjudged, stage)
    copies = copies_stage("calibrate-copies", corpus, stage.copy_tasks, recipe.evaluate.seed + 1)
    settings = part(CalibrateSettings, stage)
    new_rows = settings.model_copy(update={"train": "new_rows"})
    calibrated = {
        f"{name} + self-calibration": calibrate_stage(name, models[name], answers, copies, settings)
        for name in stage.after
    }
    return calibrated | {
        f"{name} + self-calibration of new rows": calibrate_stage(
            f"{name}-new-rows", models[name], answers, copies, new_rows
        )
        for name in stage.new_rows
    }


def _tuned(recipe: Recipe, corpus: Corpus, models: dict[str, Stage]) -> dict[str, Stage]:
    if recipe.tune is None:
        return {}
    stage, evaluation = recipe.tune, recipe.evaluate
    copies = copies_stage("tune-copies", corpus, stage.copy_tasks, evaluation.seed + 1)
    data: Source = Path(stage.data or "")
    if not stage.data:  # the seed differs from that of the prompts: other questions
        data = tasks_stage(
            "tuning-data", corpus, evaluation.tasks, stage.data_tasks, evaluation.seed + 2
        )
    return {
        f"{name} + tuning": tune_stage(name, models[name], data, copies, stage)
        for name in stage.after
    }


def _evaluated(
    recipe: Recipe, models: dict[str, Source], corpus: Corpus, original: str
) -> dict[str, Stage]:
    """A stage for each model; `original` (instruct or base) names that of a model as it was given."""
    return {
        title: evaluate_stage(
            model.name if isinstance(model, Stage) else original,
            model,
            corpus,
            recipe.evaluate,
            base=original == "base",
        )
        for title, model in models.items()
    }
