"""The stages of a run, one function each: from its inputs to what it builds."""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lep.calibration.answers import JUDGING, answer, write_unjudged
from lep.calibration.calibrate import calibrate
from lep.checkpoint.reader import Checkpoint
from lep.corpus.files import Text, all_paths, corpus_files, several
from lep.corpus.prepare import Split, bounded, drawn, prepare
from lep.corpus.read import Document, read_documents, read_records, write_records
from lep.evaluation.score import Material, score_model
from lep.files import write_json
from lep.pipeline.recipe import PretrainStage, Recipe
from lep.pipeline.stage import FolderOf, Source, Stage
from lep.publish import fingerprint, publishing
from lep.selection.auto import propagate_auto
from lep.settings import (
    AnswerSettings,
    CalibrateSettings,
    CorpusSettings,
    EvaluateSettings,
    PretrainSettings,
    PropagateSettings,
    PropagationName,
    Settings,
    TuneSettings,
)
from lep.tokenizer.write import make_tokenizer
from lep.training.pretrain import pretrain
from lep.training.tune import tune
from lep.transfer.initialise import initialise
from lep.transfer.propagate import initialise_instruct, propagate

RECORDS = "records.jsonl"
Files = dict[str, list[Path]]  # by language


@dataclass(frozen=True)
class Sources:
    """What every stage may read: the recipe, its models, and the stage that splits its text."""

    recipe: Recipe
    base: Path | None
    instruct: Path
    corpus: Stage

    @property
    def first(self) -> Path:
        """The model whose tokenizer is extended: the base, or the instruct model without one."""
        return self.base or self.instruct

    @property
    def pair(self) -> tuple[Path, Path]:
        """Base and instruct model."""
        assert self.base is not None
        return self.base, self.instruct

    def text(self, side: str, at: FolderOf) -> Text:
        """Files of a side of the corpus (`train` or `heldout`) by language."""
        return {code: [at(self.corpus) / f"{code}.{side}.jsonl"] for code in self.recipe.text}

    def new_text(self, at: FolderOf) -> list[str | Path]:
        """Training text of the new language."""
        return several(self.text("train", at)[self.recipe.language])

    def old_text(self, at: FolderOf) -> list[str | Path]:
        """Training text of the others."""
        text = self.text("train", at)
        return [file for code in self.recipe.old_languages for file in several(text[code])]


def corpus_stage(recipe: Recipe) -> Stage:
    """Split the text of each language into training and held-out text."""
    text, heldout = (
        {code: corpus_files(paths) for code, paths in texts.items()}
        for texts in (recipe.text, recipe.heldout)
    )
    settings = recipe.corpus.model_dump()
    for side, texts in (("text", text), ("heldout", heldout)):
        names = {c: [f"{f.parent.name}/{f.name}" for f in files] for c, files in texts.items()}
        settings[side] = names

    def check(folder: Path) -> Iterable[str]:
        files = {code: [folder / f"{code}.heldout.jsonl"] for code in recipe.text}
        tasks = recipe.evaluate.tasks if recipe.instruct else []
        Material.of(files, recipe.evaluate.model_copy(update={"tasks": tasks}))  # raises
        return ()

    return Stage(
        "corpus",
        lambda output, at: write_corpus(text, heldout, output, recipe.corpus),
        settings,
        tuple(chain(*text.values(), *heldout.values())),
        check,
    )


def tokenizer_stage(given: Sources) -> Stage:
    """Extend or replace the first model's tokenizer on training text of the new language."""
    settings = given.recipe.tokenizer
    return Stage(
        "tokenizer",
        lambda output, at: make_tokenizer(
            given.first, given.new_text(at), output, settings, protect=given.old_text(at)
        ),
        settings.model_dump() | {"language": given.recipe.language},
        (given.corpus, given.first),
    )


def init_base_stage(given: Sources, tokenizer: Stage) -> Stage:
    """Give the base model the new tokenizer."""
    return _init_stage("init-base", given, tokenizer)


def _init_stage(name: str, given: Sources, tokenizer: Stage) -> Stage:
    model, settings = given.first, given.recipe.init
    return Stage(
        name,
        lambda output, at: initialise(model, at(tokenizer), output, settings),
        settings.model_dump(),
        (tokenizer, model),
    )


def init_instruct_stage(given: Sources, start: Stage) -> Stage:
    """Give the instruct model the new tokenizer, without any training.

    `start` is the initialised base model, or the tokenizer where there is no base.
    """
    if given.base is None:
        return _init_stage("init-instruct", given, start)
    return Stage(
        "init-instruct",
        lambda output, at: initialise_instruct(*given.pair, at(start), output),
        {},
        (start, *given.pair),
    )


def replay_stage(given: Sources) -> Stage:
    """Draw old text, in a share of the new, for every stage that trains on plain text."""
    pretrain = given.recipe.pretrain
    shares = pretrain.replay if pretrain else {}

    def action(output: Path, at: FolderOf) -> None:
        text = given.text("train", at)
        characters = count_characters(read_documents(given.new_text(at)))
        with publishing(output) as partial:
            for code, share in shares.items():
                documents = drawn(read_documents(text[code]), round(share * characters), code)
                write_documents(partial / f"{code}.jsonl", documents)

    settings = {"replay": shares, "language": given.recipe.language}
    return Stage("replay", action, settings, (given.corpus,))


def pretrain_stage(
    name: str, given: Sources, start: Stage, replay: Stage | None, stage: PretrainStage
) -> Stage:
    """Train a model on the text of the new language, and on replayed text of the old ones."""
    values = stage.model_dump(exclude={"replay"})  # a stage of its own
    settings = PretrainSettings.model_validate(values | stage.unhashed())

    def action(output: Path, at: FolderOf) -> None:
        old = [at(replay) / f"{code}.jsonl" for code in stage.replay] if replay else []
        pretrain(at(start), [*given.new_text(at), *old], output, settings)

    watched = corpus_files(all_paths(settings.eval_text))
    inputs: list[Source] = [start, given.corpus, *([replay] if replay else []), *watched]
    return Stage(name, action, values | {"language": given.recipe.language}, tuple(inputs))


def propagate_stage(method: PropagationName, given: Sources, adapted: Stage) -> Stage:
    """Carry the trained rows into the instruct model."""
    settings, models = PropagateSettings(method=method), given.pair
    return Stage(
        f"propagate-{method}",
        lambda output, at: propagate(*models, at(adapted), output, settings),
        settings.model_dump(),
        (adapted, *models),
    )


def auto_stage(given: Sources, adapted: Stage, prompts: Source) -> Stage:
    """Choose the method on training text and prompts made from it, none of which is held out."""
    settings, models = given.recipe.select, given.pair

    def action(output: Path, at: FolderOf) -> None:
        text, messages = given.text("train", at), records_file(prompts, at)
        propagate_auto(*models, at(adapted), output, text, messages, select=settings)

    inputs = (adapted, given.corpus, *models, prompts)
    return Stage("propagate-auto", action, settings.model_dump(), inputs)


def records_stage(
    name: str, given: Sources, make: Callable[..., list[dict[str, Any]]], **settings: Any
) -> Stage:
    """Make tasks from training text; they share nothing with the held-out text."""

    def action(output: Path, at: FolderOf) -> None:
        train, heldout = (given.text(side, at) for side in ("train", "heldout"))
        tasks = make(train, evaluation=heldout, **settings)
        with publishing(output) as partial:
            write_records(partial / RECORDS, tasks)

    return Stage(name, action, settings, (given.corpus,))


def unjudged_stage(instruct: Path, prompts: Source, settings: AnswerSettings) -> Stage:
    """Let the instruct model answer the prompts."""
    return Stage(
        "unjudged",
        lambda output, at: write_unjudged(instruct, records_file(prompts, at), output, settings),
        settings.model_dump(exclude=JUDGING),
        (instruct, prompts),
    )


def answers_stage(
    instruct: Path, prompts: Source, unjudged: Stage, settings: AnswerSettings
) -> Stage:
    """Grade the answers and keep the good ones. Another judge grades the same answers."""
    judge = [folder] if settings.judge and (folder := Path(settings.judge)).is_dir() else []

    def action(output: Path, at: FolderOf) -> None:
        answer(instruct, records_file(prompts, at), output, settings, at(unjudged))

    return Stage("answers", action, settings.model_dump(), (unjudged, *judge))


def calibrate_stage(
    name: str, model: Stage, answers: Stage, copies: Stage, settings: CalibrateSettings
) -> Stage:
    """Train a propagated model on the instruct model's own answers and on copy tasks."""
    return Stage(
        f"calibrate-{name}",
        lambda output, at: calibrate(at(model), at(answers), output, settings, records(copies, at)),
        settings.model_dump(),
        (model, answers, copies),
    )


def tune_stage(
    name: str, model: Stage, data: Source, copies: Stage, settings: TuneSettings
) -> Stage:
    """Train a propagated model on conversations and on copy tasks."""

    def action(output: Path, at: FolderOf) -> None:
        tune(at(model), records_file(data, at), output, settings, records(copies, at))

    return Stage(f"tune-{name}", action, settings.model_dump(), (model, copies, data))


def evaluate_stage(name: str, given: Sources, model: Source, *, base: bool) -> Stage:
    """Evaluate a model on held-out text; a base model gets no chat tasks."""
    settings = given.recipe.evaluate
    data = [Path(settings.benchmark.data)] if settings.benchmark.data else []

    def action(output: Path, at: FolderOf) -> None:
        write_evaluation(at(model), given.text("heldout", at), output, settings, base=base)

    inputs = (given.corpus, model, *data)
    return Stage(f"evaluate-{name}", action, settings.model_dump(), inputs)


def part(settings: type[Settings], section: Settings) -> Any:
    """The values of a recipe's section that belong to the settings it extends."""
    values = section.model_dump(include=set(settings.model_fields))
    return settings.model_validate(values | section.unhashed(settings))


def records_file(source: Source, at: FolderOf) -> Path:
    """The file of prompts or conversations: the recipe gives it, or a stage makes it."""
    return at(source) / RECORDS if isinstance(source, Stage) else source


def records(stage: Stage, at: FolderOf) -> list[dict[str, Any]]:
    return [record for _, record in read_records(records_file(stage, at))]


def write_evaluation(
    model: str | Path, text: Text, output: Path, settings: EvaluateSettings, *, base: bool = False
) -> None:
    """Evaluate a model into a folder of `scores.json` and `records.jsonl`."""
    key = fingerprint([Checkpoint(model).stamp(), settings.model_dump()])
    unfinished = output.with_name(f"{output.name}.{key}")
    evaluation = score_model(model, text, settings, unfinished, base=base)
    with publishing(output) as partial:
        evaluation.write(partial)
    shutil.rmtree(unfinished, ignore_errors=True)


def write_corpus(text: Files, heldout: Files, output: Path, settings: CorpusSettings) -> None:
    """Write `LANGUAGE.train.jsonl` and `LANGUAGE.heldout.jsonl`, and `counts.json`."""
    counts = {}
    with publishing(output) as partial:
        for code, files in text.items():
            split = split_text(files, heldout.get(code), settings)
            for side, documents in (("train", split.train), ("heldout", split.heldout)):
                write_documents(partial / f"{code}.{side}.jsonl", documents)
                characters = count_characters(documents)
                counts[f"{code}.{side}"] = {"sections": len(documents), "characters": characters}
        write_json(partial / "counts.json", counts, indent=1)


def split_text(files: list[Path], heldout: list[Path] | None, settings: CorpusSettings) -> Split:
    """Training and held-out sections of a language: split by hash, or as the recipe gives them."""
    if heldout is None:
        return prepare(read_documents(files), **settings.model_dump())
    limits = (settings.limit_characters, settings.limit_heldout_characters)
    train = bounded(read_documents(files), limits[0], settings.source_share)
    held = bounded(read_documents(heldout), limits[1])
    return Split.of(train, held, *limits, settings.source_share)


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    write_records(path, ({"id": d.id, "text": d.text, "group": d.group} for d in documents))


def count_characters(documents: Iterable[Document]) -> int:
    return sum(len(document.text) for document in documents)
