"""The stages of a run, one function each: from its inputs to what it builds. `recipe_stages` joins them."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lep.calibration.answers import JUDGING, write_answers, write_unjudged
from lep.calibration.calibrate import calibrate
from lep.checkpoint.reader import Checkpoint
from lep.corpus.copies import copy_records, records_apart
from lep.corpus.prepare import Split, drawn, prepare, sample, sections
from lep.corpus.read import Document, corpus_files, read_documents, read_records, write_records
from lep.evaluation.evaluate import evaluate
from lep.pipeline.recipe import CalibrateStage, PretrainStage, TuneStage
from lep.pipeline.stage import FolderOf, Source, Stage
from lep.publish import fingerprint, publishing
from lep.selection.auto import propagate_auto
from lep.settings import (
    AnswerSettings,
    CalibrateSettings,
    CorpusSettings,
    EvaluateSettings,
    InitSettings,
    PretrainSettings,
    PropagateSettings,
    PropagationName,
    SelectSettings,
    Settings,
    TokenizerSettings,
    TuneSettings,
)
from lep.tokenizer.write import make_tokenizer
from lep.training.pretrain import pretrain
from lep.training.tune import tune
from lep.transfer.initialise import initialise
from lep.transfer.propagate import initialise_instruct, propagate

RECORDS = "records.jsonl"  # of the stages that make prompts, answers to tune on, or copy tasks
Text = dict[str, list[str | Path]]  # files by language
Files = dict[str, list[Path]]


@dataclass(frozen=True)
class Models:
    """The two models of a recipe."""

    base: Path
    instruct: Path


@dataclass(frozen=True)
class Corpus:
    """The text that later stages read: the stage that splits it, its languages, and the new one."""

    stage: Stage
    languages: Sequence[str]
    language: str

    def text(self, side: str, folder_of: FolderOf) -> Text:
        """Files of a side (`train` or `heldout`) by language."""
        folder = folder_of(self.stage)
        return {code: [folder / f"{code}.{side}.jsonl"] for code in self.languages}

    def new(self, folder_of: FolderOf) -> list[str | Path]:
        """Training text of the new language."""
        return self.text("train", folder_of)[self.language]


def corpus_stage(text: Files, heldout: Files, settings: CorpusSettings) -> Stage:
    """Split the text of each language into training and held-out text."""
    sides = {"text": text, "heldout": heldout}
    names = {
        side: {code: [f"{f.parent.name}/{f.name}" for f in files] for code, files in texts.items()}
        for side, texts in sides.items()
    }
    return Stage(
        "corpus",
        lambda output, folder_of: write_corpus(text, heldout, output, settings),
        settings.model_dump() | names,
        tuple(file for texts in sides.values() for files in texts.values() for file in files),
    )


def tokenizer_stage(base: Path, corpus: Corpus, settings: TokenizerSettings) -> Stage:
    """Extend or replace the base's tokenizer on the training text of the new language."""
    return Stage(
        "tokenizer",
        lambda output, folder_of: make_tokenizer(base, corpus.new(folder_of), output, settings),
        settings.model_dump() | {"language": corpus.language},
        (corpus.stage, base),
    )


def init_base_stage(base: Path, tokenizer: Stage, settings: InitSettings) -> Stage:
    """Give the base model the new tokenizer."""
    return Stage(
        "init-base",
        lambda output, folder_of: initialise(base, folder_of(tokenizer), output, settings),
        settings.model_dump(),
        (tokenizer, base),
    )


def init_instruct_stage(models: Models, init: Stage) -> Stage:
    """Give the instruct model the new tokenizer, without any training."""
    base, instruct = models.base, models.instruct
    return Stage(
        "init-instruct",
        lambda output, folder_of: initialise_instruct(base, instruct, folder_of(init), output),
        {},
        (init, base, instruct),
    )


def replay_stage(corpus: Corpus, shares: dict[str, float]) -> Stage:
    """Draw old text, in a share of the new, for every stage that trains on plain text."""

    def action(output: Path, folder_of: FolderOf) -> None:
        text = corpus.text("train", folder_of)
        characters = sum(len(d.text) for d in read_documents(corpus.new(folder_of)))
        with publishing(output) as partial:
            for code, share in shares.items():
                documents = drawn(read_documents(text[code]), round(share * characters), code)
                write_documents(partial / f"{code}.jsonl", documents)

    return Stage("replay", action, {"replay": shares, "language": corpus.language}, (corpus.stage,))


def pretrain_stage(
    name: str, start: Stage, corpus: Corpus, replay: Stage | None, stage: PretrainStage
) -> Stage:
    """Train a model on the text of the new language, and on replayed text of the old ones."""
    values = stage.model_dump(exclude={"replay"})  # a stage of its own
    settings = PretrainSettings.model_validate(values)

    def action(output: Path, folder_of: FolderOf) -> None:
        old = [folder_of(replay) / f"{code}.jsonl" for code in stage.replay] if replay else []
        pretrain(folder_of(start), [*corpus.new(folder_of), *old], output, settings)

    watched = corpus_files(path for paths in settings.eval_text.values() for path in paths)
    inputs = (start, corpus.stage, *([replay] if replay else []), *watched)
    return Stage(name, action, values | {"language": corpus.language}, inputs)


def propagate_stage(method: PropagationName, models: Models, adapted: Stage) -> Stage:
    """Carry the trained rows into the instruct model."""
    settings = PropagateSettings(method=method)
    base, instruct = models.base, models.instruct
    return Stage(
        f"propagate-{method}",
        lambda output, folder_of: propagate(base, instruct, folder_of(adapted), output, settings),
        settings.model_dump(),
        (adapted, base, instruct),
    )


def auto_stage(
    models: Models, adapted: Stage, corpus: Corpus, prompts: Source, settings: SelectSettings
) -> Stage:
    """Choose the method on training text and prompts made from it, none of which is held out."""
    base, instruct = models.base, models.instruct
    return Stage(
        "propagate-auto",
        lambda output, folder_of: propagate_auto(
            base,
            instruct,
            folder_of(adapted),
            output,
            corpus.text("train", folder_of),
            records_file(prompts, folder_of),
            select=settings,
        ),
        settings.model_dump(),
        (adapted, corpus.stage, base, instruct, prompts),
    )


def tasks_stage(name: str, corpus: Corpus, tasks: Sequence[str], count: int, seed: int) -> Stage:
    """Make chat tasks from training text; nothing that is evaluated on is in them."""
    settings = {"tasks": list(tasks), "count": count, "seed": seed}
    return _records_stage(
        name,
        corpus,
        settings,
        lambda text, heldout: records_apart(text, tasks, count, seed, heldout),
    )


def copies_stage(name: str, corpus: Corpus, count: int, seed: int) -> Stage:
    """Make copy tasks from training text; nothing that is evaluated on is in them."""
    settings = {"count": count, "seed": seed}
    return _records_stage(
        name, corpus, settings, lambda text, heldout: copy_records(text, count, seed, heldout)
    )


def _records_stage(
    name: str,
    corpus: Corpus,
    settings: dict[str, Any],
    records: Callable[[Text, Text], list[dict[str, Any]]],
) -> Stage:
    def action(output: Path, folder_of: FolderOf) -> None:
        tasks = records(corpus.text("train", folder_of), corpus.text("heldout", folder_of))
        with publishing(output) as partial:
            write_records(partial / RECORDS, tasks)

    return Stage(name, action, settings, (corpus.stage,))


def unjudged_stage(instruct: Path, prompts: Source, stage: CalibrateStage) -> Stage:
    """Let the instruct model answer the prompts."""
    settings = part(AnswerSettings, stage)
    return Stage(
        "unjudged",
        lambda output, folder_of: write_unjudged(
            instruct, records_file(prompts, folder_of), output, settings
        ),
        settings.model_dump(exclude=JUDGING),
        (instruct, prompts),
    )


def answers_stage(instruct: Path, prompts: Source, unjudged: Stage, stage: CalibrateStage) -> Stage:
    """Grade the answers and keep the good ones; another judge needs no other answers."""
    settings = part(AnswerSettings, stage)
    judge = [Path(stage.judge)] if stage.judge and Path(stage.judge).is_dir() else []
    return Stage(
        "answers",
        lambda output, folder_of: write_answers(
            instruct, records_file(prompts, folder_of), output, settings, folder_of(unjudged)
        ),
        settings.model_dump(),
        (unjudged, *judge),
    )


def calibrate_stage(
    name: str, model: Stage, answers: Stage, copies: Stage, settings: CalibrateSettings
) -> Stage:
    """Train a propagated model on the instruct model's own answers and on copy tasks."""
    return Stage(
        f"calibrate-{name}",
        lambda output, folder_of: calibrate(
            folder_of(model), folder_of(answers), output, settings, _records(copies, folder_of)
        ),
        settings.model_dump(),
        (model, answers, copies),
    )


def tune_stage(name: str, model: Stage, data: Source, copies: Stage, stage: TuneStage) -> Stage:
    """Train a propagated model on conversations and on copy tasks."""
    settings = part(TuneSettings, stage)
    return Stage(
        f"tune-{name}",
        lambda output, folder_of: tune(
            folder_of(model),
            records_file(data, folder_of),
            output,
            settings,
            _records(copies, folder_of),
        ),
        settings.model_dump(),
        (model, copies, data),
    )


def evaluate_stage(
    name: str, model: Source, corpus: Corpus, settings: EvaluateSettings, *, base: bool
) -> Stage:
    """Evaluate a model on held-out text; a base model is not asked anything in chats."""
    data = [Path(settings.benchmark.data)] if settings.benchmark.data else []
    return Stage(
        f"evaluate-{name}",
        lambda output, folder_of: write_evaluation(
            folder_of(model) if isinstance(model, Stage) else model,
            corpus.text("heldout", folder_of),
            output,
            settings,
            base=base,
        ),
        settings.model_dump(),
        (corpus.stage, model, *data),
    )


def part(settings: type[Settings], stage: Settings) -> Any:
    """The values of a recipe's section that belong to one of the settings that it extends."""
    return settings.model_validate(stage.model_dump(include=set(settings.model_fields)))


def records_file(source: Source, folder_of: FolderOf) -> Path:
    """The file of prompts or conversations, given in the recipe or made by a stage."""
    return folder_of(source) / RECORDS if isinstance(source, Stage) else source


def _records(stage: Stage, folder_of: FolderOf) -> list[dict[str, Any]]:
    return [record for _, record in read_records(records_file(stage, folder_of))]


def write_evaluation(
    model: str | Path, text: Text, output: Path, settings: EvaluateSettings, *, base: bool = False
) -> None:
    """Evaluate a model into a folder of `scores.json` and `records.jsonl`."""
    key = fingerprint([Checkpoint(model).stamp(), settings.model_dump()])
    unfinished = output.with_name(f"{output.name}.{key}")
    evaluation = evaluate(model, text, settings, unfinished, base=base)
    scores = [asdict(score) for score in evaluation.scores]
    with publishing(output) as partial:
        (partial / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
        write_records(partial / RECORDS, evaluation.records)
    shutil.rmtree(unfinished, ignore_errors=True)


def write_corpus(text: Files, heldout: Files, output: Path, settings: CorpusSettings) -> None:
    """Write `LANGUAGE.train.jsonl`, `LANGUAGE.heldout.jsonl` and `counts.json` for each language."""
    counts = {}
    with publishing(output) as partial:
        for code, files in text.items():
            split = split_text(files, heldout.get(code), settings)
            for side, documents in (("train", split.train), ("heldout", split.heldout)):
                write_documents(partial / f"{code}.{side}.jsonl", documents)
                characters = sum(len(document.text) for document in documents)
                counts[f"{code}.{side}"] = {"sections": len(documents), "characters": characters}
        (partial / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")


def split_text(files: list[Path], heldout: list[Path] | None, settings: CorpusSettings) -> Split:
    """Training and held-out sections of a language: split by hash, or as the recipe gives them."""
    if heldout is None:
        return prepare(read_documents(files), **settings.model_dump())
    limits = (settings.limit_characters, settings.limit_heldout_characters)
    train, held_out = (
        sample(
            (piece for document in read_documents(side) for piece in sections(document)),
            limit,
            settings.source_share,
        )
        for side, limit in zip((files, heldout), limits, strict=True)
    )
    return Split(train, held_out)


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    write_records(path, ({"id": d.id, "text": d.text, "group": d.group} for d in documents))
