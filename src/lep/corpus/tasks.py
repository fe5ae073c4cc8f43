"""Chat tasks made from plain text, with answers that can be checked exactly.

Evaluation takes held-out text, calibration and tuning take training text.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import regex

from lep.corpus.language import in_language
from lep.corpus.read import Documents, Record
from lep.errors import CorpusError, LepError

SENTENCE_CHARACTERS = (25, 160)
PARAGRAPH_CHARACTERS = (160, 420)
LEAST_WORDS = 4  # of a sentence that is asked about

# Wordings by language, English for all others. Text and words follow a space, as in the answer, so
# both are split into the same tokens.
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

# Before a capital letter, or any letter of a script without capitals; Chinese has no spaces.
_SENTENCE_END = regex.compile(
    r"(?<=[.!?…؟։।॥።፧])[»\")]?\s+(?=[\p{Lu}\p{Lo}«\"—])|(?<=[。！？])[」』”]?\s*(?=[^\s。！？」』”])"
)
_WORD = regex.compile(r"\p{L}[\p{L}\p{M}'’-]*")
_LAST_WORD = regex.compile(r"\s[«\"]?(\p{L}[\p{L}\p{M}'’-]*)[.!?…»\"]+$")
_START = regex.compile(r"[\p{Lu}«\"—]")
_TEXT_ONLY = regex.compile(r"[\p{L}\p{M}\p{N}\s.,!?…:;«»\"'’()—–-]+")


@dataclass(frozen=True)
class TaskItem:
    """One question about a `text`, with its only correct answer."""

    task: str
    language: str
    text: str
    question: str
    answer: str

    def record(self) -> Record:
        """The item in the `messages` format, the answer as the last message."""
        turns = {"user": self.question, "assistant": self.answer}
        messages = [{"role": role, "content": content} for role, content in turns.items()]
        return {"task": self.task, "language": self.language, "messages": messages}


def paragraphs(text: str) -> list[str]:
    """Paragraphs between blank lines, or lines where there are none; white space is collapsed."""
    parts = regex.split(r"\n\s*\n", text)
    if len(parts) == 1:
        parts = text.split("\n")
    return [clean for part in parts if (clean := " ".join(part.split()))]


def sentences(text: str) -> list[str]:
    """Sentences of a text, split between final punctuation and a capital letter.

    >>> sentences("Стой! Кто идёт? Свои.") + sentences("你好吗？我很好。")
    ['Стой!', 'Кто идёт?', 'Свои.', '你好吗？', '我很好。']
    """
    return [s.strip() for paragraph in paragraphs(text) for s in _SENTENCE_END.split(paragraph)]


def usable(text: str, language: str, length: tuple[int, int]) -> bool:
    """Whether a text suits a task: whole, without signs of markup, and in its language."""
    return (
        length[0] <= len(text) <= length[1]
        and _TEXT_ONLY.fullmatch(text) is not None
        and _START.match(text) is not None
        and text[-1] in '.!?…»"'
        and in_language(text, language, share=0.95)
    )


def _copy(text: str, _: random.Random) -> tuple[str, str]:
    return "", text


def _first_word(text: str, _: random.Random) -> tuple[str, str] | None:
    words = _WORD.findall(text)
    return ("", words[0]) if len(words) >= LEAST_WORDS else None


def _last_word(text: str, _: random.Random) -> tuple[str, str] | None:
    last = _LAST_WORD.search(text)  # not a number, a bracket, or a word cut by a sign
    return ("", last[1]) if last and len(_WORD.findall(text)) >= LEAST_WORDS else None


def _word_after(text: str, rng: random.Random) -> tuple[str, str] | None:
    words = _WORD.findall(text)
    unique = [i for i, word in enumerate(words[:-1]) if words.count(word) == 1]
    if len(words) < LEAST_WORDS or not unique:
        return None
    position = rng.choice(unique)
    return words[position], words[position + 1]


# The word that the question names (or ""), and the answer; None if the text does not suit.
TASKS: dict[str, Callable[[str, random.Random], tuple[str, str] | None]] = {
    "copy_sentence": _copy,
    "copy_paragraph": _copy,
    "first_word": _first_word,
    "last_word": _last_word,
    "word_after": _word_after,
}


def make_tasks(
    documents: Documents,
    language: str,
    tasks: Sequence[str],
    *,
    count: int,
    seed: int,
    enough: int | None = None,
) -> list[TaskItem]:
    """Make at most `count` different items of each task from sentences and paragraphs.

    With `enough`, reading stops at that number of usable sentences and of paragraphs.

    Raises `CorpusError` if the text yields no item of some task, `LepError` for an unknown task.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise LepError(f"unknown task '{unknown[0]}': the tasks are {', '.join(TASKS)}")
    pools = _pools(documents, language, enough)
    items: list[TaskItem] = []
    for task in tasks:
        pool = pools["paragraph" if task == "copy_paragraph" else "sentence"]
        rng = random.Random(f"{seed}/{language}/{task}")
        shuffled = rng.sample(pool, len(pool))
        new = list(islice(_items(task, language, shuffled, rng), count))
        if not new:
            raise CorpusError(
                f"the {language} text gives no {task} item ({len(pool)} usable pieces): give more "
                f"text, or check that it is in the language '{language}'"
            )
        items += new
    return items


def _pools(documents: Documents, language: str, enough: int | None) -> dict[str, list[str]]:
    """The different usable sentences and paragraphs of the documents."""
    pools: dict[str, list[str]] = {"sentence": [], "paragraph": []}
    for document in documents:
        for name, split, length in (
            ("sentence", sentences, SENTENCE_CHARACTERS),
            ("paragraph", paragraphs, PARAGRAPH_CHARACTERS),
        ):
            pools[name] += [t for t in split(document.text) if usable(t, language, length)]
        if enough is not None and min(map(len, pools.values())) >= enough:
            break
    return {name: list(dict.fromkeys(texts)) for name, texts in pools.items()}


def _items(task: str, language: str, texts: list[str], rng: random.Random) -> Iterator[TaskItem]:
    wording = PROMPTS.get(language, PROMPTS["en"])[task]
    for text in texts:
        if pair := TASKS[task](text, rng):
            question = wording.format(text=text, word=pair[0])
            yield TaskItem(task, language, text, question, answer=pair[1])
