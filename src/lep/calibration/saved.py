"""Answers and grades of an unfinished run, in a file beside its output, where each is kept."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from lep.durable import locked, sync
from lep.errors import OutputError
from lep.files import parse_json
from lep.inference.generate import Answer
from lep.publish import created

UNJUDGED = "unjudged.jsonl"
Key = tuple[int, int]  # sample (0 is the greedy one) and prompt


class SavedAnswers:
    """What a run has received so far. Lines are only ever added, so nothing is lost.

    `key` stands for what the answers depend on: the prompts, the model and its settings.
    """

    def __init__(self, output: Path, key: str, judge: str | None) -> None:
        self.output, self.key, self.judge = output, key, judge
        self.path = output.with_name(output.name + ".answers.jsonl")
        self.answers: dict[Key, Answer] = {}
        self.grades: dict[Key, int | None] = {}
        self._file: IO[bytes]

    @contextmanager
    def open(self, unjudged: Path | None = None) -> Iterator[None]:
        """Hold the file; a folder `unjudged` of the same run has more answers.

        The file is deleted when the block ends well, and after an exception if it has no answer.
        Raises `OutputError` while another process holds it, and for answers of another run.
        """
        advice = "give the folder that write_unjudged wrote for these"
        given = [] if unjudged is None else self._entries(unjudged / UNJUDGED, advice)
        with created(self.path.parent), locked(self.path, self.output) as self._file:
            other = f"choose another output than {self.output}, or delete that file"
            saved = self._entries(self.path, f"give those again, {other}")
            self._mend(empty=not saved)
            for entry in (*given, *saved):
                self._add(entry)
            try:
                yield
            except BaseException:
                if not any("answer" in entry for entry in self._entries(self.path, "")):
                    self.path.unlink()
                raise
            self.path.unlink()

    def save(self, entries: Iterable[dict[str, Any]]) -> None:
        """Keep lines on the disk."""
        entries = list(entries)
        append_lines(self._file, entries)
        for entry in entries:
            self._add(entry)

    def save_answers(self, sample: int, answers: Iterable[Answer]) -> None:
        self.save({"sample": sample, "answer": asdict(answer)} for answer in answers)

    def save_grade(self, key: Key, grade: int | None) -> None:
        sample, index = key
        self.save([{"sample": sample, "index": index, "grade": grade, "judge": self.judge}])

    def finish(self, facts: str) -> None:
        """Note that a run, of which `facts` say all, has only its output left to publish."""
        self.save([{"finished": facts}])

    def finished(self, facts: str) -> bool:
        """Whether a run published its output, and was killed before it deleted its file."""
        if not (self.output.is_dir() and any(self.output.iterdir()) and self.path.exists()):
            return False
        return whole_lines(self.path)[-1:] == [{"finished": facts}]

    def _add(self, entry: dict[str, Any]) -> None:
        if "answer" in entry:
            answer = Answer(**entry["answer"])
            self.answers[entry["sample"], answer.index] = answer
        elif "grade" in entry and entry["judge"] == self.judge:
            self.grades[entry["sample"], entry["index"]] = entry["grade"]

    def _entries(self, path: Path, advice: str) -> list[dict[str, Any]]:
        """The answers and grades in a file. Raises `OutputError` where they are of another run."""
        first, *entries = whole_lines(path) or [{}]
        if entries and first != {"key": self.key}:
            answers = sum("answer" in entry for entry in entries)
            raise OutputError(
                f"{path} holds {answers:,} answers, with their grades, to other prompts or of "
                f"another model or other settings: {advice}"
            )
        return entries

    def _mend(self, *, empty: bool) -> None:
        """Cut a line that a kill left half written; the first line of all is the key."""
        if not empty:
            cut_half_line(self._file, self.path)
        else:
            self._file.truncate(0)
            self.save([{"key": self.key}])


def cut_half_line(file: IO[bytes], path: Path) -> None:
    """Cut a line that a kill left half written from the file at `path`, open to append."""
    file.truncate(path.read_bytes().rfind(b"\n") + 1)


def append_lines(file: IO[bytes], entries: Iterable[Any]) -> None:
    """Add records to a file, and keep them on the disk."""
    for entry in entries:
        file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
    sync(file)


def whole_lines(path: Path) -> list[Any]:
    """The records of a file, without the half line that a killed run may have left."""
    lines = path.read_bytes().rpartition(b"\n")[0].split(b"\n")
    return [parse_json(line, str(path)) for line in lines if line]
