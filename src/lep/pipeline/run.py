"""The stages of a recipe, and the run that makes them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lep.calibration.calibrate import calibrate
from lep.checkpoint.initialise import initialise
from lep.checkpoint.propagate import initialise_instruct, propagate
from lep.checkpoint.reader import Checkpoint
from lep.corpus.prepare import Split, prepare, sample, sections
from lep.corpus.read import Document, corpus_files, read_documents, write_records
from lep.corpus.tasks import make_tasks
from lep.errors import CheckpointError
from lep.evaluation.benchmark import Benchmark
from lep.evaluation.evaluate import evaluate
from lep.evaluation.select import propagate_auto
from lep.evaluation.table import benchmark_table, text_table
from lep.evaluation.tasks import resolve
from lep.pipeline.recipe import Recipe
from lep.pipeline.stage import Runner, Stage
from lep.publish import fingerprint, publishing
from lep.report.page import write_report
from lep.settings import CalibrateSettings, CorpusSettings, PropagateSettings, PropagationName, TuneSettings
from lep.tokenizer.write import extend_tokenizer
from lep.training.pretrain import pretrain
from lep.training.tune import tune


@dataclass(frozen=True)
class Plan:
    """All stages in an order in which they can run, and the evaluated models by their name in the table."""

    stages: list[Stage]
    instruct_models: dict[str, Stage]
    base_models: dict[str, Stage]


def plan(recipe: Recipe, folder: Path) -> Plan:
    """Lay out the stages of a recipe under `folder`; checks the models, trains nothing."""
    return _Planner(recipe, folder).plan()


def run(recipe: Recipe, folder: Path, say: Callable[[str], None] = print) -> Path:
    """Run what is not up to date, and return the report's path.

    A run that was killed continues where it was; one that is complete does nothing.
    """
    planned = plan(recipe, folder)
    folder.mkdir(parents=True, exist_ok=True)
    runner = Runner(folder, say)
    for number, stage in enumerate(planned.stages, start=1):
        runner.run(stage, f"[{number}/{len(planned.stages)}]")
    described = {"recipe": recipe.model_dump(), "seconds": runner.seconds, "instruct_models": {}, "base_models": {}}
    for kind in ("instruct_models", "base_models"):
        described[kind] = {name: stage.name for name, stage in getattr(planned, kind).items()}
    (folder / "run.json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    report = write_report(folder)
    say(f"\nreport: {report}\n\n" + table(folder))
    return report


def table(folder: Path) -> str:
    """The table of instruct models of a finished run, and that of the benchmark where it was run."""
    models = json.loads((folder / "run.json").read_text())["instruct_models"]
    scores = {name: json.loads((folder / stage / "scores.json").read_text()) for name, stage in models.items()}
    benchmark = benchmark_table(folder, models)
    return text_table(scores) + (f"\n\n{benchmark}" if benchmark else "")


class _Planner:
    """Builds stages; each method returns one."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.stages: list[Stage] = []
        self.base, self.instruct = (Checkpoint(m).check().folder for m in (recipe.base, recipe.instruct))
        self.texts = {code: corpus_files(paths) for code, paths in recipe.text.items()}
        self.heldout = {code: corpus_files(paths) for code, paths in recipe.heldout.items()}
        for given in (recipe.calibrate and recipe.calibrate.prompts, recipe.tune and recipe.tune.data):
            if given:
                corpus_files([given])
        if names := resolve(recipe.evaluate.benchmark.tasks):  # faults of tasks and data show before anything trains
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
            {}, (init,), (self.base, self.instruct),
        )  # fmt: skip
        adapted = self._pretrain(init, corpus)
        tasks = self._tasks(corpus) if self.asked else corpus
        propagated = {
            method: self._select(adapted, tasks, corpus) if method == "auto" else self._propagate(method, adapted)
            for method in recipe.propagate
        }
        models = {"original instruct": None, "mean initialisation": instruct_init} | propagated
        if recipe.calibrate:
            after = recipe.calibrate.after
            models[f"{after} + self-calibration"] = self._calibrate(propagated[after], tasks, corpus)
        if recipe.tune:
            models[f"{recipe.tune.after} + tuning"] = self._tune(propagated[recipe.tune.after], tasks, corpus)
        bases = {"original base": None, "mean initialisation": init, "after training": adapted}
        instruct_scores = {n: self._evaluate(s, self.instruct, corpus, "instruct") for n, s in models.items()}
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
        return self.folder.joinpath(stage.name, *parts)

    def _text(self, corpus: Stage, side: str) -> dict[str, list[str | Path]]:
        return {code: [self._place(corpus, f"{code}.{side}.jsonl")] for code in self.texts}

    def _corpus(self) -> Stage:
        settings = self.recipe.corpus.model_dump()

        def action(output: Path) -> None:
            with publishing(output) as partial:
                counts = {}
                for code, files in self.texts.items():
                    split = split_text(files, self.heldout.get(code), self.recipe.corpus)
                    for side, documents in (("train", split.train), ("heldout", split.heldout)):
                        write_records(partial / f"{code}.{side}.jsonl", map(_document_record, documents))
                        counts[f"{code}.{side}"] = {
                            "sections": len(documents), "characters": sum(len(d.text) for d in documents)
                        }  # fmt: skip
                (partial / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")

        files = tuple(file for texts in (self.texts, self.heldout) for files in texts.values() for file in files)
        names = {
            side: {code: [f"{f.parent.name}/{f.name}" for f in files] for code, files in texts.items()}
            for side, texts in (("text", self.texts), ("heldout", self.heldout))
        }
        return self._add("corpus", action, settings | names, files=files)

    def _tokenizer(self, corpus: Stage) -> Stage:
        text, settings = self._text(corpus, "train")[self.recipe.language], self.recipe.tokenizer

        def action(output: Path) -> None:
            extend_tokenizer(
                self.base, text, settings.new_tokens, output, script=settings.script, method=settings.method
            )

        return self._add(
            "tokenizer", action, settings.model_dump() | {"language": self.recipe.language}, (corpus,), (self.base,)
        )

    def _init(self, tokenizer: Stage) -> Stage:
        settings = self.recipe.init
        return self._add(
            "init-base", lambda output: initialise(self.base, self._place(tokenizer), output, settings),
            settings.model_dump(), (tokenizer,), (self.base,),
        )  # fmt: skip

    def _pretrain(self, init: Stage, corpus: Stage) -> Stage:
        settings, text = self.recipe.pretrain, self._text(corpus, "train")[self.recipe.language]
        return self._add(
            "pretrain", lambda output: pretrain(self._place(init), text, output, settings),
            settings.model_dump() | {"language": self.recipe.language}, (init, corpus),
            tuple(corpus_files(path for paths in settings.eval_text.values() for path in paths)),
        )  # fmt: skip

    def _propagate(self, method: PropagationName, adapted: Stage) -> Stage:
        settings = PropagateSettings(method=method)
        return self._add(
            f"propagate-{method}",
            lambda output: propagate(self.base, self.instruct, self._place(adapted), output, settings),
            settings.model_dump(), (adapted,), (self.base, self.instruct),
        )  # fmt: skip

    def _select(self, adapted: Stage, tasks: Stage, corpus: Stage) -> Stage:
        """`auto` chooses on training text and on prompts made from it, none of which is held out."""
        settings, text = self.recipe.select, self._text(corpus, "train")
        given = self.recipe.calibrate.prompts if self.recipe.calibrate else None
        prompts = Path(given) if given else self._place(tasks, "prompts.jsonl")
        return self._add(
            "propagate-auto",
            lambda output: propagate_auto(
                self.base, self.instruct, self._place(adapted), output, text, prompts, select=settings
            ),
            settings.model_dump(), (adapted, tasks, corpus),
            (self.base, self.instruct, *([prompts] if given else [])),
        )  # fmt: skip

    def _tasks(self, corpus: Stage) -> Stage:
        recipe, text = self.recipe, self._text(corpus, "train")
        asked = "auto" in recipe.propagate
        counts = {
            "prompts": recipe.calibrate.prompt_tasks if recipe.calibrate else recipe.select.prompts * asked,
            "tuning": recipe.tune.data_tasks if recipe.tune else 0,
        }
        tasks, seed = list(recipe.evaluate.tasks), recipe.evaluate.seed + 1

        def action(output: Path) -> None:
            with publishing(output) as partial:
                for purpose, count in counts.items():
                    made = [
                        item.record()
                        for code, paths in text.items()
                        if count
                        for item in make_tasks(read_documents(paths), code, tasks, count=count, seed=seed)
                    ]
                    write_records(partial / f"{purpose}.jsonl", made)

        return self._add("tasks", action, counts | {"tasks": tasks, "seed": seed}, (corpus,))

    def _calibrate(self, propagated: Stage, tasks: Stage, corpus: Stage) -> Stage:
        stage = self.recipe.calibrate
        assert stage is not None
        settings = CalibrateSettings.model_validate(stage.model_dump(include=set(CalibrateSettings.model_fields)))
        prompts = Path(stage.prompts) if stage.prompts else self._place(tasks, "prompts.jsonl")
        return self._add(
            "calibrate",
            lambda output: calibrate(
                self._place(propagated), self.instruct, prompts, output, settings, self._text(corpus, "train")
            ),
            settings.model_dump(), (propagated, tasks, corpus), (prompts,) if stage.prompts else (),
        )  # fmt: skip

    def _tune(self, propagated: Stage, tasks: Stage, corpus: Stage) -> Stage:
        stage = self.recipe.tune
        assert stage is not None
        settings = TuneSettings.model_validate(stage.model_dump(include=set(TuneSettings.model_fields)))
        data = Path(stage.data) if stage.data else self._place(tasks, "tuning.jsonl")
        return self._add(
            "tune",
            lambda output: tune(self._place(propagated), data, output, settings, self._text(corpus, "train")),
            settings.model_dump(), (propagated, tasks, corpus), (data,) if stage.data else (),
        )  # fmt: skip

    def _evaluate(self, model: Stage | None, original: Path, corpus: Stage, kind: str) -> Stage:
        settings, text = self.recipe.evaluate, self._text(corpus, "heldout")
        place = self._place(model) if model else original
        name = f"evaluate-{model.name}" if model else f"evaluate-{kind}"
        upstream = (corpus, model) if model else (corpus,)
        return self._add(
            name, lambda output: write_evaluation(place, text, output, settings),
            settings.model_dump(), upstream, () if model else (original,),
        )  # fmt: skip


def write_evaluation(model: str | Path, text: dict[str, list[str | Path]], output: Path, settings: Any) -> None:
    """Evaluate a model into a folder of `scores.json` and `records.jsonl`."""
    kept = output.with_name(f"{output.name}.{fingerprint([Checkpoint(model).stamp(), settings.model_dump()])}")
    found = evaluate(model, text, settings, kept)
    with publishing(output) as partial:
        (partial / "scores.json").write_text(json.dumps([asdict(score) for score in found.scores], indent=1) + "\n")
        write_records(partial / "records.jsonl", found.records)
    shutil.rmtree(kept, ignore_errors=True)


def split_text(files: list[Path], heldout: list[Path] | None, settings: CorpusSettings) -> Split:
    """Training and held-out sections of a language: split by hash, or as the recipe gives them."""
    if heldout is None:
        return prepare(read_documents(files), **settings.model_dump())
    cut = ([piece for d in read_documents(side) for piece in sections(d)] for side in (files, heldout))
    limits = (settings.limit_characters, settings.limit_heldout_characters)
    return Split(*(sample(side, limit, settings.source_share) for side, limit in zip(cut, limits, strict=True)))


def _document_record(document: Document) -> dict[str, str]:
    return {"id": document.id, "text": document.text, "group": document.group}
