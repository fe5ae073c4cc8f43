"""Practice tasks: copying and finding words, so that each new token is often the expected one.

The words are drawn from the user's text, and make no sense together: what counts is that each new
token comes equally often, in the question and in the answer. A task is kept where its right answer
is the one that the original model gives.
"""

import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

from lep.calibration.drawing import WORDS, Drawing, Words
from lep.calibration.saved import append_lines, cut_half_line, whole_lines
from lep.checkpoint.reader import Checkpoint
from lep.corpus.copies import evaluated_runs, records_apart
from lep.corpus.files import Text, all_paths, corpus_files, file_stamps, several
from lep.corpus.read import Record, stream_texts, write_records
from lep.corpus.tasks import TASKS, TaskItem
from lep.errors import CheckpointError, CorpusError
from lep.files import write_json
from lep.inference.generate import end_tokens
from lep.inference.likelihood import greedy_matches
from lep.inference.models import load_writer
from lep.progress import Meter
from lep.publish import check_output, fingerprint, publishing
from lep.result import Result
from lep.settings import PracticeSettings
from lep.tokenizer.chat import chat_ids
from lep.training.streams import ANSWER_FILE
from lep.transfer.mappings import saved_mappings

COUNTS, VERDICTS = "practice.json", "verdicts.jsonl"
SAVED = "checkpoint-verdicts"  # whose name says that it is of use
TASKS_AT_ONCE = 64  # drawn between two looks at the limits, and at what the original can do
LEAST_KEPT, LEAST_DRAWN = 0.01, 512  # of more tasks than that: with fewer kept, drawing ends
OLD_TASKS = 0.5  # for each task in the new language
FEW = 0.5  # of the tasks: fewer right answers deserve a warning


@dataclass(frozen=True)
class Practice(Result):
    """Practice tasks: how many the original answered right, and how often tokens are practised."""

    tasks: int
    kept: int
    tokens: int  # of the tasks kept, questions included
    new_tokens: int
    below: int  # new tokens in fewer answers than wanted
    unreachable: int  # new tokens in no word of the text
    practice: int  # answers that each new token should be in
    old_tasks: int  # in old languages
    output: Path

    def __str__(self) -> str:
        lines = [
            f"the original answers {self.kept:,} of {self.tasks:,} tasks right; {self.tokens:,} "
            "tokens to practise",
            f"{self.new_tokens - self.below:,} of {self.new_tokens:,} new tokens are in at least "
            f"{self.practice} answers ({self.unreachable:,} are in no word of the text)",
        ]
        if self.old_tasks:
            lines.append(f"{self.old_tasks:,} tasks in old languages")
        if self.kept < FEW * self.tasks:
            lines.append(
                "warning: the original model answers few such tasks right in this language"
            )
        return "\n".join([*lines, f"wrote {self.output}"])


def practise(
    original: str | Path,
    model: str | Path,
    text: Text,
    output: str | Path,
    settings: PracticeSettings | None = None,
    *,
    old: Text | None = None,
    heldout: Text | None = None,
    **options: Any,
) -> Practice:
    """Make practice tasks for the new tokens of `model`, and write them to the folder `output`.

    `text` has the files of one language, from which words and sentences are drawn; no sentence
    shares a run of eight words with `heldout` text. `original` is given each task
    with its right answer, in its own tokens, and the task is kept where each token of the answer is
    its greedy choice, the end of the turn included. Half as many tasks are added from sentences of
    `old` text, by language: no original is needed there, for a model whose known rows are frozen
    learns from them only to leave new tokens out. `kept.jsonl` holds the tasks as `messages`,
    `practice.json` the counts that are returned. An interrupted run continues.

    Raises `CheckpointError` for a model whose new tokens are not known, `CorpusError` for text
    without their words, and when no task is kept.
    """
    output, settings = Path(output), PracticeSettings.given(settings, options)
    if len(text) != 1:
        raise CorpusError(
            f"practice is in the new language alone, and text has {', '.join(text) or 'none'}: "
            "give --text LANGUAGE=PATH once"
        )
    ((language, paths),) = text.items()
    check_output(output)
    checkpoint, teacher = Checkpoint(model).check(), Checkpoint(original).check()
    mappings = saved_mappings(checkpoint, appended=True)
    new = set(mappings["input"].new_rows().tolist()) if mappings else set()
    if not new:
        raise CheckpointError(
            f"{model} does not say which of its tokens are new: initialise it with lep init"
        )
    files = corpus_files([*several(paths), *all_paths(heldout or {})])
    files += corpus_files(all_paths(old)) if old else []
    stamps = [checkpoint.stamp(), teacher.stamp(), file_stamps(files), sorted(old or {})]
    key = fingerprint([*stamps, language, settings.model_dump()])
    _old_tasks(old or {}, 1, settings.practice_seed, None)  # faults of the text show before work
    with publishing(output, resume_key=key) as folder:
        runs = evaluated_runs(all_paths(heldout or {}))
        words = Words.count(checkpoint, language, stream_texts(paths), new, runs)
        if not words.of_token:
            raise CorpusError(
                f"none of the {len(new):,} new tokens of {model} is in a word of the {language} "
                "text: give the text that they were learned on"
            )
        run = _Run(checkpoint, original, Drawing(words, language, settings.practice_seed), settings)
        (folder / SAVED).mkdir(exist_ok=True)
        records, counts, drawn = run.kept(folder / SAVED / VERDICTS)
        if not records:
            shutil.rmtree(folder / SAVED)  # nothing in there is worth another run
            raise CorpusError(
                f"the original model gave the right answer to none of {drawn:,} practice tasks "
                f"({language}): it cannot copy in this language, and practice teaches nothing new; "
                "train without it (in a recipe adapt.shares=practice=0)"
            )
        others = _old_tasks(old or {}, len(records), settings.practice_seed, heldout)
        result = Practice(
            tasks=drawn,
            kept=len(records),
            tokens=run.tokens,
            new_tokens=len(new),
            below=sum(counts[index] < settings.practice for index in new),
            unreachable=len(new) - len(words.of_token),
            practice=settings.practice,
            old_tasks=len(others),
            output=output,
        )
        write_records(folder / ANSWER_FILE, records + others)
        facts = asdict(result)
        del facts["output"]
        write_json(folder / COUNTS, facts | {"settings": settings.model_dump()}, indent=1)
        shutil.rmtree(folder / SAVED)
    return result


def _old_tasks(text: Text, new_tasks: int, seed: int, heldout: Text | None) -> list[Record]:
    """Tasks on sentences of old text, `OLD_TASKS` for each of the new language."""
    tasks = [task for task in TASKS if task not in WORDS]
    count = ceil(OLD_TASKS * new_tasks / (len(tasks) * max(1, len(text))))
    return records_apart(text, tasks, count, seed, heldout)


class _Run:
    """Draws tasks until there are enough, and lets the original model judge them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        original: str | Path,
        drawing: Drawing,
        settings: PracticeSettings,
    ) -> None:
        self.checkpoint, self.drawing, self.settings = checkpoint, drawing, settings
        self.original = original
        self.loaded: tuple[Any, Checkpoint] | None = None
        self.tokens = 0

    def kept(self, saved: Path) -> tuple[list[Record], Counter[int], int]:
        """The tasks kept, how often each new token is in their answers, and how many were drawn."""
        records: list[Record] = []
        counts: Counter[int] = Counter()
        tasks, drawn = iter(self.drawing), 0
        reachable, most = self.drawing.words.of_token, self.settings.practice
        meter = Meter("tokens of practice tasks", self.settings.practice_tokens)
        with saved.open("ab") as file:
            cut_half_line(file, saved)
            verdicts = whole_lines(saved)
            while True:
                items = list(islice(tasks, TASKS_AT_ONCE))
                if not verdicts:
                    verdicts = [self._right(items)]
                    append_lines(file, verdicts)
                right = verdicts.pop(0)
                drawn += len(items)
                self.drawing.learn(items, right)
                for item, is_right in zip(items, right, strict=True):
                    if is_right and not self._enough(0):
                        record = item.record()
                        records.append(record)
                        self._count(record, counts)
                least = min(counts[index] for index in reachable)
                hopeless = drawn > LEAST_DRAWN and len(records) < LEAST_KEPT * drawn
                meter.reach(self.tokens)
                if self._enough(least) or hopeless or self.drawing.least() >= 2 * most:
                    meter.close()
                    return records, counts, drawn

    def _enough(self, least: int) -> bool:
        most = self.settings.practice_tokens
        return least >= self.settings.practice or (most is not None and self.tokens >= most)

    def _count(self, record: Record, counts: Counter[int]) -> None:
        question = chat_ids(self.checkpoint.tokenizer, record["messages"][:-1], ask=True)
        ids = chat_ids(self.checkpoint.tokenizer, record["messages"])
        self.tokens += len(ids)
        counts.update(set(ids[len(question) :]))

    def _right(self, items: list[TaskItem]) -> list[int]:
        """1 for each task whose right answer is the original's, else 0."""
        model, teacher = self.loaded or load_writer(self.original)
        self.loaded = (model, teacher)
        ends = end_tokens(model)
        sequences = []
        for item in items:
            messages = item.record()["messages"]
            start = len(chat_ids(teacher.tokenizer, messages[:-1], ask=True))
            ids = chat_ids(teacher.tokenizer, messages)
            stop = next((i for i in range(start, len(ids)) if ids[i] in ends), len(ids) - 1)
            sequences.append((ids[: stop + 1], start))
        size = self.settings.practice_batch
        return [int(right) for right in greedy_matches(model, sequences, size)]
