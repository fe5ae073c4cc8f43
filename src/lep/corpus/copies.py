"""Copy tasks to train on, none of which holds text that is evaluated on."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import regex

from lep.corpus.read import read_documents
from lep.corpus.tasks import make_tasks, sentences
from lep.errors import CorpusError

OVERLAP_WORDS = 8  # a run of so many words that both have is an overlap; shorter sentences overlap as a whole
MOST_OVERLAPPING = 0.1  # of the tasks; chance repeats a sentence here and there, more is the same text
SPARE = 4  # times as many pieces of text are read as are asked for

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
Runs = set[int]


def copy_records(
    text: dict[str, list[str | Path]], count: int, seed: int, evaluation: dict[str, list[str | Path]] | None = None
) -> list[dict[str, Any]]:
    """At most `count` copy tasks a language, half sentences and half paragraphs, as `messages` records.

    Tasks that share a run of eight words with the `evaluation` text are left out. Raises `CorpusError` when those are
    more than a tenth: then it is the same text.
    """
    records: list[dict[str, Any]] = []
    for language, paths in text.items() if count else ():
        items = make_tasks(
            read_documents(paths), language, ["copy_sentence", "copy_paragraph"], count=(count + 1) // 2, seed=seed,
            enough=SPARE * count,
        )  # fmt: skip
        seen = evaluated_runs((evaluation or {}).get(language, []))
        apart = [item for item in items if seen.isdisjoint(runs_of(item.answer))]
        shared = len(items) - len(apart)
        if shared > MOST_OVERLAPPING * len(items):
            first = next(item.answer for item in items if not seen.isdisjoint(runs_of(item.answer)))
            raise CorpusError(
                f"{shared:,} of {len(items):,} copy tasks ({language}) are text that is evaluated on (the first: "
                f"{first[:60]!r}): make them from other text than {', '.join(map(str, (evaluation or {})[language]))}"
            )
        records += [item.record() for item in apart]
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
