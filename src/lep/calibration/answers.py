"""Answers of the original instruct model to prompts, judged: what a calibration learns from, and what it leaves out."""

import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lep.calibration.filters import reason_to_drop
from lep.calibration.judge import make_judge
from lep.checkpoint.reader import Checkpoint
from lep.corpus.read import question, read_messages, write_records
from lep.errors import CorpusError
from lep.inference.generate import Answer, Sampling, answers
from lep.inference.models import load_model
from lep.publish import check_output, fingerprint, publishing
from lep.settings import AnswerSettings

ANSWERS, KEPT, COUNTS = "answers.jsonl", "kept.jsonl", "answers.json"
UNJUDGED = "unjudged.jsonl"
JUDGING = {"judge", "least_grade"}  # settings that leave the answers as they are


@dataclass(frozen=True)
class Graded:
    """An answer and what became of it: `dropped` says why it is not used, and is None where it passed."""

    answer: Answer
    sample: int  # 0: the greedy one
    grade: int | None
    dropped: str | None


def write_unjudged(
    original: str | Path, prompts: str | Path, output: Path, settings: AnswerSettings
) -> None:
    """Let `original` answer prompts, and write what `write_answers` judges to the folder `output`.

    Raises `CorpusError` for prompts in another format.
    """
    conversations = _conversations(prompts)
    check_output(output)
    cache = _Cache(_unfinished(output), original, conversations, settings)
    _answered(original, conversations, cache, settings)
    with publishing(output) as partial:
        shutil.copy(cache.place, partial / UNJUDGED)
    cache.place.unlink(missing_ok=True)


def write_answers(
    original: str | Path,
    prompts: str | Path,
    output: Path,
    settings: AnswerSettings,
    unjudged: Path | None = None,
) -> dict[str, int]:
    """Let `original` answer prompts, grade the answers, and write them to the folder `output`.

    Prompts are `messages` records; a final assistant message is ignored. Of several answers to a prompt the one with
    the best grade is kept, the earlier of equals. Answers and grades are kept beside the output while the run is
    unfinished, so that an interrupted one does not ask again; a folder of `write_unjudged` has the answers already.

    `answers.jsonl` holds every answer with its grade and why it was dropped, `kept.jsonl` conversations to learn from.
    Returns what is also written to `answers.json`: prompts by what became of them.

    Raises `CorpusError` when no answer is kept (they stay beside the output, for another judge or a lower bar),
    `LepError` when the judge gives no grades or does not answer.
    """
    conversations, place = _conversations(prompts), _unfinished(output)
    check_output(output)
    if unjudged and not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(unjudged / UNJUDGED, place)
    cache = _Cache(place, original, conversations, settings)
    answered = _answered(original, conversations, cache, settings)
    graded = _graded(conversations, answered, cache, settings)
    records, kept, became = [], [], Counter[str]()
    for index, conversation in enumerate(conversations):
        tried = graded[index :: len(conversations)]  # one sample after the other
        usable = [found for found in tried if found.dropped is None]
        chosen = (
            max(usable, key=lambda found: found.grade or 0) if usable else None
        )  # the first of equals
        became["kept" if chosen else tried[0].dropped or ""] += 1
        for found in tried:
            reason = found.dropped or (None if found is chosen else "a better answer was kept")
            messages = [*conversation, {"role": "assistant", "content": found.answer.text}]
            records.append(
                {
                    "messages": messages,
                    "sample": found.sample,
                    "grade": found.grade,
                    "dropped": reason,
                }
            )
            kept += [{"messages": messages}] if found is chosen else []
    if not kept:
        raise CorpusError(
            f"none of {len(conversations)} prompts got a usable answer ({dict(became)}): check prompts and judge; the "
            f"answers are in {cache.place}"
        )
    with publishing(output) as partial:
        write_records(partial / ANSWERS, records)
        write_records(partial / KEPT, kept)
        (partial / COUNTS).write_text(json.dumps(became, indent=1) + "\n", encoding="utf-8")
    cache.place.unlink(missing_ok=True)
    return dict(became)


def _conversations(prompts: str | Path) -> list[Any]:
    return [question(record["messages"]) for record in read_messages(prompts)]


def _unfinished(output: Path) -> Path:
    return output.with_name(output.name + ".answers.jsonl")


class _Cache:
    """What an unfinished run has got: answers by (sample, prompt), and grades by the same."""

    def __init__(
        self, place: Path, original: str | Path, conversations: list[Any], settings: AnswerSettings
    ) -> None:
        self.place = place
        made = settings.model_dump(exclude=JUDGING | {"samples"})  # more of them leave these valid
        key = fingerprint([Checkpoint(original).stamp(), conversations, made])
        entries = _whole_lines(place)
        if not entries or entries[0].get("key") != key:
            entries = [{"key": key}]
        self.answers = {
            (e["sample"], e["answer"]["index"]): Answer(**e["answer"])
            for e in entries
            if "answer" in e
        }
        self.grades = {
            (e["sample"], e["index"]): e["grade"]
            for e in entries
            if "grade" in e and e["judge"] == settings.judge
        }
        place.parent.mkdir(parents=True, exist_ok=True)
        write_records(place, entries)

    def keep(self, entries: list[dict[str, Any]]) -> None:
        with self.place.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _whole_lines(place: Path) -> list[dict[str, Any]]:
    if not place.exists():
        return []
    whole = place.read_text(encoding="utf-8").rpartition("\n")[
        0
    ]  # a killed run may have left half a line
    return [json.loads(line) for line in whole.split("\n") if line]


def _answered(
    original: str | Path, conversations: list[Any], cache: _Cache, settings: AnswerSettings
) -> list[tuple[int, Answer]]:
    """(sample, answer) for every prompt and sample."""
    wanted = [
        (sample, index) for sample in range(settings.samples) for index in range(len(conversations))
    ]
    if any(key not in cache.answers for key in wanted):
        model, checkpoint = load_model(original)
        for sample in range(settings.samples):
            seed = settings.sample_seed + sample
            sampling = Sampling(settings.temperature, settings.top_p, seed) if sample else None
            for batch in answers(
                model,
                checkpoint.tokenizer,
                conversations,
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.generation_batch,
                sampling=sampling,
                done={index for one, index in cache.answers if one == sample},
            ):
                cache.answers |= {(sample, answer.index): answer for answer in batch}
                cache.keep([{"sample": sample, "answer": asdict(answer)} for answer in batch])
    return [(sample, cache.answers[sample, index]) for sample, index in wanted]


def _graded(
    conversations: list[Any],
    answered: list[tuple[int, Answer]],
    cache: _Cache,
    settings: AnswerSettings,
) -> list[Graded]:
    reasons = [
        reason_to_drop(conversations[answer.index][-1]["content"], answer) for _, answer in answered
    ]
    grades: dict[tuple[int, int], int | None] = {}
    if settings.judge is not None:
        asked = [pair for pair, reason in zip(answered, reasons, strict=True) if reason is None]
        todo = [
            (sample, answer)
            for sample, answer in asked
            if (sample, answer.index) not in cache.grades
        ]
        if todo:
            judged = make_judge(settings.judge).grades(
                [(conversations[answer.index], answer.text) for _, answer in todo], str(cache.place)
            )
            for (sample, answer), grade in zip(todo, judged, strict=True):
                cache.grades[sample, answer.index] = grade
                cache.keep(
                    [
                        {
                            "sample": sample,
                            "index": answer.index,
                            "grade": grade,
                            "judge": settings.judge,
                        }
                    ]
                )
        grades = {
            (sample, answer.index): cache.grades[sample, answer.index] for sample, answer in asked
        }
    found = []
    for (sample, answer), reason in zip(answered, reasons, strict=True):
        grade = grades.get((sample, answer.index))
        if reason is None and settings.judge is not None and grade is None:
            reason = "not graded"
        elif grade is not None and grade < settings.least_grade:
            reason = f"grade below {settings.least_grade}"
        found.append(Graded(answer, sample, grade, reason))
    return found
