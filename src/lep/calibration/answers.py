"""The original instruct model answers prompts: what calibration learns from, and what it drops."""

import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from lep.calibration.filters import reason_to_drop
from lep.calibration.judge import Conversation, grades, load_judge
from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import question, read_messages, write_records
from lep.errors import CorpusError
from lep.files import write_json
from lep.inference.generate import Answer, Sampling, answers
from lep.inference.models import load_model
from lep.publish import check_output, fingerprint, publishing
from lep.result import Result
from lep.settings import AnswerSettings

ANSWERS, KEPT, COUNTS = "answers.jsonl", "kept.jsonl", "answers.json"
UNJUDGED = "unjudged.jsonl"
BEATEN = "a better answer was kept"
JUDGING = {"judge", "least_grade"}  # settings that do not change the answers
Key = tuple[int, int]  # sample (0 is the greedy one) and prompt


@dataclass(frozen=True)
class AnswerRecord:
    """A line of `answers.jsonl`: a conversation, ending with an answer, and its outcome."""

    messages: Conversation
    sample: int
    grade: int | None
    dropped: str | None  # the reason; None for an answer that is kept


@dataclass(frozen=True)
class Answers(Result):
    """Prompts by outcome: those whose answer is `kept`, and those without by reason."""

    counts: dict[str, int]
    output: Path

    def __str__(self) -> str:
        counts = ", ".join(f"{name}: {count:,}" for name, count in self.counts.items())
        return f"{counts}\nwrote {self.output}"


def write_unjudged(
    original: str | Path, prompts: str | Path, output: Path, settings: AnswerSettings
) -> None:
    """Let `original` answer prompts, and write what `answer` judges to the folder `output`.

    Raises `CorpusError` for prompts in another format.
    """
    check_output(output)
    run = _Run(output, original, prompts, settings)
    run.answer()
    with publishing(output) as partial:
        shutil.copy(run.path, partial / UNJUDGED)
    run.path.unlink()


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
    `kept.jsonl` the conversations to learn from, `answers.json` the counts that are returned.

    Raises `CorpusError` when no answer is kept (they stay beside the output, for another judge or a
    lower bar), `LepError` when the judge gives no grades or does not answer.
    """
    output, settings = Path(output), AnswerSettings.given(settings, options)
    check_output(output)
    run = _Run(output, original, prompts, settings, unjudged)
    run.answer()
    records, counts = run.judged()
    if "kept" not in counts:
        raise CorpusError(
            f"none of {len(run.prompts)} prompts got a usable answer ({counts}): check prompts and "
            f"judge; the answers are in {run.path}"
        )
    with publishing(output) as partial:
        write_records(partial / ANSWERS, map(vars, records))
        kept = [{"messages": record.messages} for record in records if not record.dropped]
        write_records(partial / KEPT, kept)
        write_json(partial / COUNTS, counts, indent=1)
    run.path.unlink()
    return Answers(counts, output)


class _Run:
    """The answers and grades of an unfinished run, saved beside its output as they come."""

    def __init__(
        self,
        output: Path,
        original: str | Path,
        prompts: str | Path,
        settings: AnswerSettings,
        unjudged: str | Path | None = None,
    ) -> None:
        self.prompts = [question(record["messages"]) for record in read_messages(prompts)]
        self.original, self.settings = original, settings
        self.keys = list(product(range(settings.samples), range(len(self.prompts))))
        self.path = output.with_name(output.name + ".answers.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if unjudged and not self.path.exists():
            shutil.copy(Path(unjudged) / UNJUDGED, self.path)
        # Answers stay valid when more samples are wanted.
        relevant = settings.model_dump(exclude=JUDGING | {"samples"})
        key = fingerprint([Checkpoint(original).stamp(), self.prompts, relevant])
        entries = _whole_lines(self.path)
        if entries[:1] != [{"key": key}]:
            entries = [{"key": key}]
        self.answers: dict[Key, Answer] = {}
        self.grades: dict[Key, int | None] = {}
        for entry in entries[1:]:
            if "answer" in entry:
                answer = Answer(**entry["answer"])
                self.answers[entry["sample"], answer.index] = answer
            elif entry["judge"] == settings.judge:
                self.grades[entry["sample"], entry["index"]] = entry["grade"]
        write_records(self.path, entries)

    def answer(self) -> None:
        """Let the model give the answers that are missing."""
        if all(key in self.answers for key in self.keys):
            return
        settings, (model, checkpoint) = self.settings, load_model(self.original)
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
                done={index for other, index in self.answers if other == sample},
            ):
                self.answers |= {(sample, answer.index): answer for answer in batch}
                self._save([{"sample": sample, "answer": asdict(answer)} for answer in batch])

    def judged(self) -> tuple[list[AnswerRecord], dict[str, int]]:
        """A record of every answer, prompt by prompt, and the number of prompts by outcome."""
        texts = [prompt[-1]["content"] for prompt in self.prompts]
        reasons = {key: reason_to_drop(texts[key[1]], self.answers[key]) for key in self.keys}
        if self.settings.judge is not None:
            usable_keys = [key for key in self.keys if reasons[key] is None]
            self._grade(self.settings.judge, usable_keys)
        records, counts = [], Counter[str]()
        for index in range(len(self.prompts)):
            keys = [(sample, index) for sample in range(self.settings.samples)]
            samples = [self._record(key, reasons[key]) for key in keys]
            usable = [record for record in samples if not record.dropped]
            best = max(usable, key=lambda record: record.grade or 0, default=None)
            counts["kept" if best else str(samples[0].dropped)] += 1
            for record in samples:
                beaten = record is not best and not record.dropped
                records.append(replace(record, dropped=BEATEN) if beaten else record)
        return records, dict(counts)

    def _grade(self, judge: str, keys: list[Key]) -> None:
        """Let the judge give the grades that are missing."""
        if missing := [key for key in keys if key not in self.grades]:
            pairs = [(self.prompts[key[1]], self.answers[key].text) for key in missing]
            given = grades(load_judge(judge), pairs, str(self.path))
            for (sample, index), grade in zip(missing, given, strict=True):
                self.grades[sample, index] = grade
                self._save([{"sample": sample, "index": index, "grade": grade, "judge": judge}])

    def _record(self, key: Key, reason: str | None) -> AnswerRecord:
        sample, index = key
        grade = self.grades.get(key) if reason is None else None
        if grade is not None and grade < self.settings.least_grade:
            reason = f"grade below {self.settings.least_grade}"
        elif reason is None and grade is None and self.settings.judge is not None:
            reason = "not graded"
        answer = {"role": "assistant", "content": self.answers[key].text}
        return AnswerRecord([*self.prompts[index], answer], sample, grade, reason)

    def _save(self, entries: list[dict[str, Any]]) -> None:
        with self.path.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, without the half line that a killed run may have left."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").rpartition("\n")[0].split("\n")
    return [json.loads(line) for line in lines if line]
