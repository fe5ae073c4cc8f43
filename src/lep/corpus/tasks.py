"""Chat tasks made from plain text, with answers that can be checked exactly.

Evaluation takes held-out text, calibration and tuning take training text.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import regex

from lep.corpus.language import columns, in_language, is_unspaced
from lep.corpus.read import Documents, Record
from lep.errors import CorpusError, LepError

SENTENCE_CHARACTERS = (25, 160)  # the wide ones of East Asia count twice
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

# Sets of characters. Georgian letters have capitals that nobody writes; Thai and Lao have spaces
# between sentences and no marks.
_INITIAL = r"\p{Lu}\p{Lo}\p{Georgian}"
_STOP, _WIDE_STOP, _NO_STOP = ".!?…؟۔։।॥።፧។៕။།", "。！？", r"\p{Thai}\p{Lao}"
_COMMAS = "،؛՞՜՝፣፤፥၊་、，；：・「」『』（）《》\u200c\u200d"  # and joiners, of Persian and of India
# Before a capital letter, or any letter of a script without capitals; Chinese has no spaces.
_SENTENCE_END = regex.compile(
    rf"(?<=[{_STOP}])[»\")]?\s+(?=[{_INITIAL}«\"—¿¡])"
    rf"|(?<=[{_WIDE_STOP}])[」』”]?\s*(?=[^\s{_WIDE_STOP}」』”])"
    rf"|(?<=[{_NO_STOP}]\p{{M}}*)\s+(?=[{_NO_STOP}])"
)
WORD = regex.compile(r"\p{L}[\p{L}\p{M}'’-]*")
_LAST_WORD = regex.compile(rf"\s[«\"]?(\p{{L}}[\p{{L}}\p{{M}}'’-]*)[{_STOP}»\"]+$")
_START = regex.compile(rf"[{_INITIAL}«\"—「『¿¡]")
_END = regex.compile(rf"[{_STOP}{_WIDE_STOP}»\"」』]$|[{_NO_STOP}]\p{{M}}*$")
_TEXT_ONLY = regex.compile(
    rf"[\p{{L}}\p{{M}}\p{{N}}\s,:;«»\"'’()—–¿¡{_STOP}{_WIDE_STOP}{_COMMAS}-]+"
)


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
        length[0] <= columns(text) <= length[1]
        and _TEXT_ONLY.fullmatch(text) is not None
        and _START.match(text) is not None
        and _END.search(text) is not None
        and in_language(text, language, share=0.95)
    )


def _words(text: str) -> list[str]:
    """The words of a text; none where words have no spaces between them."""
    return [] if is_unspaced(text) else WORD.findall(text)


def _copy(text: str, _: random.Random) -> tuple[str, str]:
    return "", text


def _first_word(text: str, _: random.Random) -> tuple[str, str] | None:
    words = _words(text)
    return ("", words[0]) if len(words) >= LEAST_WORDS else None


def _last_word(text: str, _: random.Random) -> tuple[str, str] | None:
    last = _LAST_WORD.search(text)  # not a number, a bracket, or a word cut by a sign
    return ("", last[1]) if last and len(_words(text)) >= LEAST_WORDS else None


def _word_after(text: str, rng: random.Random) -> tuple[str, str] | None:
    words = _words(text)
    unique = [i for i, word in enumerate(words[:-1]) if words.count(word) == 1]
    if len(words) < LEAST_WORDS or not unique:
        return None
    position = rng.choice(unique)
    return words[position], words[position + 1]


COPIES = ("copy_sentence", "copy_paragraph")
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

    With `enough`, reading stops at that number of usable sentences and of paragraphs. Text without
    spaces between words has no tasks about words.

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
        if not new and not (task not in COPIES and any(map(is_unspaced, pool))):
            raise CorpusError(
                f"the {language} text gives no {task} item ({len(pool)} usable pieces): give more "
                f"text, or check that it is in the language '{language}'"
            )
        items += new
    if tasks and not items:
        raise CorpusError(
            f"the {language} text has no spaces between words, so it gives no item of "
            f"{', '.join(tasks)}: add {' or '.join(COPIES)}"
        )
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
