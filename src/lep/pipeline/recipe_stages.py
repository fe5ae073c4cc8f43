"""Which stages a recipe has, and how they depend on each other."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from lep.benchmark.harness import Benchmark
from lep.benchmark.tasks import resolve
from lep.checkpoint.adapter import check_merged
from lep.checkpoint.reader import Checkpoint
from lep.corpus.copies import copy_records, records_apart
from lep.corpus.read import read_messages
from lep.errors import CheckpointError
from lep.pipeline import stages as build
from lep.pipeline.recipe import PretrainStage, Recipe
from lep.pipeline.stage import Source, Stage
from lep.pipeline.stages import Sources, part
from lep.pipeline.stages_adapt import adapt_stage, pack_stage, streams_of
from lep.settings import AnswerSettings, CalibrateSettings, TuneSettings
from lep.training.reporters import check_reporters
from lep.transfer.language_pack import LanguagePack, check_kin


@dataclass(frozen=True)
class RecipeStages:
    """The stages that evaluate the models of a recipe, by the model's title in the table."""

    instruct_models: dict[str, Stage]
    base_models: dict[str, Stage]

    @property
    def all(self) -> list[Stage]:
        """These and all that they depend on, in an order in which they can run."""
        evaluations = [*self.instruct_models.values(), *self.base_models.values()]
        models = chain.from_iterable(stage.upstream for stage in evaluations)
        return with_upstream([*models, *evaluations])


def with_upstream(stages: Iterable[Stage]) -> list[Stage]:
    """The stages and all that they depend on, each once and after what it depends on."""
    ordered: dict[str, Stage] = {}
    for stage in stages:
        for each in [*with_upstream(stage.upstream), stage]:
            ordered.setdefault(each.fingerprint, each)
    return list(ordered.values())


def recipe_stages(recipe: Recipe) -> RecipeStages:
    """The stages of a recipe; checks models, text and prompts, and runs nothing."""
    base, instruct = checked_models(recipe)
    given = Sources(recipe, base, instruct, build.corpus_stage(recipe))
    tokenizer = build.tokenizer_stage(given)
    init = build.init_base_stage(given, tokenizer) if base else tokenizer
    adapt = recipe.adapt
    if adapt and adapt.from_pack:
        instructs = {"rows of the pack": pack_stage(given, Path(adapt.from_pack))}
    else:
        instructs = {"mean initialisation": build.init_instruct_stage(given, init)}
    (init_instruct,) = instructs.values()
    streams = streams_of(given, init_instruct) if adapt else None
    if streams:
        instructs["joint training"] = adapt_stage(given, "adapt", init_instruct, streams)
    if base is None or recipe.pretrain is None:
        return RecipeStages(evaluated(given, "instruct", instruct, instructs), {})
    adapted, more = base_stages(given, recipe.pretrain, init, init_instruct)
    if adapt and streams:
        more |= {
            f"{name} + joint training": adapt_stage(given, f"adapt-{name}", more[name], streams)
            for name in adapt.after
        }
    bases = {"mean initialisation": init, "after training": adapted}
    return RecipeStages(
        evaluated(given, "instruct", instruct, instructs | more),
        evaluated(given, "base", base, bases),
    )


def base_stages(
    given: Sources, pretrain: PretrainStage, init: Stage, init_instruct: Stage
) -> tuple[Stage, dict[str, Stage]]:
    """The training of the base model, and the instruct models that come from it, by title."""
    recipe = given.recipe
    replay = build.replay_stage(given) if pretrain.replay else None
    adapted = build.pretrain_stage("pretrain", given, init, replay, pretrain)
    prompts = prompts_of(given)
    models: dict[str, Stage] = {
        method: build.auto_stage(given, adapted, prompts)
        if method == "auto"
        else build.propagate_stage(method, given, adapted)
        for method in recipe.propagate
    }
    if recipe.direct:
        new_rows = pretrain.model_copy(update={"train": "new_rows"})
        models["direct"] = build.pretrain_stage("direct", given, init_instruct, replay, new_rows)
    return adapted, models | calibrated(given, prompts, models) | tuned(given, models)


def checked_models(recipe: Recipe) -> tuple[Path | None, Path]:
    """Base, if any, and instruct model. Faults of models and given data show before anything runs.

    Raises `CheckpointError` for a damaged model or pack, for a pack that does not fit the instruct
    model, and for an instruct model without a chat template,
    `CorpusError` for prompts in another format, `LepError` for unknown benchmark tasks and for
    `report_to` without its package.
    """
    base = Checkpoint(recipe.base).check().folder if recipe.base else None
    instruct = Checkpoint(recipe.instruct).check().folder
    adapt, calibrate, tune = recipe.adapt, recipe.calibrate, recipe.tune
    for training in filter(None, (recipe.pretrain, adapt, calibrate, tune)):
        check_reporters(training)
    files = (adapt and adapt.prompts, calibrate and calibrate.prompts, tune and tune.data)
    for path in files:
        if path:
            read_messages(path)
    if adapt and adapt.from_pack:
        pack, chat = LanguagePack.load(Path(adapt.from_pack)), Checkpoint(instruct)
        check_kin(pack, check_merged(chat), adapt.from_pack, force=False)
    if names := resolve(recipe.evaluate.benchmark.tasks):
        for model in filter(None, (base, instruct)):
            asks = recipe.evaluate.benchmark  # a base model is asked without a template
            asks = asks.model_copy(update={"chat": False}) if model == base else asks
            Benchmark(Checkpoint(model), names, asks)
    chats = adapt or calibrate or tune or "auto" in recipe.propagate
    if chats and not Checkpoint(instruct).tokenizer.chat_template:
        raise CheckpointError(
            f"{instruct} has no chat template, so it cannot be calibrated, tuned or asked: give an "
            "instruct model, or leave adapt, calibrate, tune and auto out of the recipe"
        )
    return base, instruct


def prompts_of(given: Sources) -> Source:
    """Prompts for the instruct model, as the recipe gives them or made from training text."""
    stage, seed = given.recipe.calibrate, given.recipe.evaluate.seed + 1
    if stage and stage.prompts:
        return Path(stage.prompts)
    count = stage.prompt_tasks if stage else given.recipe.select.prompts
    return chat_tasks("prompts", given, count, seed)


def chat_tasks(name: str, given: Sources, count: int, seed: int) -> Stage:
    tasks = list(given.recipe.evaluate.tasks)
    return build.records_stage(name, given, records_apart, tasks=tasks, count=count, seed=seed)


def copy_tasks(name: str, given: Sources, count: int) -> Stage:
    seed = given.recipe.evaluate.seed + 1
    return build.records_stage(name, given, copy_records, count=count, seed=seed)


def calibrated(given: Sources, prompts: Source, models: dict[str, Stage]) -> dict[str, Stage]:
    """The models that the recipe calibrates, on the same answers and copy tasks."""
    stage = given.recipe.calibrate
    if stage is None:
        return {}
    asking, settings = part(AnswerSettings, stage), part(CalibrateSettings, stage)
    unjudged = build.unjudged_stage(given.instruct, prompts, asking)
    answers = build.answers_stage(given.instruct, prompts, unjudged, asking)
    copies = copy_tasks("calibrate-copies", given, stage.copy_tasks)
    new_rows = settings.model_copy(update={"train": "new_rows"})
    variants = [(name, "", "", settings) for name in stage.after]
    variants += [(name, "-new-rows", " of new rows", new_rows) for name in stage.new_rows]
    stages = {}
    for name, suffix, title, values in variants:
        calibration = build.calibrate_stage(name + suffix, models[name], answers, copies, values)
        stages[f"{name} + self-calibration{title}"] = calibration
    return stages


def tuned(given: Sources, models: dict[str, Stage]) -> dict[str, Stage]:
    """The models that the recipe tunes, on the same conversations and copy tasks."""
    stage = given.recipe.tune
    if stage is None:
        return {}
    copies = copy_tasks("tune-copies", given, stage.copy_tasks)
    seed = given.recipe.evaluate.seed + 2  # not that of the prompts: other questions
    generated = chat_tasks("tuning-data", given, stage.data_tasks, seed)
    data, settings = Path(stage.data) if stage.data else generated, part(TuneSettings, stage)
    return {
        f"{name} + tuning": build.tune_stage(name, models[name], data, copies, settings)
        for name in stage.after
    }


def evaluated(
    given: Sources, side: str, original: Path, models: dict[str, Stage]
) -> dict[str, Stage]:
    """Evaluation stages of the original instruct or base model (`side`) and of those from it."""
    base = side == "base"
    stages = {f"original {side}": build.evaluate_stage(side, given, original, base=base)}
    for title, model in models.items():
        stages[title] = build.evaluate_stage(model.name, given, model, base=base)
    return stages
