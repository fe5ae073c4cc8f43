"""Chat tasks made from plain text whose answers can be checked exactly: copying, first word, last word ...

The same makers serve evaluation (held-out text), calibration copy tasks and tuning data (training text).
"""

import difflib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from lep.corpus.language import in_language
from lep.corpus.read import Document
from lep.errors import CorpusError, LepError

SENTENCE_CHARACTERS = (25, 160)
PARAGRAPH_CHARACTERS = (160, 420)

# Wordings by language; a language without its own is asked in English. Text and words stand after a space, as their
# copies do in the answer: so they are cut into the same tokens.
PROMPTS = {
    "en": {
        "copy_sentence": "Repeat this sentence: {text}",
        "copy_paragraph": "Repeat this paragraph: {text}",
        "first_word": "What is the first word of this sentence? {text}",
        "last_word": "What is the last word of this sentence? {text}",
        "word_after": "Which word comes after {word} in this sentence? {text}",
    },
    "ru": {
        "copy_sentence": "Повтори это предложение: {text}",
        "copy_paragraph": "Повтори этот абзац: {text}",
        "first_word": "Какое слово в этом предложении первое? {text}",
        "last_word": "Какое слово в этом предложении последнее? {text}",
        "word_after": "Какое слово в этом предложении идёт после {word}? {text}",
    },
}

_SENTENCE_END = regex.compile(r"(?<=[.!?…])[»\")]?\s+(?=[\p{Lu}«\"—])")
_WORD = regex.compile(r"\p{L}[\p{L}\p{M}'’-]*")
_LAST_WORD = regex.compile(r"\s[«\"]?(\p{L}[\p{L}\p{M}'’-]*)[.!?…»\"]+$")
_TEXT_ONLY = regex.compile(r"[\p{L}\p{M}\p{N}\s.,!?…:;«»\"'’()—–-]+")


@dataclass(frozen=True)
class TaskItem:
    """One question about a `text`, with its only right answer."""

    task: str
    language: str
    text: str
    question: str
    answer: str

    def record(self) -> dict[str, Any]:
        """The item in the `messages` format, the answer as the last message."""
        messages = [
            {"role": "user", "content": self.question},
            {"role": "assistant", "content": self.answer},
        ]
        return {"task": self.task, "language": self.language, "messages": messages}


def paragraphs(text: str) -> list[str]:
    """Paragraphs with white space collapsed; blank lines separate them, or line ends when there are none."""
    parts = regex.split(r"\n\s*\n", text)
    if len(parts) == 1:
        parts = text.split("\n")
    return [clean for part in parts if (clean := " ".join(part.split()))]


def sentences(text: str) -> list[str]:
    """Sentences of a text, split after final punctuation before a capital letter."""
    return [s.strip() for paragraph in paragraphs(text) for s in _SENTENCE_END.split(paragraph)]


def _usable(text: str, language: str, length: tuple[int, int]) -> bool:
    return (
        length[0] <= len(text) <= length[1]
        and _TEXT_ONLY.fullmatch(text) is not None
        and regex.match(r"[\p{Lu}«\"—]", text) is not None
        and text[-1] in '.!?…»"'
        and in_language(text, language, share=0.95)
    )


def _copy(text: str, _: random.Random) -> tuple[dict[str, str], str]:
    return {}, text


def _first_word(text: str, _: random.Random) -> tuple[dict[str, str], str] | None:
    words = _WORD.findall(text)
    return ({}, words[0]) if len(words) >= 4 else None


def _last_word(text: str, _: random.Random) -> tuple[dict[str, str], str] | None:
    words = _WORD.findall(text)
    at_the_end = _LAST_WORD.search(text)  # not a number, a bracket, or a word cut by a sign
    return ({}, at_the_end[1]) if len(words) >= 4 and at_the_end else None


def _word_after(text: str, rng: random.Random) -> tuple[dict[str, str], str] | None:
    words = _WORD.findall(text)
    unique = [i for i in range(len(words) - 1) if words.count(words[i]) == 1]
    if len(words) < 4 or not unique:
        return None
    position = rng.choice(unique)
    return {"word": words[position]}, words[position + 1]


Maker = Callable[[str, random.Random], tuple[dict[str, str], str] | None]
TASKS: dict[str, Maker] = {
    "copy_sentence": _copy,
    "copy_paragraph": _copy,
    "first_word": _first_word,
    "last_word": _last_word,
    "word_after": _word_after,
}


def check_tasks(names: Iterable[str]) -> None:
    """Raise `LepError` for a task name that does not exist, with the names that do."""
    for name in names:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"the tasks are {', '.join(TASKS)}"
            raise LepError(f"unknown task '{name}': {advice}")


def make_tasks(
    documents: Iterable[Document],
    language: str,
    tasks: Sequence[str],
    *,
    count: int,
    seed: int,
    enough: int | None = None,
) -> list[TaskItem]:
    """Make at most `count` different items of each task from the sentences and paragraphs of the documents.

    With `enough`, documents are read until there are so many usable sentences and paragraphs.

    Raises `CorpusError` when the text yields no item of some task, `LepError` for an unknown task.
    """
    check_tasks(tasks)
    found: dict[str, list[str]] = {"sentence": [], "paragraph": []}
    for document in documents:
        found["sentence"] += [
            s for s in sentences(document.text) if _usable(s, language, SENTENCE_CHARACTERS)
        ]
        found["paragraph"] += [
            p for p in paragraphs(document.text) if _usable(p, language, PARAGRAPH_CHARACTERS)
        ]
        if enough is not None and min(map(len, found.values())) >= enough:
            break
    pools = {kind: list(dict.fromkeys(texts)) for kind, texts in found.items()}
    items: list[TaskItem] = []
    for task in tasks:
        rng = random.Random(f"{seed}/{language}/{task}")
        pool = pools["paragraph" if task == "copy_paragraph" else "sentence"]
        made = _make(task, language, rng.sample(pool, len(pool)), rng, count)
        if not made:
            raise CorpusError(
                f"the {language} text gives no {task} item ({len(pool)} usable pieces): give more text, or check "
                f"that it is in the language '{language}'"
            )
        items += made
    return items


def _make(
    task: str, language: str, texts: list[str], rng: random.Random, count: int
) -> list[TaskItem]:
    wording = PROMPTS.get(language, PROMPTS["en"])[task]
    items: list[TaskItem] = []
    for text in texts:
        if len(items) == count:
            break
        if (made := TASKS[task](text, rng)) is not None:
            fields, answer = made
            items.append(
                TaskItem(task, language, text, wording.format(text=text, **fields), answer)
            )
    return items
