"""The original instruct model answers prompts: what calibration learns from, and what it drops."""

import itertools
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lep.calibration.filters import WRONG_LANGUAGE, reason_to_drop
from lep.calibration.judge import Conversation, grades, load_judge
from lep.calibration.saved import UNJUDGED, Key, SavedAnswers
from lep.calibration.surprise import Surprise
from lep.checkpoint.reader import Checkpoint
from lep.corpus.language import SCRIPTS as SCRIPT_OF
from lep.corpus.language import dominant_script
from lep.corpus.read import Record, question, read_messages, write_records
from lep.corpus.trigrams import of_one_script
from lep.errors import CorpusError, note
from lep.files import read_json, write_json
from lep.inference.generate import Sampling, answers
from lep.inference.models import load_writer
from lep.publish import check_output, fingerprint, publishing
from lep.result import Result
from lep.settings import AnswerSettings

ANSWERS, KEPT = "answers.jsonl", "kept.jsonl"
COUNTS, LANGUAGES = "answers.json", "languages.json"
BEATEN = "a better answer was kept"
JUDGING = {"judge", "least_grade"}  # settings that do not change the answers
NO_SCRIPT = "without letters"
MOST_CUT = 0.5  # of the answers to learn from: more deserve a warning
FEW = 0.5  # of the prompts in a language: fewer kept answers deserve a warning
Counts = dict[str, int]  # prompts by outcome


@dataclass(frozen=True)
class AnswerRecord:
    """A line of `answers.jsonl`: a conversation, ending with an answer, and its outcome."""

    messages: Conversation
    sample: int
    grade: int | None
    dropped: str | None  # the reason; None for an answer that is kept
    finished: bool  # False where the length limit cut it off


@dataclass(frozen=True)
class Answers(Result):
    """Prompts by outcome: those whose answer is `kept`, and those without by reason.

    `languages` has the same by language of the question, or by script where no language is named.
    """

    counts: Counts
    languages: dict[str, Counts]
    output: Path

    def __str__(self) -> str:
        lines = [_listed(self.counts)]
        if len(self.languages) > 1:
            lines += [f"{name}: {_listed(counts)}" for name, counts in self.languages.items()]
        return "\n".join([*lines, *self.warnings, f"wrote {self.output}"])

    @property
    def warnings(self) -> list[str]:
        """A line for each language in which most questions have no answer to learn from."""
        return list(filter(None, itertools.starmap(_warning, self.languages.items())))


def _listed(counts: Counts) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())


def _warning(language: str, counts: Counts) -> str | None:
    """What to know where most questions in a language have no answer to learn from."""
    kept, total = counts.get("kept", 0), sum(counts.values())
    if kept >= FEW * total:
        return None
    reasons = {reason: count for reason, count in counts.items() if reason != "kept"}
    return (
        f"warning: {kept:,} of {total:,} {language} questions have an answer to learn from "
        f"(most are dropped as {max(reasons, key=lambda r: reasons[r])}): look at the answers, the "
        "original model may not know the language well enough"
    )


def write_unjudged(
    original: str | Path, prompts: str | Path, output: Path, settings: AnswerSettings
) -> None:
    """Let `original` answer prompts, and write what `answer` judges to the folder `output`.

    Raises `CorpusError` for prompts in another format, `OutputError` where answers to other prompts
    are saved beside the output.
    """
    check_output(output)
    run = _Run(output, original, prompts, settings)
    with run.saved.open():
        run.answer()
        with publishing(output) as partial:
            shutil.copyfile(run.saved.path, partial / UNJUDGED)


def answer(
    original: str | Path,
    prompts: str | Path,
    output: str | Path,
    settings: AnswerSettings | None = None,
    unjudged: str | Path | None = None,
    **options: Any,
) -> Answers:
    """Let `original` answer prompts, grade the answers, and write them to the folder `output`.

    Prompts are `messages` records; a final assistant message is ignored. Of several answers to a
    prompt the best graded one is kept, the first among equals. Answers and grades are saved beside
    the output as they come, so that an interrupted run continues; the folder `unjudged` of
    `write_unjudged` has the answers already.

    `answers.jsonl` holds every answer with its grade and the reason why it was dropped,
    `kept.jsonl` the conversations to learn from, with `finished` false where the length limit
    cut an answer off, which is then learned without an end, `answers.json` the counts that are
    returned, and `languages.json` the same by language of the question, which a prompt's field
    `language` names (otherwise by its script).

    Raises `CorpusError` when no answer is kept (they stay beside the output, for another judge or a
    lower bar), `OutputError` where answers of another run are saved there, `LepError` when the
    judge gives no grades or does not answer.
    """
    output, settings = Path(output), AnswerSettings.given(settings, options)
    run = _Run(output, original, prompts, settings)
    if run.saved.finished(run.facts):
        run.saved.path.unlink()
        return Answers(read_json(output / COUNTS), read_json(output / LANGUAGES), output)
    check_output(output)
    with run.saved.open(Path(unjudged) if unjudged else None):
        run.answer()
        records, counts, languages = run.judged()
        if "kept" not in counts:
            raise CorpusError(
                f"none of {len(run.prompts)} prompts got a usable answer ({counts}): check prompts "
                f"and judge; the answers are in {run.saved.path}"
            )
        run.saved.finish(run.facts)
        with publishing(output) as partial:
            write_records(partial / ANSWERS, map(vars, records))
            kept = [
                {"messages": record.messages, "finished": record.finished}
                for record in records
                if not record.dropped
            ]
            note_cut(kept, settings.max_new_tokens)
            write_records(partial / KEPT, kept)
            write_json(partial / COUNTS, counts, indent=1)
            write_json(partial / LANGUAGES, languages, indent=1)
    return Answers(counts, languages, output)


def note_cut(kept: list[dict[str, Any]], longest: int) -> None:
    """Say so if most answers to learn from were cut off: they do not teach where to end."""
    cut = sum(not record["finished"] for record in kept)
    if cut > MOST_CUT * len(kept):
        note(
            f"{cut:,} of {len(kept):,} answers were cut off at {longest:,} tokens and do not teach "
            "where an answer ends: a larger max_new_tokens lets more of them end"
        )


def _language(record: Record) -> str | None:
    """The language that a prompt's record names; its wording may be in another."""
    language = record.get("language")
    return language if isinstance(language, str) else None


class _Run:
    """The prompts of a run, and what it has been given so far."""

    def __init__(
        self, output: Path, original: str | Path, prompts: str | Path, settings: AnswerSettings
    ) -> None:
        records = read_messages(prompts)
        self.prompts = [question(record["messages"]) for record in records]
        self.languages = [_language(record) for record in records]
        by_language: dict[str, list[str]] = defaultdict(list)
        for language, prompt in zip(self.languages, self.prompts, strict=True):
            if language:
                by_language[language].append(prompt[-1]["content"])
        self.trigrams = of_one_script(by_language)
        self.original, self.settings = original, settings
        self.keys = list(itertools.product(range(settings.samples), range(len(self.prompts))))
        # Answers stay valid when more samples are wanted.
        relevant = settings.model_dump(exclude=JUDGING | {"samples"})
        key = fingerprint([Checkpoint(original).stamp(), self.prompts, relevant])
        self.facts = fingerprint([key, settings.model_dump()])
        self.saved = SavedAnswers(output, key, settings.judge)

    def answer(self) -> None:
        """Let the model give the answers that are missing."""
        done = self.saved.answers
        if all(key in done for key in self.keys):
            return
        settings, (model, checkpoint) = self.settings, load_writer(self.original)
        surprise = Surprise.of(model, checkpoint, self.prompts, settings.generation_batch)
        for sample in range(settings.samples):
            seed = settings.sample_seed + sample
            sampling = Sampling(settings.temperature, settings.top_p, seed)
            for batch in answers(
                model,
                checkpoint.tokenizer,
                self.prompts,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.generation_batch,
                sampling=sampling if sample else None,
                done={index for other, index in done if other == sample},
                leave_out=True,
            ):
                self.saved.save_answers(sample, surprise.measured(batch))

    def judged(self) -> tuple[list[AnswerRecord], Counts, dict[str, Counts]]:
        """A record of every answer, prompt by prompt; the number of prompts by outcome, in all and
        by language of the question.
        """
        texts = [prompt[-1]["content"] for prompt in self.prompts]
        reasons = {key: self._reason(key, texts) for key in self.keys}
        if self.settings.judge is not None:
            usable_keys = [key for key in self.keys if reasons[key] is None]
            self._grade(self.settings.judge, usable_keys)
        records, counts = [], Counter[str]()
        languages: dict[str, Counter[str]] = defaultdict(Counter)
        for index, text in enumerate(texts):
            keys = [(sample, index) for sample in range(self.settings.samples)]
            samples = [self._record(key, reasons[key]) for key in keys]
            usable = [record for record in samples if not record.dropped]
            best = max(usable, key=lambda r: (r.grade or 0, r.finished), default=None)
            outcome = "kept" if best else str(samples[0].dropped)
            counts[outcome] += 1
            languages[self.languages[index] or dominant_script(text) or NO_SCRIPT][outcome] += 1
            for record in samples:
                beaten = record is not best and not record.dropped
                records.append(replace(record, dropped=BEATEN) if beaten else record)
        return records, dict(counts), {code: dict(languages[code]) for code in sorted(languages)}

    def _reason(self, key: Key, texts: list[str]) -> str | None:
        index = key[1]
        answer, language = self.saved.answers[key], self.languages[index] or ""
        reason, known = reason_to_drop(texts[index], answer, SCRIPT_OF.get(language)), self.trigrams
        if reason is None and language in known and known[language].excludes(answer.text, language):
            return WRONG_LANGUAGE
        return reason

    def _grade(self, judge: str, keys: list[Key]) -> None:
        """Let the judge give the grades that are missing."""
        if missing := [key for key in keys if key not in self.saved.grades]:
            pairs = [(self.prompts[key[1]], self.saved.answers[key].text) for key in missing]
            given = grades(load_judge(judge), pairs, str(self.saved.path))
            for key, grade in zip(missing, given, strict=True):
                self.saved.save_grade(key, grade)

    def _record(self, key: Key, reason: str | None) -> AnswerRecord:
        sample, index = key
        grade = self.saved.grades.get(key) if reason is None else None
        if grade is not None and grade < self.settings.least_grade:
            reason = f"grade below {self.settings.least_grade}"
        elif reason is None and grade is None and self.settings.judge is not None:
            reason = "not graded"
        answer = self.saved.answers[key]
        message = {"role": "assistant", "content": answer.text}
        conversation = [*self.prompts[index], message]
        return AnswerRecord(conversation, sample, grade, reason, answer.finished)
