"""The stages of joint training: what the instruct model learns from, and the training itself."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from lep.calibration.answers import COUNTS, LANGUAGES, Answers
from lep.calibration.practice import COUNTS as PRACTICE_COUNTS
from lep.calibration.practice import FEW, practise
from lep.calibration.prompts import COUNTS as PROMPT_COUNTS
from lep.calibration.prompts import PROMPTS, OwnPrompts, write_prompts
from lep.corpus.copies import records_apart
from lep.corpus.files import Text, all_paths
from lep.corpus.language import SCRIPTS as SCRIPT_OF
from lep.corpus.prepare import unit_hash
from lep.corpus.read import Document, read_documents, read_records, write_records
from lep.errors import CorpusError
from lep.files import read_json, write_json
from lep.pipeline.recipe import AdaptStage
from lep.pipeline.stage import FolderOf, Source, Stage, final_folder
from lep.pipeline.stages import (
    RECORDS,
    Sources,
    answers_stage,
    part,
    unjudged_stage,
    write_documents,
)
from lep.publish import publishing
from lep.settings import AnswerSettings, NewRowsSettings, OwnPromptSettings, PracticeSettings
from lep.training.pretrain import pretrain
from lep.transfer.language_pack import apply_pack, pack_tokenizer

FAULT = "fault.json"  # why the instruct model wrote no prompts
LEAST_ANSWERS = 10  # in the new language: with fewer the model cannot answer in it


def pack_stage(given: Sources, pack: Path) -> Stage:
    """Give the instruct model the tokenizer and the rows of a pack."""
    model, language = given.instruct, given.recipe.language
    tokenizer = Stage(
        "tokenizer",
        lambda output, at: pack_tokenizer(pack, model, given.new_text(at), output),
        {"language": language},
        (given.corpus, model, pack),
    )
    inputs = (tokenizer, model, pack)
    return Stage("init-instruct", lambda output, at: apply_pack(pack, model, output), {}, inputs)


def looks_stage(given: Sources, share: float) -> Stage:
    """Keep a part of each language's training text apart, to choose a state of the training on."""

    def action(output: Path, at: FolderOf) -> None:
        with publishing(output) as partial:
            for code, paths in given.text("train", at).items():
                looks, rest = apart(list(read_documents(paths)), share, code)
                write_documents(partial / f"{code}.looks.jsonl", looks)
                write_documents(partial / f"{code}.rest.jsonl", rest)

    return Stage("looks", action, {"looks_share": share}, (given.corpus,))


def apart(
    documents: Sequence[Document], share: float, language: str
) -> tuple[list[Document], list[Document]]:
    """About a `share` of the documents, and the rest, by a fixed hash of their group.

    Each side has one at least; a single group is split too. Raises `CorpusError` for one document.
    """
    by_group = len({document.group for document in documents}) > 1
    keys = [document.group if by_group else document.id for document in documents]
    hashes = {key: unit_hash(f"looks/{key}") for key in keys}
    if len(hashes) < 2:
        raise CorpusError(
            f"the training text of '{language}' is a single document, and a part of it must be "
            "kept apart to choose a state on: give more documents"
        )
    count = sum(value < share for value in hashes.values())
    ordered = sorted(hashes, key=hashes.__getitem__)
    chosen = {*ordered[: min(max(1, count), len(hashes) - 1)]}
    sides: tuple[list[Document], list[Document]] = [], []
    for document, key in zip(documents, keys, strict=True):
        sides[key not in chosen].append(document)
    return sides


def rest_of(looks: Stage, languages: Sequence[str], at: FolderOf) -> Text:
    """Training text without what is kept apart, by language."""
    return {code: [at(looks) / f"{code}.rest.jsonl"] for code in languages}


def prompts_stage(given: Sources, looks: Stage, adapt: AdaptStage) -> Stage:
    """Join the prompts that the instruct model answers: tasks, and prompts of its own."""
    languages = [given.recipe.language] if adapt.share("answers") else []
    languages += given.recipe.old_languages if adapt.share("old_answers") else []
    tasks = [tasks_stage(given, looks, languages, adapt)] if adapt.prompt_tasks else []
    written = [own_prompts_stage(given, looks, languages, adapt)] if adapt.own_prompts else []

    def action(output: Path, at: FolderOf) -> None:
        files = [at(stage) / RECORDS for stage in tasks]
        files += [at(stage) / PROMPTS for stage in written]
        records = chain.from_iterable(map(read_records, files))
        with publishing(output) as partial:
            write_records(partial / RECORDS, (record for _, record in records))

    return Stage("adapt-prompts", action, {}, (*tasks, *written))


def shared_out(count: int, languages: Sequence[str], new: str) -> dict[str, int]:
    """The count in the `new` language, and as many in all the others together: in each the same,
    rounded up.

    >>> shared_out(100, ["ru", "en", "de", "fr"], "ru")
    {'ru': 100, 'en': 34, 'de': 34, 'fr': 34}
    """
    others = max(1, sum(code != new for code in languages))
    return {code: count if code == new else math.ceil(count / others) for code in languages}


def tasks_stage(given: Sources, looks: Stage, languages: Sequence[str], adapt: AdaptStage) -> Stage:
    """Make chat tasks from training text; they share nothing with the held-out text."""
    evaluate, count = given.recipe.evaluate, adapt.prompt_tasks
    tasks, seed = list(evaluate.tasks), evaluate.seed + 1
    counts = shared_out(count, languages, given.recipe.language)

    def action(output: Path, at: FolderOf) -> None:
        text, heldout = rest_of(looks, languages, at), given.text("heldout", at)
        try:
            records = records_apart(text, tasks, counts, seed, heldout)
        except CorpusError as error:
            raise CorpusError(f"{error}; evaluate.tasks names the tasks to make") from error
        with publishing(output) as partial:
            write_records(partial / RECORDS, records)

    settings = {"tasks": tasks, "count": count, "seed": seed, "languages": languages}
    return Stage("prompt-tasks", action, settings, (looks,))


def own_prompts_stage(
    given: Sources, looks: Stage, languages: Sequence[str], adapt: AdaptStage
) -> Stage:
    """Let the instruct model write prompts of its own.

    A model that cannot is no fault where there are tasks to answer.
    """
    settings = part(OwnPromptSettings, adapt)
    wanted = shared_out(settings.own_prompts, languages, given.recipe.language)

    def action(output: Path, at: FolderOf) -> None:
        try:
            text, alone = rest_of(looks, languages, at), not adapt.prompt_tasks
            write_prompts(given.instruct, text, output, settings, wanted=wanted, each=alone)
        except CorpusError as error:
            if not adapt.prompt_tasks:
                raise
            with publishing(output) as partial:
                write_records(partial / PROMPTS, [])
                write_json(partial / FAULT, {"fault": str(error)})

    def check(folder: Path) -> list[str]:
        if (folder / FAULT).exists():
            fault = read_json(folder / FAULT)["fault"]
            return [f"warning: {fault}; only tasks made from the text are answered"]
        counts = read_json(folder / PROMPT_COUNTS)
        return OwnPrompts(counts, wanted, final_folder(folder)).warnings

    values = settings.model_dump() | {"languages": languages}
    values["alone"] = not adapt.prompt_tasks
    return Stage("own-prompts", action, values, (looks, given.instruct), check)


def kept_answers_stage(given: Sources, prompts: Source, adapt: AdaptStage) -> Stage:
    """Let the instruct model answer the prompts, and keep the good answers."""
    settings, language = part(AnswerSettings, adapt), given.recipe.language
    unjudged = replace(unjudged_stage(given.instruct, prompts, settings), name="adapt-unjudged")
    answers = answers_stage(given.instruct, prompts, unjudged, settings)
    wanted = language if adapt.share("answers") else None
    return replace(answers, name="adapt-answers", check=lambda folder: warnings(folder, wanted))


def warnings(folder: Path, language: str | None) -> Iterator[str]:
    """What to know about answers before the training.

    Raises `CorpusError` if there are too few to learn from in the `language`, where there is one.
    """
    counts, languages = read_json(folder / COUNTS), read_json(folder / LANGUAGES)
    answers = Answers(counts, languages, folder)
    outcomes = _outcomes(languages, language) if language else counts
    kept, total = outcomes.get("kept", 0), sum(outcomes.values())
    if language and kept < LEAST_ANSWERS:
        dropped = ", ".join(f"{n:,} {why}" for why, n in outcomes.items() if why != "kept")
        raise CorpusError(
            f"{kept:,} of {total:,} {language} questions have an answer to learn from "
            f"({dropped or 'none dropped'}), and {LEAST_ANSWERS} are needed: look at {folder}, "
            "give more or better prompts (adapt.prompts), a model that can answer in "
            f"'{language}', or train without answers (adapt.shares=answers=0,old_answers=0)"
        )
    yield from answers.warnings


def _outcomes(languages: dict[str, dict[str, int]], language: str) -> dict[str, int]:
    """Prompts by outcome that may be in a language: those that name it, and those that name none,
    or one that is not known here, but not those of another known language or script.
    """
    script = SCRIPT_OF.get(language)
    others = {*SCRIPT_OF, *(SCRIPT_OF.values() if script else ())} - {language, script}
    outcomes = Counter[str]()
    for name, counts in languages.items():
        if name not in others:
            outcomes.update(counts)
    return outcomes


def practice_stage(given: Sources, start: Stage, looks: Stage, adapt: AdaptStage) -> Stage:
    """Make tasks that practise each new token, of which the instruct model solves every one."""
    settings: PracticeSettings = part(PracticeSettings, adapt)
    if adapt.tokens is not None:
        most = adapt.practice_for(adapt.tokens)
        settings = settings.model_copy(update={"practice_tokens": most})
    language = given.recipe.language
    old = given.recipe.old_languages if adapt.share("old_answers") else []

    def action(output: Path, at: FolderOf) -> None:
        words, heldout = rest_of(looks, [language], at), given.text("heldout", at)
        texts = {"old": rest_of(looks, old, at), "heldout": heldout}
        practise(given.instruct, at(start), words, output, settings, **texts)

    inputs = (start, looks, given.corpus, given.instruct)
    values = settings.model_dump() | {"language": language, "old": old}
    return Stage("practice", action, values, inputs, practice_warnings)


def practice_warnings(folder: Path) -> Iterator[str]:
    """What to know about practice tasks before the training."""
    facts = read_json(folder / PRACTICE_COUNTS)
    if facts["kept"] < FEW * facts["tasks"]:
        share = f"{facts['kept']:,} of {facts['tasks']:,} practice tasks"
        yield f"warning: the instruct model solves {share}: it may not know the language well"


@dataclass(frozen=True)
class Streams:
    """What joint training learns from: the stages of text, answers and practice tasks."""

    looks: Stage
    answers: Stage | None
    practice: Stage | None


def streams_of(given: Sources, start: Stage) -> Streams:
    """The streams that the recipe has a share of; `start` is a model with the new tokens."""
    adapt = given.recipe.adapt
    assert adapt is not None
    looks = looks_stage(given, adapt.looks_share)
    answers = practice = None
    if adapt.share("answers") or adapt.share("old_answers"):
        prompts = Path(adapt.prompts) if adapt.prompts else prompts_stage(given, looks, adapt)
        answers = kept_answers_stage(given, prompts, adapt)
    if adapt.share("practice"):
        practice = practice_stage(given, start, looks, adapt)
    return Streams(looks, answers, practice)


def adapt_stage(given: Sources, name: str, start: Stage, streams: Streams) -> Stage:
    """Train the new rows of an instruct model on text, answers and practice tasks together."""
    adapt, language = given.recipe.adapt, given.recipe.language
    assert adapt is not None
    old = given.recipe.old_languages if adapt.share("old_text") else []
    looks, answers, practice = streams.looks, streams.answers, streams.practice
    names = set(NewRowsSettings.model_fields)
    values = adapt.model_dump(include=names, exclude_unset=True)

    def action(output: Path, at: FolderOf) -> None:
        looked = {code: [str(at(looks) / f"{code}.looks.jsonl")] for code in languages}
        read = [str(path) for path in all_paths(rest_of(looks, old, at))]
        paths: dict[str, Any] = {"eval_text": looked, "old_text": read}
        paths |= {"answers": str(at(answers))} if answers else {}
        paths |= {"practice_tasks": str(at(practice))} if practice else {}
        settings = NewRowsSettings.model_validate(values | paths | adapt.unhashed())
        pretrain(at(start), rest_of(looks, [language], at)[language], output, settings)

    languages = [language, *given.recipe.old_languages]
    inputs = [stage for stage in (start, looks, answers, practice) if stage]
    settings = adapt.model_dump(include=names) | {"language": language}
    return Stage(name, action, settings, tuple(inputs))
