"""The stages of a recipe: what each makes, of what, with which settings."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lep.benchmark.harness import Benchmark
from lep.benchmark.tasks import resolve
from lep.calibration.answers import JUDGING, answer, write_unjudged
from lep.calibration.calibrate import calibrate
from lep.checkpoint.reader import Checkpoint
from lep.corpus.copies import copy_records, records_apart
from lep.corpus.prepare import Split, drawn, prepare, sample, sections
from lep.corpus.read import (
    Document,
    corpus_files,
    read_documents,
    read_messages,
    read_records,
    write_records,
)
from lep.errors import CheckpointError
from lep.evaluation.score import score_model
from lep.pipeline.recipe import PretrainStage, Recipe
from lep.pipeline.stage import Places, Stage
from lep.publish import fingerprint, publishing
from lep.selection.auto import propagate_auto
from lep.settings import (
    AnswerSettings,
    CalibrateSettings,
    CorpusSettings,
    PretrainSettings,
    PropagateSettings,
    PropagationName,
    TuneSettings,
)
from lep.tokenizer.write import make_tokenizer
from lep.training.pretrain import pretrain
from lep.training.tune import tune
from lep.transfer.initialise import initialise
from lep.transfer.propagate import initialise_instruct, propagate

RECORDS = "records.jsonl"  # of what is made from the training text


@dataclass(frozen=True)
class Plan:
    """All stages in an order in which they can run, and the evaluated models by their name in the table."""

    stages: list[Stage]
    instruct_models: dict[str, Stage]
    base_models: dict[str, Stage]


class Planner:
    """Builds stages; each method returns one."""

    def __init__(self, recipe: Recipe, places: Places) -> None:
        self.recipe, self.places = recipe, places
        self.stages: list[Stage] = []
        self.base, self.instruct = (
            Checkpoint(m).check().folder for m in (recipe.base, recipe.instruct)
        )
        self.texts = {code: corpus_files(paths) for code, paths in recipe.text.items()}
        self.heldout = {code: corpus_files(paths) for code, paths in recipe.heldout.items()}
        for given in (
            recipe.calibrate and recipe.calibrate.prompts,
            recipe.tune and recipe.tune.data,
        ):
            if given:
                read_messages(given)
        self.given_prompts = (
            (Path(recipe.calibrate.prompts),)
            if recipe.calibrate and recipe.calibrate.prompts
            else ()
        )
        self.prompts: tuple[Stage, ...] = ()  # made, where none are given
        self.replay: tuple[Stage, ...] = ()
        if names := resolve(
            recipe.evaluate.benchmark.tasks
        ):  # faults of tasks and data show before anything trains
            for model in (self.base, self.instruct):
                Benchmark(Checkpoint(model), names, recipe.evaluate.benchmark)
        self.asked = bool(recipe.calibrate or recipe.tune or "auto" in recipe.propagate)
        if self.asked and not Checkpoint(self.instruct).tokenizer.chat_template:
            raise CheckpointError(
                f"{self.instruct} has no chat template, so it can be neither calibrated nor tuned nor asked: give an "
                "instruct model, or leave calibrate, tune and auto out of the recipe"
            )

    def plan(self) -> Plan:
        recipe = self.recipe
        corpus = self._corpus()
        tokenizer = self._tokenizer(corpus)
        init = self._init(tokenizer)
        instruct_init = self._add(
            "init-instruct",
            lambda output: initialise_instruct(self.base, self.instruct, self._place(init), output),
            {},
            (init,),
            (self.base, self.instruct),
        )
        self.replay = self._replay(corpus)
        adapted = self._pretrain("pretrain", init, corpus, recipe.pretrain)
        if not self.given_prompts and (recipe.calibrate or "auto" in recipe.propagate):
            count = recipe.calibrate.prompt_tasks if recipe.calibrate else recipe.select.prompts
            self.prompts = (self._tasks("prompts", corpus, count, recipe.evaluate.seed + 1),)
        made: dict[str, Stage] = {
            method: self._select(adapted, corpus)
            if method == "auto"
            else self._propagate(method, adapted)
            for method in recipe.propagate
        }
        if recipe.direct:
            new_rows = recipe.pretrain.model_copy(update={"train": "new_rows"})
            made["direct"] = self._pretrain("direct", instruct_init, corpus, new_rows)
        models = {"original instruct": None, "mean initialisation": instruct_init} | made
        if recipe.calibrate:
            answers, copies = (
                self._answers(),
                self._copies("calibrate-copies", corpus, recipe.calibrate.copy_tasks),
            )
            for after in recipe.calibrate.after:
                models[f"{after} + self-calibration"] = self._calibrate(
                    after, made[after], answers, copies
                )
            for after in recipe.calibrate.new_rows:
                models[f"{after} + self-calibration of new rows"] = self._calibrate(
                    f"{after}-new-rows", made[after], answers, copies, train="new_rows"
                )
        if recipe.tune:
            copies, given = (
                self._copies("tune-copies", corpus, recipe.tune.copy_tasks),
                recipe.tune.data,
            )
            # another seed than that of the prompts: tuning is no second look at the same questions
            data = (
                Path(given)
                if given
                else self._tasks(
                    "tuning-data", corpus, recipe.tune.data_tasks, recipe.evaluate.seed + 2
                )
            )
            for after in recipe.tune.after:
                models[f"{after} + tuning"] = self._tune(after, made[after], data, copies)
        bases = {"original base": None, "mean initialisation": init, "after training": adapted}
        instruct_scores = {
            n: self._evaluate(s, self.instruct, corpus, "instruct") for n, s in models.items()
        }
        base_scores = {n: self._evaluate(s, self.base, corpus, "base") for n, s in bases.items()}
        return Plan(self.stages, instruct_scores, base_scores)

    def _add(
        self,
        name: str,
        action: Callable[[Path], object],
        settings: dict[str, Any],
        upstream: tuple[Stage, ...] = (),
        files: tuple[Path, ...] = (),
    ) -> Stage:
        stage = Stage(name, action, settings, upstream, files)
        self.stages.append(stage)
        return stage

    def _place(self, stage: Stage, *parts: str) -> Path:
        return self.places.of(stage).joinpath(*parts)

    def _text(self, corpus: Stage, side: str) -> dict[str, list[str | Path]]:
        return {code: [self._place(corpus, f"{code}.{side}.jsonl")] for code in self.texts}

    def _new_text(self, corpus: Stage) -> list[str | Path]:
        """Training text of the new language."""
        return self._text(corpus, "train")[self.recipe.language]

    def _corpus(self) -> Stage:
        settings = self.recipe.corpus.model_dump()

        def action(output: Path) -> None:
            with publishing(output) as partial:
                counts = {}
                for code, files in self.texts.items():
                    split = split_text(files, self.heldout.get(code), self.recipe.corpus)
                    for side, documents in (("train", split.train), ("heldout", split.heldout)):
                        write_records(
                            partial / f"{code}.{side}.jsonl", map(_document_record, documents)
                        )
                        counts[f"{code}.{side}"] = {
                            "sections": len(documents),
                            "characters": sum(len(d.text) for d in documents),
                        }
                (partial / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")

        files = tuple(
            file
            for texts in (self.texts, self.heldout)
            for files in texts.values()
            for file in files
        )
        names = {
            side: {
                code: [f"{f.parent.name}/{f.name}" for f in files] for code, files in texts.items()
            }
            for side, texts in (("text", self.texts), ("heldout", self.heldout))
        }
        return self._add("corpus", action, settings | names, files=files)

    def _tokenizer(self, corpus: Stage) -> Stage:
        settings = self.recipe.tokenizer
        return self._add(
            "tokenizer",
            lambda output: make_tokenizer(self.base, self._new_text(corpus), output, settings),
            settings.model_dump() | {"language": self.recipe.language},
            (corpus,),
            (self.base,),
        )

    def _init(self, tokenizer: Stage) -> Stage:
        settings = self.recipe.init
        return self._add(
            "init-base",
            lambda output: initialise(self.base, self._place(tokenizer), output, settings),
            settings.model_dump(),
            (tokenizer,),
            (self.base,),
        )

    def _replay(self, corpus: Stage) -> tuple[Stage, ...]:
        """Old text that every model that trains on plain text sees, too."""
        shares = self.recipe.pretrain.replay

        def action(output: Path) -> None:
            text, new = (
                self._text(corpus, "train"),
                sum(len(d.text) for d in read_documents(self._new_text(corpus))),
            )
            with publishing(output) as partial:
                for code, share in shares.items():
                    found = drawn(read_documents(text[code]), round(share * new), code)
                    write_records(partial / f"{code}.jsonl", map(_document_record, found))

        settings = {"replay": shares, "language": self.recipe.language}
        return (self._add("replay", action, settings, (corpus,)),) if shares else ()

    def _pretrain(self, name: str, start: Stage, corpus: Stage, stage: PretrainStage) -> Stage:
        own = stage.model_dump(exclude={"replay"})  # replayed text is a stage of its own
        settings = PretrainSettings.model_validate(own)

        def action(output: Path) -> None:
            old = [
                self._place(replay, f"{code}.jsonl")
                for replay in self.replay
                for code in stage.replay
            ]
            pretrain(self._place(start), [*self._new_text(corpus), *old], output, settings)

        return self._add(
            name,
            action,
            own | {"language": self.recipe.language},
            (start, corpus, *self.replay),
            tuple(corpus_files(path for paths in settings.eval_text.values() for path in paths)),
        )

    def _propagate(self, method: PropagationName, adapted: Stage) -> Stage:
        settings = PropagateSettings(method=method)
        return self._add(
            f"propagate-{method}",
            lambda output: propagate(
                self.base, self.instruct, self._place(adapted), output, settings
            ),
            settings.model_dump(),
            (adapted,),
            (self.base, self.instruct),
        )

    def _select(self, adapted: Stage, corpus: Stage) -> Stage:
        """`auto` chooses on training text and on prompts made from it, none of which is held out."""
        settings = self.recipe.select
        return self._add(
            "propagate-auto",
            lambda output: propagate_auto(
                self.base,
                self.instruct,
                self._place(adapted),
                output,
                self._text(corpus, "train"),
                self._prompts_file(),
                select=settings,
            ),
            settings.model_dump(),
            (adapted, corpus, *self.prompts),
            (self.base, self.instruct, *self.given_prompts),
        )

    def _tasks(self, name: str, corpus: Stage, count: int, seed: int) -> Stage:
        """Tasks made from the training text, none of which is evaluated on."""
        tasks = list(self.recipe.evaluate.tasks)
        return self._made(
            name,
            corpus,
            {"tasks": tasks, "count": count, "seed": seed},
            lambda text, heldout: records_apart(text, tasks, count, seed, heldout),
        )

    def _copies(self, name: str, corpus: Stage, count: int) -> Stage:
        """Copy tasks, the same."""
        seed = self.recipe.evaluate.seed + 1
        return self._made(
            name,
            corpus,
            {"count": count, "seed": seed},
            lambda text, heldout: copy_records(text, count, seed, heldout),
        )

    def _made(
        self, name: str, corpus: Stage, settings: dict[str, Any], records: Callable[..., Any]
    ) -> Stage:
        def action(output: Path) -> None:
            found = records(self._text(corpus, "train"), self._text(corpus, "heldout"))
            with publishing(output) as partial:
                write_records(partial / RECORDS, found)

        return self._add(name, action, settings, (corpus,))

    def _records(self, stage: Stage) -> list[dict[str, Any]]:
        return [record for _, record in read_records(self._place(stage, RECORDS))]

    def _prompts_file(self) -> Path:
        return (
            self.given_prompts[0] if self.given_prompts else self._place(self.prompts[0], RECORDS)
        )

    def _answers(self) -> Stage:
        stage = self.recipe.calibrate
        assert stage is not None
        settings = AnswerSettings.model_validate(
            stage.model_dump(include=set(AnswerSettings.model_fields))
        )
        judge = [Path(stage.judge)] if stage.judge and Path(stage.judge).is_dir() else []
        unjudged = self._add(
            "unjudged",
            lambda output: write_unjudged(self.instruct, self._prompts_file(), output, settings),
            settings.model_dump(exclude=JUDGING),
            self.prompts,
            (self.instruct, *self.given_prompts),
        )
        return self._add(
            "answers",
            lambda output: answer(
                self.instruct, self._prompts_file(), output, settings, self._place(unjudged)
            ),
            settings.model_dump(),
            (unjudged,),
            tuple(judge),
        )

    def _calibrate(
        self, after: str, model: Stage, answers: Stage, copies: Stage, **changes: str
    ) -> Stage:
        stage = self.recipe.calibrate
        assert stage is not None
        own = stage.model_dump(include=set(CalibrateSettings.model_fields)) | changes
        settings = CalibrateSettings.model_validate(own)
        return self._add(
            f"calibrate-{after}",
            lambda output: calibrate(
                self._place(model), self._place(answers), output, settings, self._records(copies)
            ),
            settings.model_dump(),
            (model, answers, copies),
        )

    def _tune(self, after: str, model: Stage, data: Stage | Path, copies: Stage) -> Stage:
        stage = self.recipe.tune
        assert stage is not None
        settings = TuneSettings.model_validate(
            stage.model_dump(include=set(TuneSettings.model_fields))
        )

        def action(output: Path) -> None:
            given = data if isinstance(data, Path) else self._place(data, RECORDS)
            tune(self._place(model), given, output, settings, self._records(copies))

        made, files = ((), (data,)) if isinstance(data, Path) else ((data,), ())
        return self._add(
            f"tune-{after}", action, settings.model_dump(), (model, copies, *made), files
        )

    def _evaluate(self, model: Stage | None, original: Path, corpus: Stage, kind: str) -> Stage:
        settings = self.recipe.evaluate
        data = (Path(settings.benchmark.data),) if settings.benchmark.data else ()
        return self._add(
            f"evaluate-{model.name if model else kind}",
            lambda output: write_evaluation(
                self._place(model) if model else original,
                self._text(corpus, "heldout"),
                output,
                settings,
                base=kind == "base",
            ),
            settings.model_dump(),
            (corpus, model) if model else (corpus,),
            data if model else (original, *data),
        )


def write_evaluation(
    model: str | Path,
    text: dict[str, list[str | Path]],
    output: Path,
    settings: Any,
    *,
    base: bool = False,
) -> None:
    """Evaluate a model into a folder of `scores.json` and `records.jsonl`."""
    kept = output.with_name(
        f"{output.name}.{fingerprint([Checkpoint(model).stamp(), settings.model_dump()])}"
    )
    evaluation = score_model(model, text, settings, kept, base=base)
    with publishing(output) as partial:
        evaluation.write(partial)
    shutil.rmtree(kept, ignore_errors=True)


def split_text(files: list[Path], heldout: list[Path] | None, settings: CorpusSettings) -> Split:
    """Training and held-out sections of a language: split by hash, or as the recipe gives them."""
    if heldout is None:
        return prepare(read_documents(files), **settings.model_dump())
    cut = (
        [piece for d in read_documents(side) for piece in sections(d)] for side in (files, heldout)
    )
    limits = (settings.limit_characters, settings.limit_heldout_characters)
    return Split(
        *(
            sample(side, limit, settings.source_share)
            for side, limit in zip(cut, limits, strict=True)
        )
    )


def _document_record(document: Document) -> dict[str, str]:
    return {"id": document.id, "text": document.text, "group": document.group}
