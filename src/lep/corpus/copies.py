"""Tasks to train on that contain no text of the evaluation."""

from collections.abc import Iterator, Mapping, Sequence

import regex

from lep.corpus.files import Paths, Text, all_paths, several
from lep.corpus.read import Record, read_documents
from lep.corpus.tasks import make_tasks, paragraphs, sentences
from lep.errors import CorpusError

OVERLAP_WORDS = 8  # in a shared run that is an overlap; shorter sentences overlap whole
MOST_OVERLAPPING = 0.1  # of the tasks: chance repeats few sentences; more means the same text
SPARE = 4  # pieces of text read for each task

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")


def copy_records(text: Text, count: int, seed: int, evaluation: Text | None = None) -> list[Record]:
    """At most `count` copy tasks a language (rounded up to even), half sentences, half paragraphs.

    See `records_apart`.
    """
    tasks = ["copy_sentence", "copy_paragraph"]
    return records_apart(text, tasks, (count + 1) // 2, seed, evaluation)


def records_apart(
    text: Text,
    tasks: Sequence[str],
    count: int | Mapping[str, int],
    seed: int,
    evaluation: Text | None = None,
) -> list[Record]:
    """At most `count` items of each task and language (or by language) as `messages` records.

    Items that share a run of eight words with the `evaluation` text of any language are left out.
    Raises `CorpusError` if these are more than a tenth: then it is the same text.
    """
    evaluated = evaluated_runs(all_paths(evaluation or {}))
    records: list[Record] = []
    for language, paths in text.items():
        size = count if isinstance(count, int) else count[language]
        if not size:
            continue
        documents = read_documents(paths)
        items = make_tasks(documents, language, tasks, count=size, seed=seed, enough=SPARE * size)
        shared = [item for item in items if not evaluated.isdisjoint(runs_of(item.text))]
        if len(shared) > MOST_OVERLAPPING * len(items):
            raise CorpusError(
                f"{len(shared):,} of {len(items):,} tasks ({language}) are made of text that is "
                f"evaluated on (the first: {shared[0].text[:60]!r}): make them from other text"
            )
        apart = set(items) - set(shared)
        records += [item.record() for item in items if item in apart]
    return records


def evaluated_runs(paths: Paths) -> set[int]:
    """The hashes of all runs of words in the evaluation text."""
    paths, runs = several(paths), set[int]()
    for document in read_documents(paths) if paths else ():
        texts = (document.text, *sentences(document.text), *paragraphs(document.text))
        runs.update(*map(runs_of, texts))
    return runs


def runs_of(text: str) -> Iterator[int]:
    """Hashes of the runs of eight words, or of all words of a shorter text.

    >>> len(list(runs_of("One, two; three - four. FIVE six seven eight nine")))
    2
    """
    words = [word.casefold() for word in _WORD.findall(text)]
    length = min(OVERLAP_WORDS, len(words))
    for start in range(len(words) - length + 1):
        yield hash(tuple(words[start : start + length]))
