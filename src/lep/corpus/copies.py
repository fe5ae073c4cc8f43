"""Tasks to train on, none of which holds text that is evaluated on."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import regex

from lep.corpus.read import read_documents
from lep.corpus.tasks import make_tasks, sentences
from lep.errors import CorpusError

OVERLAP_WORDS = (
    8  # a run of so many words that both have is an overlap; shorter sentences overlap as a whole
)
MOST_OVERLAPPING = (
    0.1  # of the tasks; chance repeats a sentence here and there, more is the same text
)
SPARE = 4  # times as many pieces of text are read as are asked for

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
Runs = set[int]


def copy_records(
    text: dict[str, list[str | Path]],
    count: int,
    seed: int,
    evaluation: dict[str, list[str | Path]] | None = None,
) -> list[dict[str, Any]]:
    """`count` copy tasks a language at most, rounded up to an even number: half sentences, half paragraphs; as records.

    None of them shares text with `evaluation`; see `records_apart`.
    """
    return records_apart(
        text, ["copy_sentence", "copy_paragraph"], (count + 1) // 2, seed, evaluation
    )


def records_apart(
    text: dict[str, list[str | Path]],
    tasks: Sequence[str],
    count: int,
    seed: int,
    evaluation: dict[str, list[str | Path]] | None = None,
) -> list[dict[str, Any]]:
    """At most `count` items of each task and language as `messages` records, none of which is evaluated on.

    Items whose text shares a run of eight words with the `evaluation` text of any language are left out. Raises
    `CorpusError` when those are more than a tenth: then it is the same text.
    """
    seen = evaluated_runs([path for paths in (evaluation or {}).values() for path in paths])
    records: list[dict[str, Any]] = []
    for language, paths in text.items() if count else ():
        items = make_tasks(
            read_documents(paths), language, tasks, count=count, seed=seed, enough=SPARE * count
        )
        shared = [item for item in items if not seen.isdisjoint(runs_of(item.text))]
        if len(shared) > MOST_OVERLAPPING * len(items):
            raise CorpusError(
                f"{len(shared):,} of {len(items):,} tasks ({language}) are made of text that is evaluated on (the "
                f"first: {shared[0].text[:60]!r}): make them of other text than that of the evaluation"
            )
        records += [item.record() for item in items if item not in shared]
    return records


def evaluated_runs(paths: Iterable[str | Path]) -> Runs:
    """The hashes of all runs of words in a text that is evaluated on."""
    found: Runs = set()
    paths = list(paths)
    for document in read_documents(paths) if paths else ():
        found.update(runs_of(document.text))
        for sentence in sentences(document.text):
            found.update(runs_of(sentence))
    return found


def runs_of(text: str) -> Iterator[int]:
    """Hashes of the runs of eight words; of a shorter text, of all its words together.

    >>> len(list(runs_of("One, two; three - four. FIVE six seven eight nine"))), len(list(runs_of("One two")))
    (2, 1)
    """
    words = [word.casefold() for word in _WORD.findall(text)]
    length = min(OVERLAP_WORDS, len(words))
    for start in range(len(words) - length + 1):
        yield hash(tuple(words[start : start + length]))
